"""GGUF files: what a model is, and its tensors by name, as floats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usam import ComponentError
from usam.weights import check_finite
from usam_real._binary import Bytes, once

VERSION, BLOCK = 3, 32
DIMENSIONS, TENSORS, KEYS = 4, 100_000, 100_000
# By the number that stands for each kind of value.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9


def read_gguf(file: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The entries of a file, and its tensors in float32 with the dimensions in torch's order.

    Raises:
        ComponentError: it is cut off, of another version, or a tensor is of a quantisation that is not known.
    """
    data = Bytes(Path(file))
    if data.take(4).tobytes() != b"GGUF":
        raise ComponentError(f"{file}: is no GGUF file")
    version, tensors, keys = data.number("I"), data.number("Q"), data.number("Q")
    if version != VERSION:
        raise ComponentError(f"{file}: version {version} of GGUF; only {VERSION} is read")
    if tensors > TENSORS or keys > KEYS:
        raise ComponentError(f"{file}: says that it has {tensors} tensors and {keys} entries; it is broken")
    entries = once(data.file, (_entry(data) for _ in range(keys)))
    alignment = entries.get("general.alignment", BLOCK)
    if not isinstance(alignment, int) or alignment < 1:
        raise ComponentError(f"{file}: 'general.alignment' is {alignment!r}; expected a positive number")
    found = once(data.file, _tensors(data, tensors, alignment))
    check_finite(found, str(file))
    return entries, found


def _entry(data: Bytes) -> tuple[str, Any]:
    name = data.text("Q")
    kind = data.number("I")
    if kind != ARRAY:
        return name, _value(data, kind, name)
    kind, count = data.number("I"), data.number("Q")
    if kind in NUMBERS:
        return name, list(data.numbers(NUMBERS[kind], count))
    return name, [_value(data, kind, name) for _ in range(count)]


def _value(data: Bytes, kind: int, name: str) -> Any:
    if kind == TEXT:
        return data.text("Q")
    if kind not in NUMBERS:
        raise ComponentError(f"{data.file}: '{name}' is of an unknown kind ({kind})")
    return data.number(NUMBERS[kind])


def _tensors(data: Bytes, count: int, alignment: int) -> Iterator[tuple[str, Tensor]]:
    heads = []
    for _ in range(count):
        name, rank = data.text("Q"), data.number("I")
        if rank > DIMENSIONS:
            raise ComponentError(f"{data.file}: '{name}' has {rank} dimensions; it is broken")
        shape = data.numbers("Q", rank)[::-1]
        heads.append((name, shape, data.number("I"), data.number("Q")))
    start = -(-data.place // alignment) * alignment
    for name, shape, kind, place in heads:
        if kind not in QUANTISATIONS:
            known = ", ".join(f"{title} ({number})" for number, (title, _, _) in QUANTISATIONS.items())
            raise ComponentError(f"{data.file}: '{name}' is stored as type {kind}; known are {known}")
        _, size, decode = QUANTISATIONS[kind]
        per_block = BLOCK if decode in (q4_1, q8_0) else 1
        if shape and shape[-1] % per_block:
            raise ComponentError(f"{data.file}: '{name}' of shape {list(shape)} has rows of no whole blocks of {BLOCK}")
        blocks = math.prod(shape) // per_block
        raw = data.at(start + place, blocks * size).reshape(blocks, size)
        yield name, torch.from_numpy(decode(raw).reshape(shape))


def q4_1(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 20 bytes) to (blocks, 32): a step and an offset in 16 bits, then numbers of 4 bits, low halves first."""
    step, offset = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    numbers = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return step * numbers.astype(np.float32) + offset


def q8_0(blocks: np.ndarray) -> np.ndarray:
    """(blocks, 34 bytes) to (blocks, 32): a step in 16 bits, then numbers of 8 bits."""
    step = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return step * blocks[:, 2:].copy().view(np.int8).astype(np.float32)


def _floats(dtype: Any) -> Any:
    return lambda values: values.copy().view(dtype).astype(np.float32)


# Number in the file: name, bytes of a block or number, how it is read.
QUANTISATIONS = {
    0: ("F32", 4, _floats(np.float32)),
    1: ("F16", 2, _floats(np.float16)),
    3: ("Q4_1", 20, q4_1),
    8: ("Q8_0", 34, q8_0),
}
