"""Cross entropy of the answer's tokens (U-SAM, eq. 8), as a mean over the supervised positions."""

from __future__ import annotations

from typing import Any, cast

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

        smoothing = self.config.label_smoothing

        def valued(hidden: Tensor, labels: Tensor) -> Tensor:
            logits = inputs.head(hidden)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if torch.compiler.is_compiling() or not _is_nobodys(wide, hidden):
                return F.cross_entropy(wide, labels, label_smoothing=smoothing, reduction="none")
            return cast(Tensor, _InPlace.apply(wide, labels, smoothing))

        total, tokens = sum_in_chunks(valued, inputs.hidden, inputs.labels, inputs.head)
        return LossOutput(total / len(inputs.labels), {"tokens": tokens})


# What makes logits, and does not need them for its own gradient.
MAKERS = ("AddmmBackward0", "MmBackward0", "MulBackward0", "DivBackward0", "ToCopyBackward0")


def _is_nobodys(logits: Tensor, hidden: Tensor) -> bool:
    """Whether nobody but the loss reads the logits."""
    if type(logits) is not Tensor or logits.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr():
        return False
    return not logits.requires_grad or (logits.grad_fn is not None and logits.grad_fn.name() in MAKERS)


class _InPlace(torch.autograd.Function):
    """Each row's cross entropy; probabilities, and then the gradient, take the place of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        own = labels.unsqueeze(-1)
        most = logits.amax(-1, keepdim=True)
        wanted = (1 - smoothing) * logits.gather(-1, own)
        if smoothing:
            wanted = wanted + smoothing * logits.mean(-1, keepdim=True)
        logits.sub_(most).exp_()
        total = logits.sum(-1, keepdim=True)
        ctx.save_for_backward(logits, total, own)
        ctx.smoothing = smoothing
        return (total.log() + most - wanted).squeeze(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        exponents, total, own = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        exponents.mul_(grad / total)
        if ctx.smoothing:
            exponents.sub_(grad * (ctx.smoothing / exponents.shape[-1]))
        exponents.scatter_add_(-1, own, (ctx.smoothing - 1) * grad)
        return exponents, None, None
