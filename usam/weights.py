"""Weights come from a hub id, a folder or a file; nothing in them is executed, and their hash is known.

Only safetensors and `torch.load(weights_only=True)` are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from usam.registry import ComponentError

# In order of preference: sharded or single, safetensors before pickles.
INDEXES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


@dataclass(frozen=True)
class Source:
    """Where weights come from: what was asked for, the revision that was found, and the files."""

    path: str
    revision: str | None
    folder: Path
    files: tuple[Path, ...]

    def provenance(self) -> dict[str, Any]:
        """What a checkpoint records, so that a base that changed is noticed."""
        return {
            "path": self.path,
            "revision": self.revision,
            "sha256": {file.name: sha256(file) for file in self.files},
        }


def locate(
    path: str, revision: str | None = None, *, variant: str | None = None, subfolder: str = "", **hub: Any
) -> Source:
    """Find the weight files of a file, a folder or a hub id (downloaded when it is not in the cache).

    Args:
        path: the file, folder or hub id.
        revision: of a hub id.
        variant: which of several sets of files, as `fp16` in `model.fp16.safetensors`.
        subfolder: where in the folder.
        hub: options of the download, such as `token` and `cache_dir`.

    Raises:
        ComponentError: no such file or folder, no weights in it, or the hub cannot be reached.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return Source(path, None, local.parent, (local,))
    if local.is_dir():
        return Source(path, None, local / subfolder, _weight_files(local / subfolder, path, variant))
    root = _download(path, revision, [*SMALL_FILES, "*.safetensors"], **hub)
    folder = root / subfolder
    if not any(folder.glob("*.safetensors")):
        root = _download(path, revision, [*SMALL_FILES, "*.bin"], **hub)
    return Source(path, root.name, folder, _weight_files(folder, path, variant))


def read_config(path: str, revision: str | None = None, name: str = "config.json") -> dict[str, Any]:
    """The JSON config that lies beside the weights.

    Raises:
        ComponentError: there is none, or it is no JSON.
    """
    local = Path(path).expanduser()
    if not local.exists():
        local = _download(path, revision, [name])
    file = (local if local.is_dir() else local.parent) / name
    if not file.is_file():
        raise ComponentError(f"{path}: no {name} beside the weights; give the architecture as 'arch' instead")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComponentError(f"{file}: not a JSON map: {error}") from error
    if not isinstance(config, dict):
        raise ComponentError(f"{file}: not a JSON map but a {type(config).__name__}")
    return config


def read(source: Source, prefix: str = "", nested: str | None = None) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, which is taken off; others are not loaded.

    Args:
        source: the files.
        prefix: how the names start.
        nested: the entry of a PyTorch file that holds the tensors, in files that have it.

    Raises:
        ComponentError: a file is truncated, no checkpoint, or would execute code.
    """
    tensors: dict[str, Tensor] = {}
    for file in source.files:
        found = _read_safetensors(file, prefix) if file.suffix == ".safetensors" else _read_pickle(file, nested)
        tensors |= {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    if not tensors:
        raise ComponentError(f"{source.path}: no tensor's name starts with '{prefix}'; is this another architecture?")
    return tensors


def _read_safetensors(file: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()  # a handle is no dict
            return {name: handle.get_tensor(name) for name in names if name.startswith(prefix)}
    except SafetensorError as error:
        raise ComponentError(f"{file}: not a whole safetensors file: {error}") from error


def read_entry(source: Source, name: str) -> Any:
    """What a PyTorch file holds beside its tensors, such as the options it was trained with.

    Raises:
        ComponentError: there is no such entry, or the file is no whole checkpoint, or would execute code.
    """
    found = _load(source.files[0])
    if name not in found:
        raise ComponentError(f"{source.files[0]}: has no entry '{name}' but {', '.join(map(str, list(found)[:5]))}")
    return found[name]


def _read_pickle(file: Path, nested: str | None) -> dict[str, Tensor]:
    found = _load(file)
    inner = found.get(nested)
    tensors = inner if isinstance(inner, dict) else found
    return {name: t for name, t in tensors.items() if isinstance(t, Tensor)}


def _load(file: Path) -> dict[Any, Any]:
    try:  # checkpoints from before PyTorch 1.6 are no zip files and cannot be mapped into memory
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise ComponentError(f"{file}: refused, for it holds more than tensors and would execute code") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ComponentError(f"{file}: not a whole PyTorch checkpoint: {error}") from error
    if not isinstance(found, dict):
        raise ComponentError(f"{file}: holds a {type(found).__name__}, not a map of names to tensors")
    return found


def _weight_files(folder: Path, path: str, variant: str | None = None) -> tuple[Path, ...]:
    for name in [_of_variant(name, variant) for name in INDEXES]:
        if not (folder / name).is_file():
            continue
        names: Iterable[str] = [name]
        if name.endswith(".json"):
            names = sorted(set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [shard for shard in names if not (folder / shard).is_file()]
        if missing:
            raise ComponentError(f"{path}: {name} names files that are not there: {', '.join(missing)}")
        return tuple(folder / shard for shard in names)
    if variant is None and len(single := sorted(folder.glob("*.pt"))) == 1:
        return tuple(single)
    wanted = ", ".join(_of_variant(name, variant) for name in INDEXES)
    others = {match[1] or match[2] for file in folder.glob("model.*") if (match := VARIANT.fullmatch(file.name))}
    hint = f" There are the variants {', '.join(sorted(others))}: choose with variant=..." if others else ""
    raise ComponentError(f"{path}: no weights in {folder}; place one of {wanted}, or one .pt file, there.{hint}")


VARIANT = re.compile(r"model\.(?:safetensors\.index\.(\w+)\.json|(\w+?)(?:-\d+-of-\d+)?\.safetensors)")


def _of_variant(name: str, variant: str | None) -> str:
    """The name of a file in a set of files, as transformers writes it."""
    if variant is None:
        return name
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}"


def _download(path: str, revision: str | None, patterns: list[str], **options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=patterns, **options))
    except HFValidationError as error:
        raise ComponentError(f"'{path}' is no file or folder here, and no hub id (owner/name)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ComponentError(
            f"'{path}' is no file or folder here and could not be fetched from the hub "
            f"({type(error).__name__}): download its config.json and weights into a folder and give that as 'path'"
        ) from error


def sha256(file: Path) -> str:
    """A file's hash, remembered by path, size and time of change."""
    stat = file.stat()
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    memory = _hash_memory()
    known: dict[str, str] = {}
    if memory.is_file():
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
        except ValueError:  # cut off while it was written: hash anew
            known = {}
    if key not in known:
        with file.open("rb") as handle:
            known[key] = hashlib.file_digest(handle, "sha256").hexdigest()
        with contextlib.suppress(OSError):  # a folder that cannot be written costs only the next hash's time
            memory.parent.mkdir(parents=True, exist_ok=True)
            part = memory.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known), encoding="utf-8")
            part.replace(memory)
    return known[key]


def _hash_memory() -> Path:
    home = os.environ.get("USAM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "usam"
    )
    return Path(home) / "sha256.json"
