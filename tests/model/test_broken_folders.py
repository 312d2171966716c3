"""A saved model's folder that is broken is named with its file and key, and is not half believed."""

import json
import math

import pytest
import torch
import toys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM

from usam import ComponentError, UsamForConditionalGeneration, UsamProcessor, build_encoder, build_model
from usam.model.checkpoint import processor_beside

load = UsamForConditionalGeneration.from_pretrained


@pytest.fixture
def folder(tmp_path):
    model = build_model({"encoders": {"toy": {}}, "projector": "linear", "llm": "tiny"})
    model.save_pretrained(tmp_path)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(tmp_path)
    return tmp_path


def patch(folder, **entries):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "key"),
    [
        ({"spec": 3}, "'spec': expected a map, found 3"),
        ({"provenance": "none"}, "'provenance': expected a map"),
        ({"provenance": {"sources": []}}, r"'provenance\.sources': expected a map"),
        (
            {"provenance": {"sources": {"model.language_model": 3}}},
            r"'provenance\.sources\.model\.language_model': exp",
        ),
        ({"provenance": {"sources": {"a": {"path": "x"}}}}, r"'provenance\.sources\.a': expected a map of 'path'"),
        ({"provenance": {"components": {"a": 1}}}, r"'provenance\.components\.a': expected a package"),
        ({"text_config": []}, "'text_config': expected a map"),
        ({"delta": "no"}, "'delta': expected true or false, found 'no'"),
        ({"audio_token_id": "7"}, "'audio_token_id': expected a whole number"),
    ],
)
@pytest.mark.parametrize("read", [load, AutoModelForMultimodalLM.from_pretrained])
def test_a_broken_entry_of_the_config(entries, key, read, folder):
    patch(folder, **entries)
    with pytest.raises(ComponentError, match=rf"config\.json: {key}"):
        read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_config_that_is_no_map(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ComponentError, match=r"config\.json: not a JSON map"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_generation_config(text, folder):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ComponentError, match=r"generation_config\.json: not a JSON map"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_broken_processor(name, folder):
    model = load(folder)
    (folder / name).write_text("{")
    with pytest.raises(ComponentError, match=rf"{name}: not a JSON map"):
        processor_beside(folder, model.config.parsed)


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "projector" in name and tensors[name].ndim == 2)
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return name


def test_saved_weights_that_are_not_numbers(folder):
    name = edit(folder, lambda tensor: tensor * math.nan)
    with pytest.raises(ComponentError, match=f"tensor '{name}' holds NaN"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_saved_weights_that_are_no_floats(dtype, folder):
    name = edit(folder, lambda tensor: tensor.to(dtype))
    with pytest.raises(ComponentError, match=rf"{name} is {str(dtype)[6:]}, expected floats of 16 or 32 bits"):
        load(folder)


def test_an_encoder_that_stands_alone_takes_floats_too(tmp_path):
    tensors = toys.Toy(toys.Toy.Config(type="toy")).state_dict()
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name].to(torch.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(ComponentError, match=f"{name} is int64, expected floats of 16 or 32 bits"):
        build_encoder("toy", path=str(tmp_path / "model.safetensors"))


def test_weights_that_are_not_numbers_are_not_saved(folder, tmp_path):
    model = load(folder)
    with torch.no_grad():
        next(p for p in model.model.projector.parameters()).fill_(math.nan)
    with pytest.raises(ComponentError, match=r"again: not saved: tensor 'model\.projector.*' holds NaN"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "model.safetensors").exists()
