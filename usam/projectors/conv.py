"""Strided convolutions over time: the adapter that shortens the stream as it maps it (WavLLM, SLAM-ASR's `cov1d`)."""

from __future__ import annotations

from einops import rearrange
from pydantic import Field, model_validator
from torch import nn
from torch.nn.functional import pad

from usam.clock import N, ceil_div
from usam.projectors import Projector
from usam.projectors._activations import ACTIVATIONS, Activation
from usam.spec.sizes import FRAMES as MOST
from usam.spec.sizes import LAYERS, WIDTH
from usam.types import Frames, Prompt, prefix_mask


class Conv(Projector):
    """`layers` convolutions, each with its activation, and a linear map; beyond its ends a clip is zero."""

    class Config(Projector.Config):
        """Options of the convolutions."""

        layers: int = Field(2, ge=1, le=LAYERS)
        """Number of convolutions."""
        kernel: int = Field(3, ge=1, le=MOST)
        """Frames that a convolution sees at once."""
        stride: int = Field(2, ge=1, le=MOST)
        """Frames that each convolution turns into one; the last group may be shorter, and is never dropped."""
        activation: Activation = "gelu"
        """What follows each convolution."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Width of the convolutions, and of the output where that is free; null keeps the input's."""

        @model_validator(mode="after")
        def _sees_all(self) -> Conv.Config:
            if self.kernel < self.stride:
                raise ValueError(
                    f"a kernel of {self.kernel} with a stride of {self.stride} would skip frames: "
                    f"write a kernel of at least {self.stride}"
                )
            if self.stride**self.layers > MOST:
                raise ValueError(
                    f"{self.layers} convolutions with a stride of {self.stride} would make one frame of more than "
                    f"{MOST:,}; write fewer, or a smaller stride"
                )
            return self

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """Each convolution divides the frames by its stride and rounds up."""
            step = self.stride**self.layers  # rounding up at each layer and once at the end is the same
            return ceil_div(frames, step), rate / step

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        width = config.dim or in_dim
        self.dim = out_dim or width
        self.kernel, self.stride = config.kernel, config.stride
        widths = [in_dim, *[width] * (config.layers - 1)]
        self.convs = nn.ModuleList(nn.Conv1d(d, width, config.kernel, config.stride) for d in widths)
        self.activation = ACTIVATIONS[config.activation]()
        self.map = nn.Linear(width, self.dim)

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of (batch, ceil(time / stride ** layers), dim)."""
        x, mask = rearrange(frames.x, "b t d -> b d t"), frames.mask
        for conv in self.convs:
            x = x.masked_fill(~mask.unsqueeze(1), 0)  # what a layer writes behind a clip, the next must not see
            size = ceil_div(x.shape[-1], self.stride)
            # Output i stands in the middle of its `stride` frames, so that no layer shifts time.
            left = (self.kernel - self.stride) // 2
            right = (size - 1) * self.stride + self.kernel - left - x.shape[-1]
            x = self.activation(conv(pad(x, (left, right))))
            mask = prefix_mask(ceil_div(mask.sum(-1), self.stride), size)
        x = self.map(rearrange(x, "b d t -> b t d"))
        _, rate = self.config.length(1, frames.rate)
        return Frames(x.masked_fill(~mask.unsqueeze(-1), 0), mask, rate)
