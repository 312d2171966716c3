"""Contrastive loss between audio and answers, one decision a pair: SigLIP (Zhai et al., 2023, eq. 1)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import softplus

from usam.losses import Loss
from usam.losses._pairs import Pairs
from usam.spec.sizes import WIDTH
from usam.types import LossInputs, LossOutput


class SigmoidContrastive(Loss):
    """Audio and answer of one sample belong together, those of two do not; equal answers are left out."""

    class Config(Loss.Config):
        """Options of the sigmoid loss."""

        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Width to which audio and answer are mapped before they are compared; null compares them as they are."""
        temperature: float = Field(0.1, gt=0)
        """Where the temperature starts; it is learned. `freeze: [log_scale]` keeps it."""
        bias: float = -10.0
        """Where the bias starts: low, for most pairs do not belong together. It is learned."""

    needs_states = False

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config, dim=dim)
        self.pairs = Pairs(dim, config.dim)
        self.log_scale = nn.Parameter(torch.empty(1))  # FSDP2 takes no scalar
        self.bias = nn.Parameter(torch.empty(1))  # FSDP2 takes no scalar
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The scale is one over the temperature."""
        nn.init.constant_(self.log_scale, -math.log(self.config.temperature))
        nn.init.constant_(self.bias, self.config.bias)

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Sum over pairs, mean over the samples that have a negative; in float32 inside autocast."""
        if inputs.labels.numel() == 0 or inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        cosine, negative = self.pairs(inputs)
        own = torch.diag(negative.any(-1))
        logits = cosine * self.log_scale.to(cosine.dtype).exp() + self.bias
        pairs = softplus(torch.where(own, -logits, logits)).masked_fill(~(own | negative), 0)
        count = own.sum().clamp_min(1)
        aux = {"scale": self.log_scale.detach().exp().squeeze(), "bias": self.bias.detach().squeeze()}
        return LossOutput(pairs.sum() / count, aux)
