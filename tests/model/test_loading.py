"""What transformers' `from_pretrained` and `save_pretrained` can be asked, these models do too."""

import pytest
import torch
from conftest import nudge
from peft import LoraConfig
from transformers import AutoModel
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import peft_utils

from usam import UsamForConditionalGeneration, UsamModel, build_model
from usam.registry import ComponentError

load = UsamForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def model(speech):
    return nudge(build_model(speech))


def same(found, expected):
    tensors = found.state_dict()
    assert tensors.keys() == expected.state_dict().keys()
    return all(torch.equal(tensors[name], tensor) for name, tensor in expected.state_dict().items())


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("cls", [UsamForConditionalGeneration, UsamModel, AutoModel])
def test_what_was_loaded_is_told(cls, folder, model):
    found, info = cls.from_pretrained(folder, output_loading_info=True)
    assert same(found, model if cls is UsamForConditionalGeneration else model.model)
    assert {name: set(told) for name, told in info.items() if told} == {}


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_a_variant_is_loaded_under_its_name(shards, model, tmp_path):
    model.save_pretrained(tmp_path, variant="fp16", max_shard_size=shards)
    assert same(load(tmp_path, variant="fp16"), model)
    with pytest.raises(ComponentError, match=r"There are the variants fp16: choose with variant=\.\.\."):
        load(tmp_path)
    with pytest.raises(ComponentError, match=r"place one of .*model\.bf16\.safetensors"):
        load(tmp_path, variant="bf16")


def test_of_two_variants_the_one_that_was_asked_for_is_loaded(speech, model, tmp_path):
    other = nudge(build_model(speech), seed=2)
    model.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path, variant="other")
    assert same(load(tmp_path), model)
    assert same(load(tmp_path, variant="other"), other)


def test_a_subfolder_is_where_the_model_is(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    assert same(load(tmp_path, subfolder="checkpoint"), model)
    assert same(AutoModel.from_pretrained(tmp_path, subfolder="checkpoint"), model.model)


def test_tensors_that_are_given_stand_in_for_the_files(speech, folder):
    other = nudge(build_model(speech), seed=2)
    assert same(load(folder, state_dict=other.state_dict()), other)
    assert same(load(None, config=other.config, state_dict=other.state_dict()), other)
    assert same(UsamModel.from_pretrained(None, config=other.config, state_dict=other.model.state_dict()), other.model)
    with pytest.raises(ComponentError, match=r"needs config=\.\.\. and state_dict=\.\.\."):
        load(None, config=other.config)


def test_shapes_that_differ_are_an_error_unless_they_may(folder, model):
    tensors = {**model.state_dict(), "lm_head.weight": torch.zeros(5, 32)}
    with pytest.raises(ComponentError, match=r"lm_head.weight is \(5, 32\)"):
        load(folder, state_dict=tensors)
    again, info = load(folder, state_dict=tensors, ignore_mismatched_sizes=True, output_loading_info=True)
    assert again.lm_head.weight.shape == model.lm_head.weight.shape
    assert {name for name, *_ in info["mismatched_keys"]} == {"lm_head.weight"}


def test_weights_that_are_no_safetensors_are_not_taken_for_such(folder, model, tmp_path):
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ComponentError, match=r"use_safetensors=True, but its weights are pytorch_model.bin"):
        load(tmp_path, use_safetensors=True)


def test_pickles_are_not_there_to_be_read(tmp_path):
    build_model("tiny").save_pretrained(tmp_path)
    with pytest.raises(ComponentError, match=r"use_safetensors=False, but its weights are model.safetensors"):
        UsamForConditionalGeneration.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.parametrize("option", ["output_loading_info", "ignore_mismatched_sizes"])
def test_a_new_model_is_not_asked_what_was_loaded(option, speech):
    with pytest.raises(TypeError, match=f"build_model takes no '{option}'"):
        build_model(speech, **{option: True})


# A body without its head


def test_a_body_is_saved_and_loaded_alone(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    body = UsamModel.from_pretrained(tmp_path)
    assert same(body, model.model)
    body.save_pretrained(tmp_path / "again")
    assert same(AutoModel.from_pretrained(tmp_path / "again"), model.model)


def test_a_body_of_a_delta_needs_no_source(model, folder, tmp_path):
    UsamModel.from_pretrained(folder).save_pretrained(tmp_path)
    assert model.config.delta
    assert not UsamModel.from_pretrained(tmp_path).config.delta


def test_a_body_is_no_whole_model(model, tmp_path):
    model.model.save_pretrained(tmp_path)
    with pytest.raises(ComponentError, match=r"a body's without its head, as UsamModel saves it.* missing lm_head"):
        load(tmp_path)


def test_a_body_whose_table_is_its_head_is_a_whole_model(speech, qwen3, tmp_path):
    model = build_model({**speech, "llm": {"type": "transformers", "path": qwen3}})
    model.model.save_pretrained(tmp_path)
    assert same(load(tmp_path), model)


# An adapter that was added later


def peft_is_new_enough():
    try:
        peft_utils.check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not peft_is_new_enough(), reason=f"this transformers' add_adapter needs peft {MIN_PEFT_VERSION}")
@pytest.mark.parametrize("lora", [True, False], ids=["beside its own LoRA", "alone"])
def test_an_added_adapter_is_saved_with_its_model(lora, speech, tmp_path):
    llm = speech["llm"] if lora else {name: speech["llm"][name] for name in ("type", "path")}
    model = nudge(build_model({**speech, "llm": llm}))
    ids = {"input_ids": torch.arange(9)[None]}
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "k_proj"], init_lora_weights=False), "later")
    if lora:
        for layer in model.model.language_model.modules():
            if "usam" in getattr(layer, "lora_A", ()):
                layer.set_adapter([name for name in ("usam", "later") if name in layer.lora_A])
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert {"config.json", "model.safetensors", "adapter_config.json"} <= {file.name for file in tmp_path.iterdir()}
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**ids).logits, model.eval()(**ids).logits)
        model.delete_adapter("later")
        assert not torch.allclose(again(**ids).logits, model(**ids).logits)
