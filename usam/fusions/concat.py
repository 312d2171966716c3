"""Concatenation: the encoders' frames side by side (U-SAM, eq. 1), on one clock."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from usam.component import Parts
from usam.fusions import Fusion
from usam.types import Audio, Frames


class Concat(Fusion):
    """Channels of all streams, in name order; each stream can be layer-normalised first (SALMONN)."""

    class Config(Fusion.Config):
        """Options of the concatenation."""

        layer_norm: bool = False
        """Normalise each stream before it is concatenated, so that none dominates by its scale."""

    def __init__(self, config: Config, *, dims: Mapping[str, int]) -> None:
        super().__init__(config, dims=dims)
        self.dim = sum(dims.values())
        self.norms = Parts({n: nn.LayerNorm(dims[n]) for n in self.names} if config.layer_norm else {})

    def forward(self, streams: Mapping[str, Frames], audio: Audio) -> Frames:
        """Frames of (clip, time, sum of the widths)."""
        if self.norms:
            streams = {
                name: Frames(self.norms[name](frames.x), frames.mask, frames.rate) for name, frames in streams.items()
            }
        aligned, mask, rate = self.align(streams, audio)
        return Frames(torch.cat(aligned, -1), mask, rate)
