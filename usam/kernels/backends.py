"""Who computes: plain torch, torch's grouped products, or the Triton kernels here."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

from torch import Tensor

Backend = Literal["auto", "torch", "grouped_mm", "triton"]

TRITON = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}


def runs_triton(x: Tensor) -> bool:
    """Whether Triton can compute on x: it is installed, and x is on a GPU, or Triton is interpreted."""
    return TRITON and (x.is_cuda or INTERPRETED)


def demand_triton(x: Tensor) -> None:
    """Raises when backend='triton' was asked for and cannot run on x."""
    if not TRITON:
        raise RuntimeError("backend='triton' needs Triton: pip install 'usam[triton]', or write backend='auto'.")
    if not runs_triton(x):
        raise RuntimeError(
            f"backend='triton' cannot run on {x.device}: move the model to a GPU, write backend='auto', or, to test "
            "on a CPU, set TRITON_INTERPRET=1 before Triton is first imported."
        )
