"""Routing kernels: one pass over the logits, a scan of its tiles' counts, and a stable placement by counting.

Nothing is sorted, added atomically or read by the host: every program writes its own tile's results, and the counts are
added in order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from usam.kernels._triton import launch, span, wide
from usam.kernels.routing import SORTED, Route, place, shapes

TILE = 2048  # elements (rows times experts) a program looks at
BACKWARD = 2  # the gradient looks at so many times fewer rows: more numbers of each are at hand at once


@triton.jit(do_not_specialize=["N"])
def route_forward(
    logits, mask, gates, experts, probs, z, counts, N, row_stride, expert_stride, mask_stride,
    E: tl.constexpr, K: tl.constexpr, EP: tl.constexpr, KP: tl.constexpr, RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Softmax and choices of a tile of rows, and how many of them chose each expert."""
    tile = tl.program_id(0).to(tl.int64)
    rows = span(tile * ROWS, ROWS)
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
        tl.store(counts + tile * E + cols, tl.sum(chosen.to(tl.int32), 0), mask=cols < E)


@triton.jit(do_not_specialize=["SLOTS"])
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
        hot = ((choice[:, None] == cols[None, :]) & (cols < E)[None, :]).to(tl.int32)
        before = tl.cumsum(hot, 0) - hot + base[None, :]
        position = tl.where(choice < E, tl.sum(hot * before, 1), -1)
        base += tl.sum(hot, 0)
        tl.store(dst + slots, position, mask=there)
        tl.store(src + position, slots.to(tl.int32), mask=there & (position >= 0))
        tl.store(src + slots, -1, mask=there & (slots >= every))


@triton.jit(do_not_specialize=["N"])
def route_backward_kernel(
    d_gates, d_probs, d_z, experts, probs, out, N,
    E: tl.constexpr, K: tl.constexpr, EP: tl.constexpr, RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of logits from those of gates, probabilities and z."""
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
    grad = tl.where(at, grad * p, 0.0)
    tl.store(out + places, grad.to(out.dtype.element_ty), mask=inside[:, None] & (cols < E)[None, :])


def _rows(count: int) -> int:
    """Rows of a tile."""
    return min(128, max(16, TILE // triton.next_power_of_2(count)))


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


def route(r: Route) -> tuple[Tensor, ...]:
    """What the op `usam::route` returns."""
    rows, count = r.logits.shape
    gates, experts, probs, z, src, dst, offs = shapes(r)
    padded, choices = triton.next_power_of_2(count), triton.next_power_of_2(max(1, r.top_k))
    shape = {
        "E": count,
        "K": r.top_k,
        "EP": padded,
        "KP": choices,
        "RENORMALIZE": r.renormalize,
        "WIDE": wide(probs.dtype),
    }
    given = r.logits, r.mask, gates, experts, probs, z
    strides = rows, *r.logits.stride(), 0 if r.mask is None else r.mask.stride(0)
    with launch(r.logits):
        tiles = max(1, triton.cdiv(rows, _rows(count)))
        counts = experts.new_empty(tiles, count)
        route_forward[(tiles,)](*given, counts, *strides, ROWS=_rows(count), **shape)
        if r.top_k > 0 and count <= SORTED:
            upto = counts.cumsum(0, dtype=torch.int32)  # of an expert, in this tile and those before it
            offs = F.pad(upto[-1].cumsum(0, dtype=torch.int32), (1, 0))
            bases = upto - counts + offs[:-1]
            route_place[(tiles,)](experts, bases, offs, src, dst, len(src), **_span(count, r.top_k))
        elif r.top_k:
            placement = place(experts, count)
            src, dst, offs = placement.src, placement.dst, placement.offs
    return gates, experts, probs, z, src, dst, offs


def route_backward(
    r: Route, experts: Tensor, probs: Tensor, d_gates: Tensor | None, d_probs: Tensor | None, d_z: Tensor | None
) -> Tensor:
    """The gradient of the logits."""
    rows, count = probs.shape
    grads = [None if grad is None else grad.contiguous() for grad in (d_gates, d_probs, d_z)]
    out = torch.empty_like(probs, dtype=r.logits.dtype)
    height = _rows(count) // BACKWARD
    with launch(probs):
        route_backward_kernel[(triton.cdiv(rows, height),)](
            *grads, experts, probs, out, rows,
            E=count, K=r.top_k, EP=triton.next_power_of_2(count), RENORMALIZE=r.renormalize, ROWS=height,
            WIDE=wide(probs.dtype),
        )  # fmt: skip
    return out
