"""Routing turns router logits into gates: all experts softly, or the best few for each row, sorted by expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from usam.kernels.backends import Backend, demand_triton, runs_triton
from usam.kernels.ops import Found, Op

SORTED = 128  # experts from which on placement sorts: a program counts all experts side by side


@dataclass(frozen=True)
class Placement:
    """Slots (row * k + choice) in the order of their experts, and of rows among one expert's (a stable sort)."""

    src: Tensor  # row*k: the slot at each sorted position, int32; -1 past the last
    dst: Tensor  # row*k: the sorted position of each slot, int32; -1 where it goes nowhere
    offs: Tensor  # expert+1: positions offs[e] to offs[e+1] belong to expert e, int32


@dataclass(frozen=True)
class Routes:
    """Where each row goes; a row without a token (mask False) goes nowhere and weighs nothing."""

    gates: Tensor  # row k: weight of each choice, float32 or wider; 0 where masked
    probs: Tensor  # row expert: the whole softmax; 0 where masked
    give_experts: Callable[[], Tensor]
    give_z: Callable[[], Tensor]
    placement: Placement | None = None  # of the choices; None of a dense mixture

    @property
    def experts(self) -> Tensor:
        """(row, k): the choice, int32; the number of experts where masked."""
        return self.give_experts()

    @property
    def z(self) -> Tensor:
        """(row,): log of the sum of exp(logits); 0 where masked."""
        return self.give_z()


def route(
    logits: Tensor,
    mask: Tensor | None = None,
    *,
    top_k: int | None = None,
    renormalize: bool = True,
    backend: Backend = "auto",
) -> Routes:
    """Routes of rows with these logits; differentiable in gates, probs and z.

    Args:
        logits: (row, expert); computed in float32, or float64 when they are.
        mask: (row,), True on real tokens; what stands in other rows is never looked at.
        top_k: choices a row, ties to the lowest index; None takes all experts in their order: the dense mixture.
        renormalize: whether the gates of the chosen few sum to 1 (Shazeer et al., 2017) or stay as they are.
        backend: what computes it.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be (row, expert), not {tuple(logits.shape)}")
    if mask is not None and mask.shape != logits.shape[:1]:
        raise ValueError(f"mask must be ({logits.shape[0]},) like the rows of logits, not {tuple(mask.shape)}")
    if top_k is not None and not 1 <= top_k <= logits.shape[1]:
        raise ValueError(f"top_k must lie between 1 and the {logits.shape[1]} experts, not {top_k}")
    if backend == "triton":
        demand_triton(logits)
    # Also beside torch's grouped products, which have no say in it.
    kernels = backend != "torch" and runs_triton(logits) and (logits.is_cuda or backend == "triton")
    taken = Route(logits, mask, top_k or 0, renormalize, kernels)
    if not logits.is_cuda and backend == "auto":
        return _plain(taken)  # on a CPU torch's own operations take less time than one call of an op
    gates, experts, probs, z, *placement = ROUTE(taken)
    if top_k is None:
        return Routes(probs, probs, lambda: experts, lambda: z)
    return Routes(gates, probs, lambda: experts, lambda: z, Placement(*placement))


def place(experts: Tensor, count: int) -> Placement:
    """The slots of (row, k) choices among `count` experts, sorted; a choice equal to `count` goes nowhere."""
    flat = experts.flatten()
    ranked, order = flat.sort(stable=True)
    bounds = torch.arange(count + 1, dtype=ranked.dtype, device=flat.device)
    offs = torch.searchsorted(ranked, bounds, out_int32=True)
    positions = torch.arange(flat.shape[0], dtype=torch.int32, device=flat.device)
    src = order.int().masked_fill(positions >= offs[-1], -1)
    dst = torch.empty_like(positions).scatter(0, order, positions).masked_fill(flat >= count, -1)
    return Placement(src, dst, offs)


@dataclass(frozen=True)
class Route:
    """What the op takes."""

    logits: Tensor  # row expert
    mask: Tensor | None  # row
    top_k: int  # 0 for all experts, whose gates are the probabilities: gates and placement are then empty
    renormalize: bool
    kernels: bool  # whether Triton computes it


def dtype_of(logits: Tensor) -> torch.dtype:
    """What gates are computed in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _compute(r: Route) -> tuple[Tensor, ...]:
    if r.kernels:
        from usam.kernels import _routing

        return _routing.route(r)
    routes = _plain(r)
    if routes.placement is None:
        nothing = [r.logits.new_empty(0, dtype=torch.int32) for _ in range(3)]
        return routes.probs.new_empty(0), routes.experts, routes.probs, routes.z, *nothing
    p = routes.placement
    return routes.gates, routes.experts, routes.probs, routes.z, p.src, p.dst, p.offs


