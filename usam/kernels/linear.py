"""Linear experts: their gated sum is one product whose inner axis is (expert, in), or one merged matrix a sample."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from usam.kernels.dense import add_bias, bias_backward

MERGING = 16  # joining one matrix, which waits for memory, takes as long as multiplying so many rows by it


def linear_experts(
    x: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    mask: Tensor | None = None,
    rows: int = 1,
    kernels: bool = False,
) -> Tensor:
    """The gated sum of linear experts' outputs, (row, out).

    Args:
        x: (row, in), 0 where mask is False.
        gates: (row / rows, expert), float32 or wider: one gate for each `rows` consecutive rows.
        weight, bias: (expert, in, out) and (expert, out).
        mask: (row,); rows where it is False give zeros.
        rows: how many rows share a gate.
        kernels: whether Triton scales x while it multiplies; else the scaled copies stand side by side first.
    """
    y: Tensor = _linear(x, gates, weight, bias, mask, rows, kernels)
    return y


def merged_experts(
    x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None, *, mask: Tensor | None = None, rows: int
) -> Tensor:
    """The same from one merged matrix for each gate row."""
    w, b = merge(gates, weight, bias)
    apart = rearrange(x, "(g r) d -> g r d", g=gates.shape[0], r=rows)
    y = (apart @ w if b is None else torch.baddbmm(b.unsqueeze(1), apart, w)).flatten(0, 1)
    return y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)


def merging_pays(gates: Tensor, weight: Tensor, rows: int) -> bool:
    """Whether merged matrices are cheaper: without gradients, where they take no more memory than the experts."""
    samples, count = gates.shape
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (gates, weight))
    return not trains and samples <= count and rows * (count - 1) > MERGING * count


def merge(gates: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One linear map a gate row: (row, in, out) and (row, out)."""
    w = torch.einsum("g e, e d o -> g d o", gates.to(weight.dtype), weight)
    return w, None if bias is None else gates.to(bias.dtype) @ bias


@torch.library.custom_op("usam::linear", mutates_args=())
def _linear(
    x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, rows: int, kernels: bool
) -> Tensor:
    if kernels:
        from usam.kernels import _linear as triton_linear

        return triton_linear.forward(x, gates, weight, bias, mask, rows)
    y = _stacked(x, gates, rows) @ weight.flatten(0, 1)
    if bias is not None:
        add_bias(y, gates, bias, mask, rows)
    return y


def _stacked(x: Tensor, gates: Tensor, rows: int) -> Tensor:
    """x once for each expert, scaled by its gate: (row, expert * in)."""
    scaled = rearrange(x, "(g r) d -> g r 1 d", r=rows, g=gates.shape[0]) * gates.to(x.dtype)[:, None, :, None]
    return rearrange(scaled, "g r e d -> (g r) (e d)")


@_linear.register_fake
def _(
    x: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, rows: int, kernels: bool
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[-1])


@torch.library.custom_op("usam::linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    rows: int,
    kernels: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gates, weight and bias; empty where not needed."""
    if mask is not None:
        grad = grad.masked_fill(~mask.unsqueeze(-1), 0)
    empty = x.new_empty
    d_x, d_gates = empty(0), torch.zeros_like(gates, memory_format=torch.contiguous_format)
    if needs[0] or needs[1]:
        # in is the narrow side: each expert's gradient of it is small beside the outputs.
        d_stacked = grad @ weight.flatten(0, 1).mT
        if kernels:
            from usam.kernels import _linear as triton_linear

            d_x, stacked, d_gates = triton_linear.backward(d_stacked, x, gates, rows)
        else:
            stacked = _stacked(x, gates, rows)
            by_expert = rearrange(d_stacked, "(g r) (e d) -> g r e d", g=gates.shape[0], r=rows, e=gates.shape[1])
            apart = rearrange(x, "(g r) d -> g r 1 d", g=gates.shape[0], r=rows)
            d_gates = (by_expert * apart).sum((1, 3), dtype=gates.dtype)
            d_x = torch.einsum("g r e d, g e -> g r d", by_expert, gates.to(x.dtype)).reshape(x.shape)
    else:
        stacked = _stacked(x, gates, rows)
    d_bias = empty(0)
    if bias is not None and (needs[1] or needs[3]):
        d_by_bias, d_bias = bias_backward(grad, gates, bias, rows)
        d_gates += d_by_bias
    d_weight = (stacked.mT @ grad).view(weight.shape) if needs[2] else empty(0)
    return d_x, d_gates, d_weight, d_bias


@_linear_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    rows: int,
    kernels: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_x = x.new_empty(x.shape if needs[0] or needs[1] else (0,))
    d_weight = x.new_empty(weight.shape if needs[2] else (0,))
    d_bias = x.new_empty(bias.shape if bias is not None and (needs[1] or needs[3]) else (0,))
    return d_x, gates.new_empty(gates.shape), d_weight, d_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, rows, kernels = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = rows, kernels
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    needs = list(ctx.needs_input_grad[:4])
    grads = _linear_backward(grad, *ctx.saved_tensors, *ctx.options, needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None


_linear.register_autograd(_backward, setup_context=_save)
