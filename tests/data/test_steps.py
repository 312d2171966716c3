"""Steps have the same rows, whatever processes and accumulation they are dealt out to."""

import pytest

from usam.data.steps import Steps


def rows_of_steps(batches, together):
    return [{row for batch in batches[i : i + together] for row in batch} for i in range(0, len(batches), together)]


@pytest.mark.parametrize("count", range(1, 20))
def test_every_row_comes_and_every_step_has_as_many_batches(count):
    steps = Steps(range(count), 2, 3)
    batches = list(steps)
    assert len(batches) == len(steps) == 3 * -(-count // 6)
    assert {row for batch in batches for row in batch} == set(range(count))
    assert sum(map(len, batches)) == max(count, count - count % 6 + 3 * (count % 6 > 0))


def test_whole_steps_are_in_the_samplers_order():
    assert list(Steps([3, 1, 2, 0, 5, 4], 1, 2)) == [[3], [1], [2], [0], [5], [4]]


def test_the_rows_of_the_last_step_are_dealt_out_evenly():
    assert list(Steps(range(7), 2, 2)) == [[0, 1], [2, 3], [4, 5], [6]]
    assert list(Steps(range(6), 2, 2)) == [[0, 1], [2, 3], [4], [5]]


def test_too_few_rows_for_a_step_come_again():
    assert list(Steps(range(5), 1, 4)) == [[0], [1], [2], [3], [4], [4], [4], [4]]


def test_the_last_step_may_be_left_out():
    steps = Steps(range(7), 2, 2, drop_last=True)
    assert list(steps) == [[0, 1], [2, 3]]
    assert len(steps) == 2


@pytest.mark.parametrize("count", [5, 8, 11])
def test_the_rows_of_a_step_depend_on_the_rows_of_its_batches_together(count):
    """Two rows for each of two batches, or one for each of four."""
    few, many = list(Steps(range(count), 2, 2)), list(Steps(range(count), 1, 4))
    assert rows_of_steps(few, 2) == rows_of_steps(many, 4)
