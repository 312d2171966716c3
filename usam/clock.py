"""How many frames a stretch of audio has, in whole numbers.

Every function takes plain ints or integer tensors, so that a config, which counts placeholders, and a
module, which makes masks, use the very same arithmetic and cannot disagree by one.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

N = TypeVar("N", int, "Tensor")


def ceil_div(n: N, divisor: int) -> N:
    """`n / divisor`, rounded up."""
    return -(-n // divisor)


def ratio(target: float, source: float) -> Fraction:
    """`target / source` in lowest terms; rates such as 6.25 or 44100 are exact."""
    return Fraction(target).limit_denominator(10**6) / Fraction(source).limit_denominator(10**6)


def rescale(n: N, source: float, target: float) -> N:
    """The number of frames at rate `target` that cover `n` frames at rate `source`, rounded up."""
    step = ratio(target, source)
    return ceil_div(n * step.numerator, step.denominator)


def at_least_one(n: N) -> N:
    """`n`, or 1 where it is 0: every clip is heard as at least one token."""
    return n + (n < 1)


def whole_frames(seconds: float, rate: float) -> int:
    """Frames in a window of some seconds: rounded, half a frame up, at least one."""
    long, fast = ratio(seconds, 1), ratio(rate, 1)
    above, below = long.numerator * fast.numerator, long.denominator * fast.denominator
    return max(1, (2 * above + below) // (2 * below))
