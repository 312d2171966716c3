"""Intervals and tests of scores, against closed forms and scipy."""

import math
from collections.abc import Sequence
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest

from usam.evaluation.statistics import interval, paired
from usam.metrics import Metric, build_metric


class Mean(Metric):
    """Of each text read as a number."""

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        return float(prediction), 1.0

    def of(self, total):
        return float(total[0] / total[1])


class Median(Mean):
    """No function of a sum."""

    def value(self, statistics):
        return float(np.median(statistics[:, 0]))


MEAN, MEDIAN = Mean(Mean.Config()), Median(Median.Config())


def column(values) -> np.ndarray:
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], 1)


def some(count: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    return column(np.random.default_rng(seed).normal(shift, 1, count))


# Intervals


@pytest.mark.parametrize(("metric", "statistic"), [(MEAN, np.mean), (MEDIAN, np.median)])
def test_an_interval_is_scipys_percentile_bootstrap(metric, statistic):
    bootstrap = pytest.importorskip("scipy.stats", reason="scipy is the reference, and not installed").bootstrap
    x = some(40)
    options = {"n_resamples": 500, "method": "percentile", "rng": np.random.default_rng(3), "confidence_level": 0.9}
    expected = bootstrap((x[:, 0],), statistic, **options).confidence_interval
    assert interval(metric, x, level=0.9, draws=500, seed=3) == pytest.approx(tuple(expected))


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    x = some(2000)
    low, high = interval(MEAN, x, draws=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * x[:, 0].std() / math.sqrt(2000), rel=0.06)


def test_a_ratio_of_sums_is_resampled_as_one():
    wer = build_metric("wer")
    counts = np.array([[0, 1]] * 9 + [[9, 9]])  # the mean of the samples' own rates would be 0.1
    low, high = interval(wer, counts)
    assert low == 0
    assert high > 0.6


def test_samples_that_are_alike_leave_no_doubt():
    assert interval(MEAN, column([0.3] * 7)) == pytest.approx((0.3, 0.3))


def test_a_seed_gives_the_same_interval_and_another_seed_another():
    x = some(30)
    assert interval(MEAN, x, seed=1) == interval(MEAN, x, seed=1) != interval(MEAN, x, seed=2)


def test_held_memory_changes_nothing(monkeypatch):
    x = some(30)
    expected = *interval(MEAN, x), *astuple(paired(MEAN, x, some(30, 1)))
    monkeypatch.setattr("usam.evaluation.statistics.HELD", 100)
    assert (*interval(MEAN, x), *astuple(paired(MEAN, x, some(30, 1)))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("statistics", "options", "message"),
    [
        (np.zeros((0, 2)), {}, "no samples"),
        (some(3), {"level": 95}, "level: 95 is no share"),
        (some(3), {"draws": 0}, "draws: at least 1"),
        (np.zeros(3), {}, r"\(samples, counts\), found the shape \(3,\)"),
    ],
)
def test_what_has_no_interval(statistics, options, message):
    with pytest.raises(ValueError, match=message):
        interval(MEAN, statistics, **options)


# Pairs


def every_exchange(metric, a, b) -> float:
    """The p value, by the definition."""
    seen, found = abs(metric.value(a) - metric.value(b)), []
    for swapped in product((False, True), repeat=len(a)):
        mask = np.array(swapped)[:, None]
        found.append(abs(metric.value(np.where(mask, b, a)) - metric.value(np.where(mask, a, b))))
    return float(np.mean(np.array(found) >= seen - 1e-12))


@pytest.mark.parametrize("metric", [MEAN, MEDIAN], ids=["adds up", "does not"])
@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_test_looks_at_every_exchange(metric, seed):
    a, b = some(9, seed), some(9, seed + 10, 0.5)
    found = paired(metric, a, b)
    assert found.exact
    assert found.p_permutation == pytest.approx(every_exchange(metric, a, b))


def test_word_errors_are_exchanged_with_their_lengths():
    a, b = np.array([[2, 5], [0, 4], [1, 9], [3, 3], [0, 2]]), np.array([[1, 5], [1, 5], [0, 9], [1, 3], [0, 2]])
    found = paired(build_metric("wer"), a, b)
    assert found.p_permutation == pytest.approx(every_exchange(build_metric("wer"), a, b))


def test_right_and_wrong_answers_are_mcnemars_exact_test():
    a = column([1] * 30 + [0] * 12 + [1] * 200)  # 42 differ: 2**42 exchanges, and 43 outcomes
    b = column([0] * 30 + [1] * 12 + [1] * 200)
    expected = 2 * sum(math.comb(42, k) for k in range(13)) / 2**42
    found = paired(MEAN, a, b)
    assert found.exact
    assert found.p_permutation == pytest.approx(expected)


def test_a_permutation_test_is_scipys():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference, and not installed")
    a, b = some(8), some(8, 1, 0.7)

    def difference(x, y):
        return x.mean() - y.mean()

    expected = stats.permutation_test((a[:, 0], b[:, 0]), difference, permutation_type="samples", n_resamples=np.inf)
    assert paired(MEAN, a, b).p_permutation == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("metric", [MEAN, MEDIAN], ids=["adds up", "does not"])
def test_many_different_samples_are_exchanged_at_random(metric):
    a, b = some(60), some(60, 1, 0.9)
    found = paired(metric, a, b, draws=200)
    assert not found.exact
    assert found.p_permutation == pytest.approx(1 / 201)  # that which was seen is one of them
    assert paired(metric, a, b, draws=200) == found


def test_drawn_exchanges_agree_with_every_exchange(monkeypatch):
    a, b = some(12), some(12, 1, 0.6)
    exact = paired(MEAN, a, b).p_permutation
    monkeypatch.setattr("usam.evaluation.statistics.EXACT", 2**5)
    found = paired(MEAN, a, b, draws=5000)
    assert not found.exact
    assert found.p_permutation == pytest.approx(exact, abs=0.03)


def test_a_difference_and_its_interval_are_of_the_same_samples():
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference, and not installed")
    a, b = some(40), some(40, 1, 0.3)
    found = paired(MEAN, a, b, draws=400, seed=5)
    options = {"paired": True, "n_resamples": 400, "method": "percentile", "rng": np.random.default_rng(5)}
    expected = stats.bootstrap((a[:, 0], b[:, 0]), lambda x, y: x.mean() - y.mean(), vectorized=False, **options)
    assert found.difference == pytest.approx(a[:, 0].mean() - b[:, 0].mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval))


