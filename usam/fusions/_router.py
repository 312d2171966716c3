"""A router that says once a clip how much each expert counts, and what it tells of that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usam.component import Float32Linear

# Below what embeddings vary by, squared, in any language model; zeros stay zeros.
EPSILON = 1e-12


class ClipRouter(nn.Module):
    """Probabilities (clip, expert) of one vector a clip, by a linear map or one hidden layer; float32 throughout.

    Args:
        width: of what is read.
        experts: how many.
        hidden: of the hidden layer; 0 for none.
        normalize: read through a layer norm without parameters, so that scales do not matter.
    """

    def __init__(self, width: int, experts: int, hidden: int, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        first = [Float32Linear(width, hidden), nn.GELU()] if hidden else []
        self.map = nn.Sequential(*first, Float32Linear(hidden or width, experts))

    def forward(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities, and the logits' log-sum-exp (clip,), of (clip, width)."""
        with torch.autocast(read.device.type, enabled=False):
            wide = read.to(torch.promote_types(read.dtype, torch.float32))
            logits = self.map(F.layer_norm(wide, wide.shape[-1:], eps=EPSILON) if self.normalize else wide)
            return logits.softmax(-1), logits.logsumexp(-1)


def said(probs: Tensor, z: Tensor, load: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """By-products under the names that projectors' routers have: one row a clip, that is the clip itself.

    Args:
        probs: (clip, expert).
        z: the logits' log-sum-exp, (clip,).
        load: the share of choices, (clip, expert).
        mask: of the clip's frames, (clip, time).
    """
    own = probs.detach()
    return {
        "router_probs": probs,
        "router_load": load.detach(),
        "router_rows": mask.any(-1).long(),
        "router_z": z.square(),
        "router_entropy": -torch.xlogy(own, own).sum(-1),
    }
