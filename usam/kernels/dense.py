"""The dense mixture: every row goes through all experts, which stand stacked as two large products.

sum_e g_e (act(x U_e^T + u_e) V_e + v_e) = [g (x) act(x U^T + u)] V + g v: no expert's output ever exists. Between the
products one kernel activates and gates; for the gradients only x, the gates and the pre-activations are kept. Linear
experts are one product whose inner axis is (expert, in), or, where clips share their gates, one merged matrix a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from usam.kernels.ops import Found, Op, trains

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # gradient, pre-activation
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "silu": torch.ops.aten.silu_backward,
}
LITTLE = 2**20  # hidden units
MERGING = 16  # joining one matrix, which waits for memory, takes as long as multiplying so many rows by it


@dataclass(frozen=True)
class Dense:
    """The mixture of all experts."""

    x: Tensor  # row in; 0 where mask is False
    gates: Tensor  # row/rows expert, float32 or wider: one gate for each `rows` consecutive rows
    up: Tensor | None  # expert hidden in; None of linear experts
    up_bias: Tensor | None  # expert hidden
    down: Tensor  # expert hidden out; of linear experts: expert in out
    down_bias: Tensor | None  # expert out
    mask: Tensor | None  # row; where it is False the output is 0
    activation: str
    rows: int  # that share a gate
    kernels: bool  # whether Triton computes what lies between the products
    save: bool = False  # the pre-activations, for the gradients


def dense_experts(experts: Dense) -> Tensor:
    """The gated sum of all experts' outputs, (row, out)."""
    e = experts
    save = trains(e.x, e.gates, e.up, e.up_bias, e.down, e.down_bias)
    return DENSE(replace(e, save=save))[0]


def plain_experts(experts: Dense) -> Tensor:
    """The same by torch's own operations; autograd keeps three times as much of the hidden units."""
    e = experts
    if e.up is None:
        hidden = _stacked(e)
    else:
        w = e.up.flatten(0, 1).mT
        pre = e.x @ w if e.up_bias is None else torch.addmm(e.up_bias.flatten(), e.x, w)
        hidden = ACTIVATIONS[e.activation](pre).view(e.gates.shape[0], e.rows, e.gates.shape[1], -1)
        hidden = (hidden * e.gates.to(pre.dtype)[:, None, :, None]).view(pre.shape)
    y = hidden @ e.down.flatten(0, 1)
    if e.down_bias is not None and e.rows == 1:
        y = torch.addmm(y, e.gates.to(y.dtype), e.down_bias)
    elif e.down_bias is not None:
        added = (e.gates @ e.down_bias.to(e.gates.dtype)).to(y.dtype)[:, None]
        y = (y.view(e.gates.shape[0], e.rows, -1) + added).view(y.shape)
    return y if e.mask is None else y.masked_fill(~e.mask.unsqueeze(-1), 0)


def plain_pays(experts: Dense) -> bool:
    """Whether there is so little to do, on a CPU, that calling an op takes longer, and memory does not matter."""
    width = experts.down.shape[0] * experts.down.shape[1]
    return not experts.x.is_cuda and experts.x.shape[0] * width <= LITTLE


def merged_experts(experts: Dense) -> Tensor:
    """The same of linear experts, from one merged matrix for each gate row."""
    e = experts
    w = torch.einsum("g e, e d o -> g d o", e.gates.to(e.down.dtype), e.down)
    y = rearrange(e.x, "(g r) d -> g r d", g=e.gates.shape[0], r=e.rows) @ w
    if e.down_bias is not None:
        y += (e.gates.to(e.down_bias.dtype) @ e.down_bias).unsqueeze(1)
    y = y.flatten(0, 1)
    return y if e.mask is None else y.masked_fill(~e.mask.unsqueeze(-1), 0)


def merging_pays(experts: Dense) -> bool:
    """Whether merged matrices are cheaper: without gradients, where they take no more memory than the experts."""
    samples, count = experts.gates.shape
    few = samples <= count and experts.rows * (count - 1) > MERGING * count
    return experts.up is None and few and not trains(experts.gates, experts.down)


def _compute(e: Dense) -> tuple[Tensor, Tensor]:
    """The output, and the pre-activations (row, expert * hidden) if there are any and they are to be saved."""
    pre = e.x.new_empty(0)
    if e.up is None:
        hidden = _stacked(e)
    else:
        w = e.up.flatten(0, 1).mT
        pre = e.x @ w if e.up_bias is None else torch.addmm(e.up_bias.flatten(), e.x, w)
        hidden = _gate(pre, e)
    y = hidden @ e.down.flatten(0, 1)
    if e.down_bias is not None:
        add_bias(y, e.gates, e.down_bias, e.mask, e.rows)
    return y, pre if e.save else pre.new_empty(0)


def _shapes(e: Dense) -> tuple[Tensor, Tensor]:
    size = (e.x.shape[0], e.up.shape[0] * e.up.shape[1]) if e.save and e.up is not None else (0,)
    return e.x.new_empty(e.x.shape[0], e.down.shape[-1]), e.x.new_empty(size)


