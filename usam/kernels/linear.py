"""Linear experts: their gated sum is one product whose inner axis is (expert, in), or one merged matrix a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from usam.kernels.dense import add_bias, bias_backward
from usam.kernels.ops import Found, Op, trains

MERGING = 16  # joining one matrix, which waits for memory, takes as long as multiplying so many rows by it


@dataclass(frozen=True)
class Linear:
    """The mixture of all linear experts."""

    x: Tensor  # row in; 0 where mask is False
    gates: Tensor  # row/rows expert, float32 or wider: one gate for each `rows` consecutive rows
    weight: Tensor  # expert in out
    bias: Tensor | None  # expert out
    mask: Tensor | None  # row; where it is False the output is 0
    rows: int  # that share a gate


def linear_experts(experts: Linear) -> Tensor:
    """The gated sum of linear experts' outputs, (row, out); saves x and the gates for the gradients."""
    return LINEAR(experts)[0]


def merged_experts(experts: Linear) -> Tensor:
    """The same from one merged matrix for each gate row."""
    e = experts
    w = torch.einsum("g e, e d o -> g d o", e.gates.to(e.weight.dtype), e.weight)
    apart = rearrange(e.x, "(g r) d -> g r d", g=e.gates.shape[0], r=e.rows)
    y = apart @ w
    if e.bias is not None:
        y += (e.gates.to(e.bias.dtype) @ e.bias).unsqueeze(1)
    y = y.flatten(0, 1)
    return y if e.mask is None else y.masked_fill(~e.mask.unsqueeze(-1), 0)


def merging_pays(experts: Linear) -> bool:
    """Whether merged matrices are cheaper: without gradients, where they take no more memory than the experts."""
    samples, count = experts.gates.shape
    few = samples <= count and experts.rows * (count - 1) > MERGING * count
    return few and not trains(experts.gates, experts.weight)


def _compute(e: Linear) -> tuple[Tensor]:
    y = _stacked(e) @ e.weight.flatten(0, 1)
    if e.bias is not None:
        add_bias(y, e.gates, e.bias, e.mask, e.rows)
    return (y,)


def _shapes(e: Linear) -> tuple[Tensor]:
    return (e.x.new_empty(e.x.shape[0], e.weight.shape[-1]),)


def _stacked(e: Linear) -> Tensor:
    """x once for each expert, scaled by its gate: (row, expert * in)."""
    apart = rearrange(e.x, "(g r) d -> g r 1 d", g=e.gates.shape[0], r=e.rows)
    return rearrange(apart * e.gates.to(e.x.dtype)[:, None, :, None], "g r e d -> (g r) (e d)")


def _gradients(e: Linear, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needs: Found) -> Found:
    (grad,) = grads
    assert grad is not None
    if e.mask is not None:
        grad = grad.masked_fill(~e.mask.unsqueeze(-1), 0)
    found = {"gates": torch.zeros_like(e.gates)}
    if "x" in needs or "gates" in needs:
        # in is the narrow side: each expert's gradient of it is small beside the outputs.
        d_stacked = grad @ e.weight.flatten(0, 1).mT
        by_expert = rearrange(d_stacked, "(g r) (e d) -> g r e d", g=e.gates.shape[0], r=e.rows, e=e.gates.shape[1])
        apart = rearrange(e.x, "(g r) d -> g r 1 d", g=e.gates.shape[0], r=e.rows)
        found["gates"] = (by_expert * apart).sum((1, 3), dtype=e.gates.dtype)
        found["x"] = torch.einsum("g r e d, g e -> g r d", by_expert, e.gates.to(e.x.dtype)).reshape(e.x.shape)
    if e.bias is not None and ("gates" in needs or "bias" in needs):
        d_by_bias, found["bias"] = bias_backward(grad, e.gates, e.bias, e.rows)
        found["gates"] = found["gates"] + d_by_bias
    if "weight" in needs:
        found["weight"] = (_stacked(e).mT @ grad).view(e.weight.shape)
    return found


LINEAR = Op("linear", Linear, _compute, _shapes, returns=1)
LINEAR.differentiate(_gradients)
