"""Cross entropy of the answer's tokens (U-SAM, eq. 8), as a mean over the supervised positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from usam.losses import Loss
from usam.losses._chunks import sum_in_chunks
from usam.types import LossInputs, LossOutput


class CrossEntropy(Loss):
    """The head runs on the supervised positions only, a chunk of them at a time; the loss is in float32 or wider."""

    class Config(Loss.Config):
        """Options of the cross entropy."""

        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """Share of the target that is spread evenly over the vocabulary."""

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Mean negative log-likelihood of `inputs.labels`; `tokens` in `aux` is that of each."""
        if inputs.labels.numel() == 0:
            return LossOutput(self.nothing(inputs))

        def valued(hidden: Tensor, labels: Tensor) -> Tensor:
            logits = inputs.head(hidden)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing, reduction="none")

        total, tokens = sum_in_chunks(valued, inputs.hidden, inputs.labels, inputs.head)
        return LossOutput(total / len(inputs.labels), {"tokens": tokens})
