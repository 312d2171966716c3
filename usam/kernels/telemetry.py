"""What a router did with each group of rows: a task, a language, a clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from usam.kernels.routing import Routes


@dataclass(frozen=True)
class Usage:
    """Means over the routed rows of each group; zeros where a group has none."""

    rows: Tensor  # group: how many there are
    load: Tensor  # group expert: its share of the gates; without renormalisation they sum to less than 1
    entropy: Tensor  # group: of the whole softmax, in nats
    margin: Tensor  # group: between the two largest probabilities; 1 of a single expert


@torch.no_grad()
def usage(routes: Routes, groups: Tensor, count: int) -> Usage:
    """What the router did with each of `count` groups.

    Args:
        routes: of some rows; those that are masked count for nothing.
        groups: (row,) integers, the group of each row; a row outside 0 .. count - 1 belongs to none.
        count: number of groups.
    """
    if groups.shape != routes.z.shape:
        raise ValueError(
            f"groups must be {tuple(routes.z.shape)} like the rows of the routes, not {tuple(groups.shape)}"
        )
    probs = routes.probs
    experts = probs.shape[1]
    real = routes.experts[:, :1] < experts
    # A choice beyond the last expert goes to a column that is left out.
    gates = probs.new_zeros(len(probs), experts + 1).scatter(-1, routes.experts.long(), routes.gates)[:, :experts]
    entropy = -torch.xlogy(probs, probs).sum(-1, keepdim=True)
    best = probs.topk(min(2, experts), dim=-1).values
    margin = best[:, :1] - best[:, 1:2].sum(-1, keepdim=True)
    rows = torch.cat([real.to(probs.dtype), gates, entropy, margin], -1)
    # A product with ones and zeros: adding rows at their group's place would sum in another order each time.
    member = groups.unsqueeze(0) == torch.arange(count, device=groups.device).unsqueeze(1)
    sums = member.to(probs.dtype) @ rows.masked_fill(~real, 0)
    total = sums[:, :1]
    means = sums / total.clamp_min(1)
    return Usage(total[:, 0], means[:, 1 : experts + 1], means[:, experts + 1], means[:, experts + 2])
