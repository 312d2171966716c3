"""UsamConfig: a spec that survives every way in which transformers copies, writes and reads a config."""

import copy
import pickle

import pytest
import torch
import toys  # noqa: F401
from conftest import make_tokenizer
from transformers import AutoConfig, LlamaConfig, Qwen3Config

from usam import UsamConfig, build_model, load_spec


@pytest.fixture(scope="module")
def config(speech):
    return UsamConfig.from_spec(speech, audio_token_id=308)


def saved(config, folder):
    config.save_pretrained(folder)
    return UsamConfig.from_pretrained(folder)


@pytest.mark.parametrize(
    "copied",
    [saved, lambda c, _: copy.deepcopy(c), lambda c, _: pickle.loads(pickle.dumps(c))],
    ids=["saved", "copied", "pickled"],
)
def test_a_copy_says_the_same(copied, config, tmp_path):
    again = copied(config, tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.parsed == config.parsed
    assert isinstance(again.text_config, LlamaConfig)
    assert again.text_config is not config.text_config


def test_a_copy_of_a_config_in_use_says_the_same(speech):
    config = UsamConfig.from_spec(load_spec(speech))
    spec = config.parsed
    assert copy.deepcopy(config).parsed == spec
    assert "parsed" not in config.to_dict()


def test_the_architectures_of_the_sources_are_filled_in(config):
    assert config.spec["encoders"]["whisper"]["arch"]["d_model"] == 16
    assert config.spec["llm"]["arch"]["model_type"] == "llama"
    assert config.text_config.hidden_size == 32


def test_a_saved_config_needs_no_source(speech, tmp_path):
    config = UsamConfig.from_spec(load_spec(speech))
    for part in (config.spec["encoders"]["whisper"], config.spec["llm"]):
        part["path"] = str(tmp_path / "gone")
    assert saved(config, tmp_path / "config").text_config.to_dict() == config.text_config.to_dict()


def test_auto_config_knows_the_type(config, tmp_path):
    config.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), UsamConfig)


def test_the_text_config_is_the_language_models_own(speech, tmp_path):
    model = build_model(speech)
    model.save_pretrained(tmp_path)
    for each in (model, copy.deepcopy(model), type(model).from_pretrained(tmp_path)):
        assert each.config.text_config is each.model.language_model.config
        assert each.config.get_text_config() is each.model.language_model.config
        assert each.config is each.model.config


@pytest.mark.parametrize(("llm", "type_", "tied"), [("llama", LlamaConfig, False), ("qwen3", Qwen3Config, True)])
def test_the_language_model_says_whether_the_head_is_tied(llm, type_, tied, request):
    spec = {"encoders": {"toy": {}}, "projector": "linear"}
    path = request.getfixturevalue(llm)
    config = UsamConfig.from_spec(load_spec({**spec, "llm": {"type": "transformers", "path": path}}))
    assert isinstance(config.text_config, type_)
    assert config.tie_word_embeddings is tied


def test_generation_stops_at_the_language_models_tokens(config):
    assert (config.eos_token_id, config.pad_token_id) == (301, 300)
    assert make_tokenizer().convert_ids_to_tokens([301, 300]) == ["<|end|>", "<|pad|>"]


@pytest.mark.parametrize("lazily", [True, False])
def test_the_attention_of_the_spec_reaches_the_language_model(lazily, speech, tmp_path):
    config = UsamConfig.from_spec(load_spec(speech, "llm.attn_implementation=eager"))
    config = saved(config, tmp_path) if lazily else config
    assert config.text_config._attn_implementation == "eager"


def test_a_config_without_a_spec_says_what_is_needed():
    with pytest.raises(ValueError, match=r"UsamConfig has no spec; make one with UsamConfig\.from_spec"):
        _ = UsamConfig().parsed


def test_encoders_keep_their_places_whatever_the_order_of_keys(tmp_path):
    spec = {"encoders": {"z": {"type": "toy"}, "a": {"type": "toy"}}, "projector": "linear", "llm": "tiny"}
    model = build_model(spec)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    clip = torch.randn(1, 24000)
    with torch.no_grad():
        features = model.model.encode(clip).x
        assert torch.equal(again.model.encode(clip).x, features)
        assert torch.equal(features[..., :6], model.model.encoders.a(clip, torch.ones_like(clip).bool()).x)
