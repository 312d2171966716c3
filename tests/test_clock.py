"""The arithmetic of time is exact, and the same for ints and for tensors."""

import math
from fractions import Fraction

import pytest
import torch

from usam.clock import at_least_one, ceil_div, ratio, rescale, whole_frames


@pytest.mark.parametrize(("n", "divisor", "groups"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_a_begun_group_counts(n, divisor, groups):
    assert ceil_div(n, divisor) == groups


@pytest.mark.parametrize(
    ("target", "source", "step"), [(16000, 44100, (160, 441)), (6.25, 50, (1, 8)), (25 / 3, 25, (1, 3))]
)
def test_ratios_are_exact(target, source, step):
    assert ratio(target, source) == Fraction(*step)


@pytest.mark.parametrize(("source", "target"), [(16000, 50), (44100, 16000), (24000, 75), (16000, 6.25)])
def test_rescale_rounds_up(source, target):
    for n in [0, 1, 319, 320, 321, 10**9 + 1]:
        assert rescale(n, source, target) == math.ceil(n * Fraction(target) / source)


def test_an_hour_is_not_off_by_one():
    assert rescale(3600 * 44100, 44100, 16000) == 3600 * 16000


@pytest.mark.parametrize("function", [lambda n: ceil_div(n, 7), lambda n: rescale(n, 44100, 16000), at_least_one])
def test_tensors_agree_with_ints(function):
    lengths = torch.tensor([0, 1, 6, 7, 8, 44100 * 3600])
    assert function(lengths).tolist() == [function(n) for n in lengths.tolist()]


def test_every_clip_is_heard():
    assert [at_least_one(n) for n in (0, 1, 2)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("seconds", "rate", "expected"),
    [
        (0.68, 25, 17),
        (0.333333, 50, 17),  # SALMONN
        (0.34, 25, 9),  # 8.5: half a frame is rounded up, to even or not
        (0.3, 25, 8),
        (0.1, 25, 3),
        (0.02, 25, 1),
        (0.001, 25, 1),
        (0.68, 6.25, 4),
        (1.2, 25 / 17, 2),
        (10.24, 100 / 16, 64),
    ],
)
def test_a_windows_frames(seconds, rate, expected):
    assert whole_frames(seconds, rate) == expected
