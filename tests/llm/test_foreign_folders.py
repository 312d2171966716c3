"""A language model's folder is somebody else's: what is broken in it is named, and nothing in it is executed."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from usam import ComponentError, build_llm

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 135\n"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights(folder: Path):
    return build_llm("transformers", path=str(folder)).pretrained()


def tokenizer(folder: Path):
    return build_llm("transformers", path=str(folder)).tokenizer()


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "executed"),)


def test_a_whole_folder(folder):
    assert f"backbone.{UP.removeprefix('model.')}" in weights(folder)


def test_a_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert weights(Path("~") / folder.name)


def test_a_note_of_git_lfs_in_place_of_the_weights(folder):
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(ComponentError, match=r"model\.safetensors: not the file itself but git-lfs' note of it: run"):
        weights(folder)


def test_truncated_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ComponentError, match=r"model\.safetensors: not a whole safetensors file: .* copy it again"):
        weights(folder)


def test_truncated_weights_of_pytorch(folder):
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ComponentError, match=r"pytorch_model\.bin: not a whole PyTorch checkpoint"):
        weights(folder)


def test_weights_that_would_execute_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(folder)}, folder / "pytorch_model.bin")
    with pytest.raises(ComponentError, match=r"pytorch_model\.bin: refused, .* would execute code") as found:
        weights(folder)
    assert "weights_only" not in str(found.value)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "infinity")])
def test_weights_that_are_not_numbers(value, said, folder):
    edit(folder, lambda tensors: tensors[UP][0].fill_(value))
    with pytest.raises(ComponentError, match=rf"tensor 'backbone\.layers\.0\.mlp\.up_proj\.weight' holds {said}"):
        weights(folder)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int64, "I64"), (torch.bool, "BOOL"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_weights_that_are_no_floats_of_16_bits(dtype, name, folder):
    edit(folder, lambda tensors: tensors.update({UP: tensors[UP].to(dtype)}))
    with pytest.raises(ComponentError, match=rf"model\.safetensors: tensor '{UP}' is {name}; expected floats"):
        weights(folder)


def test_weights_of_pytorch_that_are_no_floats(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, UP: tensors[UP].long()}, folder / "pytorch_model.bin")
    with pytest.raises(ComponentError, match=rf"pytorch_model\.bin: tensor '{UP}' is torch\.int64"):
        weights(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "3", "\xff", POINTER])
def test_a_broken_config(text, folder):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ComponentError, match=r"config\.json: not (a JSON map|the file itself)"):
        weights(folder)


@pytest.mark.parametrize("text", ['{"hidden_size": 16}', '{"model_type": 3}'])
def test_a_config_without_a_type(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ComponentError, match=r"config\.json: 'model_type': expected transformers' name of a language"):
        weights(folder)


def test_a_config_with_a_wrong_value_names_the_key(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    with pytest.raises(ComponentError, match="hidden_size"):
        weights(folder)


def test_a_shard_that_lies_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"metadata": {}, "weight_map": {UP: "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ComponentError, match=r"names '\.\./secret\.safetensors' for .* file beside it"):
        weights(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[1]", POINTER])
def test_a_broken_tokenizer(name, text, folder):
    (folder / name).write_text(text)
    with pytest.raises(ComponentError, match=rf"{name}: not (a JSON map|the file itself)"):
        tokenizer(folder)


def test_a_tokenizer_without_a_model(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ComponentError, match=r"tokenizer\.json: lacks 'model'"):
        tokenizer(folder)


@pytest.mark.parametrize("read", [weights, tokenizer])
def test_code_in_the_folder_is_never_run(read, folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'executed')!r}, 'w')\nclass Evil: pass\n")
    maps = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": maps}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": maps}))
    llama = {"model_type": "llama", "vocab_size": 64}
    builder = build_llm("transformers", path=str(folder), arch=llama) if read is tokenizer else None
    with pytest.raises(ComponentError, match="Python code of its own, which is never run") as found:
        builder.tokenizer() if builder else weights(folder)
    assert "trust_remote_code" not in str(found.value)
    assert not (folder / "executed").exists()
