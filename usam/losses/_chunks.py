"""A sum over positions that needs their logits, with the logits of few positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits that stand in memory at once, three times while a gradient is taken. A GPU wants large products.
ENTRIES = {"cuda": 2**26}
ENTRIES_ELSEWHERE = 2**23

Summed = Callable[[Tensor, Tensor], Tensor]  # states (row, dim) and labels (row,) to their sum


def sum_in_chunks(summed: Summed, hidden: Tensor, labels: Tensor, head: Any) -> Tensor:
    """`summed` of all rows, as the sum of that of chunks of rows.

    A frozen head's gradient is taken while the logits are there (as in Liger, Hsu et al., 2024): nothing of them is
    left for the backward pass, and none is computed twice. Of a head that trains, each chunk's logits are computed
    again in the backward pass; so are those of one whose weights lie in parts on several processes.

    Args:
        summed: what is summed; it calls the head.
        hidden: (row, dim).
        labels: (row,).
        head: what the logits come from; its `size` (entries of a row of logits), `trains` and `spread` are asked for,
            and where it does not say, all rows are one chunk.
    """
    size = getattr(head, "size", None)
    if size is None or torch.compiler.is_compiling():
        return summed(hidden, labels)
    rows = max(1, ENTRIES.get(hidden.device.type, ENTRIES_ELSEWHERE) // size)
    # To such hooks, a backward pass inside of the forward would be the step's own.
    ahead = not head.trains and not getattr(head, "spread", False)
    if torch.is_grad_enabled() and hidden.requires_grad and ahead:
        return cast(Tensor, _GradientAhead.apply(hidden, labels, summed, rows))
    parts = list(zip(torch.split(hidden, rows), torch.split(labels, rows), strict=True))
    if not torch.is_grad_enabled() or len(parts) == 1:
        return torch.stack([summed(*part) for part in parts]).sum()
    return torch.stack([checkpoint(summed, *part, use_reentrant=False) for part in parts]).sum()


class _GradientAhead(torch.autograd.Function):
    """The gradient of a sum, computed together with it, and scaled when the backward pass comes."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, summed: Summed, rows: int) -> Tensor:
        gradient = torch.empty_like(hidden)
        sums = []
        for x, y, into in zip(*(torch.split(t, rows) for t in (hidden, labels, gradient)), strict=True):
            with torch.enable_grad():
                chunk = x.detach().requires_grad_()
                value = summed(chunk, y)
            into.copy_(torch.autograd.grad(value, chunk)[0])
            sums.append(value.detach())
        ctx.save_for_backward(gradient)
        return torch.stack(sums).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None
