"""What all Triton kernels here share: a guarded launch, wide arithmetic, and the activations.

Only the kernel files (`_routing.py`, `_dense.py` ...) import this one, and the ops import those when they first run a
kernel: `import usam.kernels` costs no Triton.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.jit import JITFunction

# What Triton decided when it was first imported: TRITON_INTERPRET=1 set later changes nothing.
INTERPRET = not isinstance(tl.softmax, JITFunction)


def launch(tensor: Tensor) -> AbstractContextManager[object]:
    """Kernels started inside run on this tensor's device."""
    if INTERPRET:
        return nullcontext()
    if not tensor.is_cuda:
        raise RuntimeError(
            f"Triton cannot run a kernel on {tensor.device}: move the tensors to a GPU, write backend='torch', or, to "
            "test on a CPU, set TRITON_INTERPRET=1 before Triton is first imported."
        )
    return torch.cuda.device(tensor.device)


def wide(dtype: torch.dtype) -> tl.dtype:
    """What sums and activations of this type are computed in: float64 of float64, else float32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def operand(dtype: torch.dtype) -> tl.dtype:
    """What both operands of `tl.dot` are cast to: their own type, but the interpreter's dot reads bf16 as integers."""
    return tl.float32 if INTERPRET and dtype.itemsize == 2 else getattr(tl, str(dtype).removeprefix("torch."))


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of `tl.dot`: tf32 only where torch's own products may use it."""
    return "tf32" if dtype == torch.float32 and not INTERPRET and _tf32() else "ieee"


def _tf32() -> bool:
    """Whether torch may use TF32, by either of its settings: once the newer one is set, reading the older raises."""
    try:
        return torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        return torch.backends.cuda.matmul.fp32_precision == "tf32"


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of a wide tile."""
    if ACTIVATION == "none":
        y = x
    elif ACTIVATION == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "silu":
        y = x / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return y


@triton.jit
def slope(x, ACTIVATION: tl.constexpr):
    """The derivative of `activate`."""
    if ACTIVATION == "none":
        y = tl.full(x.shape, 1.0, x.dtype)
    elif ACTIVATION == "gelu":
        y = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-x))
        y = s * (1.0 + x * (1.0 - s))
    else:
        tl.static_assert(ACTIVATION == "relu")
        y = tl.where(x > 0, 1.0, 0.0).to(x.dtype)
    return y


@triton.jit
def span(start, SIZE: tl.constexpr):
    """int64 indexes start .. start + SIZE - 1: products with a stride must not overflow."""
    return tl.cast(start, tl.int64) + tl.arange(0, SIZE)
