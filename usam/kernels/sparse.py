"""Sparse experts: each row goes to its few chosen experts alone, and no expert's output outlives the sum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from usam.kernels.backends import demand_triton, runs_triton
from usam.kernels.choice import bucket, fastest
from usam.kernels.dense import ACTIVATIONS, SLOPES
from usam.kernels.routing import Placement

if TYPE_CHECKING:
    from usam.kernels import Experts

Sparse = Literal["auto", "torch", "grouped_mm", "triton"]


def sparse_experts(x: Tensor, gates: Tensor, placement: Placement, experts: Experts, backend: Sparse) -> Tensor:
    """The gated sum of the chosen experts' outputs; saves x, gates, placement and pre-activations for the gradients.

    Args:
        x: (row, in), in the experts' dtype.
        gates: (row, k), float32 or wider.
        placement: of the choices (row, k); those without an expert count for nothing, and a row without any gives
            zeros, whatever stands in it.
        experts: their weights.
        backend: torch loops over the experts on the host; grouped_mm is torch's product of all groups at once, which
            wants rows of whole 16 bytes (see `grouped_mm_takes`); triton is the kernels here; auto measures what can
            run, once for each bucket of shapes (see `usam.kernels.choice`): it never loops where Triton runs.

    Returns:
        (row, out) in x's dtype.
    """
    weights = (experts.down, experts.down_bias, experts.up, experts.up_bias)
    for weight in weights:
        if weight is not None and weight.dtype != x.dtype:
            raise TypeError(f"The experts are {weight.dtype} and x is {x.dtype}: cast one to the other's type.")
    if backend == "triton":
        demand_triton(x)
    elif backend == "grouped_mm" and not grouped_mm_takes(x, experts):
        raise ValueError(
            f"backend='grouped_mm' cannot multiply {x.dtype} of widths {_widths(experts.down, experts.up)}: it needs "
            "float32, float16 or bfloat16 and widths of whole 16 bytes. Write backend='auto'."
        )
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, gates, *weights))
    src, dst, offs = placement.src, placement.dst, placement.offs
    y: Tensor = _experts(x, gates, src, dst, offs, *weights, experts.activation, backend, save)[0]
    return y


def grouped_mm_takes(x: Tensor, experts: Experts) -> bool:
    """Whether `torch.nn.functional.grouped_mm` exists and multiplies this type and these widths."""
    return _library_takes(x, experts.down, experts.up)


def _library_takes(x: Tensor, down: Tensor, up: Tensor | None) -> bool:
    types = (torch.float32, torch.float16, torch.bfloat16)
    whole = all(width * x.element_size() % 16 == 0 for width in _widths(down, up))
    return hasattr(F, "grouped_mm") and x.dtype in types and whole


def _widths(down: Tensor, up: Tensor | None) -> list[int]:
    shapes = [w.shape[1:] for w in (up, down) if w is not None]
    return sorted({size for shape in shapes for size in shape})


@torch.library.custom_op("usam::sparse_experts", mutates_args=())
def _experts(
    x: Tensor,
    gates: Tensor,
    src: Tensor,
    dst: Tensor,
    offs: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    if backend == "auto":
        backend = _auto(x, gates, src, dst, offs, down, down_bias, up, up_bias, activation, save)
    if backend == "triton":
        from usam.kernels import _sparse

        return _sparse.forward(x, gates, src, dst, offs, down, down_bias, up, up_bias, activation, save)
    groups = GROUPS[backend](offs, len(src))
    gate, token = _sorted(gates, src, offs, x.dtype)
    rows = x[token]
    pre = x.new_empty(0)
    if up is None:
        hidden = rows.to(gate.dtype)
    else:
        pre = groups.product(rows, up.mT)
        if up_bias is not None:
            pre = pre + up_bias[groups.expert]
        hidden = ACTIVATIONS[activation](pre.to(gate.dtype))
    y = groups.product((gate * hidden).to(x.dtype), down)
    if down_bias is not None:
        y = y + gate * down_bias[groups.expert]
    return _combine(y, dst, gates).to(x.dtype), pre if save else x.new_empty(0)


def _auto(
    x: Tensor,
    gates: Tensor,
    src: Tensor,
    dst: Tensor,
    offs: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    save: bool,
) -> Sparse:
    """The backend for tensors like these; the gradients' is measured together with the output's."""
    tensors = x, gates, src, dst, offs, down, down_bias, up, up_bias

    def step(backend: str) -> None:
        y, pre = _experts(*tensors, activation, backend, save)
        if save:
            _experts_backward(y, *tensors, pre, activation, backend, True, True)

    able: list[Sparse] = ["triton"] if x.is_cuda and runs_triton(x) and x.dtype != torch.float64 else ["torch"]
    if _library_takes(x, down, up):
        able.append("grouped_mm")
    widths = tuple(down.shape), None if up is None else tuple(up.shape)
    key = x.device, x.dtype, widths, bucket(len(x)), gates.shape[1], activation, save
    return cast(Sparse, fastest(key, {name: partial(step, name) for name in able}, x.device))


@_experts.register_fake
def _(
    x: Tensor,
    gates: Tensor,
    src: Tensor,
    dst: Tensor,
    offs: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor | None,
    up_bias: Tensor | None,
    activation: str,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    pre = x.new_empty(0) if up is None or not save else x.new_empty(len(src), up.shape[1])
    return x.new_empty(len(x), down.shape[2]), pre


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], output[1])
    ctx.activation, ctx.backend = inputs[9:11]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dpre: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 12
    need = ctx.needs_input_grad
    saved = ctx.saved_tensors
    found = _experts_backward(dy, *saved, ctx.activation, ctx.backend, need[0], any(need[5:9]))
    dx, dgates, ddown, ddown_bias, dup, dup_bias = (
        grad if needed else None for grad, needed in zip(found, need[:2] + need[5:9], strict=True)
    )
    return dx, dgates, None, None, None, ddown, ddown_bias, dup, dup_bias, None, None, None


_experts.register_autograd(_backward, setup_context=_save)

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


# What is not needed comes back empty.
@torch.library.custom_op("usam::sparse_experts_backward", mutates_args=())
def _experts_backward(
    dy: Tensor,
    x: Tensor,
    gates: Tensor,
    src: Tensor,
    dst: Tensor,
    offs: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor | None,
    up_bias: Tensor | None,
    pre: Tensor,
    activation: str,
    backend: str,
    need_x: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if backend == "auto":
        backend = _auto(x, gates, src, dst, offs, down, down_bias, up, up_bias, activation, True)
    if backend == "triton":
        from usam.kernels import _sparse

        weights = down, down_bias, up, up_bias
        return _sparse.backward(dy, x, gates, src, dst, offs, *weights, pre, activation, need_x, need_weights)
    groups = GROUPS[backend](offs, len(src))
    gate, token = _sorted(gates, src, offs, x.dtype)
    rows, dy = x[token], dy[token]
    dhidden = groups.product(dy, down.mT).to(gate.dtype)
    if up is None:
        hidden = rows.to(gate.dtype)
        dh = gate * dhidden
    else:
        wide = pre.to(gate.dtype)
        hidden = ACTIVATIONS[activation](wide)
        dh = SLOPES[activation](gate * dhidden, wide)
    dgate = (dhidden * hidden).sum(-1, keepdim=True)
    if down_bias is not None:
        dgate = dgate + (dy * down_bias[groups.expert]).to(gate.dtype).sum(-1, keepdim=True)
    dgates = _spread(dgate, dst).view_as(gates)
    dh = dh.to(x.dtype)
    dx, ddown, ddown_bias, dup, dup_bias = (x.new_empty(0) for _ in range(5))
    if need_x:
        dx = _combine(dh if up is None else groups.product(dh, up), dst, gates).to(x.dtype)
    if need_weights:
        ddown = groups.outer((gate * hidden).to(x.dtype), dy)
        if down_bias is not None:
            ddown_bias = groups.sums(gate * dy).to(x.dtype)
        if up is not None:
            dup = groups.outer(dh, rows)
        if up_bias is not None:
            dup_bias = groups.sums(dh.to(gate.dtype)).to(x.dtype)
    return dx, dgates.to(gates.dtype), ddown, ddown_bias, dup, dup_bias


@_experts_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    gates: Tensor,
    src: Tensor,
    dst: Tensor,
    offs: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor | None,
    up_bias: Tensor | None,
    pre: Tensor,
    activation: str,
    backend: str,
    need_x: bool,
    need_weights: bool,
) -> Gradients:
    dx = x.new_empty(x.shape if need_x else 0)
    weights = down, down_bias, up, up_bias
    ddown, ddown_bias, dup, dup_bias = (x.new_empty(w.shape if need_weights and w is not None else 0) for w in weights)
    return dx, gates.new_empty(gates.shape), ddown, ddown_bias, dup, dup_bias


def _sorted(gates: Tensor, src: Tensor, offs: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gate, wide enough to compute in, and token of each sorted row; of the first slot past the last."""
    filled = torch.arange(len(src), device=src.device) < offs[-1]
    slot = src.masked_fill(~filled, 0).long()
    gate = gates.to(torch.promote_types(gates.dtype, dtype)).flatten()[slot]
    return gate.unsqueeze(-1), slot // gates.shape[1]


