"""Linear experts in one product: each tile of x is scaled by an expert's gate on its way in."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from usam.kernels._triton import Example, launch, operand, precision, span, wide

# By the bytes of an element: wider ones take more of the shared memory, and float32 by itself is no tensor core's work.
TILES = {2: {"BM": 128, "BN": 128, "BK": 64}, 4: {"BM": 64, "BN": 64, "BK": 32}, 8: {"BM": 32, "BN": 32, "BK": 16}}
OPTIONS = {
    2: {"num_warps": 8, "num_stages": 3},
    4: {"num_warps": 8, "num_stages": 3},
    8: {"num_warps": 4, "num_stages": 2},
}
BACKWARD_TILE = {"ROWS": 16, "COLUMNS": 256}
BACKWARD_OPTIONS = {"num_warps": 8}


@triton.jit
def linear_kernel(
    x, gates, weight, bias, mask, out, N, SHARE, D, OUT, row_stride, in_stride,
    E: tl.constexpr, WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile of sum_e g_e (x W_e + b_e)."""
    # Programs that run together share columns of the weights, the larger side.
    row_tiles = tl.cdiv(N, BM)
    rows = span((tl.program_id(0) % row_tiles).to(tl.int64) * BM, BM)
    cols = span((tl.program_id(0) // row_tiles).to(tl.int64) * BN, BN)
    real = rows < N
    if mask is not None:
        real = real & (tl.load(mask + rows, mask=rows < N, other=0) != 0)
    gate_rows = gates + (rows // SHARE) * E
    steps = tl.cdiv(D, BK)
    acc = tl.zeros([BM, BN], WIDE)
    for i in range(E * steps):
        e = i // steps
        k = span((i % steps) * BK, BK)
        g = tl.load(gate_rows + e, mask=real, other=0.0).to(WIDE)
        a_places = x + rows[:, None] * row_stride + k[None, :] * in_stride
        a = tl.load(a_places, mask=real[:, None] & (k < D)[None, :], other=0.0)
        a = (a.to(WIDE) * g[:, None]).to(x.dtype.element_ty).to(OPERAND)
        b_places = weight + (e.to(tl.int64) * D + k)[:, None] * OUT + cols[None, :]
        b = tl.load(b_places, mask=(k < D)[:, None] & (cols < OUT)[None, :], other=0.0).to(OPERAND)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=WIDE)
    if bias is not None:
        for e in range(E):
            g = tl.load(gate_rows + e, mask=real, other=0.0).to(WIDE)
            acc += g[:, None] * tl.load(bias + e * OUT + cols, mask=cols < OUT, other=0.0).to(WIDE)[None, :]
    there = (rows < N)[:, None] & (cols < OUT)[None, :]
    acc = tl.where(real[:, None], acc, 0.0)
    tl.store(out + rows[:, None] * OUT + cols[None, :], acc.to(out.dtype.element_ty), mask=there)


@triton.jit
def linear_backward_kernel(
    d_stacked, x, gates, d_x, stacked, d_gates, N, SHARE, D, row_stride, in_stride,
    E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """d_x, the scaled copies of x, and each row's part of d_gate, in one pass over the experts' gradients of x."""
    tile = tl.program_id(1)
    rows = span(tl.program_id(0).to(tl.int64) * ROWS, ROWS)
    cols = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = rows < N
    at = inside[:, None] & (cols < D)[None, :]
    value = tl.load(x + rows[:, None] * row_stride + cols[None, :].to(tl.int64) * in_stride, mask=at, other=0.0)
    value = value.to(WIDE)
    total = tl.zeros([ROWS, COLUMNS], WIDE)
    for e in range(E):
        g = tl.load(gates + (rows // SHARE) * E + e, mask=inside, other=0.0).to(WIDE)
        places = (rows * E + e)[:, None] * D + cols[None, :]
        grad = tl.load(d_stacked + places, mask=at, other=0.0).to(WIDE)
        total += g[:, None] * grad
        tl.store(stacked + places, (g[:, None] * value).to(stacked.dtype.element_ty), mask=at)
        tl.store(d_gates + (rows * E + e) * tl.num_programs(1) + tile, tl.sum(grad * value, 1), mask=inside)
    tl.store(d_x + rows[:, None] * D + cols[None, :], total.to(d_x.dtype.element_ty), mask=at)


def _tile(dtype: torch.dtype, rows: int, width: int, out: int) -> dict[str, int]:
    """Default tiles, smaller where there is less to do; `tl.dot` wants 16 each way."""
    sizes = {"BM": rows, "BN": out, "BK": width}
    most = TILES[dtype.itemsize]
    if width % 16 or out % 16:
        most = most | {"BK": min(most["BK"], 32)}  # narrow loads need more registers
    return {name: min(most[name], max(16, triton.next_power_of_2(sizes[name]))) for name in most}


def forward(x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, rows: int) -> Tensor:
    """sum_e g_e (x W_e + b_e), (row, out)."""
    count, width, out_width = weight.shape
    out = x.new_empty(x.shape[0], out_width)
    tile = _tile(x.dtype, x.shape[0], width, out_width)
    programs = triton.cdiv(x.shape[0], tile["BM"]) * triton.cdiv(out_width, tile["BN"])
    mask, bias = (None if t is None else t.contiguous() for t in (mask, bias))
    with launch(x):
        linear_kernel[(programs,)](
            x, gates.contiguous(), weight.contiguous(), bias, mask, out, len(x), rows, width, out_width, *x.stride(),
            E=count, WIDE=wide(x.dtype), OPERAND=operand(x.dtype), PRECISION=precision(x.dtype), **tile,
            **OPTIONS[x.dtype.itemsize],
        )  # fmt: skip
    return out


def backward(d_stacked: Tensor, x: Tensor, gates: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and the gates, and the scaled copies of x, (row, expert * in)."""
    count, width = gates.shape[1], x.shape[1]
    grid = triton.cdiv(x.shape[0], BACKWARD_TILE["ROWS"]), triton.cdiv(width, BACKWARD_TILE["COLUMNS"])
    d_x, stacked = x.new_empty(x.shape), torch.empty_like(d_stacked)
    parts = gates.new_empty(gates.shape[0], rows, count, grid[1])
    if parts.numel() == 0:
        return d_x, stacked, gates.new_zeros(gates.shape)
    with launch(x):
        linear_backward_kernel[grid](
            d_stacked, x, gates.contiguous(), d_x, stacked, parts, x.shape[0], rows, width, *x.stride(),
            E=count, WIDE=wide(x.dtype), **BACKWARD_TILE, **BACKWARD_OPTIONS,
        )  # fmt: skip
    return d_x, stacked, parts.sum((1, 3))


_SIZES = {"N": "i32", "SHARE": "i32", "D": "i32", "row_stride": "i32"}
_BF16 = {"x": "*bf16", "gates": "*fp32"}
KERNELS = [
    Example(
        linear_kernel,
        {**_BF16, "weight": "*bf16", "bias": "*bf16", "mask": "*i1", "out": "*bf16", **_SIZES, "OUT": "i32"},
        {"in_stride": 1, "E": 3, "WIDE": tl.float32, "OPERAND": tl.bfloat16, "PRECISION": "ieee", **TILES[2]},
        OPTIONS[2],
    ),
    Example(
        linear_backward_kernel,
        {"d_stacked": "*bf16", **_BF16, "d_x": "*bf16", "stacked": "*bf16", "d_gates": "*fp32", **_SIZES},
        {"in_stride": 1, "E": 3, "WIDE": tl.float32, **BACKWARD_TILE},
        BACKWARD_OPTIONS,
    ),
]
