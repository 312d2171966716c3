"""A linear map of stacked frames, as SLAM-ASR uses (Ma et al., 2024, section 3.2)."""

from __future__ import annotations

from einops import rearrange
from pydantic import Field
from torch import nn

from usam.clock import N, ceil_div
from usam.projectors import Projector
from usam.spec.sizes import FRAMES, WIDTH
from usam.types import Frames, Prompt, prefix_mask


class Linear(Projector):
    """Joins `stack` frames into one and maps them linearly, or through one hidden ReLU layer."""

    class Config(Projector.Config):
        """Options of the linear projector."""

        stack: int = Field(1, ge=1, le=FRAMES)
        """Neighbouring frames joined into one; the last group is filled up with zeros, never dropped."""
        hidden: int | None = Field(None, ge=1, le=WIDTH)
        """Width of a hidden ReLU layer (SLAM-ASR: 2048); null maps directly."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Output width where the next stage leaves the choice; null keeps the input's."""

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """One frame for each group of `stack`."""
            return ceil_div(frames, self.stack), rate / self.stack

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or config.dim or in_dim
        joined = in_dim * config.stack
        if config.hidden is None:
            self.map = nn.Sequential(nn.Linear(joined, self.dim))
        else:
            self.map = nn.Sequential(nn.Linear(joined, config.hidden), nn.ReLU(), nn.Linear(config.hidden, self.dim))

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of (batch, ceil(time / stack), dim)."""
        size, rate = self.config.length(frames.x.shape[1], frames.rate)
        lengths, _ = self.config.length(frames.lengths, frames.rate)
        x = frames.x.masked_fill(~frames.mask.unsqueeze(-1), 0)
        x = nn.functional.pad(x, (0, 0, 0, size * self.config.stack - x.shape[1]))
        x = self.map(rearrange(x, "b (t s) d -> b t (s d)", s=self.config.stack))
        mask = prefix_mask(lengths, size)
        return Frames(x.masked_fill(~mask.unsqueeze(-1), 0), mask, rate)
