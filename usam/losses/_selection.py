"""Which of a sample's frames matter to its answer (U-SAM, eq. 9 and 10)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from usam.clock import rescale
from usam.losses._alignment import unit

Normalize = Literal["sample", "batch", "affine"]
Decision = Literal["straight_through", "gumbel", "topk", "soft", "hard"]
NARROW = 1e-5  # cosines that differ by less are all alike
SURE = 1e-6  # nearest that a probability comes to 0 and to 1


def relevance(x: Tensor, mask: Tensor, target: Tensor, normalize: Normalize) -> Tensor:
    """Cosine of each frame with its sample's target, brought to [0, 1]: (batch, time), 0 where masked.

    By the lowest and the highest of the sample or of the batch, or `affine` as (cosine + 1) / 2. Where
    all frames are alike, none stands out: 0.5.
    """
    cosine = torch.einsum("b t d, b d -> b t", unit(x), unit(target))
    if normalize == "affine":
        return ((cosine + 1) / 2).masked_fill(~mask, 0)
    lowest, highest = cosine.masked_fill(~mask, 2), cosine.masked_fill(~mask, -2)  # beyond any cosine
    over = (-1,) if normalize == "sample" else (0, 1)
    lowest, highest = lowest.amin(over, keepdim=True), highest.amax(over, keepdim=True)
    spread = (cosine - (lowest + highest) / 2) / (highest - lowest).clamp_min(NARROW)
    return (spread + 0.5).masked_fill(~mask, 0)


def significance(predicted: Tensor, text_relevance: Tensor, salience: Tensor, beta: float) -> Tensor:
    """S of eq. 9: the predicted score mixed with the mean of both relevances."""
    return (1 - beta) * predicted + beta / 2 * (text_relevance + salience)


def top(scores: Tensor, mask: Tensor, ratio: float) -> Tensor:
    """True on the `ceil(ratio * n)` highest of a sample's n frames: (batch, time)."""
    order = scores.masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(-1) < rescale(mask.sum(-1, keepdim=True), 1, ratio)) & mask


def highest(scores: Tensor, mask: Tensor) -> Tensor:
    """True on a sample's highest frame: (batch, time)."""
    first = scores.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    return (torch.arange(scores.shape[-1], device=scores.device) == first) & mask


def gumbel(scores: Tensor, threshold: float, temperature: float) -> Tensor:
    """Relaxed Bernoulli draws (Maddison et al., 2017), above 0.5 for the more scores are above the threshold."""
    odds = torch.logit(scores, eps=SURE) - torch.logit(scores.new_tensor(threshold))
    noise = torch.logit(torch.rand_like(scores), eps=SURE)  # the difference of two Gumbel variables
    return torch.sigmoid((odds + noise) / temperature)


def decide(
    scores: Tensor,
    mask: Tensor,
    how: Decision,
    *,
    threshold: float = 0.5,
    ratio: float = 0.5,
    temperature: float = 1.0,
    training: bool = False,
) -> Tensor:
    """D of eq. 10, how far each frame is kept: (batch, time), 0 where masked.

    At least the highest frame of a sample is kept. All but `soft` give 0 or 1; all but `hard` pass the
    gradient straight through to the score (Bengio et al., 2013). `gumbel` draws in training only.
    """
    if how == "soft":
        return scores.masked_fill(~mask, 0)
    soft = gumbel(scores, threshold, temperature) if how == "gumbel" and training else scores
    if how == "topk":
        kept = top(scores, mask, ratio)
    else:
        kept = (soft > (0.5 if how == "gumbel" and training else threshold)) | highest(soft, mask)
    decision = (kept & mask).to(scores.dtype)
    if how == "hard":
        return decision
    soft = soft.masked_fill(~mask, 0)
    return decision + (soft - soft.detach())  # exactly 0 or 1: what is added is 0
