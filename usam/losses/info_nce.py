"""Contrastive loss between audio and answers: symmetric InfoNCE, as in CLIP (Radford et al., 2021, figure 3)."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import nn

from usam.losses import Loss
from usam.losses._pairs import Pairs
from usam.spec.sizes import WIDTH
from usam.types import LossInputs, LossOutput

LARGEST = math.log(100)  # of the scale, section 2.5


class InfoNCE(Loss):
    """Each audio is to find its answer in the batch, and each answer its audio; equal answers are no negatives."""

    class Config(Loss.Config):
        """Options of InfoNCE."""

        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Width to which audio and answer are mapped before they are compared; null compares them as they are."""
        temperature: float = Field(0.07, ge=0.01)
        """Where the temperature starts; it is learned, and stays at least 0.01. `freeze: [log_scale]` keeps it."""

    needs_states = False

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config, dim=dim)
        self.pairs = Pairs(dim, config.dim)
        self.log_scale = nn.Parameter(torch.empty(1))  # FSDP2 takes no scalar
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The scale is one over the temperature."""
        nn.init.constant_(self.log_scale, -math.log(self.config.temperature))

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Mean over the samples that have a negative; in float32 inside autocast."""
        if inputs.labels.numel() == 0 or inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        cosine, negative = self.pairs(inputs)
        if self.training:
            with torch.no_grad():  # the parameter itself: a clamped copy would have no gradient to return by
                self.log_scale.clamp_(max=LARGEST)
        own = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
        # A sample without a negative competes with nothing: its term is log 1.
        logits = (cosine * self.log_scale.to(cosine.dtype).exp()).masked_fill(~(own | negative), -math.inf)
        each = -(logits.log_softmax(0) + logits.log_softmax(1)).diagonal() / 2
        count = negative.any(-1).sum().clamp_min(1)
        return LossOutput(each.sum() / count, {"scale": self.log_scale.detach().exp().squeeze()})
