"""The dense mixture: every row goes through all experts, which stand stacked as two large products.

sum_e g_e (act(x U_e^T + u_e) V_e + v_e) = [g (x) act(x U^T + u)] V + g v: no expert's output ever exists. Between the
products one kernel activates and gates; for the gradients only x, the gates and the pre-activations are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # gradient, pre-activation
    "gelu": torch.ops.aten.gelu_backward,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "silu": torch.ops.aten.silu_backward,
}


def dense_experts(
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: str,
    *,
    mask: Tensor | None = None,
    rows: int = 1,
    kernels: bool = False,
) -> Tensor:
    """The gated sum of all experts' outputs, (row, out).

    Args:
        x: (row, in), 0 where mask is False.
        gates: (row / rows, expert), float32 or wider: one gate for each `rows` consecutive rows.
        up, up_bias: (expert, hidden, in) and (expert, hidden).
        down, down_bias: (expert, hidden, out) and (expert, out).
        activation: gelu (by erf), relu or silu.
        mask: (row,); rows where it is False give zeros.
        rows: how many rows share a gate.
        kernels: whether Triton computes what lies between the products.
    """
    weights = (up, up_bias, down, down_bias)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, gates, *weights))
    y: Tensor = _dense(x, gates, *weights, mask, activation, rows, kernels, save)[0]
    return y


@torch.library.custom_op("usam::dense", mutates_args=())
def _dense(
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    mask: Tensor | None,
    activation: str,
    rows: int,
    kernels: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and the pre-activations (row, expert * hidden) if they are to be saved."""
    w = up.flatten(0, 1).mT
    pre = x @ w if up_bias is None else torch.addmm(up_bias.flatten(), x, w)
    hidden = gate(pre, gates, mask, activation, rows, kernels, out=None if save else pre)
    y = hidden @ down.flatten(0, 1)
    if down_bias is not None:
        add_bias(y, gates, down_bias, mask, rows)
    return y, pre if save else pre.new_empty(0)


@_dense.register_fake
def _(
    x: Tensor,
    gates: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    mask: Tensor | None,
    activation: str,
    rows: int,
    kernels: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    size = (x.shape[0], up.shape[0] * up.shape[1]) if save else (0,)
    return x.new_empty(x.shape[0], down.shape[-1]), x.new_empty(size)


def gate(
    pre: Tensor, gates: Tensor, mask: Tensor | None, activation: str, rows: int, kernels: bool, out: Tensor | None
) -> Tensor:
    """Activated and gated, (row, expert * hidden); `out` may be `pre` itself."""
    if kernels:
        from usam.kernels import _dense as triton_dense

        return triton_dense.gate_act(pre, gates, mask, activation, rows, out)
    hidden = ACTIVATIONS[activation](pre)
    by_gate(hidden, gates, rows).mul_(gates.to(pre.dtype)[:, None, :, None])
    return hidden if mask is None else hidden.masked_fill_(~mask.unsqueeze(-1), 0)


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


@torch.library.custom_op("usam::dense_backward", mutates_args=())
def _dense_backward(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    pre: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    mask: Tensor | None,
    activation: str,
    rows: int,
    kernels: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gates, up, up_bias, down and down_bias; empty where not needed."""
    if mask is not None:
        grad = grad.masked_fill(~mask.unsqueeze(-1), 0)
    empty = x.new_empty
    d_hidden = grad @ down.flatten(0, 1).mT
    if kernels:
        from usam.kernels import _dense as triton_dense

        d_pre, hidden, d_gates = triton_dense.gate_act_backward(d_hidden, pre, gates, mask, activation, rows)
    else:
        d_pre, hidden, d_gates = _gate_backward(d_hidden, pre, gates, activation, rows)
    d_down = hidden.mT @ grad if needs[4] else empty(0)
    del hidden
    d_down_bias = empty(0)
    if down_bias is not None and (needs[1] or needs[5]):
        d_by_bias, d_down_bias = bias_backward(grad, gates, down_bias, rows)
        d_gates += d_by_bias
    return (
        d_pre @ up.flatten(0, 1) if needs[0] else empty(0),
        d_gates,
        (d_pre.mT @ x).view_as(up) if needs[2] else empty(0),
        d_pre.sum(0).view_as(up_bias) if up_bias is not None and needs[3] else empty(0),
        d_down.view_as(down) if needs[4] else d_down,
        d_down_bias,
    )


def _gate_backward(
    d_hidden: Tensor, pre: Tensor, gates: Tensor, activation: str, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the pre-activations, the gated activations once more, and the gradient of the gates.

    Where a row is masked, d_hidden is 0, and so are both gradients; the activations meet a gradient of 0.
    """
    hidden = ACTIVATIONS[activation](pre)
    d_gates = by_gate(hidden * d_hidden, gates, rows).sum((1, 3), dtype=gates.dtype)
    scale = gates.to(pre.dtype)[:, None, :, None]
    by_gate(hidden, gates, rows).mul_(scale)
    by_gate(d_hidden, gates, rows).mul_(scale)
    return SLOPES[activation](d_hidden, pre), hidden, d_gates


@_dense_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    pre: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    mask: Tensor | None,
    activation: str,
    rows: int,
    kernels: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    made = [
        t.new_empty(t.shape) if t is not None and need else x.new_empty(0)
        for t, need in zip((x, gates, up, up_bias, down, down_bias), needs, strict=True)
    ]
    made[1] = gates.new_empty(gates.shape)
    if down_bias is not None and (needs[1] or needs[5]):
        made[5] = down_bias.new_empty(down_bias.shape)
    return made[0], made[1], made[2], made[3], made[4], made[5]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, gates, *weights, mask, activation, rows, kernels, _ = inputs
    ctx.save_for_backward(x, gates, output[1], *weights, mask)
    ctx.options = activation, rows, kernels
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, pre: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 11
    needs = list(ctx.needs_input_grad[:6])
    grads = _dense_backward(grad, *ctx.saved_tensors, *ctx.options, needs)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), *(None,) * 5


_dense.register_autograd(_backward, setup_context=_save)
