"""FENSE says which files it lacks, and is computed from files in its own layouts."""

import json

import pytest
import torch
from transformers import AutoModel, BertConfig, BertTokenizerFast

from usam.metrics import build_metric
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.testing import check_metric

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "barks", "the", "rain", "falls", "and", "twice"]
SAID, RIGHT = ["a dog barks", "the rain falls", ""], [["the dog barks twice", "a dog"], ["rain falls"], ["a dog"]]


def bert(folder, seed):
    """A tiny BERT with its tokenizer in a folder, as transformers saves them."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = AutoModel.from_config(BertConfig(vocab_size=len(WORDS), initializer_range=0.5, **sizes)).eval()
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture
def files(tmp_path):
    """A model of sentences, an error detector that never finds one, and where they lie."""
    sentences, encoder, errors = tmp_path / "sbert", tmp_path / "bert", tmp_path / "echecker.ckpt"
    model, tokenizer = bert(sentences, 0)
    (sentences / "1_Pooling").mkdir()
    (sentences / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    detector, _ = bert(encoder, 1)
    detect(errors, detector, -50.0)
    return {"sentences": str(sentences), "errors": str(errors), "encoder": str(encoder)}, model, tokenizer, detector


def detect(file, encoder, bias):
    """A detector's file; the last class is `error`."""
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    state |= {"clf.weight": torch.zeros(5, 16), "clf.bias": torch.tensor([9.0, 9.0, 9.0, 9.0, bias])}
    torch.save({"model_type": "bert-base-uncased", "num_classes": 5, "state_dict": state}, file)


def cosines(model, tokenizer):
    """By transformers alone: of each answer the mean cosine with its references."""

    def embed(text):
        with torch.no_grad():
            mean = model.double()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        return mean / mean.norm()

    return [
        float(sum(embed(said) @ embed(text) for text in right)) / len(right)
        for said, right in zip(SAID, RIGHT, strict=True)
    ]


def test_it_says_which_files_it_lacks_and_where_they_are_to_be_had(files):
    with pytest.raises(ComponentError) as error:
        build_metric("fense", sentences=files[0]["sentences"], errors="/nowhere.ckpt")
    said = str(error.value)
    assert "sentences:" not in said
    for part in ("errors:", "echecker_clotho_audiocaps_base.ckpt", "encoder:", "bert-base-uncased"):
        assert part in said


def test_it_is_the_mean_cosine_with_the_references(files):
    paths, model, tokenizer, _ = files
    found = build_metric("fense", **paths)(SAID, RIGHT)
    assert found.each == pytest.approx(cosines(model, tokenizer), rel=1e-9)
    assert found.details == {"errors": 0}


def test_an_error_costs_nine_tenths(files):
    paths, model, tokenizer, detector = files
    detect(paths["errors"], detector, 50.0)
    found = build_metric("fense", **paths)(SAID, RIGHT)
    assert found.each == pytest.approx([0.1 * cosine for cosine in cosines(model, tokenizer)], rel=1e-9)
    assert found.details == {"errors": 1}


def test_its_id_has_the_models(files):
    paths, _, _, detector = files
    before = build_metric("fense", **paths).id
    detect(paths["errors"], detector, 50.0)
    after = build_metric("fense", **paths).id
    assert before.startswith("fense|sentences:sbert@")
    assert "|errors:echecker.ckpt@" in before
    assert before != after


def test_it_keeps_the_promises(files):
    one_reference = [(said, right[:1]) for said, right in zip(SAID, RIGHT, strict=True)]
    assert len(check_metric("fense", samples=one_reference, **files[0]).kept) == 12


def test_files_of_another_kind_are_named(files, tmp_path):
    paths = files[0]
    torch.save({"state_dict": {}}, paths["errors"])
    with pytest.raises(SpecError, match=r"errors: .*echecker.ckpt is no error detector of FENSE: it lacks model_type"):
        build_metric("fense", **paths)
    (tmp_path / "sbert/1_Pooling/config.json").write_text("{}")
    with pytest.raises(SpecError, match=r"sentences: .*1_Pooling/config.json does not say `pooling_mode_mean_tokens"):
        build_metric("fense", **paths)
