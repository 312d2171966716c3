"""The metric keeps usam's promises, counts as can be counted by hand, and says where the errors are."""

import pytest
from usam_kaldialign import NOTHING, shown

from usam.metrics import build_metric
from usam.testing import metric_promises

SAID, HEARD = "the cat sat on the mat", "the cat sits on mat now"


@pytest.mark.parametrize("promise", metric_promises("word_errors"), ids=str)
def test_it_keeps_its_promises(promise):
    promise()


def test_errors_are_counted_by_kind():
    score = build_metric("word_errors")([HEARD, SAID], [SAID, SAID])
    assert score.statistics.tolist() == [[1, 1, 1, 6], [0, 0, 0, 6]]
    assert score.value == 3 / 12
    assert score.details == {"substitutions": 1 / 12, "deletions": 1 / 12, "insertions": 1 / 12}


def test_each_error_has_its_place():
    pairs = build_metric("word_errors").alignment(HEARD, [SAID])
    assert pairs[2:] == [("sat", "sits"), ("on", "on"), ("the", NOTHING), ("mat", "mat"), (NOTHING, "now")]
    assert shown(pairs) == "the cat (sat->sits) on (the->*) mat (*->now)"


def test_the_alignment_is_with_the_reference_that_counts():
    pairs = build_metric("word_errors").alignment("a dog", ["two cats", "a dog barks"])
    assert shown(pairs) == "a dog (barks->*)"


def test_sclite_would_rather_replace_one_and_leave_one_out_than_replace_two():
    """`b c` for `a b`: two replaced cost 8, one left out and one put in 6."""
    plain, sclite = (build_metric("word_errors", sclite_mode=mode) for mode in (False, True))
    assert shown(sclite.alignment("b c", ["a b"])) == "(a->*) b (*->c)"
    assert plain.id != sclite.id
