"""Metrics: values are those of the packages that define them, and what a corpus is made of can be resampled."""

import importlib.util
import json
import sys
from importlib.metadata import version

import jiwer
import numpy as np
import pytest
import sacrebleu
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from usam.metrics import Metric, MetricConfig, build_metric, register
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.testing import BrokenPromises, check_metric

SAID = ["the cat sat on the mat", "Hello, world!", "a b c d", "two hundred  birds"]
RIGHT = ["the cat sat on a mat", "hello world", "a x c", "two hundred birds sing"]
MORE = ["a cat is sitting on the mat", "Hello world!", "a b c", "200 birds are singing"]
CHINESE = ["二百三十四人。", "一只狗在叫"], ["二百三十五人。", "一只狗叫了两声"]


def streams(*references):
    """References as sacrebleu takes them: one list for each of a sample's."""
    return [list(stream) for stream in references]


# Error rates


def test_wer_is_jiwers():
    assert build_metric("wer")(SAID, RIGHT).value == jiwer.wer(RIGHT, SAID)


def test_cer_is_jiwers():
    assert build_metric("cer")(SAID, RIGHT).value == jiwer.cer(RIGHT, SAID)


def test_wer_counts_errors_and_words_of_each_sample():
    found = build_metric("wer")(["a b c", "a x", "b"], ["a b c", "a b", "a b c"])
    assert found.statistics.tolist() == [[0, 3], [1, 2], [2, 3]]
    assert found.value == 3 / 8
    assert found.each == (0, 1 / 2, 2 / 3)


@pytest.mark.parametrize(
    ("name", "normalise"), [("basic", BasicTextNormalizer()), ("english", EnglishTextNormalizer({}))]
)
def test_normalisers_are_whispers(name, normalise):
    said, right = ["Mr. Park's 20 dogs [barking], can't they?"], ["mister park has twenty dogs can not they"]
    found = build_metric("wer", normalizer=name)(said, right).value
    assert found == jiwer.wer([normalise(right[0])], [normalise(said[0])])


def test_english_takes_whispers_map_of_spellings(tmp_path):
    (tmp_path / "normalizer.json").write_text(json.dumps({"colour": "color"}))
    mapped = build_metric("wer", normalizer="english", spelling=str(tmp_path / "normalizer.json"))
    plain = build_metric("wer", normalizer="english")
    assert mapped(["the colour"], ["the color"]).value == 0
    assert plain(["the colour"], ["the color"]).value == 1 / 2
    assert "|spelling:none|" in plain.id
    assert mapped.id != plain.id


def test_a_map_of_spellings_that_is_none_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"spelling: .*gone.json is no map of spellings"):
        build_metric("wer", normalizer="english", spelling=str(tmp_path / "gone.json"))
    with pytest.raises(SpecError, match="spelling: means nothing to normalizer: basic"):
        build_metric("wer", normalizer="basic", spelling="a.json")


def test_of_several_references_wer_takes_the_one_with_the_fewest_errors():
    found = build_metric("wer")(["a b c", "x"], [["a b d e", "a b c d"], "x y"])
    assert found.statistics.tolist() == [[1, 4], [1, 2]]


def test_of_equally_good_references_wer_takes_the_longest():
    assert build_metric("wer")(["a b"], [["b", "a b c"]]).value == 1 / 3


def test_what_is_said_where_nothing_should_be_counts_as_errors():
    metric = build_metric("wer")
    assert metric(["uh um", "a b c d"], ["", "a b c d"]).value == 2 / 4
    assert metric(["uh um"], [""]).value == 2
    assert metric([""], [""]).value == 0
    assert build_metric("cer")([" ab "], [" "]).value == 2


def test_an_empty_answer_lacks_every_word():
    assert build_metric("wer")([""], ["a b c"]).value == 1


# sacrebleu


@pytest.mark.parametrize("options", [{}, {"lowercase": True}, {"tokenize": "char"}, {"smooth_method": "floor"}])
def test_bleu_is_sacrebleus(options):
    found = build_metric("bleu", **options)(SAID, list(zip(RIGHT, MORE, strict=True)))
    assert found.value == sacrebleu.BLEU(**options).corpus_score(SAID, streams(RIGHT, MORE)).score


def test_bleu_by_hand():
    found = build_metric("bleu", tokenize="none", max_ngram_order=2, smooth_method="none")
    score = found(["a b c d"], ["a b c e f"])  # 3 of 4 words, 2 of 3 pairs, 4 words for 5
    assert score.value == pytest.approx(100 * np.exp(1 - 5 / 4) * np.sqrt(3 / 4 * 2 / 3))


def test_bleu_knows_chinese():
    said, right = CHINESE
    found = build_metric("bleu", tokenize="zh")(said, right).value
    assert found == sacrebleu.BLEU(tokenize="zh").corpus_score(said, streams(right)).score
    assert found > build_metric("bleu")(said, right).value


@pytest.mark.parametrize("options", [{}, {"word_order": 2}, {"lowercase": True, "beta": 1}, {"whitespace": True}])
def test_chrf_is_sacrebleus(options):
    found = build_metric("chrf", **options)(SAID, list(zip(RIGHT, MORE, strict=True)))
    assert found.value == pytest.approx(sacrebleu.CHRF(**options).corpus_score(SAID, streams(RIGHT, MORE)).score)


