"""Batches within a budget: what they hold, that every row comes once, and that their order can be foretold."""

import math

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler

from usam.data.sampling import Budget, BudgetSampler, Length

BUDGET = Budget(seconds=80, tokens=1600)


def mixed(count, seed=0):
    """Log-normal clips of 0.5 to 30 s, and answers whose length mostly follows them."""
    random = np.random.default_rng(seed)
    seconds = random.lognormal(math.log(4), 0.9, count).clip(0.5, 30)
    tokens = np.ceil(15 * seconds * random.lognormal(0, 0.1, count) + random.integers(10, 40, count))
    return [Length(tokens=int(t), seconds=float(s)) for s, t in zip(seconds, tokens, strict=True)]


def batches(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def held(lengths, batch):
    """Seconds and tokens of a batch, its padding included."""
    rows = [lengths[i] for i in batch]
    seconds = sum(row.clips for row in rows) * max(row.seconds for row in rows)
    return seconds, sum(row.rows for row in rows) * max(row.tokens for row in rows)


@pytest.mark.parametrize("count", [1, 2, 17, 1000])
@pytest.mark.parametrize("together", [1, 4])
def test_every_row_comes_once_in_an_epoch(count, together):
    sampler = BudgetSampler(mixed(count), BUDGET, together=together)
    for epoch in range(3):
        rows = [i for batch in batches(sampler, epoch) for i in batch]
        assert sorted(set(rows)) == list(range(count))
        assert len(rows) == count or count < together


@pytest.mark.parametrize("budget", [Budget(seconds=80), Budget(tokens=900), BUDGET, Budget(80, 1600, rows=5)])
def test_no_batch_is_larger_than_the_budget(budget):
    lengths = mixed(1000)
    for batch in BudgetSampler(lengths, budget):
        seconds, tokens = held(lengths, batch)
        assert seconds <= (budget.seconds or math.inf)
        assert tokens <= (budget.tokens or math.inf)
        assert len(batch) <= (budget.rows or math.inf)


def test_clips_and_rows_of_a_chat_are_all_padded():
    lengths = [Length(tokens=10 + i % 3, seconds=1 + i % 4, clips=1 + i % 2, rows=1 + i % 3) for i in range(60)]
    for batch in BudgetSampler(lengths, Budget(seconds=20, tokens=80)):
        seconds, tokens = held(lengths, batch)
        assert seconds <= 20
        assert tokens <= 80


def test_little_is_padding_and_the_budget_is_used():
    lengths = mixed(5000)
    sampler = BudgetSampler(lengths, BUDGET)
    seconds, silence, tokens, filler = np.sum([sampler.padding(batch) for batch in sampler], axis=0)
    assert silence < 0.05 * (seconds + silence)
    assert filler < 0.05 * (tokens + filler)
    used = [max(s / BUDGET.seconds, t / BUDGET.tokens) for s, t in (held(lengths, batch) for batch in sampler)]
    assert np.mean(used) > 0.8


def test_padding_is_what_is_not_held():
    lengths = [Length(tokens=10, seconds=1.0), Length(tokens=30, seconds=4.0), Length(tokens=5, seconds=2.0, clips=2)]
    assert BudgetSampler(lengths, BUDGET).padding([0, 1, 2]) == (9.0, 7.0, 45.0, 45.0)


def test_text_alone_has_tokens_and_no_seconds():
    lengths = [Length(tokens=10 + i, clips=0) for i in range(100)]
    rows = [i for batch in BudgetSampler(lengths, BUDGET) for i in batch]
    assert sorted(rows) == list(range(100))


# The order


def test_seed_and_epoch_alone_make_the_order():
    lengths = mixed(500)
    one, other = BudgetSampler(lengths, BUDGET, seed=3), BudgetSampler(lengths, BUDGET, seed=3)
    for epoch in range(4):
        batches(other, epoch)
    assert batches(one, 2) == batches(other, 2)
    assert batches(one, 2) != batches(one, 1)
    assert batches(one, 2) != batches(BudgetSampler(lengths, BUDGET, seed=4), 2)


def test_an_epoch_brings_other_rows_together():
    sampler = BudgetSampler(mixed(500), BUDGET)
    first, second = ({frozenset(batch) for batch in batches(sampler, epoch)} for epoch in (0, 1))
    assert len(first & second) < 0.1 * len(first)


@pytest.mark.parametrize("count", [3, 40, 1000])
def test_every_epoch_has_as_many_batches(count):
    sampler = BudgetSampler(mixed(count), BUDGET, together=2)
    assert {len(batches(sampler, epoch)) for epoch in range(20)} == {len(sampler)}
    assert len(sampler) % 2 == 0


def steps(lengths, processes, accumulated):
    """What each step learns from: the rows of all its batches."""
    shards = []
    for process in range(processes):
        sampler = BudgetSampler(lengths, BUDGET, seed=1, together=processes * accumulated)
        shards.append(list(BatchSamplerShard(sampler, processes, process)))
    assert len({len(shard) for shard in shards}) == 1
    starts = range(0, len(shards[0]), accumulated)
    return [sorted(sorted(batch) for shard in shards for batch in shard[i : i + accumulated]) for i in starts]


@pytest.mark.parametrize("count", [3, 500, 501, 503])
def test_processes_and_accumulation_make_the_same_steps(count):
    lengths = mixed(count)
    alone = steps(lengths, 1, 4)
    assert all(len(step) == 4 for step in alone)
    assert steps(lengths, 2, 2) == alone
    assert steps(lengths, 4, 1) == alone


def test_steps_of_more_batches_leave_the_order_as_it_is_but_for_its_end():
    lengths = mixed(500)
    one, three = (batches(BudgetSampler(lengths, BUDGET, together=together)) for together in (1, 3))
    assert one[: len(one) - 3] == three[: len(one) - 3]


def test_batches_that_are_skipped_change_nothing_of_those_that_follow():
    sampler = BudgetSampler(mixed(500), BUDGET)
    assert list(SkipBatchSampler(sampler, 7)) == batches(sampler)[7:]


# Fairness


def test_any_stretch_of_batches_has_the_tasks_that_the_data_have():
    random = np.random.default_rng(0)
    tagged = random.random(4000) < 0.3  # long clips with short answers; the others the other way round
    seconds = np.where(tagged, random.uniform(9, 11, 4000), random.uniform(1, 8, 4000))
    lengths = [
        Length(tokens=40 if t else int(40 + 20 * s), seconds=float(s)) for t, s in zip(tagged, seconds, strict=True)
    ]
    some = batches(BudgetSampler(lengths, BUDGET))
    expected = sum(seconds[tagged]) / sum(seconds)
    for start in range(0, len(some) - 32, 32):
        rows = [i for batch in some[start : start + 32] for i in batch]
        assert sum(seconds[i] for i in rows if tagged[i]) / sum(seconds[rows]) == pytest.approx(expected, abs=0.12)


def test_tasks_of_one_length_share_batches():
    lengths = [Length(tokens=50, seconds=5.0)] * 400
    full = [batch for batch in BudgetSampler(lengths, BUDGET) if len(batch) == 16]
    assert len(full) > 15
    assert all(0 < sum(i % 2 for i in batch) < 16 for batch in full)


# The largest batches, and what does not fit


def test_no_batch_is_larger_than_the_largest_that_are_tried():
    lengths = mixed(500)
    sampler = BudgetSampler(lengths, BUDGET)
    tried = sampler.largest()
    assert all(held(lengths, batch)[0] <= 80 and held(lengths, batch)[1] <= 1600 for batch in tried)
    for epoch in range(5):
        for batch in batches(sampler, epoch):
            assert len(batch) <= max(map(len, tried))
            assert max(lengths[i].seconds for i in batch) <= max(lengths[i].seconds for t in tried for i in t)
            assert max(lengths[i].tokens for i in batch) <= max(lengths[i].tokens for t in tried for i in t)


def test_the_longest_clips_are_tried_together():
    lengths = [Length(tokens=20, seconds=float(s)) for s in range(1, 31)]
    longest = BudgetSampler(lengths, Budget(seconds=90)).largest()[0]
    assert sorted(lengths[i].seconds for i in longest) == [28, 29, 30]


def test_the_option_that_a_batch_fills_most_is_named():
    sampler = BudgetSampler([Length(tokens=50, seconds=9.0)] * 9, Budget(seconds=30, tokens=400))
    assert sampler.fullest([0, 1, 2]) == "data.batch_seconds"
    sampler = BudgetSampler([Length(tokens=50, seconds=1.0)] * 9, Budget(seconds=30, tokens=400))
    assert sampler.fullest([0, 1, 2]) == "data.batch_tokens"


@pytest.mark.parametrize("lengths", [[Length(10, seconds=81.0)], [Length(1601)]])
def test_a_row_that_is_larger_than_the_budget_is_an_error(lengths):
    with pytest.raises(ValueError, match="row 1 is larger than the budget"):
        BudgetSampler([Length(5), *lengths], BUDGET)


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        BudgetSampler([], BUDGET)
