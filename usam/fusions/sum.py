"""A learned weighted sum of the encoders' frames, mapped to one width, on one clock."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from usam.component import Parts
from usam.fusions import Fusion
from usam.spec.sizes import WIDTH
from usam.types import Audio, Frames


class Sum(Fusion):
    """Each stream goes through its own linear map; the weights are a softmax, equal at the start."""

    class Config(Fusion.Config):
        """Options of the weighted sum."""

        dim: int | None = Field(None, ge=1, le=WIDTH)
        """The common width; null takes the widest stream's."""
        layer_norm: bool = False
        """Normalise each stream before it is mapped."""

    def __init__(self, config: Config, *, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims=dims)
        self.dim = config.dim or max(dims.values())
        self.norms = Parts({n: nn.LayerNorm(dims[n]) for n in self.names} if config.layer_norm else {})
        self.maps = Parts({n: nn.Linear(dims[n], self.dim) for n in self.names})
        self.weights = nn.Parameter(torch.empty(len(self.names)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal weights."""
        nn.init.zeros_(self.weights)

    def forward(self, streams: Mapping[str, Frames], audio: Audio) -> Frames:
        """Frames of (clip, time, dim)."""
        mapped = {
            name: Frames(
                self.maps[name](self.norms[name](frames.x) if self.norms else frames.x), frames.mask, frames.rate
            )
            for name, frames in streams.items()
        }
        aligned, mask, rate = self.align(mapped, audio)
        shares = self.weights.softmax(0)
        x = torch.stack(aligned, -1) @ shares.to(aligned[0].dtype)
        return Frames(x, mask, rate, {"weights": shares.detach().expand(len(x), -1)})
