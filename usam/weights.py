"""Weights come from a hub id, a folder or a file; nothing in them is executed, and their hash is known.

Only safetensors and `torch.load(weights_only=True)` are read, and only numbers are taken for weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import re
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from usam.registry import ComponentError, did_you_mean
from usam.spec.page import SpecError

# In the order in which transformers prefers them, so that what is hashed is what it reads.
INDEXES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BUNDLED, WEIGHTS = "usam:", Path(__file__).parent / "specs" / "weights"
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


def local_path(path: str) -> Path:
    """Where a path would lie on this machine; `usam:NAME` is a folder of weights that this package carries."""
    bundled = path.removeprefix(BUNDLED)
    return WEIGHTS / bundled if bundled != path else Path(path).expanduser()


def locate(
    path: str, revision: str | None = None, *, variant: str | None = None, subfolder: str = "", **hub: Any
) -> Source:
    """Find the weight files of a file, a folder or a hub id (downloaded when it is not in the cache).

    Args:
        path: the file, folder or hub id; `usam:NAME`, weights that this package carries.
        revision: of a hub id.
        variant: which of several sets of files, as `fp16` in `model.fp16.safetensors`.
        subfolder: where in the folder.
        hub: options of the download, such as `token` and `cache_dir`.

    Raises:
        ComponentError: no such file or folder, no weights in it, or the hub cannot be reached.
    """
    local = local_path(path)
    if path.startswith(BUNDLED) and not local.is_dir():
        known = [folder.name for folder in WEIGHTS.iterdir() if folder.is_dir()]
        raise ComponentError(f"{path}: usam carries no such weights; {did_you_mean(local.name, known)}")
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
    local = local_path(path)
    if not local.exists():
        local = _download(path, revision, [name])
    file = (local if local.is_dir() else local.parent) / name
    if not file.is_file():
        raise ComponentError(f"{path}: no {name} beside the weights; give the architecture as 'arch' instead")
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON map.

    Raises:
        ComponentError: it is none, or what git-lfs leaves in its place.
    """
    found = _parse_json(file)
    if not isinstance(found, dict):
        raise ComponentError(f"{file}: not a JSON map but a {type(found).__name__}")
    return found


def _parse_json(file: Path) -> Any:
    _refuse_pointer(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ComponentError(f"{file}: not a JSON map: {error}; download or copy it again") from error


@contextlib.contextmanager
def parsing(path: str, name: str = "config.json") -> Iterator[None]:
    """While the entries of a JSON map beside the weights are used: what does not fit is told as of that file.

    Raises:
        ComponentError: names the file, and the entry where the error does.
    """
    try:
        yield
    except (ComponentError, SpecError):
        raise
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"'{'.'.join(map(str, e['loc']))}': {e['msg']}, found {e['input']!r}" for e in error.errors()
        )
        raise ComponentError(f"{path}: {name}: {faults}") from error
    except Exception as error:  # configs of transformers, for one, raise errors of huggingface_hub
        message = " ".join(str(error).split())
        raise ComponentError(f"{path}: {name}: {type(error).__name__}: {message}") from error


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
    check_finite(tensors, source.path)
    return tensors


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not numbers; minus infinity among zeros, as in a mask, is none of them.

    Raises:
        ComponentError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.dtype in FLOATS and tensor.numel() and not tensor.is_meta:
            low, high = (float(x) for x in tensor.detach().aminmax())
            if math.isnan(high) or high == math.inf or (low == -math.inf and high > 0):
                found = "NaN" if math.isnan(high) else "infinity"
                raise ComponentError(f"{where}: tensor '{name}' holds {found}; take weights from before that happened")


def check_stored(source: Source, model: Any) -> None:
    """Refuse files that hold a parameter of a transformers model as integers or 8-bit floats, which it would convert.

    Raises:
        ComponentError: names the first such tensor.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    own, base = {name for name, _ in model.named_parameters(remove_duplicate=False)}, f"{model.base_model_prefix}."
    for file in source.files:
        for name, dtype in _stored_dtypes(file).items():
            if dtype not in FLOAT_NAMES and own & {name, base + name, name.removeprefix(base)}:
                raise ComponentError(f"{file}: tensor '{name}' is {dtype}; expected floats of 16 or 32 bits")


def _stored_dtypes(file: Path) -> dict[str, str]:
    if file.suffix != ".safetensors":
        return {name: str(tensor.dtype) for name, tensor in _read_pickle(file, None).items()}
    with safe_open(file, framework="pt") as handle:
        return {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118 (it is no dict)


FLOAT_NAMES = ("F64", "F32", "F16", "BF16", "torch.float64", "torch.float32", "torch.float16", "torch.bfloat16")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def dtype_faults(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Which tensors are no floats of 16 bits or more, where the module has such parameters or buffers."""
    own = {name for name, tensor in module.state_dict().items() if tensor.dtype in FLOATS}
    return [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected floats of 16 or 32 bits"
        for name, tensor in tensors.items()
        if name in own and tensor.dtype not in FLOATS
    ]


