"""A fixed number of tokens for any clip: Flamingo's perceiver resampler (Alayrac et al., 2022, section 2.1)."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from usam.clock import N
from usam.projectors import Projector
from usam.projectors._activations import ACTIVATIONS, Activation
from usam.spec.sizes import HEADS, LAYERS, TOKENS, WIDTH
from usam.types import Frames, Prompt

SHORTEST, LONGEST = 0.1, 3600.0  # periods of the sinusoids, in seconds


class Perceiver(Projector):
    """Learned latents look at all frames of a clip, in `layers` blocks of cross-attention and feed-forward."""

    class Config(Projector.Config):
        """Options of the resampler."""

        latents: int = Field(64, ge=1, le=TOKENS)
        """Tokens that every clip becomes, however long it is."""
        layers: int = Field(2, ge=1, le=LAYERS)
        """Blocks of cross-attention and feed-forward."""
        heads: int = Field(8, ge=1, le=HEADS)
        """Heads of the attention."""
        head_dim: int = Field(64, ge=1, le=WIDTH)
        """Width of a head."""
        activation: Activation = "gelu"
        """What stands between the two maps of a feed-forward."""
        positions: bool = True
        """Add sinusoids of a frame's time in seconds; without them only the frames themselves can tell their order."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Width of the latents, and of the output where that is free; null keeps the input's."""

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """The latents, which stand nowhere in time: their rate is 0."""
            return frames * 0 + self.latents, 0.0

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        width = config.dim or in_dim
        self.dim = out_dim or width
        self.positions = config.positions
        self.input = nn.Linear(in_dim, width)
        self.latents = nn.Parameter(torch.empty(config.latents, width))
        self.blocks = nn.ModuleList(_Block(width, config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, self.dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random latents."""
        nn.init.normal_(self.latents, std=0.02)

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of (batch, latents, dim)."""
        x = self.input(frames.x.masked_fill(~frames.mask.unsqueeze(-1), 0))
        if self.positions and frames.rate > 0:
            x = x + _sinusoids(x.shape[1], frames.rate, x.shape[2], x.device).to(x.dtype)
        y = self.latents.expand(len(x), -1, -1)
        every = frames.mask.new_ones(y.shape[:2])
        seen = rearrange(torch.cat([frames.mask, every], 1), "b k -> b 1 1 k")
        for block in self.blocks:
            y = block(y, x, seen)
        return Frames(self.output(self.norm(y)), every, 0.0)


class _Block(nn.Module):
    """Keys and values are the frames and the latents together; norms come first, and only they have biases."""

    def __init__(self, width: int, config: Perceiver.Config) -> None:
        super().__init__()
        inner = config.heads * config.head_dim
        self.heads = config.heads
        self.frame_norm, self.latent_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width, bias=False),
            ACTIVATIONS[config.activation](),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, y: Tensor, x: Tensor, seen: Tensor) -> Tensor:
        """Latents (batch, latents, width), after they have looked at the frames (batch, time, width)."""
        latents = self.latent_norm(y)
        both = torch.cat([self.frame_norm(x), latents], 1)
        given = self.q_proj(latents), self.k_proj(both), self.v_proj(both)
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in given)
        found = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        y = y + self.o_proj(rearrange(found, "b h t d -> b t (h d)"))
        fed: Tensor = self.feed_forward(y)
        return y + fed


def _sinusoids(size: int, rate: float, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of (i + 0.5) / rate seconds, with periods from SHORTEST to LONGEST: (size, dim)."""
    pairs = (dim + 1) // 2
    seconds = (torch.arange(size, device=device) + 0.5) / rate
    periods = torch.logspace(math.log10(SHORTEST), math.log10(LONGEST), pairs, device=device)
    angle = 2 * math.pi * seconds.unsqueeze(-1) / periods
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :dim]
