"""Answers are read as benchmarks' own scripts read them: by hand, from what these scripts say."""

import pytest

from usam.metrics import build_metric

CHOICES = ["A dog", "Rain", "Two dogs", "The rain stops"]


def read(rule, answer, right="A dog", choices=CHOICES):
    """Whether it is right; None where it could not be read."""
    score = build_metric("benchmark_choice", rule=rule)([answer], [right], extra=[{"x_choices": choices}])
    return None if score.details["unparsed"] else bool(score.value)


@pytest.mark.parametrize(
    ("answer", "right", "found"),
    [
        ("A dog", "A dog", True),
        ("I hear a DOG.", "A dog", True),
        ("(A) a dog", "A dog", True),
        ("dog", "A dog", False),  # not all of its words
        ("a dog or two", "A dog", False),  # a word that only others have
        ("It is the rain", "Rain", False),  # likewise
        ("Rain", "Rain", True),
        ("The rain stops", "The rain stops", True),
        ("", "A dog", None),
        ("...", "A dog", None),
    ],
)
def test_words_as_mmau_compares_them(answer, right, found):
    assert read("mmau", answer, right) is found


def test_mmau_needs_no_reference_among_its_choices():
    assert read("mmau", "a cat", "A cat") is True


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A", True),
        ("A. A dog", True),
        ("B", False),
        ("Answer: B", True),  # its first letter is an A, so that is what the script reads
        ("The answer is A.", True),
        ("The answer is\nB.", False),
        ("it is A", None),  # the letter stands last, not last but one
        ("a dog", None),
        ("None", None),
        ("", None),
    ],
)
def test_letters_as_air_bench_finds_them(answer, found):
    assert read("air_bench", answer) is found


def test_air_bench_does_not_count_what_it_cannot_read():
    metric = build_metric("benchmark_choice", rule="air_bench")
    score = metric(["A", "no idea", "B"], ["A dog"] * 3, extra=[{"x_choices": CHOICES}] * 3)
    assert score.value == 0.5
    assert score.details == {"unparsed": pytest.approx(1 / 3)}
    assert metric(["no idea"], ["A dog"], extra=[{"x_choices": CHOICES}]).value == 0


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("A", True),
        ("(A)", True),
        ("The correct answer is: A", True),
        ("Between B and C. The correct answer is: (A) A dog", True),
        ("B", False),
        ("A dog", True),  # its capital letter is an A
        ("a dog", True),
        ("it rains: rain", False),
        ("A or B", None),
        ("nothing of these", None),
    ],
)
def test_answers_as_muchomusic_extracts_them(answer, found):
    assert read("muchomusic", answer) is found


@pytest.mark.parametrize("rule", ["air_bench", "muchomusic"])
def test_a_reference_that_is_no_choice(rule):
    with pytest.raises(ValueError, match=r"sample 0: its reference 'A cat' is none of the choices"):
        read(rule, "A", "A cat")


def test_choices_that_are_missing():
    with pytest.raises(ValueError, match="choices are a list of texts, found 'A dog'"):
        read("mmau", "A", choices="A dog")
