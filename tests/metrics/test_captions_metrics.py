"""Metrics of captions: values are those of pycocoevalcap and rouge-score, which tests/oracles/metrics holds."""

import json
from pathlib import Path

import pytest

from usam.metrics import build_metric
from usam.metrics._captions import ptb_like

ORACLE = json.loads((Path(__file__).parents[1] / "oracles/metrics/captions.json").read_text(encoding="utf-8"))
SAID = [answer for answer, _ in ORACLE["samples"]]
RIGHT = [right for _, right in ORACLE["samples"]]


def score(name, **options):
    return build_metric(name, **options)(SAID, RIGHT)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_coco_bleu_is_cocos(order):
    found = score("coco_bleu", order=order)
    assert found.value == pytest.approx(ORACLE["scores"][f"coco_bleu {order}"]["value"], rel=1e-12)
    assert found.each == pytest.approx(ORACLE["scores"][f"coco_bleu {order}"]["each"], rel=1e-12)


@pytest.mark.parametrize("name", ["cider_d", "coco_rouge_l", "rouge_l"])
def test_values_are_those_of_the_reference_packages(name):
    found = score(name)
    assert found.value == pytest.approx(ORACLE["scores"][name]["value"], rel=1e-12)
    assert found.each == pytest.approx(ORACLE["scores"][name]["each"], rel=1e-12)


@pytest.mark.parametrize(("text", "words"), ORACLE["words"])
def test_ptb_like_words_are_stanfords(text, words):
    if "3+4=7" in text:  # the one known difference: a sign before a number
        words = [part for word in words for part in (["+", "4"] if word == "+4" else [word])]
    assert ptb_like(text) == words


def test_the_two_rouges_are_two_metrics():
    said, right = ["a dog barks loudly"], [["the dog barks", "loudly barks a dog at night"]]
    assert build_metric("rouge_l")(said, right).value == 4 / 7  # of the first reference: 2 of 4 and of 3 words
    precision, recall = 2 / 4, 2 / 3  # the best of any reference
    assert build_metric("coco_rouge_l")(said, right).value == pytest.approx(
        2.44 * precision * recall / (recall + 1.44 * precision)
    )


def test_equally_good_references_of_rouge_are_one():
    assert build_metric("rouge_l")(["a b c"], [["a b", "b c"]]).value == 4 / 5


def test_coco_bleu_takes_the_shorter_of_two_references_that_are_equally_close():
    found = build_metric("coco_bleu", order=1)(["a b c"], [["a b c d", "a b"]])
    assert found.statistics.tolist() == [[3, 2, 3, 3]]


@pytest.mark.parametrize("name", ["rouge_l", "coco_rouge_l", "coco_bleu", "cider_d"])
def test_an_empty_caption_has_nothing_and_an_empty_reference_is_met_by_nothing(name):
    metric = build_metric(name)
    assert metric(["", "the dog barks at night"], ["a dog barks at night", "the dog barks at night"]).each[0] == 0
    assert metric(["a dog barks", "b"], ["", "b"]).each[0] == pytest.approx(0, abs=1e-9)


# CIDEr-D depends on its set


def test_cider_of_one_sample_is_nothing():
    assert build_metric("cider_d")(["a dog barks at night"], ["a dog barks at night"]).value == 0


def test_what_every_sample_has_weighs_nothing_in_cider():
    said = ["this is the sound of dogs", "this is the sound of rain"]
    right = ["this is the sound of cats", "this is the sound of snow"]
    assert build_metric("cider_d")(said, right).value == 0


def test_a_part_of_a_set_keeps_the_cider_that_it_has_in_the_set():
    metric = build_metric("cider_d")
    whole = metric(SAID, RIGHT)
    assert not metric.decomposes
    assert metric.value(whole.statistics[[0, 1]]) == pytest.approx((whole.each[0] + whole.each[1]) / 2)
    assert metric.value(whole.statistics[[0, 1]]) != pytest.approx(metric(SAID[:2], RIGHT[:2]).value, rel=1e-3)


def test_the_tokenizer_is_in_the_id():
    assert build_metric("cider_d").id == "cider_d|tokenizer:ptb_like"
    assert build_metric("coco_bleu", order=2).id == "coco_bleu|tokenizer:ptb_like|order:2"
