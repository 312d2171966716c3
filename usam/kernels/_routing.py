"""Routing kernels: one pass over the logits, a scan of its tiles' counts, and a stable placement by counting.

Nothing is sorted, added atomically or read by the host: every program writes its own tile's results, and
`route_scan` adds them in order. A few rows (an utterance, a prompt a sample) are routed and placed by one program.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from usam.kernels._triton import Example, launch, span, wide
from usam.kernels.routing import SORTED, Made, _place_torch, _wide

TILE = 2048  # elements (rows times experts) a program looks at
ALONE = 8192  # elements (slots times experts) up to which one program routes and places everything, without spills


@triton.jit
def _choose(
    logits, mask, gates, experts, probs, z, rows, N, row_stride, expert_stride, mask_stride,
    E: tl.constexpr, K: tl.constexpr, EP: tl.constexpr, KP: tl.constexpr, RENORMALIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Softmax and choices of a tile of rows, stored; returns who chose whom, probabilities, z and choices."""
    cols = tl.arange(0, EP)
    inside = rows < N
    real = inside
    if mask is not None:
        real = inside & (tl.load(mask + rows * mask_stride, mask=inside, other=0) != 0)
    at = real[:, None] & (cols < E)[None, :]
    # int64: rows is, and the expert stride may be long where logits are transposed.
    places = logits + rows[:, None] * row_stride + cols[None, :].to(tl.int64) * expert_stride
    x = tl.load(places, mask=at, other=0).to(WIDE)
    x = tl.where((cols < E)[None, :], x, float("-inf"))
    top = tl.max(x, 1)
    p = tl.exp(x - top[:, None])
    total = tl.sum(p, 1)
    p = tl.where(at, p / total[:, None], 0.0)
    lse = tl.where(real, top + tl.log(total), 0.0)
    tl.store(probs + rows[:, None] * E + cols[None, :], p, mask=inside[:, None] & (cols < E)[None, :])
    tl.store(z + rows, lse, mask=inside)
    if K == 0:
        picks = tl.where(at, cols[None, :], E)
        tl.store(experts + rows[:, None] * E + cols[None, :], picks, mask=inside[:, None] & (cols < E)[None, :])
        chosen = at
    else:
        ks = tl.arange(0, KP)
        key = tl.where(x != x, float("inf"), x)  # NaN ranks first, as it does in torch's sort
        free = at
        picks = tl.zeros([x.shape[0], KP], tl.int32) + E
        weights = tl.zeros([x.shape[0], KP], WIDE)
        for k in range(K):
            best = tl.max(tl.where(free, key, float("-inf")), 1)
            index = tl.min(tl.where(free & (key == best[:, None]), cols[None, :], EP), 1)  # ties: the lowest index
            one = cols[None, :] == index[:, None]
            weight = tl.sum(tl.where(one, p, 0.0), 1)
            weights = tl.where(ks[None, :] == k, weight[:, None], weights)
            picks = tl.where((ks[None, :] == k) & real[:, None], index[:, None], picks)
            free = free & (one == 0)
        if RENORMALIZE:
            weights = weights / tl.where(real, tl.sum(weights, 1), 1.0)[:, None]
        there = inside[:, None] & (ks < K)[None, :]
        tl.store(gates + rows[:, None] * K + ks[None, :], weights, mask=there)
        tl.store(experts + rows[:, None] * K + ks[None, :], picks, mask=there)
        chosen = at & (free == 0)
    return chosen, p, lse, picks


@triton.jit
def _rank(choice, base, E: tl.constexpr, EP: tl.constexpr):
    """Sorted positions of slots that come after `base` others of each expert, and the new base."""
    cols = tl.arange(0, EP)
    hot = ((choice[:, None] == cols[None, :]) & (cols < E)[None, :]).to(tl.int32)
    before = tl.cumsum(hot, 0) - hot + base[None, :]
    return tl.where(choice < E, tl.sum(hot * before, 1), -1), base + tl.sum(hot, 0)


