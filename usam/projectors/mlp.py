"""A perceptron for each frame, as LLaVA-1.5 uses for images (Liu et al., 2023, section 3.3)."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from usam.projectors import Projector
from usam.projectors._activations import ACTIVATIONS, Activation
from usam.spec.sizes import LAYERS, WIDTH
from usam.types import Frames, Prompt


class MLP(Projector):
    """Maps every frame by itself, through `layers` hidden layers."""

    class Config(Projector.Config):
        """Options of the perceptron."""

        hidden: int | None = Field(None, ge=1, le=WIDTH)
        """Width of the hidden layers; null takes the output's."""
        layers: int = Field(1, ge=1, le=LAYERS)
        """Number of hidden layers."""
        activation: Activation = "gelu"
        """What follows each hidden layer."""
        layer_norm: bool = False
        """Normalise each frame before the first layer."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Output width where the next stage leaves the choice; null keeps the input's."""

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or config.dim or in_dim
        hidden = config.hidden or self.dim
        parts: list[nn.Module] = [nn.LayerNorm(in_dim)] if config.layer_norm else []
        for width in [in_dim, *[hidden] * (config.layers - 1)]:
            parts += [nn.Linear(width, hidden), ACTIVATIONS[config.activation]()]
        self.map = nn.Sequential(*parts, nn.Linear(hidden, self.dim))

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of (batch, time, dim)."""
        padding = ~frames.mask.unsqueeze(-1)
        x = self.map(frames.x.masked_fill(padding, 0))
        return Frames(x.masked_fill(padding, 0), frames.mask, frames.rate)
