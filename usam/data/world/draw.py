"""What is drawn, and what only development or only test may draw.

Every clip has a stream of random numbers of its own, named by seed, split, task and number: more clips leave the first
ones as they are. `RandomState` is used because NumPy promises never to change its numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Wave = NDArray[np.float64]
Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
SAMPLE_RATE = 16000
CELLS = 20  # into which every range of a parameter is cut
HELD_OUT: dict[Split, tuple[int, ...]] = {"dev": (5, 14), "test": (2, 9, 11, 17)}  # the cells that training never sees
EDGE = 0.05  # of a cell, kept free at either side, so that rounding leads into no other


def split_of(item: str) -> Split:
    """To which split a text or a combination belongs, whatever the seed: a tenth to dev, two tenths to test."""
    tenth = int.from_bytes(hashlib.sha256(item.encode()).digest()[:8], "big") % 10
    return "dev" if tenth == 0 else "test" if tenth <= 2 else "train"


def cells(split: Split) -> tuple[int, ...]:
    """The parts of each parameter's range that a split draws from."""
    held_out = {cell for others in HELD_OUT.values() for cell in others}
    return HELD_OUT.get(split) or tuple(cell for cell in range(CELLS) if cell not in held_out)


class Draw:
    """Random numbers of one clip.

    Args:
        split: from whose cells parameters are drawn.
        name: what the stream is named by; another name, other numbers.
    """

    def __init__(self, split: Split, *name: object) -> None:
        digest = hashlib.sha256(repr((split, *name)).encode()).digest()
        self.split: Split = split
        self.params: dict[str, float] = {}
        """The parameters drawn so far, by name."""
        self._random = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))

    def afresh(self) -> Draw:
        """The same stream, with no parameters yet."""
        other = Draw.__new__(Draw)
        other.split, other.params, other._random = self.split, {}, self._random
        return other

    def between(self, name: str, low: float, high: float) -> float:
        """A parameter from the split's cells of a range, noted under its name."""
        cell = self.choice(cells(self.split))
        place = (cell + EDGE + (1 - 2 * EDGE) * self._random.random_sample()) / CELLS
        self.params[name] = float(f"{low + place * (high - low):.6g}")
        return self.params[name]

    def any(self, low: float, high: float) -> float:
        """A number from the whole range: chance, and no parameter."""
        return float(low + (high - low) * self._random.random_sample())

    def choice(self, options: Sequence[T]) -> T:
        """One of them, each as likely."""
        return options[int(self._random.random_sample() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """So many different ones, in an order of chance."""
        return [options[i] for i in self._random.permutation(len(options))[:count]]

    def noise(self, samples: int) -> Wave:
        """White noise in [-1, 1]."""
        return np.asarray(2 * self._random.random_sample(samples) - 1)