@triton.jit
def route_forward(
    logits, mask, gates, experts, probs, z, counts, importance, z_squared, N, row_stride, expert_stride, mask_stride,
    E: tl.constexpr, K: tl.constexpr, EP: tl.constexpr, KP: tl.constexpr, RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Routes a tile of rows; its load, probabilities and squared z go to row `program` of the partial sums."""
    tile = tl.program_id(0).to(tl.int64)
    chosen, p, lse, _ = _choose(
        logits, mask, gates, experts, probs, z, span(tile * ROWS, ROWS), N, row_stride, expert_stride, mask_stride,
        E, K, EP, KP, RENORMALIZE, WIDE,
    )  # fmt: skip
    cols = tl.arange(0, EP)
    tl.store(counts + tile * E + cols, tl.sum(chosen.to(tl.int32), 0), mask=cols < E)
    tl.store(importance + tile * E + cols, tl.sum(p, 0), mask=cols < E)
    tl.store(z_squared + tile, tl.sum(lse * lse, 0))


@triton.jit
def route_small(
    logits, mask, gates, experts, probs, z, load, importance, z_squared, src, dst, offs,
    N, row_stride, expert_stride, mask_stride,
    E: tl.constexpr, K: tl.constexpr, EP: tl.constexpr, KP: tl.constexpr, RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Routes and places all rows in one program."""
    rows = span(0, ROWS)
    chosen, p, lse, picks = _choose(
        logits, mask, gates, experts, probs, z, rows, N, row_stride, expert_stride, mask_stride,
        E, K, EP, KP, RENORMALIZE, WIDE,
    )  # fmt: skip
    cols = tl.arange(0, EP)
    ks = tl.arange(0, KP)
    total = tl.sum(chosen.to(tl.int32), 0)
    end = tl.cumsum(total, 0)
    tl.store(load + cols, total, mask=cols < E)
    tl.store(importance + cols, tl.sum(p, 0), mask=cols < E)
    tl.store(z_squared, tl.sum(lse * lse, 0))
    tl.store(offs + cols, end - total, mask=cols < E)
    every = tl.sum(total, 0)
    tl.store(offs + E, every)
    # A padded slot (k >= K) chose expert E, which goes nowhere.
    slots = tl.reshape(rows[:, None] * K + ks[None, :], [ROWS * KP])
    there = tl.reshape((rows < N)[:, None] & (ks < K)[None, :], [ROWS * KP])
    position, _ = _rank(tl.reshape(picks, [ROWS * KP]), end - total, E, EP)
    tl.store(dst + slots, position, mask=there)
    tl.store(src + position, slots.to(tl.int32), mask=there & (position >= 0))
    tl.store(src + slots, -1, mask=there & (slots >= every))


@triton.jit
def route_count(experts, counts, SLOTS, E: tl.constexpr, EP: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr):
    """How many of a tile's slots chose each expert."""
    tile = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, EP)
    total = tl.zeros([EP], tl.int32)
    for start in range(0, SPAN, CHUNK):
        steps = start + tl.arange(0, CHUNK)
        slots = tile * SPAN + steps
        choice = tl.load(experts + slots, mask=(steps < SPAN) & (slots < SLOTS), other=E)
        total += tl.sum((choice[:, None] == cols[None, :]).to(tl.int32), 0)
    tl.store(counts + tile * E + cols, total, mask=cols < E)


@triton.jit
def route_scan(
    counts, importances, squares, bases, offs, load, importance, z_squared, TILES,
    E: tl.constexpr, EP: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program adds the tiles' partial sums, and says where each tile's slots of each expert begin."""
    cols = tl.arange(0, EP)
    total = tl.zeros([EP], tl.int32)
    for start in range(0, TILES, CHUNK):
        tiles = span(start, CHUNK)
        there = (tiles < TILES)[:, None] & (cols < E)[None, :]
        total += tl.sum(tl.load(counts + tiles[:, None] * E + cols[None, :], mask=there, other=0), 0)
    if offs is not None:
        end = tl.cumsum(total, 0)
        tl.store(offs + cols, end - total, mask=cols < E)
        tl.store(offs + E, tl.sum(total, 0))
        base = end - total
        for start in range(0, TILES, CHUNK):
            tiles = span(start, CHUNK)
            there = (tiles < TILES)[:, None] & (cols < E)[None, :]
            count = tl.load(counts + tiles[:, None] * E + cols[None, :], mask=there, other=0)
            before = tl.cumsum(count, 0) - count + base[None, :]
            tl.store(bases + tiles[:, None] * E + cols[None, :], before, mask=there)
            base += tl.sum(count, 0)
    if load is not None:
        tl.store(load + cols, total, mask=cols < E)
        p = tl.zeros([EP], WIDE)
        square = tl.zeros([CHUNK], WIDE)
        for start in range(0, TILES, CHUNK):
            tiles = span(start, CHUNK)
            there = (tiles < TILES)[:, None] & (cols < E)[None, :]
            p += tl.sum(tl.load(importances + tiles[:, None] * E + cols[None, :], mask=there, other=0.0), 0)
            square += tl.load(squares + tiles, mask=tiles < TILES, other=0.0)
        tl.store(importance + cols, p, mask=cols < E)
        tl.store(z_squared, tl.sum(square, 0))


@triton.jit
def route_place(
    experts, bases, offs, src, dst, SLOTS,
    E: tl.constexpr, EP: tl.constexpr, SPAN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Places a tile's slots behind those of the tiles before it."""
    tile = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, EP)
    base = tl.load(bases + tile * E + cols, mask=cols < E, other=0)
    every = tl.load(offs + E)
    for start in range(0, SPAN, CHUNK):
        steps = start + tl.arange(0, CHUNK)
        slots = tile * SPAN + steps
        there = (steps < SPAN) & (slots < SLOTS)
        choice = tl.load(experts + slots, mask=there, other=E)
        position, base = _rank(choice, base, E, EP)
        tl.store(dst + slots, position, mask=there)
        tl.store(src + position, slots.to(tl.int32), mask=there & (position >= 0))
        tl.store(src + slots, -1, mask=there & (slots >= every))


