"""How well a few slots of audio and the tokens of a text match (U-SAM, eq. 11; Fu et al., CVPR 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

EPS = 1e-4  # added to norms: a frame of zeros has neither a direction nor an endless gradient


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1; those much shorter than EPS stay short."""
    return x * x.square().sum(-1, keepdim=True).add(EPS**2).rsqrt()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over real places: (..., place), with a mask of that shape; 0 where there is none."""
    return x.masked_fill(~mask, 0).sum(-1) / mask.sum(-1).clamp_min(1)


def mean_vector(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over time: (batch, time, dim) to (batch, dim); 0 where nothing is real."""
    return x.masked_fill(~mask.unsqueeze(-1), 0).sum(1) / mask.sum(-1, keepdim=True).clamp_min(1)


def at_own_dtype(network: nn.Module, x: Tensor) -> Tensor:
    """A network's output at the input's dtype, computed at that of its weights."""
    dtype = next(network.parameters()).dtype
    result: Tensor = network(x.to(dtype))
    return result.to(x.dtype)


class Aggregation(nn.Module):
    """Kept frames gathered into slots by weights that a bottleneck reads off each frame.

    Args:
        dim: width of frames and slots.
        hidden: width of the bottleneck.
        slots: how many there are.
        softmax_over: `frames`, each slot a mean of kept frames; `slots`, each kept frame shared out to slots.
    """

    def __init__(self, dim: int, hidden: int, slots: int, softmax_over: Literal["frames", "slots"] = "frames") -> None:
        super().__init__()
        self.softmax_over = softmax_over
        # Over frames, a bias would add the same to all that compete: no bias.
        out = nn.Linear(hidden, slots, bias=softmax_over == "slots")
        self.weigh = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), out)
        self.scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A scale of 1."""
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        """Frames (batch, time, dim) and how far each is kept (batch, time) to slots (batch, slot, dim).

        Dropped frames weigh nothing, and tell `kept` what they would change.
        """
        logits = at_own_dtype(self.weigh, x) * self.scale.to(x.dtype)
        kept = kept.unsqueeze(-1)
        if self.softmax_over == "slots":
            return torch.einsum("b t k, b t d -> b k d", logits.softmax(-1) * kept, x)
        highest = logits.detach().masked_fill(kept <= 0, -torch.inf).amax(1, keepdim=True)
        # Only dropped frames exceed the highest kept logit: a bound keeps their exp finite and changes no slot.
        weights = (logits - highest).masked_fill(logits > highest, 0).exp() * kept
        weights = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return torch.einsum("b t k, b t d -> b k d", weights, x)


def matches(slots: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of audio i and text j, the best token for each slot (i, j, slot) and the best slot for each token (i, j, token).

    Args:
        slots: audio slot dim.
        text: text token dim.
        mask: text token; a text without tokens matches with 0.
    """
    products = torch.einsum("i k d, j l d -> i j k l", slots, text)
    of_slots = products.masked_fill(~mask.unsqueeze(1), -torch.inf).amax(-1)
    return of_slots.masked_fill(~mask.any(-1, keepdim=True), 0), products.amax(-2)


def max_mean(slots: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """Half of both means of `matches`: (audio, text)."""
    of_slots, of_tokens = matches(slots, text, mask)
    return (of_slots.mean(-1) + masked_mean(of_tokens, mask.expand_as(of_tokens))) / 2


def align(slots: Tensor, text: Tensor, mask: Tensor, alignment: str, similarity: str) -> Tensor:
    """How alike every audio and every text are, as the options of that name say: (audio, text)."""
    if alignment == "pooled":
        slots, text, mask = slots.mean(1, keepdim=True), mean_vector(text, mask).unsqueeze(1), mask.any(-1, True)
    if similarity == "cosine":
        slots, text = unit(slots), unit(text)
    return max_mean(slots, text, mask)
