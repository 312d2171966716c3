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
    """The output, and the pre-activations if there are any and they are to be saved."""
    y, pre = plain_experts(e)
    return y, pre if e.save and pre is not None else y.new_empty(0)


def plain_experts(e: Dense) -> tuple[Tensor, Tensor | None]:
    """The output by torch's own operations, and the pre-activations (row, expert * hidden).

    Of whose hidden units autograd keeps three times as much as the op.
    """
    pre = None
    if e.up is None:
        hidden = _stacked(e)
    else:
        pre = F.linear(e.x, e.up.flatten(0, 1), None if e.up_bias is None else e.up_bias.flatten())
        hidden = _gate(pre, e)
    y = hidden @ e.down.flatten(0, 1)
    if e.down_bias is not None:
        y.addmm_(_scale(e).to(y.dtype), e.down_bias)
    return y, pre


def _shapes(e: Dense) -> tuple[Tensor, Tensor]:
    size = (e.x.shape[0], e.up.shape[0] * e.up.shape[1]) if e.save and e.up is not None else (0,)
    return e.x.new_empty(e.x.shape[0], e.down.shape[-1]), e.x.new_empty(size)


def _scale(e: Dense) -> Tensor:
    """What each expert counts for each row, (row, expert): 0 where the row is masked."""
    shared = e.gates.unsqueeze(1).expand(-1, e.rows, -1).flatten(0, 1)
    return shared if e.mask is None or e.rows == 1 else shared * e.mask.unsqueeze(-1)  # a row's own gates are 0 then


def _stacked(e: Dense) -> Tensor:
    """x once for each expert, scaled by its gate: (row, expert * in)."""
    return (e.x.unsqueeze(1) * _scale(e).to(e.x.dtype).unsqueeze(-1)).flatten(1)


def _gate(pre: Tensor, e: Dense) -> Tensor:
    """Activated and gated, (row, expert * hidden); in place of `pre` where that is not saved."""
    if e.kernels:
        from usam.kernels import _dense

        return _dense.gate_act(pre, e, None if e.save else pre)
    hidden = ACTIVATIONS[e.activation](pre).view(e.gates.shape[0], e.rows, *e.down.shape[:2])
    scale = e.gates.unsqueeze(1) if e.mask is None else _scale(e).view(hidden.shape[:3])
    scale = scale.to(pre.dtype).unsqueeze(-1)
    return (hidden * scale if trains(hidden, scale) else hidden.mul_(scale)).view(pre.shape)


def _gradients(e: Dense, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needs: Found) -> Found:
    (pre,), grad = kept, grads[0]
    assert grad is not None
    if e.mask is not None:
        grad = grad.masked_fill(~e.mask.unsqueeze(-1), 0)
    d_hidden = grad @ e.down.flatten(0, 1).mT
    found: Found = {}
    if e.up is None:
        # in is the narrow side: each expert's gradient of it is small beside the outputs.
        apart = rearrange(d_hidden, "r (e d) -> r e d", e=len(e.down))
        d_scale = torch.einsum("r e d, r d -> r e", apart, e.x).to(e.gates.dtype)
        found["x"] = torch.einsum("r e d, r e -> r d", apart, _scale(e).to(e.x.dtype))
        hidden = _stacked(e)
    else:
        if e.kernels:
            from usam.kernels import _dense

            d_pre, hidden, d_scale = _dense.gate_act_backward(d_hidden, pre, e)
        else:
            d_pre, hidden, d_scale = _gate_backward(d_hidden, pre, e)
        if "x" in needs:
            found["x"] = d_pre @ e.up.flatten(0, 1)
        if "up" in needs:
            found["up"] = (d_pre.mT @ e.x).view(e.up.shape)
        if "up_bias" in needs:
            found["up_bias"] = d_pre.sum(0).view(needs["up_bias"].shape)
    if "down" in needs:
        found["down"] = (hidden.mT @ grad).view(e.down.shape)
    if e.down_bias is not None:
        d_scale = d_scale + grad @ e.down_bias.mT
        found["down_bias"] = _scale(e).to(grad.dtype).mT @ grad
    found["gates"] = rearrange(d_scale, "(g r) e -> g r e", g=e.gates.shape[0], r=e.rows).sum(1)
    return found


def _gate_backward(d_hidden: Tensor, pre: Tensor, e: Dense) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the pre-activations, the gated activations once more, and the gradient of each row's gates.

    Where a row is masked, d_hidden is 0, and so are both gradients.
    """
    hidden = ACTIVATIONS[e.activation](pre)
    d_scale = rearrange(hidden * d_hidden, "r (e h) -> r e h", e=len(e.down)).sum(-1, dtype=e.gates.dtype)
    scale = _scale(e).to(pre.dtype).unsqueeze(-1)
    for t in (hidden, d_hidden):
        rearrange(t, "r (e h) -> r e h", e=len(e.down)).mul_(scale)
    return SLOPES[e.activation](d_hidden, pre), hidden, d_scale


DENSE = Op("dense", Dense, _compute, _shapes, returns=2)
DENSE.differentiate(_gradients, keeps=[1])
