"""Metrics of labels: exact match, F1, average precision, multiple choice."""

import json
from pathlib import Path

import pytest

from usam.metrics import build_metric
from usam.spec.page import SpecError

ORACLE = json.loads((Path(__file__).parents[1] / "oracles/metrics/captions.json").read_text(encoding="utf-8"))
CHOICES = ["a dog", "rain", "heavy rain", "a dog barking"]


# Accuracy


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({}, [1, 0, 0, 0]),
        ({"lowercase": True}, [1, 1, 0, 0]),
        ({"punctuation": False}, [1, 0, 1, 0]),
        ({"strip": False}, [0, 0, 0, 0]),
        ({"lowercase": True, "punctuation": False}, [1, 1, 1, 0]),
    ],
)
def test_accuracy_compares_what_its_options_leave(options, right):
    found = build_metric("accuracy", **options)(
        [" Rain  falls ", "rain falls", "Rain falls!", "Rain"], ["Rain falls"] * 4
    )
    assert list(found.each) == right
    assert found.value == sum(right) / 4


def test_accuracy_takes_any_reference_and_composed_characters_for_decomposed_ones():
    assert build_metric("accuracy")(["Cafe\u0301", "x"], [["tea", "Caf\u00e9"], ["y", "x"]]).value == 1


def test_an_empty_answer_is_right_where_a_reference_is_empty():
    assert build_metric("accuracy")(["", " ", "", "a"], ["", "", "a", ""]).each == (1, 1, 0, 0)


def test_accuracys_id_has_its_options():
    assert build_metric("accuracy", lowercase=True).id == "accuracy|strip:True|lowercase:True|punctuation:True"


# F1


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_f1_is_scikit_learns(average):
    texts = ORACLE["labels"]
    found = build_metric("f1", average=average, labels=texts["labels"])(texts["said"], texts["right"])
    assert found.value == pytest.approx(ORACLE["scores"][f"f1 {average}"])
    assert found.details == {"unparsed": 1 / 7}


def test_micro_f1_of_single_labels_is_their_accuracy_also_with_labels_that_are_none():
    texts = ORACLE["labels"]
    for labels in (None, texts["labels"]):
        assert build_metric("f1", labels=labels)(texts["said"], texts["right"]).value == 4 / 7


def test_f1_of_several_labels_by_hand():
    metric = build_metric("f1", separator=",", lowercase=True)
    found = metric(["Dog, rain, rain", "car"], ["rain, dog, speech", ""])
    assert found.statistics.tolist() == [[2, 0, 1], [0, 1, 0]]
    assert found.value == 2 * 2 / (2 * 2 + 1 + 1)


def test_f1_of_nothing_where_nothing_should_be_is_perfect():
    assert build_metric("f1")([""], [""]).value == 1
    assert build_metric("f1")([""], ["dog"]).value == 0


def test_of_equally_wrong_references_f1_takes_the_one_with_more_labels():
    found = build_metric("f1", separator=",")(["a, b"], [["a", "a, b, c"]])
    assert found.statistics.tolist() == [[2, 0, 1]]


def test_f1_says_what_labels_it_misses():
    with pytest.raises(SpecError, match="labels: average: macro needs them"):
        build_metric("f1", average="macro")
    with pytest.raises(SpecError, match=r"labels: two of .* are the same"):
        build_metric("f1", labels=["Dog", "dog"], lowercase=True)
    with pytest.raises(ValueError, match=r"sample 'x': its reference 'cat' is none of the labels \['dog', 'rain'\]"):
        build_metric("f1", labels=["dog", "rain"])(["dog"], ["cat"], ids=["x"])


def test_token_f1_is_squads():
    metric = build_metric("token_f1")
    found = metric(["The cat, that sat", "an", "", "dog"], [["a cat sat!", "x"], "the", "", "cat"])
    assert found.each == (2 * 2 / (3 + 2), 1, 1, 0)


# Average precision


def test_average_precision_of_whole_rankings_is_scikit_learns():
    samples = ORACLE["ranked"]["samples"]
    found = build_metric("map")([answer for answer, _ in samples], [right for _, right in samples])
    assert found.each == pytest.approx(ORACLE["ranked"]["each"])


def test_a_label_that_is_left_out_or_said_again_adds_nothing():
    found = build_metric("map")(["rain, rain, dog", "rain"], ["dog, rain", "dog, rain"])
    assert found.each == (1, 1 / 2)


def test_the_order_of_labels_is_their_rank():
    assert build_metric("map")(["dog, rain", "rain, dog"], ["dog", "dog"]).each == (1, 1 / 2)


def test_no_label_is_met_by_no_label():
    assert build_metric("map")(["", "dog", ""], ["", "", "dog"]).each == (1, 0, 0)


# Multiple choice


