"""Activation and gate of the dense mixture in one pass over the hidden units, and its gradients in another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from usam.kernels._triton import activate, launch, slope, span, wide
from usam.kernels.dense import Dense

TILE = {"ROWS": 16, "COLUMNS": 256}
OPTIONS = {"num_warps": 8}  # 16 elements a thread: more would keep too few threads at work on memory


@triton.jit(do_not_specialize=["N", "SHARE"])
def gate_act_kernel(
    pre, gates, mask, out, N, SHARE, H,
    E: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out = gate * act(pre) for a tile of one expert's hidden units; 0 where masked."""
    tiles = tl.cdiv(H, COLUMNS)
    expert = tl.program_id(1) // tiles
    rows = span(tl.program_id(0).to(tl.int64) * ROWS, ROWS)
    cols = (tl.program_id(1) % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < N
    real = inside
    if mask is not None:
        real = inside & (tl.load(mask + rows, mask=inside, other=0) != 0)
    weight = tl.load(gates + (rows // SHARE) * E + expert, mask=real, other=0.0).to(WIDE)
    places = rows[:, None] * (E * H) + (expert * H + cols)[None, :]
    x = tl.load(pre + places, mask=real[:, None] & (cols < H)[None, :], other=0.0).to(WIDE)
    y = tl.where(real[:, None], activate(x, ACTIVATION) * weight[:, None], 0.0)
    tl.store(out + places, y.to(out.dtype.element_ty), mask=inside[:, None] & (cols < H)[None, :])


@triton.jit(do_not_specialize=["N", "SHARE"])
def gate_act_backward_kernel(
    d_hidden, pre, gates, mask, d_pre, hidden, d_gates, N, SHARE, H,
    E: tl.constexpr, ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """d_pre, the gated activations once more, and each row's part of d_gate; d_pre may stand where d_hidden stood."""
    tiles = tl.cdiv(H, COLUMNS)
    expert = tl.program_id(1) // tiles
    tile = tl.program_id(1) % tiles
    rows = span(tl.program_id(0).to(tl.int64) * ROWS, ROWS)
    cols = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < N
    real = inside
    if mask is not None:
        real = inside & (tl.load(mask + rows, mask=inside, other=0) != 0)
    weight = tl.load(gates + (rows // SHARE) * E + expert, mask=real, other=0.0).to(WIDE)
    places = rows[:, None] * (E * H) + (expert * H + cols)[None, :]
    at = real[:, None] & (cols < H)[None, :]
    x = tl.load(pre + places, mask=at, other=0.0).to(WIDE)
    grad = tl.load(d_hidden + places, mask=at, other=0.0).to(WIDE)
    y = tl.where(at, activate(x, ACTIVATION), 0.0)
    there = inside[:, None] & (cols < H)[None, :]
    tl.store(d_gates + (rows * E + expert) * tiles + tile, tl.sum(grad * y, 1), mask=inside)
    tl.store(hidden + places, (y * weight[:, None]).to(hidden.dtype.element_ty), mask=there)
    grad = tl.where(at, grad * weight[:, None] * slope(x, ACTIVATION), 0.0)
    tl.store(d_pre + places, grad.to(d_pre.dtype.element_ty), mask=there)


def _grid(pre: Tensor, count: int) -> tuple[int, int]:
    return triton.cdiv(pre.shape[0], TILE["ROWS"]), count * triton.cdiv(pre.shape[1] // count, TILE["COLUMNS"])


def gate_act(pre: Tensor, e: Dense, out: Tensor | None) -> Tensor:
    """Gated activations of pre (row, expert * hidden)."""
    out = torch.empty_like(pre) if out is None else out
    count = e.gates.shape[1]
    with launch(pre):
        gate_act_kernel[_grid(pre, count)](
            pre, e.gates.contiguous(), e.mask, out, pre.shape[0], e.rows, pre.shape[1] // count,
            E=count, ACTIVATION=e.activation, WIDE=wide(pre.dtype), **TILE, **OPTIONS,
        )  # fmt: skip
    return out


def gate_act_backward(d_hidden: Tensor, pre: Tensor, e: Dense) -> tuple[Tensor, Tensor, Tensor]:
    """d_pre (written over d_hidden), gated activations, and the gradient of each row's gates (row, expert)."""
    count = e.gates.shape[1]
    grid = _grid(pre, count)
    hidden = torch.empty_like(pre)
    # Rows keep their parts apart, and one sum of fixed order joins them: no atomics.
    parts = e.gates.new_empty(pre.shape[0], count, grid[1] // count)
    if parts.numel() == 0:
        return d_hidden, hidden, e.gates.new_zeros(pre.shape[0], count)
    with launch(pre):
        gate_act_backward_kernel[grid](
            d_hidden, pre, e.gates.contiguous(), e.mask, d_hidden, hidden, parts, pre.shape[0], e.rows,
            pre.shape[1] // count, E=count, ACTIVATION=e.activation, WIDE=wide(pre.dtype), **TILE, **OPTIONS,
        )  # fmt: skip
    return d_hidden, hidden, parts.sum(-1)


def _mask(e: Dense) -> Tensor | None:
    return None if e.mask is None else e.mask.contiguous()
