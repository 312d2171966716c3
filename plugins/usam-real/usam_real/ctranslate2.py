"""CTranslate2's model.bin: what a model is, and its tensors by name. Stored floats are read; quantised ones are not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from usam import ComponentError
from usam.weights import check_finite
from usam_real._binary import Bytes

VERSION = 6
# By the number that stands for each in the file.
TYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DIMENSIONS = 8


@dataclass(frozen=True)
class Model:
    """What a file holds."""

    spec: str
    """The kind of model, such as WhisperSpec."""
    revision: int
    tensors: dict[str, Tensor]
    """In float32."""
    options: dict[str, int]
    """Whole numbers that are no tensors, such as `encoder/num_heads`."""
    aliases: dict[str, str]
    """Names of tensors that are others by a second name."""


def read_model(file: str | Path) -> Model:
    """Read a model.bin.

    Raises:
        ComponentError: it is cut off, of another version, or quantised; names the file and the tensor.
    """
    data = Bytes(Path(file))
    version = data.number("I")
    if version != VERSION:
        raise ComponentError(f"{file}: version {version} of CTranslate2's format, or none; only {VERSION} is read")
    spec, revision = _name(data), data.number("I")
    tensors: dict[str, Tensor] = {}
    options: dict[str, int] = {}
    for _ in range(data.number("I")):
        name = _name(data)
        if name in tensors or name in options:
            raise ComponentError(f"{file}: '{name}' stands there twice")
        rank = data.number("B")
        if rank > DIMENSIONS:
            raise ComponentError(f"{file}: '{name}' has {rank} dimensions; the file is broken")
        shape, kind = data.numbers("I", rank), data.number("B")
        raw = data.take(data.number("I"))
        if kind not in TYPES:
            raise ComponentError(f"{file}: '{name}' is of an unknown type ({kind}); known are 0 to {max(TYPES)}")
        dtype = TYPES[kind]
        size = math.prod(shape) * dtype.itemsize
        if len(raw) != size:
            raise ComponentError(f"{file}: '{name}' of shape {list(shape)} has {len(raw)} bytes, expected {size}")
        value = torch.from_numpy(raw.copy()).view(dtype).reshape(shape)
        if not shape and dtype not in FLOATS:
            options[name] = int(value)
        elif dtype in FLOATS:
            tensors[name] = value.float()
        else:
            kind_name = str(dtype).removeprefix("torch.")
            raise ComponentError(f"{file}: '{name}' is quantised to {kind_name}; only floats are read")
    aliases = {_name(data): _name(data) for _ in range(data.number("I"))}
    if data.place != len(data.data):
        raise ComponentError(f"{file}: {len(data.data) - data.place} bytes too many behind the last tensor")
    check_finite(tensors, str(file))
    return Model(spec, revision, tensors, options, aliases)


def _name(data: Bytes) -> str:
    return data.text("H").rstrip("\0")