def read(parser, answer, choices=CHOICES):
    """The choice that an answer is read as; None where it cannot be read."""
    metric = build_metric("multiple_choice", parser=parser, choices=choices)
    hits = [choice for choice in choices if metric([answer], [choice]).value]
    unparsed = metric([answer], [choices[0]]).details["unparsed"]
    assert bool(hits) != bool(unparsed)
    return hits[0] if hits else None


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "rain"),
        ("b", "rain"),
        ("(B)", "rain"),
        (" b. ", "rain"),
        ("Rain.", "rain"),
        ("(B) rain", "rain"),
        ("B: Rain.", "rain"),
        ("a dog", "a dog"),
        ("(B) heavy rain", None),  # letter and text name two
        ("E", None),
        ("It is rain", None),
        ("B or C", None),
        ("", None),
    ],
)
def test_strict_takes_a_letter_or_a_text_and_nothing_else(answer, choice):
    assert read("strict", answer) == choice


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B) rain, for there are drops", "rain"),
        ("The answer is B because of the drops", "rain"),
        ("Answer: (C)", "heavy rain"),
        ("the correct option is **D**.", "a dog barking"),
        ("I hear drops.\nB", "rain"),
        ("The sound is (B).", "rain"),
        ("**B**", "rain"),
        ("答案是B。", "rain"),
        ("D major", None),
        ("b", "rain"),
        ("A dog barks", None),  # an article
        ("The answer is A dog", None),
        ("The answer is A.", "a dog"),
        ("(A) or (B)", None),
        ("B. No, the answer is C", None),
        ("E.g. a dog", None),
        ("(F)", None),
        ("rain", None),
        ("", None),
    ],
)
def test_letter_takes_the_one_letter_that_is_given_for_an_answer(answer, choice):
    assert read("letter", answer) == choice


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("I hear rain and then a dog", "rain"),
        ("there is heavy rain", "heavy rain"),  # begins before `rain`
        ("A dog barking in the rain", "a dog barking"),  # begins where `a dog` does, and is longer
        ("brainy dogs", None),
        ("B", None),
        ("", None),
    ],
)
def test_first_mention_takes_the_first_choice_and_of_one_place_the_longest(answer, choice):
    assert read("first_mention", answer) == choice


def test_first_mention_knows_writings_without_spaces():
    assert read("first_mention", "我听到狗叫和下雨", ["下雨", "狗叫"]) == "狗叫"


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("It is heavy: rain", "heavy rain"),
        ("rain", "rain"),
        ("a dog, or rain", None),
        ("cat", None),
        ("", None),
    ],
)
def test_words_takes_the_choice_whose_words_alone_are_there(answer, choice):
    assert read("words", answer) == choice


def test_choices_come_with_each_sample():
    metric = build_metric("multiple_choice")
    extra = [{"x_choices": ["dog", "cat"]}, {"x_choices": ["cat", "dog", "rain"], "meta": 1}, {"x_choices": ["a", "b"]}]
    found = metric(["A", "A", "who knows"], ["dog", "B", "a"], extra=extra)
    assert found.each == (1, 0, 0)
    assert found.statistics[:, 1].tolist() == [0, 0, 1]
    assert found.details == {"unparsed": 1 / 3}


def test_choices_may_have_their_letters_before_them():
    metric = build_metric("multiple_choice", choices=["(A) dog", "(B) cat"])
    assert metric(["cat", "(B) cat"], ["(B) cat", "cat"]).value == 1


def test_a_text_goes_before_a_letter_in_references_and_an_answer_that_may_be_both_is_unread():
    metric = build_metric("multiple_choice", choices=["B", "A"])
    found = metric(["B. A", "(A) B", "A"], ["A", "B", "A"])
    assert found.each == (1, 1, 0)
    assert found.statistics[:, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (None, "multiple_choice reads the column 'x_choices' of each sample: give them as extra"),
        ([{}], "sample 'q7': multiple_choice reads its column 'x_choices', which it does not have"),
        ([{}, {}], "1 predictions and 2 extra: give one for each sample"),
        ([{"x_choices": "dog, cat"}], "sample 'q7': choices are a list of texts, found 'dog, cat'"),
        ([{"x_choices": ["dog"]}], "sample 'q7': there are 1 choices: write 2 to 26"),
        ([{"x_choices": ["dog", "Dog "]}], "sample 'q7': two choices are the same"),
        ([{"x_choices": ["cat", "cow"]}], "sample 'q7': its reference 'dog' is none of the choices"),
    ],
)
def test_choices_that_are_none_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        build_metric("multiple_choice")(["dog"], ["dog"], ids=["q7"], extra=extra)


def test_choices_for_all_samples_are_checked_at_once():
    with pytest.raises(SpecError, match="choices: two choices are the same"):
        build_metric("multiple_choice", choices=["yes", "Yes"])