def _plain(r: Route) -> Routes:
    """By torch's own operations; z, and the list of all experts, when somebody reads them."""
    logits = r.logits.to(dtype_of(r.logits))
    masked = None if r.mask is None else ~r.mask.unsqueeze(-1)
    if masked is not None:
        logits = logits.masked_fill(masked, 0)
    count = logits.shape[1]
    probs = _hide(logits.softmax(-1), masked, 0)

    def z() -> Tensor:
        return _hide(logits.logsumexp(-1, keepdim=True), masked, 0).squeeze(-1)

    if not r.top_k:

        def experts() -> Tensor:
            every = torch.arange(count, dtype=torch.int32, device=logits.device)
            return _hide(every.repeat(len(logits), 1), masked, count)

        return Routes(probs, probs, experts, z)
    order = _best(logits.detach(), r.top_k)
    gates = probs.gather(-1, order)
    if r.renormalize:
        gates = gates / _hide(gates.sum(-1, keepdim=True), masked, 1)
    chosen = _hide(order.int(), masked, count)
    return Routes(gates, probs, lambda: chosen, z, place(chosen, count))


def _hide(x: Tensor, masked: Tensor | None, value: float) -> Tensor:
    return x if masked is None else x.masked_fill(masked, value)


def _best(logits: Tensor, top_k: int) -> Tensor:
    """The largest of each row in order, ties to the lowest index, which topk does not promise; NaN ranks first."""
    key = logits.masked_fill(logits.isnan(), torch.inf)
    if top_k > 2:
        return key.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    key = key.clamp_min(torch.finfo(key.dtype).min)  # what was chosen ranks last
    first = key.argmax(-1, keepdim=True)
    if top_k == 1:
        return first
    return torch.cat([first, key.scatter(-1, first, -torch.inf).argmax(-1, keepdim=True)], -1)


def shapes(r: Route) -> tuple[Tensor, ...]:
    """Room for what the op returns."""
    rows, count = r.logits.shape
    real, whole = (partial(r.logits.new_empty, dtype=dtype) for dtype in (dtype_of(r.logits), torch.int32))
    slots = rows * r.top_k
    gates, offs = real((rows, r.top_k) if r.top_k else 0), whole(count + 1 if r.top_k else 0)
    return gates, whole((rows, r.top_k or count)), real((rows, count)), real(rows), whole(slots), whole(slots), offs


def _gradients(r: Route, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needs: Found) -> Found:
    experts, probs = kept
    d_gates, _, d_probs, d_z, *_ = grads
    if not r.top_k:
        d_gates = None
    if r.kernels:
        from usam.kernels import _routing

        return {"logits": _routing.route_backward(r, experts, probs, d_gates, d_probs, d_z)}
    rows, count = probs.shape
    grad = torch.zeros_like(probs) if d_probs is None else d_probs  # of the probabilities
    if d_gates is not None:
        order = experts.long()
        chosen = torch.cat([probs, probs.new_ones(rows, 1)], -1).gather(-1, order)  # 1 where masked
        if r.renormalize:
            total = chosen.sum(-1, keepdim=True)
            d_gates = (d_gates - (d_gates * chosen).sum(-1, keepdim=True) / total) / total
        grad = grad + probs.new_zeros(rows, count + 1).scatter(-1, order, d_gates)[:, :count]
    grad = grad - (grad * probs).sum(-1, keepdim=True)
    if d_z is not None:
        grad = grad + d_z.unsqueeze(-1)
    masked = experts[:, :1] == count
    return {"logits": (grad * probs).masked_fill(masked, 0).to(r.logits.dtype)}


ROUTE = Op("route", Route, _compute, shapes, returns=7)
ROUTE.differentiate(_gradients, keeps=[1, 2])
