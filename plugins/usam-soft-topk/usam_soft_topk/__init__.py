"""A mixture of experts whose best few are chosen softly (Sander et al., 2023): every choice can be learned."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from usam.projectors.moe import MoE
from usam.types import Prompt


class SoftTopK(MoE):
    """usam's mixture with another choice: how much each expert is chosen, 0 to 1, is a projection of the logits.

    A hard choice of k tells the router nothing of the experts that it left out. Here those close to the k-th are
    chosen in part, and the gradient says whether they should be. The gates are the softmax over what is chosen, so
    that a softness near 0 is the built-in `top_k` with `renormalize`. Experts are computed for all rows, chosen or not.
    """

    class Config(MoE.Config):
        """Options of the mixture, and of its choice."""

        k: int = Field(2, ge=1)
        """How many experts are chosen in all, parts of them added."""
        softness: float = Field(1.0, gt=0)
        """How far apart two logits must be for one to be chosen whole, and the other not at all."""

        @model_validator(mode="after")
        def _chooses(self) -> SoftTopK.Config:
            if self.top_k is not None:
                raise ValueError("top_k is the hard choice: write k, or take 'moe'")
            if self.k > self.experts:
                raise ValueError(f"k={self.k} of {self.experts} experts: write at most {self.experts}")
            return self

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        if self.router is not None:
            self.router = Choosing(self.router, config.k, config.softness)

    def fixed(self, prompt: Prompt) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """For one prompt it is an ordinary mixture with fixed gates, which needs no plugin."""
        options, tensors = super().fixed(prompt)
        kept = {name: value for name, value in options.items() if name not in ("k", "softness")}
        return {**kept, "type": "linear" if options["type"] == "linear" else "moe"}, tensors


class Choosing(nn.Module):
    """A router whose softmax counts each expert as much as it is chosen."""

    def __init__(self, router: nn.Module, k: int, softness: float) -> None:
        super().__init__()
        self.router, self.k, self.softness = router, k, softness

    def forward(self, read: dict[str, Tensor]) -> Tensor:
        """Logits (..., expert), minus infinity for what is not chosen at all."""
        logits: Tensor = self.router(read)
        chosen = soft_top_k(logits / self.softness, self.k)
        return logits + torch.where(chosen > 0, chosen.clamp_min(torch.finfo(chosen.dtype).tiny).log(), -torch.inf)


def soft_top_k(scores: Tensor, k: int) -> Tensor:
    """How much each of n scores is among the k largest: the nearest point with entries in [0, 1] that sum to k.

    The relaxed top-k mask of Sander et al. (2023, section 4, with half the squared 2-norm). The point is
    `clip(scores - t, 0, 1)`: the sum falls as t grows, in pieces that are straight between the 2n places where an entry
    leaves 0 or reaches 1, so that t is found exactly. Entries within (0, 1) share the gradient, others have none.

    Args:
        scores: (..., n).
        k: from 1 to n.
    """
    with torch.no_grad():
        edges = torch.cat([scores, scores - 1], -1).sort(-1).values
        sums = (scores.unsqueeze(-2) - edges.unsqueeze(-1)).clamp(0, 1).sum(-1)  # falls along the edges from n to 0
        after = (sums > k).sum(-1, keepdim=True)  # the first edge at which no more than k are chosen
        t = edges.gather(-1, after.clamp_max(edges.shape[-1] - 1))
        before = edges.gather(-1, (after - 1).clamp_min(0))
        middle = (t + before) / 2
        inside = (scores > middle) & (scores - 1 < middle)
        whole = (scores - 1 >= middle).sum(-1, keepdim=True)
    count = inside.sum(-1, keepdim=True)
    exact = ((scores * inside).sum(-1, keepdim=True) - (k - whole)) / count.clamp_min(1)
    return (scores - torch.where(count > 0, exact, middle)).clamp(0, 1)
