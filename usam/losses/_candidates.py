"""Whom a sample is contrasted with beside its batch: the batches of other processes, and past ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from usam.types import IGNORE


@dataclass(frozen=True)
class Candidates:
    """Samples as others are contrasted with them: what was heard, what was said."""

    slots: Tensor  # pair slot dim
    text: Tensor  # pair token dim
    mask: Tensor  # pair token
    ids: Tensor  # pair token: the answer's, then IGNORE
    valid: Tensor  # pair: it has both audio and an answer

    def alike(self, other: Candidates) -> Tensor:
        """True where answers agree in as many tokens as `other` keeps: (pair, other's pair)."""
        ids = fit(self.ids, len(self.ids), other.ids.shape[1], IGNORE)
        return (ids.unsqueeze(1) == other.ids.unsqueeze(0)).all(-1)


def fit(x: Tensor, rows: int, columns: int, value: float = 0) -> Tensor:
    """The first two axes cut or filled up to a size."""
    x = x[:rows, :columns]
    return F.pad(x, [0, 0] * (x.ndim - 2) + [0, columns - x.shape[1], 0, rows - x.shape[0]], value=value)


def pack(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Real places first, in their order: (batch, place, dim) and the mask, which is then a prefix."""
    mask, order = mask.to(torch.uint8).sort(dim=-1, descending=True, stable=True)
    return x.gather(1, order.unsqueeze(-1).expand_as(x)), mask.bool()


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.compiler.disable  # type: ignore[untyped-decorator]
def elsewhere(own: Candidates) -> Candidates:
    """The pairs of all other processes, every one of which must call this; the gradient finds its way back.

    Answers must be packed. A process with fewer pairs than another gives some that are not valid.
    """
    size = torch.stack([own.mask.new_tensor(len(own.mask), dtype=torch.long), own.mask.sum(-1).amax()])
    dist.all_reduce(size, dist.ReduceOp.MAX)
    rows, tokens = size.tolist()
    mask = fit(own.mask.to(torch.uint8), rows, tokens)
    valid = fit(own.valid.to(torch.uint8).unsqueeze(-1), rows, 1)
    return Candidates(
        slots=_others(fit(own.slots, rows, own.slots.shape[1])),
        text=_others(fit(own.text, rows, tokens)),
        mask=_others(mask).bool(),
        ids=_others(fit(own.ids, rows, tokens, IGNORE)),
        valid=_others(valid).squeeze(-1).bool(),
    )


@torch.compiler.disable  # type: ignore[untyped-decorator]
def mean_over_processes(x: Tensor) -> Tensor:
    """A count, as a mean over all processes."""
    x = x.clone()
    dist.all_reduce(x)
    return x / dist.get_world_size()


def _others(x: Tensor) -> Tensor:
    everyone: Tensor = _AllGather.apply(x.contiguous())
    own = dist.get_rank()
    return torch.cat([everyone[:own], everyone[own + 1 :]]).flatten(0, 1)


class _AllGather(torch.autograd.Function):
    """Everyone's tensors, stacked; backward, everyone's gradients of mine, summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(found, x)
        return torch.stack(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous()
        dist.all_reduce(summed)
        return summed[dist.get_rank()]


class Queue(nn.Module):
    """A memory of the latest pairs, without gradient (He et al., 2020); no checkpoint holds it.

    Args:
        size: pairs kept.
        tokens: tokens kept of an answer.
        slots: slots of a pair.
        dim: their width.
    """

    slots: Tensor
    text: Tensor
    mask: Tensor
    ids: Tensor
    valid: Tensor

    def __init__(self, size: int, tokens: int, slots: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("slots", torch.empty(size, slots, dim), persistent=False)
        self.register_buffer("text", torch.empty(size, tokens, dim), persistent=False)
        self.register_buffer("mask", torch.empty(size, tokens, dtype=torch.bool), persistent=False)
        self.register_buffer("ids", torch.empty(size, tokens, dtype=torch.long), persistent=False)
        self.register_buffer("valid", torch.empty(size, dtype=torch.bool), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Nothing is remembered."""
        for buffer in (self.slots, self.text, self.mask, self.valid):
            buffer.zero_()
        self.ids.fill_(IGNORE)

    def candidates(self, dtype: torch.dtype) -> Candidates:
        """What is remembered."""
        return Candidates(self.slots.to(dtype), self.text.to(dtype), self.mask, self.ids, self.valid)

    @torch.no_grad()
    def remember(self, new: Candidates) -> None:
        """Put new pairs, their answers packed, before the others, and forget the oldest."""
        size, tokens = self.ids.shape

        def renew(old: Tensor, x: Tensor) -> Tensor:  # a new tensor, for backward still reads the old one
            return torch.cat([x.to(old.dtype), old])[:size]

        self.slots = renew(self.slots, new.slots)
        self.text = renew(self.text, fit(new.text, len(new.text), tokens))
        self.mask = renew(self.mask, fit(new.mask, len(new.mask), tokens))
        self.ids = renew(self.ids, fit(new.ids, len(new.ids), tokens, IGNORE))
        self.valid = renew(self.valid, new.valid)