def test_a_constant_advantage_is_certain():
    x = some(50)
    found = paired(MEAN, x + np.array([1, 0]), x, draws=999)
    assert (found.low, found.high) == pytest.approx((1, 1))
    assert found.p_bootstrap == pytest.approx(2 / 1000)


@pytest.mark.parametrize("metric", [MEAN, MEDIAN], ids=["adds up", "does not"])
@pytest.mark.parametrize("count", [1, 5, 100])
def test_a_system_is_no_better_than_itself(metric, count):
    found = paired(metric, some(count), some(count))
    assert (found.difference, found.low, found.high) == (0, 0, 0)
    assert (found.p_bootstrap, found.p_permutation, found.exact) == (1, 1, True)


def test_a_tie_is_one_however_it_came_about():
    found = paired(MEAN, column([0.1, 0.2, 0.3]), column([0.3, 0.2, 0.1]))
    assert (found.p_bootstrap, found.p_permutation) == (1, 1)


def test_the_other_way_round_is_the_same_test():
    a, b = some(30), some(30, 1, 0.4)
    one, other = paired(MEAN, a, b), paired(MEAN, b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert (one.p_bootstrap, one.p_permutation) == pytest.approx((other.p_bootstrap, other.p_permutation))


def test_a_test_of_systems_that_are_alike_rejects_seldom():
    generator = np.random.default_rng(0)
    p = []
    for _ in range(200):
        a, b = generator.normal(size=10), generator.normal(size=10)
        p.append(paired(MEAN, column(a), column(b), draws=1).p_permutation)
    assert np.mean(np.array(p) <= 0.05) <= 0.09


# Which samples


def by_sample(names: str, statistics) -> dict:
    return dict(zip(names, statistics.tolist(), strict=True))


def test_samples_find_each_other_by_their_ids():
    a, b = some(4), some(4, 1)
    assert paired(MEAN, by_sample("wxyz", a), by_sample("zyxw", b[::-1])) == paired(MEAN, a, b)


def test_other_samples_are_named():
    with pytest.raises(ValueError, match="2 of 4 samples are the first system's alone: 'w', 'x'"):
        paired(MEAN, by_sample("wxyz", some(4)), by_sample("yz", some(2)))
    with pytest.raises(ValueError, match="1 of 2 samples are the second system's alone: 'q'"):
        paired(MEAN, by_sample("y", some(1)), by_sample("yq", some(2)))


def test_as_many_samples_without_ids():
    with pytest.raises(ValueError, match=r"one shape, found \(3, 2\) and \(4, 2\)"):
        paired(MEAN, some(3), some(4))


def test_no_samples_have_no_difference():
    with pytest.raises(ValueError, match="no samples"):
        paired(MEAN, np.zeros((0, 2)), np.zeros((0, 2)))