def _spread(y: Tensor, dst: Tensor) -> Tensor:
    """Sorted rows back at their slots; zeros in slots without a row."""
    dst = dst.unsqueeze(-1)
    return y[dst.clamp(min=0).flatten()].masked_fill(dst < 0, 0)


def _combine(y: Tensor, dst: Tensor, gates: Tensor) -> Tensor:
    """The sum of a token's sorted rows in the order of its choices."""
    first, *others = dst.view(gates.shape).unbind(1)
    total = _spread(y, first).to(gates.dtype)
    for choice in others:
        total += _spread(y, choice)
    return total


class Groups(Protocol):
    """Sums over the rows of each expert: `offs[e]` to `offs[e + 1]`; what follows the last may be anything."""

    expert: Tensor  # of each row

    def __init__(self, offs: Tensor, rows: int) -> None: ...

    def product(self, a: Tensor, w: Tensor) -> Tensor:
        """(row, k) times its expert's (k, n)."""
        ...

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        """(expert, m, n), the sums of a[r]^T b[r]."""
        ...

    def sums(self, a: Tensor) -> Tensor:
        """(expert, n), the sums of a[r]."""
        ...


class Loop:
    """One expert after the other."""

    def __init__(self, offs: Tensor, rows: int) -> None:
        self.expert = _expert(offs, rows)
        self.parts = [slice(*pair) for pair in pairwise(offs.tolist())]

    def product(self, a: Tensor, w: Tensor) -> Tensor:
        y = a.new_zeros(len(a), w.shape[2])
        for part, weight in zip(self.parts, w, strict=True):
            torch.mm(a[part], weight, out=y[part])
        return y

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        y = a.new_empty(len(self.parts), a.shape[1], b.shape[1])
        for part, out in zip(self.parts, y, strict=True):
            torch.mm(a[part].mT, b[part], out=out)
        return y

    def sums(self, a: Tensor) -> Tensor:
        return torch.stack([a[part].sum(0) for part in self.parts])


class Library:
    """All experts at once, by torch's own product."""

    def __init__(self, offs: Tensor, rows: int) -> None:
        self.expert = _expert(offs, rows)
        self.ends = offs[1:]
        self.count = len(offs) - 1
        self.filled = (torch.arange(rows, device=offs.device) < offs[-1]).unsqueeze(-1)

    def product(self, a: Tensor, w: Tensor) -> Tensor:
        return F.grouped_mm(a, w, offs=self.ends)

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return F.grouped_mm(a.mT, b, offs=self.ends)

    def sums(self, a: Tensor) -> Tensor:
        # A product with ones and zeros: index_add would sum in another order each time.
        chosen = F.one_hot(self.expert, self.count).to(a.dtype)
        return chosen.mT @ a.masked_fill(~self.filled, 0)


GROUPS: dict[str, Callable[[Tensor, int], Groups]] = {"torch": Loop, "grouped_mm": Library}


def _expert(offs: Tensor, rows: int) -> Tensor:
    positions = torch.arange(rows, dtype=offs.dtype, device=offs.device)
    return torch.searchsorted(offs[1:], positions, right=True).clamp(max=len(offs) - 2)