@contextlib.contextmanager
def reading(what: str, folder: str | Path | None) -> Iterator[None]:
    """While a library reads a folder: whatever it fails with is told as of the file that is broken.

    Args:
        what: for the error, where no file is found to be broken.
        folder: the folder, or a file in it; None or a hub id when there is none here.

    Raises:
        ComponentError: names the file.
    """
    try:
        yield
    except (ComponentError, SpecError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers, for one, raises plain Exceptions
        local = Path(folder).expanduser() if folder else None
        if local is not None and local.exists():
            for file in sorted((local if local.is_dir() else local.parent).iterdir()):
                _check_file(file)
        if isinstance(error, pickle.UnpicklingError):
            raise ComponentError(f"{what}: refused, for it holds more than tensors and would execute code") from error
        if "trust_remote_code" in str(error):
            raise ComponentError(
                f"{what}: it comes with Python code of its own, which is never run; take a model and a tokenizer of a "
                "type that transformers knows"
            ) from error
        raise ComponentError(f"{what}: {type(error).__name__}: {error}") from error


MAPS: dict[str, tuple[str, ...]] = {  # by file, keys that it must have
    "config.json": ("model_type",),
    "generation_config.json": (),
    "tokenizer.json": ("model", "added_tokens"),
    "tokenizer_config.json": (),
    "preprocessor_config.json": (),
    "processor_config.json": (),
}


NOT_WEIGHTS = ("training_args", "rng_state")  # of a Trainer's checkpoint


def _check_file(file: Path) -> None:
    if not file.is_file() or file.name.startswith(NOT_WEIGHTS):
        return
    _refuse_pointer(file)
    if file.suffix == ".safetensors":
        _read_safetensors(file, "\0")
    elif file.suffix in (".bin", ".pt", ".pth"):
        _load(file)
    elif file.name.endswith(".index.json"):
        _shards(file)
    elif file.name in MAPS:
        found = read_json(file)
        missing = [key for key in MAPS[file.name] if key not in found]
        if missing:
            raise ComponentError(f"{file}: lacks '{missing[0]}'; download or copy it again")
    elif file.suffix == ".json":
        _parse_json(file)


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as handle:
        if handle.read(40).startswith(b"version https://git-lfs"):
            raise ComponentError(
                f"{file}: not the file itself but git-lfs' note of it: run `git lfs pull` in {file.parent}, "
                "or download the file again"
            )


def _read_safetensors(file: Path, prefix: str) -> dict[str, Tensor]:
    _refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()  # a handle is no dict
            return {name: handle.get_tensor(name) for name in names if name.startswith(prefix)}
    except SafetensorError as error:
        raise ComponentError(f"{file}: not a whole safetensors file: {error}; download or copy it again") from error


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
    _refuse_pointer(file)
    try:  # checkpoints from before PyTorch 1.6 are no zip files and cannot be mapped into memory
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise ComponentError(f"{file}: refused, for it holds more than tensors and would execute code") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ComponentError(f"{file}: not a whole PyTorch checkpoint: {error}; download or copy it again") from error
    if not isinstance(found, dict):
        raise ComponentError(f"{file}: holds a {type(found).__name__}, not a map of names to tensors")
    return found


def _weight_files(folder: Path, path: str, variant: str | None = None) -> tuple[Path, ...]:
    for name in [_of_variant(name, variant) for name in INDEXES]:
        if not (folder / name).is_file():
            continue
        names: Iterable[str] = [name]
        if name.endswith(".json"):
            names = _shards(folder / name)
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


def _shards(index: Path) -> list[str]:
    """The files that an index names, all of which lie beside it."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise ComponentError(f"{index}: 'weight_map': expected a map of tensors' names to files, found {found!r:.80}")
    for name, shard in found.items():
        if Path(shard).name != shard or not shard.endswith((".safetensors", ".bin")):
            raise ComponentError(
                f"{index}: 'weight_map' names '{shard}' for '{name}'; expected a .safetensors or .bin file beside it"
            )
    return sorted(set(found.values()))


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
    """A file's hash, remembered until the file system says that something was written to it."""
    stat = file.stat()
    # Anybody can set the size and the time of change; ctime is the system's.
    key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}|{stat.st_ino}"
    memory = _hash_memory()
    known: dict[str, str] = {}
    if memory.is_file():
        try:
            known = dict(json.loads(memory.read_text(encoding="utf-8")))
        except (ValueError, TypeError):  # cut off while it was written: hash anew
            known = {}
    if key in known:
        return known[key]
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if time.time_ns() - stat.st_ctime_ns > SETTLED:
        known[key] = digest
        with contextlib.suppress(OSError):  # a folder that cannot be written costs only the next hash's time
            memory.parent.mkdir(parents=True, exist_ok=True)
            part = memory.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known), encoding="utf-8")
            part.replace(memory)
    return digest


SETTLED = 2_000_000_000  # nanoseconds after which another change gets another time, whatever the file system's clock


def _hash_memory() -> Path:
    home = os.environ.get("USAM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "usam"
    )
    return Path(home) / "sha256.json"
