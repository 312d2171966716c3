"""The mean or the maximum of each window of frames.

With a window of 0.04 s on 50 frames a second, `layer_norm` and `linear` it is what follows Qwen2-Audio's
encoder (Chu et al., 2024, section 2): average pooling by two, layer norm, linear map.
"""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from usam.clock import N, ceil_div, whole_frames
from usam.projectors import Projector
from usam.spec.sizes import SECONDS, WIDTH
from usam.types import Frames, Prompt, prefix_mask


class Pool(Projector):
    """Pools windows that do not overlap; the last one holds the valid frames that are left."""

    class Config(Projector.Config):
        """Options of the pooling."""

        window: float = Field(0.08, gt=0, le=SECONDS)
        """Seconds pooled into one frame: rounded to whole frames, at least one."""
        reduce: Literal["mean", "max"] = "mean"
        """What is taken of a window, channel by channel."""
        layer_norm: bool = False
        """Normalise what was pooled, before the linear map."""
        linear: bool = False
        """Map linearly even if the width need not change."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Output width where the next stage leaves the choice; null keeps the input's."""

        def whole(self, rate: float) -> int:
            """Frames of a window, at `rate` per second."""
            return whole_frames(self.window, rate)

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """One frame for each window."""
            return ceil_div(frames, self.whole(rate)), rate / self.whole(rate)

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or config.dim or in_dim
        self.reduce = _max if config.reduce == "max" else _mean
        norm = [nn.LayerNorm(in_dim)] if config.layer_norm else []
        maps = [nn.Linear(in_dim, self.dim)] if config.linear or self.dim != in_dim else []
        self.map = nn.Sequential(*norm, *maps)

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of (batch, ceil(time / window), dim)."""
        window = self.config.whole(frames.rate)
        size, rate = self.config.length(frames.x.shape[1], frames.rate)
        lengths, _ = self.config.length(frames.lengths, frames.rate)
        rest = size * window - frames.x.shape[1]
        x = rearrange(pad(frames.x, (0, 0, 0, rest)), "b (t w) d -> b t w d", w=window)
        own = rearrange(pad(frames.mask, (0, rest)), "b (t w) -> b t w 1", w=window)
        mask = prefix_mask(lengths, size)
        padding = ~mask.unsqueeze(-1)
        x = self.map(self.reduce(x, own).masked_fill(padding, 0))
        return Frames(x.masked_fill(padding, 0), mask, rate)


def _mean(x: Tensor, own: Tensor) -> Tensor:
    return x.masked_fill(~own, 0).sum(2) / own.sum(2).clamp_min(1).to(x.dtype)


def _max(x: Tensor, own: Tensor) -> Tensor:
    return x.masked_fill(~own, float("-inf")).amax(2)
