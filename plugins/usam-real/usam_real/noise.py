"""Noise on the frames while training, so that a projector that has few clips does not learn them by heart."""

from __future__ import annotations

import torch
from pydantic import Field

from usam import ComponentError
from usam.projectors import Projector
from usam.types import Frames, Prompt


class Noise(Projector):
    """Adds normal noise to real frames in training; otherwise they go out as they came.

    Put first in a projector, behind `fusion.standardize`, `std` is the share of each channel's own deviation. It maps
    nothing, and so cannot be all of a projector.
    """

    class Config(Projector.Config):
        """Options of the noise."""

        std: float = Field(0.5, ge=0)
        """Its standard deviation."""

    keeps_width = True

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        if out_dim is not None and out_dim != in_dim:
            raise ComponentError(
                f"noise keeps the width of {in_dim}, and {out_dim} is asked for: it cannot be the last stage alone; "
                "write another beside it, such as linear"
            )
        self.dim = in_dim
        self.std = config.std

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of the same size."""
        if not self.training or self.std == 0:
            return frames
        noise = self.std * torch.randn_like(frames.x)
        return Frames(frames.x + noise.masked_fill(~frames.mask.unsqueeze(-1), 0), frames.mask, frames.rate, frames.aux)
