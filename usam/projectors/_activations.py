"""The activations a projector can have, by the names a config gives them."""

from __future__ import annotations

from typing import Literal

from torch import nn

Activation = Literal["gelu", "relu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
