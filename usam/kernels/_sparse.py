"""The Triton kernels of the sparse experts: products of gathered rows with the weights of the rows' experts.

Rows stand sorted by expert: `offs` says where an expert's rows begin, `src` which slot (token and choice) a row is.
A row tile finds its expert in registers, so the host never learns how many rows an expert has. No atomics.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from usam.kernels._triton import INTERPRET, activate, launch, operand, precision, slope, span, wide
from usam.kernels.ops import Found
from usam.kernels.sparse import Sparse, gathered


@triton.jit
def find(offs, tile, COUNT: tl.constexpr, POWER: tl.constexpr, BM: tl.constexpr):
    """Expert, first row, and end of the expert's rows of this row tile; past the last tile, an expert >= COUNT."""
    e = tl.arange(0, POWER)
    first = tl.load(offs + e, mask=e < COUNT, other=0)
    end = tl.load(offs + e + 1, mask=e < COUNT, other=0)
    tiles = (end - first + BM - 1) // BM
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    here = e == expert
    row = tl.sum(tl.where(here, first + (tile - ends + tiles) * BM, 0), 0)
    return expert.to(tl.int64), row, tl.sum(tl.where(here, end, 0), 0)


@triton.jit
def members(src, gates, row, end, WIDE: tl.constexpr, BM: tl.constexpr):
    """Which rows of this tile exist, their slots, and their gates."""
    i = tl.arange(0, BM)
    rows = row + i < end
    slot = tl.load(src + row + i, mask=rows, other=0)
    return rows, slot, tl.load(gates + slot, mask=rows, other=0.0).to(WIDE)


@triton.jit
def swizzle(pid, tiles, columns, GROUP: tl.constexpr):
    """Row and column tile of a program: GROUP row tiles go through the columns together and share their weights."""
    group = pid // (GROUP * columns)
    size = tl.minimum(tiles - group * GROUP, GROUP)
    rest = pid % (GROUP * columns)
    return group * GROUP + rest % size, rest // size


