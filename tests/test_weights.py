"""Weights are found, read without running anything, and known by their hash."""

import hashlib
import json
import math
import os
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from usam.registry import ComponentError
from usam.weights import locate, read, read_config, sha256

TENSORS = {"encoder.weight": torch.ones(2, 3), "decoder.weight": torch.zeros(1)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("USAM_CACHE", str(folder))
    return folder


def test_a_safetensors_file_keeps_what_has_the_prefix(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    tensors = read(locate(str(tmp_path / "a.safetensors")), "encoder.")
    assert list(tensors) == ["weight"]
    assert torch.equal(tensors["weight"], torch.ones(2, 3))


def test_a_pytorch_file_keeps_what_has_the_prefix(tmp_path):
    torch.save(TENSORS | {"epoch": 3}, tmp_path / "a.pt")
    assert list(read(locate(str(tmp_path / "a.pt")), "encoder.")) == ["weight"]


def test_a_pytorch_file_from_before_zip_files(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert read(locate(str(tmp_path / "a.pt"))).keys() == TENSORS.keys()


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2)])
def test_a_pytorch_file_that_holds_no_map(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ComponentError, match=r"a\.pt: holds a (list|Tensor), not a map of names to tensors"):
        read(locate(str(tmp_path / "a.pt")))


