"""How sure a score is: its bootstrap interval, and tests of whether one system is better than another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from usam.metrics import Metric, Statistics

Floats = npt.NDArray[np.float64]

# An exact test looks at no more different outcomes than this.
EXACT = 2**14
# Differences that are smaller than this share of the values are rounding.
ROUNDING = 1e-9
# Resampled row numbers that are held at a time.
HELD = 2_000_000


@dataclass(frozen=True)
class Paired:
    """What two systems' answers to the same samples say of which is better."""

    difference: float
    """The first system's value less the second's."""
    low: float
    """The lower end of the difference's interval."""
    high: float
    """The upper end."""
    p_bootstrap: float
    """Twice the share of resamples in which the difference is gone or turned, at most 1."""
    p_permutation: float
    """The share of exchanges of the two answers, sample by sample, that leave a difference as large, either way."""
    exact: bool
    """Whether `p_permutation` is of every exchange; else it is of so many drawn ones, and of the one that was seen."""


def interval(
    metric: Metric, statistics: Statistics, *, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a corpus' value (Efron & Tibshirani, 1993, chapter 13).

    The samples are drawn with replacement, as many as there are, so that it holds what another set of samples of this
    kind would give; nothing is said of another training. Of one sample it is the value itself.

    Args:
        metric: makes a value of statistics.
        statistics: what it counted: (samples, counts).
        level: the share of resamples whose values lie within.
        draws: how many resamples.
        seed: what they are drawn with.

    Raises:
        ValueError: there are no samples, or a level or a number that is none.
    """
    _check(level, draws)
    found = _values(metric, _table(statistics), draws, seed)
    low, high = np.quantile(found, _tails(level))
    return float(low), float(high)


def paired(
    metric: Metric,
    a: Statistics | Mapping[Any, Sequence[float]],
    b: Statistics | Mapping[Any, Sequence[float]],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Paired:
    """Two systems on the same samples: the difference of their values, its interval, and two tests.

    The bootstrap draws samples, both systems' answers together (Koehn, 2004). The permutation test exchanges the two
    answers of each sample (approximate randomisation, Riezler & Maxwell, 2005): of every exchange where a corpus' value
    is a function of the sum of the counts and no more than 16,384 sums are possible, or where no more than 14 samples
    differ; else of `draws` exchanges, drawn.

    Args:
        metric: makes a value of statistics.
        a, b: what it counted in each system's answers: (samples, counts), row for row the same samples, or by sample.
        level: of the difference's interval, by percentiles.
        draws: how many resamples, and exchanges where these are drawn.
        seed: what they are drawn with.

    Raises:
        ValueError: the samples are not the same, which names those that only one has, or there are none.
    """
    _check(level, draws)
    first, second = _matched(a, b)
    values = metric.value(first), metric.value(second)
    difference = values[0] - values[1]
    least = ROUNDING * max(map(abs, values))
    found = _values(metric, first, draws, seed) - _values(metric, second, draws, seed)  # one seed: the same samples
    low, high = np.quantile(found, _tails(level))
    turned = min(int((found <= least).sum()), int((found >= -least).sum()))
    p_permutation, exact = _permuted(metric, first, second, abs(difference) - least, draws, seed)
    return Paired(difference, float(low), float(high), min(1.0, 2 * (1 + turned) / (1 + draws)), p_permutation, exact)


def _check(level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} is no share between 0 and 1, such as 0.95")
    if draws < 1:
        raise ValueError(f"draws: at least 1, found {draws}")


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _table(statistics: Any) -> Floats:
    found = np.asarray(statistics, dtype=np.float64)
    if found.ndim != 2:
        raise ValueError(f"statistics are (samples, counts), found the shape {found.shape}")
    return found


def _matched(a: Any, b: Any) -> tuple[Floats, Floats]:
    """Both systems' statistics, row for row of the same samples."""
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise ValueError("give the statistics of both systems by sample, or of both as arrays")
    if isinstance(a, Mapping):
        for mine, theirs, which in ((a, b, "first"), (b, a, "second")):
            if only := [key for key in mine if key not in theirs]:
                shown = ", ".join(map(repr, only[:5])) + ", ..." * (len(only) > 5)
                raise ValueError(f"{len(only)} of {len(mine)} samples are the {which} system's alone: {shown}")
        a, b = list(a.values()), [b[key] for key in a]
    first, second = _table(a), _table(b)
    if first.shape != second.shape:
        raise ValueError(f"statistics of the same samples have one shape, found {first.shape} and {second.shape}")
    return first, second


def _adds_up(metric: Metric) -> bool:
    return type(metric).value is Metric.value


def _values(metric: Metric, statistics: Floats, draws: int, seed: int) -> Floats:
    """The value of each resample."""
    if len(statistics) == 0:
        metric.value(statistics)  # says that there is none
    found: list[float] = []
    for rows in _resamples(len(statistics), draws, seed):
        if _adds_up(metric):
            counts = np.stack([np.bincount(own, minlength=len(statistics)) for own in rows]).astype(np.float64)
            found += [metric.of(total) for total in counts @ statistics]
        else:
            found += [metric.value(statistics[own]) for own in rows]
    return np.array(found)


def _resamples(count: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """Row numbers: (draws, count), some draws at a time."""
    generator = np.random.default_rng(seed)
    size = max(1, HELD // count)
    for first in range(0, draws, size):
        yield generator.integers(count, size=(min(size, draws - first), count))


def _permuted(metric: Metric, a: Floats, b: Floats, seen: float, draws: int, seed: int) -> tuple[float, bool]:
    """The share of exchanges whose difference is at least `seen`, and whether that is of all of them."""
    differing = np.flatnonzero((a != b).any(1))
    if len(differing) == 0:
        return 1.0, True
    if _adds_up(metric):
        apart = (a - b)[differing]
        totals = a.sum(0), b.sum(0)

        def differences(moved: Floats) -> Floats:
            return np.array([metric.of(totals[0] - own) - metric.of(totals[1] + own) for own in moved])

        if (outcomes := _sums(apart)) is not None:
            large = np.abs(differences(outcomes[0])) >= seen
            return 1.0 if large.all() else float(outcomes[1][large].sum()), True
        drawn = [differences(swapped @ apart) for swapped in _exchanges(len(differing), draws, seed)]
    else:

        def exchanged(swapped: npt.NDArray[np.bool_]) -> float:
            rows = differing[swapped]
            mine, theirs = a.copy(), b.copy()
            mine[rows], theirs[rows] = b[rows], a[rows]
            return metric.value(mine) - metric.value(theirs)

        if 2 ** len(differing) <= EXACT:
            every = [exchanged(np.array(own, dtype=bool)) for own in product((False, True), repeat=len(differing))]
            return float((np.abs(every) >= seen).mean()), True
        drawn = [np.array([exchanged(own) for own in some]) for some in _exchanges(len(differing), draws, seed)]
    large = np.abs(np.concatenate(drawn)) >= seen
    return (1 + int(large.sum())) / (1 + draws), False  # Phipson & Smyth, 2010: never 0


def _exchanges(count: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Which samples' answers are exchanged: (draws, count), some draws at a time."""
    generator = np.random.default_rng(seed)
    size = max(1, HELD // count)
    for first in range(0, draws, size):
        yield generator.random((min(size, draws - first), count)) < 0.5


def _sums(apart: Floats) -> tuple[Floats, Floats] | None:
    """What may go from one system's sum to the other's, if each row is exchanged or not, and how probable each is.

    Rows that are alike, up to the sign, are one row taken so many times: how many of them are exchanged is binomial. So
    the outcomes are few where differences are whole numbers, however many samples there are.

    Returns:
        (outcomes, counts) and (outcomes,); None where the outcomes are more than `EXACT`.
    """
    counts, apart = apart.shape[1], apart[:, moving := apart.any(0)]
    most = 64 * EXACT // apart.shape[1] ** 2  # more columns take longer to sort
    sums: Floats = np.zeros((1, apart.shape[1]))
    weights: Floats = np.ones(1)
    signs = np.array([np.sign(row[np.flatnonzero(row)[0]]) for row in apart])
    kinds, which = np.unique(apart * signs[:, None], axis=0, return_inverse=True)
    for kind, row in enumerate(kinds):
        own = signs[which.ravel() == kind]
        taken = np.arange(len(own) + 1)
        if len(sums) * len(taken) > most:
            return None
        chances = np.exp([_log_choose(len(own), int(n)) - len(own) * math.log(2) for n in taken])
        shift = taken - int((own < 0).sum())  # one with the other sign that moves is one less
        reached = (sums[:, None] + shift[:, None] * row).reshape(-1, apart.shape[1])
        sums, places = np.unique(reached, axis=0, return_inverse=True)
        weights = np.bincount(places.ravel(), (weights[:, None] * chances).ravel()).astype(np.float64)
        if len(sums) > EXACT:
            return None
    outcomes: Floats = np.zeros((len(sums), counts))
    outcomes[:, moving] = sums
    return outcomes, weights


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