@triton.jit
def route_backward_kernel(
    d_gates, d_probs, d_z, d_importance, d_z_squared, experts, probs, z, out, N,
    E: tl.constexpr, K: tl.constexpr, EP: tl.constexpr, RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of logits from those of gates, probabilities, z and the sums of the auxiliary losses."""
    rows = span(tl.program_id(0).to(tl.int64) * ROWS, ROWS)
    cols = tl.arange(0, EP)
    inside = rows < N
    first = tl.load(experts + rows * (K if K > 0 else E), mask=inside, other=E)
    at = (first < E)[:, None] & (cols < E)[None, :]
    places = rows[:, None] * E + cols[None, :]
    p = tl.load(probs + places, mask=at, other=0.0)
    grad = tl.zeros([ROWS, EP], WIDE)
    if d_probs is not None:
        grad += tl.load(d_probs + places, mask=at, other=0.0)
    if d_importance is not None:
        grad += tl.load(d_importance + cols, mask=cols < E, other=0.0)[None, :]
    if d_gates is not None:
        chosen = tl.zeros([ROWS, EP], WIDE)
        direct = tl.zeros([ROWS, EP], WIDE)
        for k in range(K):
            choice = tl.load(experts + rows * K + k, mask=inside, other=E)
            d_gate = tl.load(d_gates + rows * K + k, mask=choice < E, other=0.0)
            one = (cols[None, :] == choice[:, None]) & at
            chosen = tl.where(one, p, chosen)
            direct = tl.where(one, d_gate[:, None], direct)
        if RENORMALIZE:
            total = tl.sum(chosen, 1)
            total = tl.where(first < E, total, 1.0)
            mean = tl.sum(direct * chosen, 1) / total
            # Only the chosen were divided by their sum.
            held = (first < E)[:, None] & (chosen > 0)
            direct = tl.where(held, (direct - mean[:, None]) / total[:, None], 0.0)
        grad += direct
    grad -= tl.sum(tl.where(at, grad * p, 0.0), 1)[:, None]
    if d_z is not None:
        grad += tl.load(d_z + rows, mask=inside, other=0.0)[:, None]
    if d_z_squared is not None:
        grad += (2.0 * tl.load(d_z_squared) * tl.load(z + rows, mask=inside, other=0.0))[:, None]
    grad = tl.where(at, grad * p, 0.0)
    tl.store(out + places, grad.to(out.dtype.element_ty), mask=inside[:, None] & (cols < E)[None, :])


def _rows(count: int) -> int:
    """Rows of a tile."""
    return min(128, max(16, TILE // triton.next_power_of_2(count)))


def _warps(elements: int) -> int:
    """16 elements a thread."""
    return min(32, max(4, elements // 512))


def _span(count: int, top_k: int) -> dict[str, int]:
    """Slots of a tile, and how many of them are ranked at a time."""
    padded = triton.next_power_of_2(count)
    slots = _rows(count) * top_k
    return {
        "E": count,
        "EP": padded,
        "SPAN": slots,
        "CHUNK": min(max(16, TILE // padded), triton.next_power_of_2(slots)),
    }


def _scan(counts: Tensor, sums: tuple[Tensor, Tensor] | None, placed: bool) -> tuple[Any, ...]:
    """Bases, offsets, load, importance and squared z of tiles."""
    tiles, count = counts.shape
    padded = triton.next_power_of_2(count)
    bases = torch.empty_like(counts) if placed else None
    offs = counts.new_empty(count + 1) if placed else None
    load = counts.new_empty(count) if sums else None
    importance, z_squared = (sums[0].new_empty(count), sums[1].new_empty(())) if sums else (None, None)
    route_scan[(1,)](
        counts, *(sums or (None, None)), bases, offs, load, importance, z_squared, tiles,
        E=count, EP=padded, CHUNK=max(16, min(TILE // padded, triton.next_power_of_2(tiles))),
        WIDE=wide(sums[0].dtype) if sums else tl.float32,
    )  # fmt: skip
    return bases, offs, load, importance, z_squared


def route(logits: Tensor, mask: Tensor | None, top_k: int, renormalize: bool) -> Made:
    """What the op `usam::route` returns."""
    rows, count = logits.shape
    dtype = _wide(logits)
    real, whole = (partial(logits.new_empty, dtype=t) for t in (dtype, torch.int32))
    gates = real((rows, top_k) if top_k else 0)
    experts, probs, z = whole((rows, top_k or count)), real((rows, count)), real(rows)
    src, dst, offs = whole(rows * top_k), whole(rows * top_k), whole(0)
    padded, choices = triton.next_power_of_2(count), triton.next_power_of_2(max(1, top_k))
    shape = {"E": count, "K": top_k, "EP": padded, "KP": choices, "RENORMALIZE": renormalize, "WIDE": wide(dtype)}
    strides = rows, *logits.stride(), 0 if mask is None else mask.stride(0)
    alone = triton.next_power_of_2(max(16, rows))
    with launch(logits):
        if top_k and alone <= 1024 and alone * choices * padded <= ALONE:
            load, importance, z_squared, offs = whole(count), real(count), real(()), whole(count + 1)
            route_small[(1,)](
                logits, mask, gates, experts, probs, z, load, importance, z_squared, src, dst, offs, *strides,
                ROWS=alone, num_warps=_warps(alone * choices * padded), **shape,
            )  # fmt: skip
            return gates, experts, probs, z, load, importance, z_squared, src, dst, offs
        tiles = max(1, triton.cdiv(rows, _rows(count)))
        counts, sums = whole((tiles, count)), (real((tiles, count)), real(tiles))
        route_forward[(tiles,)](
            logits, mask, gates, experts, probs, z, counts, *sums, *strides, ROWS=_rows(count), **shape
        )
        placed = top_k > 0 and count <= SORTED
        if tiles == 1 and not placed:
            load, importance, z_squared = counts[0], sums[0][0], sums[1][0]
        else:
            bases, ends, load, importance, z_squared = _scan(counts, sums, placed)
        if placed:
            offs = ends
            route_place[(tiles,)](experts, bases, offs, src, dst, rows * top_k, **_span(count, top_k))
        elif top_k:
            src, dst, offs = _place_torch(experts, count)
    return gates, experts, probs, z, load, importance, z_squared, src, dst, offs


def place(experts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the op `usam::place` returns."""
    experts = experts.contiguous()
    slots = experts.numel()
    shape = _span(count, experts.shape[1])
    tiles = max(1, triton.cdiv(slots, shape["SPAN"]))
    counts = experts.new_empty(tiles, count)
    src, dst = experts.new_empty(slots), experts.new_empty(slots)
    with launch(experts):
        route_count[(tiles,)](experts, counts, slots, **shape)
        bases, offs, *_ = _scan(counts, None, placed=True)
        route_place[(tiles,)](experts, bases, offs, src, dst, slots, **shape)
    return src, dst, offs


def route_backward(
    d_gates: Tensor | None,
    d_probs: Tensor | None,
    d_z: Tensor | None,
    d_importance: Tensor | None,
    d_z_squared: Tensor | None,
    experts: Tensor,
    probs: Tensor,
    z: Tensor,
    dtype: torch.dtype,
    top_k: int,
    renormalize: bool,
) -> Tensor:
    """What the op `usam::route_backward` returns."""
    rows, count = probs.shape
    grads = [None if grad is None else grad.contiguous() for grad in (d_gates, d_probs, d_z, d_importance, d_z_squared)]
    if not top_k:
        grads[0] = None
    out = torch.empty_like(probs, dtype=dtype)
    with launch(probs):
        route_backward_kernel[(triton.cdiv(rows, _rows(count)),)](
            *grads, experts, probs, z, out, rows,
            E=count, K=top_k, EP=triton.next_power_of_2(count), RENORMALIZE=renormalize, ROWS=_rows(count),
            WIDE=wide(probs.dtype),
        )  # fmt: skip
    return out


_TYPES = {"mask": "*i1", "N": "i32", "SLOTS": "i32", "TILES": "i32", "row_stride": "i32"} | dict.fromkeys(
    ("experts", "counts", "load", "src", "dst", "offs", "bases"), "*i32"
)
_BEST_TWO = {"E": 8, "K": 2, "EP": 8, "KP": 2, "RENORMALIZE": True, "ROWS": _rows(8), "WIDE": tl.float32}


def _example(kernel, **constexprs) -> Example:
    """Float32 logits, two of eight experts."""
    constexprs = {n: v for n, v in (_BEST_TWO | _span(8, 2) | constexprs).items() if n in kernel.arg_names}
    return Example(kernel, {n: _TYPES.get(n, "*fp32") for n in kernel.arg_names if n not in constexprs}, constexprs)


KERNELS = [
    _example(route_forward, expert_stride=1, mask_stride=1),
    _example(route_small, expert_stride=1, mask_stride=1),
    _example(route_count),
    _example(route_scan, CHUNK=64),
    _example(route_place),
    _example(route_backward_kernel),
]