def test_a_folder_prefers_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save({"other": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert [file.name for file in locate(str(tmp_path)).files] == ["model.safetensors"]


def test_a_folder_of_shards(tmp_path):
    index = {"weight_map": {"encoder.weight": "1.safetensors", "decoder.weight": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for i, (name, tensor) in enumerate(TENSORS.items()):
        save_file({name: tensor}, tmp_path / f"{i + 1}.safetensors")
    assert read(locate(str(tmp_path))).keys() == TENSORS.keys()


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"encoder.weight": "1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ComponentError, match=r"index\.json names files that are not there: 1\.safetensors"):
        locate(str(tmp_path))


@pytest.mark.parametrize("shard", ["../../../etc/secret.bin", "/etc/secret.bin", "a/b.safetensors", "a.txt"])
def test_a_shard_that_lies_elsewhere_is_refused(shard, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"encoder.weight": shard}}))
    with pytest.raises(ComponentError, match=rf"index\.json: 'weight_map' names '{shard}' for 'encoder\.weight'; exp"):
        locate(str(tmp_path))


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
def test_an_index_without_a_map_of_weights(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ComponentError, match=r"index\.json: 'weight_map': expected a map of tensors' names to files"):
        locate(str(tmp_path))


def test_an_index_that_is_no_json(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ComponentError, match=r"index\.json: not a JSON map"):
        locate(str(tmp_path))


def test_one_file_is_preferred_to_shards_as_in_transformers(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    save_file(TENSORS, tmp_path / "1.safetensors")
    index = {"weight_map": dict.fromkeys(TENSORS, "1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [file.name for file in locate(str(tmp_path)).files] == ["model.safetensors"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 135\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "a.pt"])
def test_a_note_of_git_lfs_in_place_of_the_weights(name, tmp_path):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(ComponentError, match=rf"{name}: not the file itself but git-lfs' note of it: run `git"):
        read(locate(str(tmp_path / name)))


def test_a_note_of_git_lfs_in_place_of_a_config(tmp_path):
    (tmp_path / "config.json").write_bytes(POINTER)
    with pytest.raises(ComponentError, match=r"config\.json: not the file itself but git-lfs' note of it"):
        read_config(str(tmp_path))


@pytest.mark.parametrize(("value", "said"), [(math.nan, "NaN"), (math.inf, "infinity")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_numbers(value, said, dtype, tmp_path):
    broken = torch.ones(2, 3, dtype=dtype)
    broken[1, 2] = value
    save_file(TENSORS | {"b": broken}, tmp_path / "a.safetensors")
    with pytest.raises(ComponentError, match=rf"a\.safetensors: tensor 'b' holds {said}"):
        read(locate(str(tmp_path / "a.safetensors")))


def test_the_minus_infinity_of_a_mask_is_a_number(tmp_path):
    save_file({"mask": torch.tensor([0.0, -math.inf])}, tmp_path / "a.safetensors")
    assert read(locate(str(tmp_path / "a.safetensors"))).keys() == {"mask"}


def test_a_folder_without_weights_says_what_to_place_there(tmp_path):
    with pytest.raises(ComponentError, match=r"no weights in .*; place one of .*model\.safetensors"):
        locate(str(tmp_path))


def test_what_is_neither_here_nor_a_hub_id():
    with pytest.raises(ComponentError, match=r"'/no/such/file\.pt' is no file or folder here, and no hub id"):
        locate("/no/such/file.pt")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ComponentError, match=r"'nobody/nothing' .* could not be fetched .* give that as 'path'"):
        locate("nobody/nothing")


def test_a_prefix_that_nothing_has(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors")
    with pytest.raises(ComponentError, match=r"no tensor's name starts with 'model\.'"):
        read(locate(str(tmp_path / "a.safetensors")), "model.")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(name, kept, tmp_path):
    file = tmp_path / name
    save_file(TENSORS, file) if name.endswith("safetensors") else torch.save(TENSORS, file)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(ComponentError, match=rf"{name}: not a whole"):
        read(locate(str(file)))


def test_a_pickle_that_would_execute_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ComponentError, match=r"evil\.pt: refused, .* would execute code"):
        read(locate(str(tmp_path / "evil.pt")))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"<html>404 Not Found</html>", pickle.dumps([1, 2], protocol=2)])
def test_a_file_that_is_no_checkpoint(content, tmp_path):
    (tmp_path / "page.pt").write_bytes(content)
    with pytest.raises(ComponentError, match=r"page\.pt: "):
        read(locate(str(tmp_path / "page.pt")))


def test_the_config_beside_the_weights(tmp_path):
    (tmp_path / "config.json").write_text('{"d_model": 32}')
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert read_config(str(tmp_path)) == read_config(str(tmp_path / "model.safetensors")) == {"d_model": 32}


def test_a_config_that_is_not_there(tmp_path):
    with pytest.raises(ComponentError, match=r"no config\.json beside the weights; give .* 'arch'"):
        read_config(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_that_is_no_map(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ComponentError, match=r"config\.json: not a JSON map"):
        read_config(str(tmp_path))


def test_a_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"weights")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def settled(monkeypatch):
    """As if the files of a test had been there for long."""
    monkeypatch.setattr("usam.weights.SETTLED", 0)


def test_a_hash_is_remembered(cache, settled, tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    digest = sha256(tmp_path / "a")
    memory = cache / "sha256.json"
    memory.write_text(memory.read_text().replace(digest, "from memory"))
    assert sha256(tmp_path / "a") == "from memory"


def test_a_hash_is_not_remembered_while_a_change_could_still_get_the_same_time(cache, tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    sha256(tmp_path / "a")
    assert not (cache / "sha256.json").exists()


def test_a_change_that_keeps_size_and_time_is_noticed(settled, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first, stat = sha256(file), file.stat()
    time.sleep(0.05)  # until the file system's clock has moved on
    file.write_bytes(b"two")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256(file) == hashlib.sha256(b"two").hexdigest() != first


@pytest.mark.parametrize("left", ["", '{"cut', "[]", "3"])
def test_a_memory_of_hashes_that_was_cut_off_is_forgotten(left, cache, tmp_path):
    (cache / "sha256.json").write_text(left)
    (tmp_path / "a").write_bytes(b"weights")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"weights").hexdigest()


def test_a_memory_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"weights")
    monkeypatch.setenv("USAM_CACHE", str(tmp_path / "a" / "below a file"))
    assert sha256(tmp_path / "a") == hashlib.sha256(b"weights").hexdigest()


def test_provenance_says_where_weights_came_from(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    provenance = locate(str(tmp_path)).provenance()
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert provenance == {"path": str(tmp_path), "revision": None, "sha256": {"model.safetensors": digest}}
