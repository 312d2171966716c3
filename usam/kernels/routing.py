"""Routing turns router logits into gates: all experts softly, or the best few for each row, sorted by expert."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from usam.kernels.backends import Backend, demand_triton, runs_triton

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
    experts: Tensor  # row k: the choice, int32; the number of experts where masked
    probs: Tensor  # row expert: the whole softmax; 0 where masked
    z: Tensor  # row: log of the sum of exp(logits); 0 where masked
    load: Tensor  # expert: rows that chose it, int32
    importance: Tensor  # expert: sum of its probabilities over the rows
    z_squared: Tensor  # scalar: sum of squared z over the rows
    placement: Placement | None = None  # of the choices; None of a dense mixture


def route(
    logits: Tensor,
    mask: Tensor | None = None,
    *,
    top_k: int | None = None,
    renormalize: bool = True,
    backend: Backend = "auto",
) -> Routes:
    """Routes of rows with these logits; differentiable in gates, probs, z, importance and z_squared.

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
    made = _route(logits, mask, top_k or 0, renormalize, _kernels(logits, backend))
    gates, experts, probs, z, load, importance, z_squared, src, dst, offs = made
    if top_k is None:
        return Routes(probs, experts, probs, z, load, importance, z_squared)
    return Routes(gates, experts, probs, z, load, importance, z_squared, Placement(src, dst, offs))


def place(experts: Tensor, count: int, backend: Backend = "auto") -> Placement:
    """The slots of (row, k) choices among `count` experts, sorted; a choice equal to `count` goes nowhere."""
    return Placement(*_place(experts, count, _kernels(experts, backend)))


def _kernels(x: Tensor, backend: Backend) -> bool:
    """Whether the Triton kernels route: also beside torch's grouped products, which have no say in it."""
    if backend == "triton":
        demand_triton(x)
    return backend != "torch" and runs_triton(x) and (x.is_cuda or backend == "triton")


def _wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


Made = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


# Gates and placement are empty in the dense mixture (top_k 0), whose gates are its probabilities.
@torch.library.custom_op("usam::route", mutates_args=())
def _route(
    logits: Tensor, mask: Tensor | None, top_k: int, renormalize: bool, kernels: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if kernels:
        from usam.kernels import _routing

        return _routing.route(logits, mask, top_k, renormalize)
    return _route_torch(logits, mask, top_k, renormalize)


def _route_torch(logits: Tensor, mask: Tensor | None, top_k: int, renormalize: bool) -> Made:
    rows, count = logits.shape
    logits = logits.to(_wide(logits))
    if mask is None:
        mask = torch.ones(rows, dtype=torch.bool, device=logits.device)
    masked = ~mask.unsqueeze(-1)
    logits = logits.masked_fill(masked, 0)
    z = logits.logsumexp(-1).masked_fill(~mask, 0)
    probs = logits.softmax(-1).masked_fill(masked, 0)
    if top_k:
        # A stable sort gives ties to the lowest index; topk does not promise that.
        order = logits.masked_fill(logits.isnan(), torch.inf).sort(dim=-1, descending=True, stable=True).indices
        order = order[:, :top_k]
        gates = probs.gather(-1, order)
        if renormalize:
            gates = gates / gates.sum(-1, keepdim=True).masked_fill(masked, 1)
    else:
        order = torch.arange(count, device=logits.device).expand(rows, count)
        gates = probs.new_empty(0)
    experts = order.int().masked_fill(masked, count)
    chosen = probs.new_zeros(rows, count + 1, dtype=torch.int32).scatter(-1, experts.long(), 1)
    load = chosen[:, :count].sum(0, dtype=torch.int32)
    src, dst, offs = _place_torch(experts, count) if top_k else experts.new_empty(3, 0).unbind()
    return gates, experts, probs, z, load, probs.sum(0), z.square().sum(), src.clone(), dst.clone(), offs.clone()


@_route.register_fake
def _(logits: Tensor, mask: Tensor | None, top_k: int, renormalize: bool, kernels: bool) -> Made:
    rows, count = logits.shape
    real, whole = (partial(logits.new_empty, dtype=dtype) for dtype in (_wide(logits), torch.int32))
    slots = rows * top_k
    gates = real((rows, top_k) if top_k else 0)
    offs = whole(count + 1 if top_k else 0)
    routes = gates, whole((rows, top_k or count)), real((rows, count)), real(rows)
    return *routes, whole(count), real(count), real(()), whole(slots), whole(slots), offs


def _save(ctx: Any, inputs: tuple[Any, ...], output: Made) -> None:
    _, experts, probs, z, *_ = output
    ctx.save_for_backward(experts, probs, z)
    ctx.options = inputs[0].dtype, inputs[2], inputs[3], inputs[4]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any,
    gates: Tensor | None,
    experts: None,
    probs: Tensor | None,
    z: Tensor | None,
    load: None,
    importance: Tensor | None,
    z_squared: Tensor | None,
    *placement: None,
) -> tuple[Tensor | None, None, None, None, None]:
    if gates is probs is z is importance is z_squared is None:
        return None, None, None, None, None
    dtype, top_k, renormalize, kernels = ctx.options
    grad = _route_backward(
        gates, probs, z, importance, z_squared, *ctx.saved_tensors, dtype, top_k, renormalize, kernels
    )
    return grad, None, None, None, None