def _stacked(e: Dense) -> Tensor:
    """x once for each expert, scaled by its gate: (row, expert * in)."""
    apart = rearrange(e.x, "(g r) d -> g r 1 d", g=e.gates.shape[0], r=e.rows)
    return rearrange(apart * e.gates.to(e.x.dtype)[:, None, :, None], "g r e d -> (g r) (e d)")


def _gate(pre: Tensor, e: Dense) -> Tensor:
    """Activated and gated, (row, expert * hidden); in place of `pre` where that is not saved."""
    if e.kernels:
        from usam.kernels import _dense

        return _dense.gate_act(pre, e, None if e.save else pre)
    hidden = ACTIVATIONS[e.activation](pre)
    by_gate(hidden, e.gates, e.rows).mul_(e.gates.to(pre.dtype)[:, None, :, None])
    return hidden if e.mask is None else hidden.masked_fill_(~e.mask.unsqueeze(-1), 0)


def by_gate(hidden: Tensor, gates: Tensor, rows: int) -> Tensor:
    """A view (gate row, row, expert, hidden): gates are never repeated for the rows that share them."""
    return rearrange(hidden, "(g r) (e h) -> g r e h", g=gates.shape[0], r=rows, e=gates.shape[1])


def add_bias(y: Tensor, gates: Tensor, bias: Tensor, mask: Tensor | None, rows: int) -> None:
    """Adds each row's gated sum of the experts' biases (expert, out) in place."""
    if rows == 1:  # gates are 0 where a row is masked
        y.addmm_(gates.to(y.dtype), bias)
        return
    added = (gates @ bias.to(gates.dtype)).to(y.dtype)[:, None]
    shared = rearrange(y, "(g r) o -> g r o", g=gates.shape[0], r=rows)
    if mask is None:
        shared += added
    else:
        shared.addcmul_(rearrange(mask, "(g r) -> g r 1", g=gates.shape[0], r=rows).to(y.dtype), added)


def bias_backward(grad: Tensor, gates: Tensor, bias: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Gradients of the gates and the biases in `add_bias`."""
    if rows == 1:
        return (grad @ bias.mT).to(gates.dtype), gates.to(grad.dtype).mT @ grad
    total = rearrange(grad, "(g r) o -> g r o", g=gates.shape[0], r=rows).sum(1, dtype=gates.dtype)
    return total @ bias.to(gates.dtype).mT, (gates.mT @ total).to(bias.dtype)


def _gradients(e: Dense, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needs: Found) -> Found:
    (pre,), grad = kept, grads[0]
    assert grad is not None
    if e.mask is not None:
        grad = grad.masked_fill(~e.mask.unsqueeze(-1), 0)
    d_hidden = grad @ e.down.flatten(0, 1).mT
    if e.up is None:
        found, hidden = _linear_backward(d_hidden, e), _stacked(e)
    else:
        if e.kernels:
            from usam.kernels import _dense

            d_pre, hidden, d_gates = _dense.gate_act_backward(d_hidden, pre, e)
        else:
            d_pre, hidden, d_gates = _gate_backward(d_hidden, pre, e)
        found = {"gates": d_gates}
        if "x" in needs:
            found["x"] = d_pre @ e.up.flatten(0, 1)
        if "up" in needs:
            found["up"] = (d_pre.mT @ e.x).view(e.up.shape)
        if "up_bias" in needs:
            found["up_bias"] = d_pre.sum(0).view(needs["up_bias"].shape)
    if "down" in needs:
        found["down"] = (hidden.mT @ grad).view(e.down.shape)
    if e.down_bias is not None and ("gates" in needs or "down_bias" in needs):
        d_by_bias, found["down_bias"] = bias_backward(grad, e.gates, e.down_bias, e.rows)
        found["gates"] += d_by_bias
    return found


def _linear_backward(d_stacked: Tensor, e: Dense) -> Found:
    """Gradients of x and the gates: in is the narrow side, each expert's gradient of it small beside the outputs."""
    by_expert = by_gate(d_stacked, e.gates, e.rows)
    apart = rearrange(e.x, "(g r) d -> g r 1 d", g=e.gates.shape[0], r=e.rows)
    d_x = torch.einsum("g r e d, g e -> g r d", by_expert, e.gates.to(e.x.dtype)).reshape(e.x.shape)
    return {"gates": (by_expert * apart).sum((1, 3), dtype=e.gates.dtype), "x": d_x}


def _gate_backward(d_hidden: Tensor, pre: Tensor, e: Dense) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the pre-activations, the gated activations once more, and the gradient of the gates.

    Where a row is masked, d_hidden is 0, and so are both gradients; the activations meet a gradient of 0.
    """
    hidden = ACTIVATIONS[e.activation](pre)
    d_gates = by_gate(hidden * d_hidden, e.gates, e.rows).sum((1, 3), dtype=e.gates.dtype)
    scale = e.gates.to(pre.dtype)[:, None, :, None]
    by_gate(hidden, e.gates, e.rows).mul_(scale)
    by_gate(d_hidden, e.gates, e.rows).mul_(scale)
    return SLOPES[e.activation](d_hidden, pre), hidden, d_gates


DENSE = Op("dense", Dense, _compute, _shapes, returns=2)
DENSE.differentiate(_gradients, keeps=[1])
