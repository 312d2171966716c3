"""Batch normalisation by stored statistics alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StoredNorm(nn.Module):
    """Statistics never move, also in training: a clip's features depend on that clip alone.

    Args:
        channels: of dimension 1.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...), normalised in float32 and given back in the dtype of `x`."""
        mean, var, weight, bias = (t.float() for t in (self.running_mean, self.running_var, self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.batch_norm(x.float(), mean, var, weight, bias, eps=self.eps).to(x.dtype)