@triton.jit
def product(
    a,  # the left operand
    at,  # where each of its rows begins
    b,  # the right operand's tile
    down,  # from one k to the next in it
    right,  # from one column to the next
    SIZE,
    rows,  # rows that exist
    columns,  # columns that exist
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """sum over k < SIZE of a[m, k] b[k, n]."""
    k = tl.arange(0, BK)
    of_a = at[:, None] + k[None, :]
    of_b = k[:, None] * down + tl.arange(0, BN)[None, :] * right
    acc = tl.zeros((BM, BN), dtype=WIDE)
    for start in range(0, SIZE, BK):
        left = k < SIZE - start
        x = tl.load(a + of_a, mask=rows[:, None] & left[None, :], other=0.0)
        w = tl.load(b + of_b, mask=left[:, None] & columns[None, :], other=0.0)
        acc = tl.dot(x.to(OPERAND), w.to(OPERAND), acc, input_precision=PRECISION, out_dtype=WIDE)
        a += BK
        b += BK * down
    return acc


@triton.jit
def halves(x, BM: tl.constexpr, BN: tl.constexpr):
    """The left and the right half of a tile: an epilogue that does one after the other needs fewer registers."""
    return tl.split(tl.permute(tl.reshape(x, (BM, 2, BN // 2)), (0, 2, 1)))


@triton.jit(do_not_specialize=["tiles"])
def up_kernel(
    x,  # token D
    gates,  # slot
    src, offs,
    up,  # expert H D
    bias,  # expert H
    hidden,  # row H: gated
    pre,  # row H: what the activation is taken of, for the backward pass
    stride, D, H, tiles, TOP_K: tl.constexpr, COUNT: tl.constexpr, POWER: tl.constexpr, ACTIVATION: tl.constexpr,
    SAVE: tl.constexpr, WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """hidden[r] = gate act(x[token of r] up[e]^T + bias[e])."""
    tile, column = swizzle(tl.program_id(0), tiles, tl.cdiv(H, BN), GROUP)
    expert, row, end = find(offs, tile, COUNT, POWER, BM)
    if expert < COUNT:
        rows, slot, gate = members(src, gates, row, end, WIDE, BM)
        first = column * BN
        columns = first + tl.arange(0, BN) < H
        at = (slot // TOP_K).to(tl.int64) * stride
        w = up + (expert * H + first) * D
        a = product(x, at, w, 1, D, D, rows, columns, WIDE, OPERAND, PRECISION, BM, BN, BK)
        left, right = halves(a, BM, BN)
        if bias is not None:
            bias += expert * H
        hidden += row.to(tl.int64) * H
        pre += row.to(tl.int64) * H
        gated(left, gate, bias, hidden, pre, rows, first, H, ACTIVATION, SAVE, WIDE, BM, BN // 2)
        gated(right, gate, bias, hidden, pre, rows, first + BN // 2, H, ACTIVATION, SAVE, WIDE, BM, BN // 2)


@triton.jit
def gated(
    a, gate, bias, hidden, pre, rows,
    first,  # column
    H, ACTIVATION: tl.constexpr, SAVE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What `up_kernel` does after the product."""
    n = first + tl.arange(0, BN)
    inside = rows[:, None] & (n < H)[None, :]
    to = tl.arange(0, BM)[:, None] * H + n[None, :]
    if bias is not None:
        a += tl.load(bias + n, mask=n < H, other=0.0).to(WIDE)[None, :]
    if SAVE:
        tl.store(pre + to, a.to(pre.dtype.element_ty), mask=inside)
    h = activate(a, ACTIVATION) * gate[:, None]
    tl.store(hidden + to, h.to(hidden.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["slots", "tiles"])
def down_kernel(
    x,  # row K, gated
    gates,  # slot
    src, dst, offs,
    down,  # expert K N
    bias,  # expert N
    y,  # row N, or token N if SCATTER
    stride, K, N, slots, tiles, TOP_K: tl.constexpr, COUNT: tl.constexpr, POWER: tl.constexpr,
    SCATTER: tl.constexpr,  # if a token has one slot, its output goes straight to its place
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y[r] = x[r] down[e] + gate bias[e]."""
    tile, column = swizzle(tl.program_id(0), tiles, tl.cdiv(N, BN), GROUP)
    i = tl.arange(0, BM)
    n = tl.arange(0, BN)
    first = column * BN
    columns = first + n < N
    if SCATTER:  # tokens without a row get their zeros here: nobody else writes them
        s = tile * BM + i
        nowhere = tl.load(dst + s, mask=s < slots, other=0) < 0
        zero_at = s.to(tl.int64)[:, None] * N + (first + n)[None, :]
        zeros = tl.zeros((BM, BN), dtype=y.dtype.element_ty)
        tl.store(y + zero_at, zeros, mask=nowhere[:, None] & columns[None, :])
    expert, row, end = find(offs, tile, COUNT, POWER, BM)
    if expert < COUNT:
        rows, slot, gate = members(src, gates, row, end, WIDE, BM)
        at = (row + i).to(tl.int64) * stride
        w = down + expert * K * N + first
        a = product(x, at, w, N, 1, K, rows, columns, WIDE, OPERAND, PRECISION, BM, BN, BK)
        if bias is not None:
            a += gate[:, None] * tl.load(bias + expert * N + first + n, mask=columns, other=0.0).to(WIDE)[None, :]
        to = (row + i).to(tl.int64) * N
        if SCATTER:
            to = slot.to(tl.int64) * N
        tl.store(y + first + to[:, None] + n[None, :], a.to(y.dtype.element_ty), mask=rows[:, None] & columns[None, :])


@triton.jit(do_not_specialize=["T"])
def combine_kernel(
    x,  # row N
    dst,
    y,  # token N
    T, N, TOP_K: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """y[t] = the sum of the rows of t's slots, in their order; zeros if it has none."""
    t = span(tl.program_id(0) * BM, BM)
    n = span(tl.program_id(1) * BN, BN)
    inside = (t < T)[:, None] & (n < N)[None, :]
    acc = tl.zeros((BM, BN), dtype=WIDE)
    for k in tl.static_range(TOP_K):
        row = tl.load(dst + t * TOP_K + k, mask=t < T, other=-1).to(tl.int64)
        there = (row >= 0)[:, None] & (n < N)[None, :]
        acc += tl.load(x + row[:, None] * N + n[None, :], mask=there, other=0.0).to(WIDE)
    tl.store(y + t[:, None] * N + n[None, :], acc.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tiles"])
def dh_kernel(
    dy,  # token N
    pre,  # row H: what the activation was taken of
    gates,  # slot
    src, offs,
    down,  # expert H N
    bias,  # expert N
    hidden,  # row H: gated, computed anew
    dpre,  # row H
    dgates,  # slot, column tile: parts of a sum; zero where no row is
    stride, H, N, tiles, TOP_K: tl.constexpr, COUNT: tl.constexpr, POWER: tl.constexpr, ACTIVATION: tl.constexpr,
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Gradients of a row's pre-activation and, as <dy down[e]^T, act(pre)> + <dy, bias[e]>, of its gate."""
    tile, column = swizzle(tl.program_id(0), tiles, tl.cdiv(H, BN), GROUP)
    expert, row, end = find(offs, tile, COUNT, POWER, BM)
    if expert < COUNT:
        rows, slot, gate = members(src, gates, row, end, WIDE, BM)
        at = (slot // TOP_K).to(tl.int64) * stride
        dgate = tl.zeros((BM,), dtype=WIDE)
        if bias is not None:  # noqa: SIM102
            if column == 0:
                k = tl.arange(0, BK)
                for start in range(0, N, BK):
                    left = start + k < N
                    b = tl.load(bias + expert * N + start + k, mask=left, other=0.0).to(WIDE)
                    to = at[:, None] + (start + k)[None, :]
                    g = tl.load(dy + to, mask=rows[:, None] & left[None, :], other=0.0).to(WIDE)
                    dgate += tl.sum(g * b[None, :], 1)
        first = column * BN
        columns = first + tl.arange(0, BN) < H
        w = down + (expert * H + first) * N
        a = product(dy, at, w, 1, N, N, rows, columns, WIDE, OPERAND, PRECISION, BM, BN, BK)
        left, right = halves(a, BM, BN)
        hidden += row.to(tl.int64) * H
        dpre += row.to(tl.int64) * H
        pre += row.to(tl.int64) * H
        dgate += gated_backward(left, gate, pre, hidden, dpre, rows, first, H, ACTIVATION, WIDE, BM, BN // 2)
        first += BN // 2
        dgate += gated_backward(right, gate, pre, hidden, dpre, rows, first, H, ACTIVATION, WIDE, BM, BN // 2)
        to = slot.to(tl.int64) * tl.cdiv(H, BN) + column
        tl.store(dgates + to, dgate.to(dgates.dtype.element_ty), mask=rows)


@triton.jit
def gated_backward(
    da,  # of the gated activation
    gate, pre, hidden, dpre, rows,
    first,  # column
    H, ACTIVATION: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """What `dh_kernel` does after the product; gives these columns' part of the gates' gradient."""
    n = first + tl.arange(0, BN)
    inside = rows[:, None] & (n < H)[None, :]
    to = tl.arange(0, BM)[:, None] * H + n[None, :]
    a = tl.load(pre + to, mask=inside, other=0.0).to(WIDE)
    h = activate(a, ACTIVATION)
    d = da * gate[:, None] * slope(a, ACTIVATION)
    tl.store(dpre + to, d.to(dpre.dtype.element_ty), mask=inside)
    tl.store(hidden + to, (h * gate[:, None]).to(hidden.dtype.element_ty), mask=inside)
    return tl.sum(da * h, 1)


@triton.jit
def dw_kernel(
    a,  # row M
    b,  # token N
    gates,  # slot
    src, offs,
    dw,  # expert M N
    dbias,  # expert M, the sums of a's rows; or expert N, those of b's gated rows
    stride, M, N, TOP_K: tl.constexpr,
    BIAS: tl.constexpr,  # "", "a", "b"
    WIDE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dw[e] = sum over the rows r of e of a[r]^T b[token of r]: one program walks all rows of its tile's expert."""
    tiles = tl.cdiv(M, BM)
    both = tiles * tl.cdiv(N, BN)
    expert = (tl.program_id(0) // both).to(tl.int64)
    tile, column = swizzle(tl.program_id(0) % both, tiles, tl.cdiv(N, BN), GROUP)
    first = tl.load(offs + expert)
    end = tl.load(offs + expert + 1)
    a += tile * BM
    b += column * BN
    m = tl.arange(0, BM)
    n = tl.arange(0, BN)
    k = tl.arange(0, BK)
    lines = tile * BM + m < M
    columns = column * BN + n < N
    acc = tl.zeros((BM, BN), dtype=WIDE)
    for start in range(first, end, BK):
        rows = start + k < end
        token = (tl.load(src + start + k, mask=rows, other=0) // TOP_K).to(tl.int64) * stride
        at = a + tl.cast(start, tl.int64) * M
        x = tl.load(at + k[:, None] * M + m[None, :], mask=rows[:, None] & lines[None, :], other=0.0)
        y = tl.load(b + token[:, None] + n[None, :], mask=rows[:, None] & columns[None, :], other=0.0)
        acc = tl.dot(tl.trans(x).to(OPERAND), y.to(OPERAND), acc, input_precision=PRECISION, out_dtype=WIDE)
    dw += (expert * M + tile * BM) * N + column * BN
    inside = lines[:, None] & columns[None, :]
    tl.store(dw + m.to(tl.int64)[:, None] * N + n[None, :], acc.to(dw.dtype.element_ty), mask=inside)
    if BIAS == "a":
        if column == 0:
            total = tl.zeros((BM,), dtype=WIDE)
            for start in range(first, end, BK):
                at = a + tl.cast(start, tl.int64) * M
                there = (start + k < end)[:, None] & lines[None, :]
                x = tl.load(at + k[:, None] * M + m[None, :], mask=there, other=0.0)
                total += tl.sum(x.to(WIDE), 0)
            tl.store(dbias + expert * M + tile * BM + m, total.to(dbias.dtype.element_ty), mask=lines)
    elif BIAS == "b":  # noqa: SIM102
        if tile == 0:
            total = tl.zeros((BN,), dtype=WIDE)
            for start in range(first, end, BK):
                rows = start + k < end
                slot = tl.load(src + start + k, mask=rows, other=0)
                gate = tl.load(gates + slot, mask=rows, other=0.0).to(WIDE)
                token = (slot // TOP_K).to(tl.int64) * stride
                y = tl.load(b + token[:, None] + n[None, :], mask=rows[:, None] & columns[None, :], other=0.0)
                total += tl.sum(y.to(WIDE) * gate[:, None], 0)
            tl.store(dbias + expert * N + column * BN + n, total.to(dbias.dtype.element_ty), mask=columns)


_SHORT = {"BM": 128, "BN": 128, "BK": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}
_WIDER = {
    4: {"BM": 64, "BN": 64, "BK": 32, "GROUP": 8, "num_warps": 8, "num_stages": 2},
    8: {"BM": 32, "BN": 32, "BK": 16, "GROUP": 8, "num_warps": 4, "num_stages": 2},
}
# The tiles of each product, by the bytes of an element: none spills registers, 100 KB of shared memory do.
TILES: dict[str, dict[int, dict[str, int]]] = {name: {2: _SHORT, **_WIDER} for name in ("up", "down", "dh", "dw")}
# What is faster on Hopper, where none spills either: measured on an H200 (benchmarks/gpu.py).
HOPPER = {"up": {"maxnreg": 128}, "down": {"BN": 256}, "dh": {"num_stages": 4}, "dw": {"num_stages": 4}}
FEW = {"num_warps": 4}  # where a tile of rows is lower than these, because experts have few; and there on Hopper:
FEW_HOPPER = {"up": {"BN": 64}, "down": {"BN": 128, "num_stages": 4}, "dh": {}, "dw": {"num_stages": 3, **FEW}}
COMBINE = {"BM": 4, "BN": 512, "num_warps": 4}
INTERPRETED = {"BM": 16, "BN": 32, "BK": 32, "GROUP": 2, "num_warps": 4, "num_stages": 2}  # pays by the program


def tile_of(product: str, w: Tensor, rows: int | None = None) -> dict[str, int]:
    """The tile of a product with these weights: no higher than the `rows` an expert has on average."""
    if INTERPRET:
        return INTERPRETED if rows is not None else INTERPRETED | {"BM": 32}
    hopper = w.itemsize == 2 and w.is_cuda and torch.cuda.get_device_capability(w.device)[0] == 9
    tile = TILES[product][w.itemsize] | (HOPPER[product] if hopper else {})
    if any(width % 16 for width in w.shape[1:]):
        tile = tile | {"BM": min(tile["BM"], 64), "BK": max(tile["BK"] // 2, 16)}  # narrow loads need more registers
    if rows is None:
        return tile
    height = max(16, triton.next_power_of_2(triton.cdiv(rows, w.shape[0])))
    few = FEW_HOPPER[product] if hopper else FEW
    return tile if height >= tile["BM"] else tile | {"BM": height} | few


def row_tiles(rows: int, count: int, height: int) -> int:
    """The most row tiles that `rows` rows of `count` experts can need, whichever they belong to."""
    filled = min(rows, count)
    return (rows - filled) // height + filled


def rowwise(x: Tensor) -> Tensor:
    """x with whole rows in memory; they may stand anywhere."""
    return x if x.stride(-1) == 1 else x.contiguous()


def plain(s: Sparse) -> Sparse:
    """The same with its tensors as the kernels read them."""
    down_bias, up, up_bias = (None if w is None else w.contiguous() for w in (s.down_bias, s.up, s.up_bias))
    s = replace(s, x=rowwise(s.x), gates=s.gates.contiguous(), down=s.down.contiguous())
    return replace(s, down_bias=down_bias, up=up, up_bias=up_bias)


def common(s: Sparse, w: Tensor | None = None) -> dict[str, Any]:
    """Constants of every product, and of those by weights w."""
    of_weights = {} if w is None else {"COUNT": len(w), "POWER": max(2, int(triton.next_power_of_2(len(w))))}
    dtype, top_k = s.x.dtype, s.gates.shape[1]
    return {"TOP_K": top_k, "WIDE": wide(dtype), "OPERAND": operand(dtype), "PRECISION": precision(dtype)} | of_weights


def forward(s: Sparse) -> tuple[Tensor, Tensor]:
    """Outputs (token, out), and pre-activations (row, hidden) if they are saved."""
    s = plain(s)
    hidden, pre = (gathered(s)[0], s.x.new_empty(0)) if s.up is None else up(s, s.up)
    return down(s, hidden, s.down, s.down_bias), pre


def up(s: Sparse, w: Tensor) -> tuple[Tensor, Tensor]:
    """Gated activations, and pre-activations if they are saved."""
    rows, (count, size, dim) = s.src.shape[0], w.shape
    hidden = s.x.new_empty(rows, size)
    pre = s.x.new_empty(rows, size) if s.save else s.x.new_empty(0)
    tile = tile_of("up", w, rows)
    height = row_tiles(rows, count, tile["BM"])
    if rows:
        with launch(s.x):
            up_kernel[(height * triton.cdiv(size, tile["BN"]),)](
                s.x, s.gates, s.src, s.offs, w, s.up_bias, hidden, pre, s.x.stride(0), dim, size, height,
                ACTIVATION=s.activation, SAVE=s.save, **common(s, w), **tile,
            )  # fmt: skip
    return hidden, pre


def down(s: Sparse, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """Gated sorted rows times their experts' weights, summed by token."""
    rows, top_k, (count, size, dim) = s.src.shape[0], s.gates.shape[1], w.shape
    y = x.new_empty(rows, dim)
    tile = tile_of("down", w, rows)
    height = row_tiles(rows, count, tile["BM"])
    if rows:
        with launch(x):
            down_kernel[(height * triton.cdiv(dim, tile["BN"]),)](
                x, s.gates, s.src, s.dst, s.offs, w, bias, y, x.stride(0), size, dim, rows, height,
                SCATTER=top_k == 1, **common(s, w), **tile,
            )  # fmt: skip
    return y if top_k == 1 else combine(s, y)


def combine(s: Sparse, x: Tensor) -> Tensor:
    """The sum of each token's sorted rows."""
    (tokens, top_k), dim = s.gates.shape, x.shape[1]
    y = x.new_empty(tokens, dim)
    if tokens:
        tile = COMBINE | ({"BM": 16} if INTERPRET else {})
        grid = (triton.cdiv(tokens, tile["BM"]), triton.cdiv(dim, tile["BN"]))
        with launch(x):
            combine_kernel[grid](x, s.dst, y, tokens, dim, TOP_K=top_k, WIDE=wide(x.dtype), **tile)
    return y


def backward(s: Sparse, dy: Tensor, pre: Tensor, needs: Found) -> Found:
    """Gradients, by name."""
    s, dy = plain(s), rowwise(dy)
    if s.up is None:  # as if they activated x, and left it as it is
        s, pre = replace(s, activation="none"), gathered(s)[1]
    hidden, dpre, dgates = dh(s, dy, pre)
    found = {"gates": dgates}
    if "x" in needs:
        found["x"] = combine(s, dpre) if s.up is None else down(s, dpre, s.up, None)
    if "down" in needs or "down_bias" in needs:
        found["down"], found["down_bias"] = dw(s, hidden, dy, s.down, s.down_bias, "b")
    if s.up is not None and ("up" in needs or "up_bias" in needs):
        found["up"], found["up_bias"] = dw(s, dpre, s.x, s.up, s.up_bias, "a")
    return found


def dh(s: Sparse, dy: Tensor, pre: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gated activations once more, and the gradients of pre-activations and gates."""
    rows, (count, size, dim) = s.src.shape[0], s.down.shape
    hidden, dpre = s.x.new_empty(2, rows, size).unbind()
    tile = tile_of("dh", s.down, rows)
    height, columns = row_tiles(rows, count, tile["BM"]), triton.cdiv(size, tile["BN"])
    parts = s.gates.new_zeros(rows, columns)
    if rows:
        with launch(s.x):
            dh_kernel[(height * columns,)](
                dy, pre, s.gates, s.src, s.offs, s.down, s.down_bias, hidden, dpre, parts, dy.stride(0),
                size, dim, height, ACTIVATION=s.activation, **common(s, s.down), **tile,
            )  # fmt: skip
    return hidden, dpre, parts.sum(-1).view_as(s.gates)


def dw(s: Sparse, a: Tensor, b: Tensor, w: Tensor, bias: Tensor | None, sums: str) -> tuple[Tensor, Tensor]:
    """Gradients of weights w and of their bias, from sorted rows a and tokens b."""
    count, left, right = w.shape
    grad, dbias = torch.empty_like(w), w.new_empty(0) if bias is None else torch.empty_like(bias)
    tile = tile_of("dw", w)
    with launch(a):
        dw_kernel[(count * triton.cdiv(left, tile["BM"]) * triton.cdiv(right, tile["BN"]),)](
            a, b, s.gates, s.src, s.offs, grad, dbias, b.stride(0), left, right,
            BIAS="" if bias is None else sums, **common(s), **tile,
        )  # fmt: skip
    return grad, dbias
