"""A checkpoint as its package ships it, or as safetensors: tensors by name, and nothing is executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from usam import ComponentError
from usam.weights import Source, check_finite, local_path, locate, read

# What aisfx's checkpoint has beside tensors: the numbers of its data sets, as numpy's integers.
SCALAR = np._core.multiarray.scalar
HARMLESS = [np.dtype, np.dtypes.Int64DType, SCALAR, (SCALAR, "numpy.core.multiarray.scalar")]
COUNTER = re.compile(r".*\.num_batches_tracked")  # of torch's batch norms; it is read in training only


def tensors_of(path: str) -> dict[str, Tensor]:
    """The float tensors of a `.pth` file, a safetensors file, or a folder with one of them.

    Raises:
        ComponentError: it is not there, is not whole, or holds anything but tensors and plain numbers.
    """
    source = located(path)
    tensors = read_pickle(source.files[0]) if source.files[0].suffix == ".pth" else read(source)
    return {name: tensor for name, tensor in tensors.items() if not COUNTER.fullmatch(name)}


def located(path: str) -> Source:
    """Where the weights lie: a file, or a folder of safetensors or of one `.pth`.

    Raises:
        ComponentError: there is nothing there, or no weights.
    """
    place = local_path(path)
    if not place.exists():
        raise ComponentError(f"{path}: no such file or folder; `python -m usam_real fetch FOLDER` makes FOLDER/models")
    if place.is_dir() and len(packed := list(place.glob("*.pth"))) == 1:
        return locate(str(packed[0]))
    return locate(path)


@contextmanager
def told_of(file: Path) -> Iterator[None]:
    """While what a file says is used: whatever goes wrong is told as of that file.

    Raises:
        ComponentError: begins with the file.
    """
    try:
        yield
    except ComponentError as error:
        raise ComponentError(f"{file}: {error}") from error
    except Exception as error:  # configs of transformers, for one, raise errors of huggingface_hub
        raise ComponentError(f"{file}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of what `torch.save` wrote: a map of them, or a tuple that begins with one.

    Raises:
        ComponentError: see `tensors_of`.
    """
    try:
        with torch.serialization.safe_globals(HARMLESS):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ComponentError(f"{file}: refused, for it holds more than tensors and would execute code") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ComponentError(f"{file}: not a whole PyTorch checkpoint: {error}; fetch it again") from error
    if isinstance(found, tuple) and found:
        found = found[0]
    if not isinstance(found, Mapping):
        raise ComponentError(f"{file}: holds a {type(found).__name__}, not a map of names to tensors")
    others = [f"{name} ({type(value).__name__})" for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ComponentError(f"{file}: expected tensors alone, found {', '.join(others[:3])}")
    check_finite(found, str(file))
    return dict(found)


def check_shapes(own: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare what was converted with what transformers' model holds.

    Raises:
        ComponentError: names each tensor that is missing, unexpected, or of another shape.
    """
    faults = [f"missing {name}" for name in expected.keys() - own.keys()]
    faults += [f"unexpected {name}" for name in own.keys() - expected.keys()]
    faults += [
        f"{name} is {list(own[name].shape)}, expected {list(expected[name].shape)}"
        for name in own.keys() & expected.keys()
        if own[name].shape != expected[name].shape
    ]
    if faults:
        raise ComponentError("does not fit: " + "; ".join(sorted(faults)))