def test_a_sample_may_have_more_references_than_another():
    right = [[RIGHT[0], MORE[0]], *([text] for text in RIGHT[1:])]
    direct = sacrebleu.BLEU().corpus_score(SAID, [RIGHT, [MORE[0], None, None, None]]).score
    assert build_metric("bleu")(SAID, right).value == direct


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="MeCab is installed")
def test_a_tokenizer_that_is_not_installed_says_what_to_install():
    with pytest.raises(SpecError, match=r"tokenize: ja-mecab cannot be used here: .*pip install sacrebleu\[ja\]"):
        build_metric("bleu", tokenize="ja-mecab")


@pytest.mark.parametrize("wrong", ["cn", "chinese", "ZH"])
def test_a_wrong_language_is_refused_with_those_that_are_known(wrong):
    with pytest.raises(SpecError, match=r"tokenize: .*'13a', 'intl', 'zh'"):
        build_metric("bleu", tokenize=wrong)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_an_empty_answer_or_reference_shares_no_n_gram(name):
    metric = build_metric(name)
    assert metric(["", "a dog barks now"], ["a dog barks now", ""]).each == (0, 0)


# Every metric


@pytest.mark.parametrize("name", ["wer", "cer", "bleu", "chrf"])
def test_a_resample_has_the_value_that_its_texts_have(name):
    metric = build_metric(name)
    whole = metric(SAID, RIGHT)
    rows = [3, 0, 0, 2]
    again = metric([SAID[i] for i in rows], [RIGHT[i] for i in rows])
    assert metric.value(whole.statistics[rows]) == pytest.approx(again.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([], []), "there are no samples to compare"),
        ((["a"], ["a", "b"]), "1 predictions and 2 references: give one for each sample"),
        ((["a"], ["a"], ["x", "y"]), "1 predictions and 2 ids"),
        ((["a", "b"], ["a", "b"], ["x", "x"]), "two samples have the id 'x'"),
        ((["a", "b"], ["a", []], ["x", "y"]), "sample 'y' has no reference"),
        ((["a", None], ["a", "b"]), "sample 1: its prediction is None, and no text"),
        (("a b", ["a b"]), "predictions are a list of texts"),
        ((["a b"], "a b"), "references are a list"),
    ],
)
def test_what_is_no_corpus_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        build_metric("wer")(*given)


def test_an_unknown_option_is_refused():
    with pytest.raises(SpecError, match=r"normaliser: .*did you mean 'normalizer'"):
        build_metric("wer", normaliser="basic")


def test_an_id_has_options_and_versions():
    assert build_metric("wer").id == f"wer|normalizer:none|jiwer:{version('jiwer')}"
    assert build_metric("bleu", tokenize="zh").id == (
        f"bleu|case:mixed|eff:no|tok:zh|smooth:exp|max_ngram_order:4|sacrebleu:{sacrebleu.__version__}"
    )


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(ComponentError, match=r"jiwer is not installed: pip install 'usam\[metrics\]'"):
        build_metric("wer")


@register("median_length")
class MedianLength(Metric):
    """The median of how much too long or too short answers are."""

    higher_is_better = False
    unit = "characters"
    bounds = (0.0, float("inf"))

    def statistics(self, prediction, references):
        return [min(abs(len(prediction) - len(text)) for text in references)]

    def value(self, statistics):
        if len(statistics) == 0:
            raise ValueError("no samples")
        return float(np.median(statistics[:, 0]))


def test_a_metric_of_ones_own_that_does_not_add_up_keeps_the_promises():
    assert len(check_metric("median_length").kept) == 12


class _Length(Metric):
    """How many characters are too many or too few: kept whole, and broken in one way by each that follows."""

    higher_is_better = False
    unit = "characters"
    bounds = (0.0, float("inf"))

    def statistics(self, prediction, references):
        return [min(abs(len(prediction) - len(text)) for text in references), 1.0]

    def of(self, total):
        return float(total[0] / total[1])


@register("looks_at_the_first")
class LooksAtTheFirst(_Length):
    """Only the first reference counts."""

    def statistics(self, prediction, references):
        return super().statistics(prediction, references[:1])


@register("counts_calls")
class CountsCalls(_Length):
    """Remembers what it was asked before."""

    calls = 0

    def statistics(self, prediction, references):
        self.calls += 1
        return [super().statistics(prediction, references)[0] + self.calls, 1.0]


@register("divides_by_nothing")
class DividesByNothing(_Length):
    """Has no value where the reference is empty."""

    def statistics(self, prediction, references):
        return [super().statistics(prediction, references)[0] / (len(references[0]) or float("nan")), 1.0]


@register("wrong_way")
class WrongWay(_Length):
    """Says that longer differences are better."""

    higher_is_better = True


@register("silent_option")
class SilentOption(_Length):
    """Does not say its option in its id."""

    class Config(MetricConfig):
        """With one option."""

        lowercase: bool = False
        """Compare without case."""

    @property
    def id(self):
        return self.name


@pytest.mark.parametrize(
    ("name", "promise"),
    [
        ("looks_at_the_first", "ignores_the_order_of_references"),
        ("counts_calls", "is_deterministic"),
        ("divides_by_nothing", "takes_empty_texts"),
        ("wrong_way", "a_perfect_answer_is_best"),
        ("silent_option", "its_id_has_its_options"),
    ],
)
def test_a_broken_promise_is_named(name, promise):
    with pytest.raises(BrokenPromises, match=promise):
        check_metric(name)
