"""The mixture of experts as one function, `moe`, whatever computes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from usam.kernels.backends import Backend, demand_triton, runs_triton
from usam.kernels.dense import (
    ACTIVATIONS,
    Dense,
    dense_experts,
    merged_experts,
    merging_pays,
    plain_experts,
    plain_pays,
)
from usam.kernels.routing import Placement, Routes, place, route
from usam.kernels.sparse import sparse_experts

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Backend",
    "Experts",
    "Placement",
    "Routes",
    "moe",
    "place",
    "route",
]

Activation = Literal["gelu", "relu", "silu"]
WEIGHTS = ("down", "down_bias", "up", "up_bias")


@dataclass(frozen=True)
class Experts:
    """Weights of E experts: `act(x up[e]^T + up_bias[e]) down[e] + down_bias[e]`, or linear ones without `up`."""

    down: Tensor  # expert hidden out; of linear experts: expert in out
    down_bias: Tensor | None = None  # expert out
    up: Tensor | None = None  # expert hidden in
    up_bias: Tensor | None = None  # expert hidden
    activation: Activation = "gelu"  # the exact one, by erf


def moe(
    x: Tensor,
    logits: Tensor,
    experts: Experts,
    mask: Tensor | None = None,
    *,
    top_k: int | None = None,
    renormalize: bool = True,
    backend: Backend = "auto",
) -> tuple[Tensor, Routes]:
    """The gated sum of the experts' outputs (U-SAM, eq. 4), and the routes.

    Args:
        x: (batch, time, in).
        logits: (batch, expert) for one gate a sample, or (batch, time, expert).
        experts: their weights, in x's dtype; autocast casts both.
        mask: (batch, time), True on real frames; other rows give zeros, and nothing of them is looked at.
        top_k: experts a row; None mixes all.
        renormalize: whether the gates of the chosen few sum to 1.
        backend: what computes it; auto chooses by device and dtype, and between kinds of sparse product by measuring
            each bucket of shapes once (`usam.kernels.choice`).

    Returns:
        (batch, time, out) in x's dtype, and routes whose rows are those of `logits`, flattened: a sample's
        (masked when none of its frames is real) or a frame's.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not belong together.
        RuntimeError: the named backend cannot run here.
    """
    device = "cpu" if x.is_cpu else x.device.type  # whose name takes a twentieth of the smallest mixture to read
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        cast: dict[str, Any] = {n: t.to(dtype) for n in WEIGHTS if (t := getattr(experts, n)) is not None}
        with torch.autocast(device, enabled=False):  # the ops choose their own types inside
            return moe(
                x.to(dtype), logits, replace(experts, **cast), mask,
                top_k=top_k, renormalize=renormalize, backend=backend,
            )  # fmt: skip
    _check(x, logits, experts, mask)
    name = _choose(x, top_k, backend)
    samples, time, _ = x.shape
    shared = logits.ndim == 2
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), 0)
    real = None if mask is None else mask.flatten()
    rows = None if mask is None else mask.any(-1) if shared else real
    routes = route(
        logits if shared else logits.flatten(0, 1), rows, top_k=top_k, renormalize=renormalize, backend=backend
    )
    flat = x.flatten(0, 1)
    share = time if shared else 1
    if top_k is None:
        weights = experts.up, experts.up_bias, experts.down, experts.down_bias
        dense = Dense(flat, routes.probs, *weights, real, experts.activation, share, name == "triton")
        if backend != "triton" and merging_pays(dense):
            y = merged_experts(dense)
        else:
            y = plain_experts(dense)[0] if backend == "auto" and plain_pays(dense) else dense_experts(dense)
    else:
        gates, placement = _spread(routes, mask, share, logits.shape[-1])
        y = sparse_experts(flat, gates, placement, experts, name)
    return y.view(samples, time, y.shape[-1]), routes


def _spread(routes: Routes, mask: Tensor | None, share: int, count: int) -> tuple[Tensor, Placement]:
    """Gates and placement of frames, which have those of their sample when `share` frames share them."""
    assert routes.placement is not None
    if share == 1:
        return routes.gates, routes.placement
    gates, experts = (t.unsqueeze(1).expand(-1, share, -1) for t in (routes.gates, routes.experts))
    if mask is not None:
        experts = experts.masked_fill(~mask.unsqueeze(-1), count)
    return gates.flatten(0, 1), place(experts.flatten(0, 1), count)


def _choose(x: Tensor, top_k: int | None, backend: Backend) -> Backend:
    """What computes the experts; what is `auto` for chosen experts is measured where they are."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend='{backend}' is none of {', '.join(get_args(Backend))}")
    if backend == "auto":
        if top_k is not None:
            return "auto"
        # A GPU has its own float64 products, and Triton's are slow.
        return "triton" if x.is_cuda and x.dtype != torch.float64 and runs_triton(x) else "torch"
    if backend == "triton":
        demand_triton(x)
    if backend == "grouped_mm" and top_k is None:
        raise ValueError(
            "backend='grouped_mm' multiplies groups of rows by their own expert, and without top_k every row goes to "
            "all: write backend='torch', 'triton' or 'auto', or give top_k."
        )
    return backend


def _check(x: Tensor, logits: Tensor, experts: Experts, mask: Tensor | None) -> None:
    if x.ndim != 3:
        raise ValueError(f"x must be (batch, time, in), not {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, not {x.dtype}")
    count, inner, _ = experts.down.shape
    width = x.shape[-1]
    gated = x.shape[:1] if logits.ndim == 2 else x.shape[:2]
    if logits.shape != (*gated, count):
        raise ValueError(
            f"logits must be {(x.shape[0], count)}, one gate a sample, or {(*x.shape[:2], count)} for x of "
            f"{tuple(x.shape)} and {count} experts, not {tuple(logits.shape)}"
        )
    if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool {tuple(x.shape[:2])}, not {mask.dtype} {tuple(mask.shape)}")
    first = (count, inner) if experts.up is None else tuple(experts.up.shape)
    expected = (count, width) if experts.up is None else (count, inner, width)
    if first != expected:
        raise ValueError(f"the experts' first layer is {first}, and x of width {width} needs {expected}")
    for name in WEIGHTS:
        if (t := getattr(experts, name)) is not None and t.dtype != x.dtype:
            raise TypeError(f"experts.{name} is {t.dtype} and x is {x.dtype}: cast one to the other's type")
