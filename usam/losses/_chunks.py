"""A sum over positions that needs their logits, with the logits of few positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from usam.clock import ceil_div

# Logits that stand in memory at once. A GPU wants large products.
ENTRIES = {"cuda": 2**26}
ENTRIES_ELSEWHERE = 2**24

Valued = Callable[[Tensor, Tensor], Tensor]  # states (row, dim) and labels (row,) to the value of each row


def sum_in_chunks(valued: Valued, hidden: Tensor, labels: Tensor, head: Any) -> tuple[Tensor, Tensor]:
    """The sum of what `valued` gives for all rows, and, detached, the value of each; it sees chunks of rows.

    A frozen head's gradient is taken while the logits are there (as in Liger, Hsu et al., 2024): nothing of them is
    left for the backward pass, and none is computed twice. Of a head that trains, each chunk's logits are computed
    again in the backward pass; so are those of one whose weights lie in parts on several processes.

    Args:
        valued: what is summed; it calls the head.
        hidden: (row, dim).
        labels: (row,).
        head: what the logits come from; its `size` (entries of a row of logits), `trains` and `spread` are asked for,
            and where it does not say, all rows are one chunk.
    """
    size = getattr(head, "size", None)
    if size is None or torch.compiler.is_compiling():
        values = valued(hidden, labels)
        return values.sum(), values.detach()
    most = max(1, ENTRIES.get(hidden.device.type, ENTRIES_ELSEWHERE) // size)
    rows = ceil_div(len(hidden), max(1, ceil_div(len(hidden), most)))  # chunks of one size, for few rows are slow
    # To such hooks, a backward pass inside of the forward would be the step's own.
    ahead = not head.trains and not getattr(head, "spread", False)
    if torch.is_grad_enabled() and hidden.requires_grad and ahead:
        return cast(tuple[Tensor, Tensor], _GradientAhead.apply(hidden, labels, valued, rows))
    parts = list(zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True))
    if not torch.is_grad_enabled() or len(parts) == 1:
        values = torch.cat([valued(*part) for part in parts])
    else:
        values = torch.cat([checkpoint(valued, *part, use_reentrant=False) for part in parts])
    return values.sum(), values.detach()


class _GradientAhead(torch.autograd.Function):
    """The gradient of a sum, computed together with it, and scaled when the backward pass comes."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, valued: Valued, rows: int) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        found = []
        for x, y, into in zip(*(torch.split(t, rows) for t in (hidden, labels, gradient)), strict=True):
            with torch.enable_grad():
                chunk = x.detach().requires_grad_()
                values = valued(chunk, y)
                total = values.sum()
            into.copy_(torch.autograd.grad(total, chunk)[0])
            found.append(values.detach())
        ctx.save_for_backward(gradient)
        values = torch.cat(found)
        ctx.mark_non_differentiable(values)
        return values.sum(), values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None
