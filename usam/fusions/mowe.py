"""A strong encoder beside a pool of weak ones, of which few are chosen: MoWE (Zhang et al., 2024, arXiv 2409.06635)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from usam.component import Parts
from usam.fusions import Fusion
from usam.fusions._router import ClipRouter, said
from usam.spec.page import SpecError
from usam.spec.sizes import WIDTH
from usam.types import Audio, Frames


class MoWE(Fusion):
    """The strong encoder's frames with, beside them, those of weak encoders that two routers choose and weigh.

    One router knows its choice whatever the clip is; the other reads the mean of the strong encoder's frames, once a
    clip. Every encoder is run: what is not chosen counts for nothing.

    By-products, one a clip: `weights` (clip, weak encoder) of the router that reads nothing, and `router_probs`,
    `router_load` (clip, weak encoder), `router_z`, `router_entropy` and `router_rows` (clip,) of the other, in the
    order of the weak encoders' names.
    """

    class Config(Fusion.Config):
        """Options of the mixture."""

        strong: str | None = None
        """The encoder that always counts; null takes the widest, the first by name of equal ones."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """The weak encoders' common width; null takes the widest weak one's."""
        top_k: int | None = Field(None, ge=1)
        """Weak encoders that each router chooses; null mixes all of them."""
        layer_norm: bool = True
        """Normalise each stream first."""
        router_hidden: int = Field(0, ge=0, le=WIDTH)
        """Width of the hidden layer of the router that reads; 0 for a linear one."""

    def __init__(self, config: Config, *, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims=dims)
        widest = max(self.names, key=lambda name: dims[name])
        self.strong = config.strong or widest
        if self.strong not in dims:
            raise SpecError(f"strong: there is no encoder '{self.strong}'; write one of {', '.join(self.names)}")
        self.weak = [name for name in self.names if name != self.strong]
        if config.top_k is not None and config.top_k > max(len(self.weak), 1):
            raise SpecError(
                f"top_k={config.top_k} of {len(self.weak)} weak encoders: write fewer, or leave it out for all"
            )
        # All of them chosen is none left out.
        self.top_k = None if config.top_k is None or config.top_k >= len(self.weak) else config.top_k
        self.norms = Parts({n: nn.LayerNorm(dims[n]) for n in self.names} if config.layer_norm else {})
        width = config.dim or max((dims[name] for name in self.weak), default=0)
        self.maps = Parts({name: nn.Linear(dims[name], width) for name in self.weak})
        routed = len(self.weak) > 1  # one is not chosen from
        self.logits = nn.Parameter(torch.empty(len(self.weak))) if routed else None
        self.router = ClipRouter(dims[self.strong], len(self.weak), config.router_hidden, True) if routed else None
        self.dim = dims[self.strong] + (width if self.weak else 0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Logits near zero: equal ones would leave the choice to their order, and to every seed the same."""
        if self.logits is not None:
            nn.init.normal_(self.logits, std=0.02)

    def forward(self, streams: Mapping[str, Frames], audio: Audio) -> Frames:
        """Frames of (clip, time, strong width + dim)."""
        if self.norms:
            streams = {n: Frames(self.norms[n](f.x), f.mask, f.rate) for n, f in streams.items()}
        aligned, mask, rate = self.align(streams, audio)
        frames = dict(zip(self.names, aligned, strict=True))
        base = frames[self.strong]
        if not self.weak:
            return Frames(base, mask, rate)
        mapped = torch.stack([self.maps[name](frames[name]) for name in self.weak], -1)
        gates, aux = self._gates(base, mask)
        pool = (mapped * gates.to(mapped.dtype)[:, None, None]).sum(-1).masked_fill(~mask.unsqueeze(-1), 0)
        return Frames(torch.cat([base, pool], -1), mask, rate, aux)

    def _gates(self, base: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """How much each weak encoder counts, by both routers: (clip, weak encoder); and by-products."""
        if self.router is None or self.logits is None:
            return base.new_ones(len(base), 1), {}
        always = self._chosen(self.logits.float().softmax(0).expand(len(base), -1))
        wide = base.to(torch.promote_types(base.dtype, torch.float32))
        probs, z = self.router(wide.sum(1) / mask.sum(-1, keepdim=True).clamp_min(1))
        own = self._chosen(probs)
        load = probs if self.top_k is None else (own > 0).to(own.dtype) / self.top_k
        return always + own, {**said(probs, z, load, mask), "weights": always.detach()}

    def _chosen(self, probs: Tensor) -> Tensor:
        """The probabilities of the chosen, as they are, so that their router learns; zero for the others."""
        if self.top_k is None:
            return probs
        best = probs.topk(self.top_k, -1).indices
        return probs * torch.zeros_like(probs).scatter(-1, best, 1.0)
