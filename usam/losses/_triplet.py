"""The triplet hinge: an anchor is nearer to its own partner than to another's, by a margin (U-SAM, eq. 11)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Negatives = Literal["random", "hardest", "all"]


def hinges(similarity: Tensor, allowed: Tensor, margin: float) -> Tensor:
    """max(d(own) - d(other) + margin, 0) for every anchor and candidate: (anchor, candidate), 0 where not allowed.

    Args:
        similarity: anchor candidate: candidate i is anchor i's own; a distance is some constant minus it.
        allowed: anchor candidate: which are negatives.
    """
    own = similarity.diagonal().unsqueeze(-1)
    return (similarity - own + margin).clamp_min(0).masked_fill(~allowed, 0)


def choose(costs: Tensor, allowed: Tensor, negatives: Negatives, training: bool) -> Tensor:
    """One cost an anchor: (anchor,), 0 where nothing is allowed.

    `random` is uniform over what is allowed. Out of training it is the expectation of that draw, which
    is the mean that `all` takes: so an evaluation repeats itself, in whatever order its samples come.
    """
    if negatives == "hardest":
        return costs.amax(-1)
    if negatives == "random" and training:
        drawn = torch.rand_like(costs).masked_fill(~allowed, -1).argmax(-1, keepdim=True)
        return costs.gather(-1, drawn).squeeze(-1)
    return costs.sum(-1) / allowed.sum(-1).clamp_min(1)