@torch.library.custom_op("usam::route_backward", mutates_args=())
def _route_backward(
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
    kernels: bool,
) -> Tensor:
    if kernels:
        from usam.kernels import _routing

        return _routing.route_backward(
            d_gates, d_probs, d_z, d_importance, d_z_squared, experts, probs, z, dtype, top_k, renormalize
        )
    rows, count = probs.shape
    grad = torch.zeros_like(probs)  # of the probabilities
    if d_probs is not None:
        grad = grad + d_probs
    if d_importance is not None:
        grad = grad + d_importance
    if d_gates is not None and top_k:
        order = experts.long()
        chosen = torch.cat([probs, probs.new_ones(rows, 1)], -1).gather(-1, order)  # 1 where masked
        if renormalize:
            total = chosen.sum(-1, keepdim=True)
            d_gates = (d_gates - (d_gates * chosen).sum(-1, keepdim=True) / total) / total
        grad = grad + probs.new_zeros(rows, count + 1).scatter(-1, order, d_gates)[:, :count]
    grad = grad - (grad * probs).sum(-1, keepdim=True)
    if d_z is not None:
        grad = grad + d_z.unsqueeze(-1)
    if d_z_squared is not None:
        grad = grad + (2 * d_z_squared * z).unsqueeze(-1)
    masked = experts[:, :1] == count
    return (grad * probs).masked_fill(masked, 0).to(dtype)


@_route_backward.register_fake
def _(
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
    kernels: bool,
) -> Tensor:
    return torch.empty_like(probs, dtype=dtype)


_route.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("usam::place", mutates_args=())
def _place(experts: Tensor, count: int, kernels: bool) -> tuple[Tensor, Tensor, Tensor]:
    if kernels and count <= SORTED:
        from usam.kernels import _routing

        return _routing.place(experts, count)
    return _place_torch(experts, count)


def _place_torch(experts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    flat = experts.flatten()
    ranked, order = flat.sort(stable=True)
    offs = torch.searchsorted(ranked, torch.arange(count + 1, dtype=ranked.dtype, device=flat.device), out_int32=True)
    positions = torch.arange(len(flat), dtype=torch.int32, device=flat.device)
    src = order.int().masked_fill(positions >= offs[-1], -1)
    dst = torch.empty_like(positions).scatter(0, order, positions).masked_fill(flat >= count, -1)
    return src, dst, offs


@_place.register_fake
def _(experts: Tensor, count: int, kernels: bool) -> tuple[Tensor, Tensor, Tensor]:
    src, dst = (experts.new_empty(experts.numel(), dtype=torch.int32) for _ in range(2))
    return src, dst, experts.new_empty(count + 1, dtype=torch.int32)
