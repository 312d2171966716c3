"""SigLIP's loss (Zhai et al., 2023, algorithm 1) between what is heard and what is answered."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from usam.losses import Loss
from usam.types import LossInputs, LossOutput

ALIKE = 1 - 1e-6  # from this cosine on two answers are one: to call it wrong would punish what is right


class SigLip(Loss):
    """One decision a pair: the audio and the answer of one sample belong together, those of two samples do not.

    Audio and answer are the means of their vectors, scaled to length 1. A pair of samples that answer the same is left
    out, and so is a sample without audio or without an answer.
    """

    class Config(Loss.Config):
        """Options of SigLIP's loss."""

        temperature: float = Field(10.0, gt=0)
        """Where the factor t of the cosines starts; its logarithm is learned. `freeze: [log_t]` keeps it."""
        bias: float = -10.0
        """Where the bias b starts: low, for most pairs are of two samples; learned, unless `freeze: [b]` keeps it."""

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config, dim=dim)
        self.log_t = nn.Parameter(torch.empty(1))  # of one axis, for FSDP takes no scalars
        self.b = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Temperature and bias as the options have them."""
        nn.init.constant_(self.log_t, math.log(self.config.temperature))
        nn.init.constant_(self.b, self.config.bias)

    def forward(self, inputs: LossInputs) -> LossOutput:
        """The sum over all pairs, divided by the samples; in float32, inside autocast too."""
        if inputs.labels.numel() == 0 or inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        answer, mask = inputs.answer
        whole = inputs.audio.mask.any(-1) & mask.any(-1)  # has audio and an answer
        own = torch.diag(whole)
        with torch.autocast(answer.device.type, enabled=False):
            heard, said = _direction(inputs.audio.x, inputs.audio.mask), _direction(answer, mask)
            logits = self.log_t.float().exp() * heard @ said.mT + self.b.float()  # audio answer
            other = whole.unsqueeze(0) & whole.unsqueeze(1) & (said @ said.mT < ALIKE)
            pairs = -logsigmoid(torch.where(own, logits, -logits)).masked_fill(~(own | other), 0)
            value = pairs.sum() / whole.sum().clamp_min(1)
        learned = {"temperature": self.log_t.exp(), "bias": self.b}
        return LossOutput(value, {name: tensor.detach().squeeze() for name, tensor in learned.items()})


def _direction(x: Tensor, mask: Tensor) -> Tensor:
    """The direction of the mean of each item's own vectors: (batch, dim)."""
    return normalize(x.float().masked_fill(~mask.unsqueeze(-1), 0).sum(1), dim=-1, eps=1e-6)
