"""Each sample's audio and answer as one vector each, and which of them belong together."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from usam.losses._answers import same_answer
from usam.types import LossInputs


class Pairs(nn.Module):
    """Cosines between the masked means of audio and answers, each first mapped to `width` where that is given."""

    def __init__(self, dim: int, width: int | None) -> None:
        super().__init__()
        self.audio = nn.Linear(dim, width, bias=False) if width else None
        self.answer = nn.Linear(dim, width, bias=False) if width else None

    def forward(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Cosines (batch, batch), audio by answer, and True at the negatives.

        Samples without audio or without answer have no negatives and are none; neither are equal answers.
        """
        answer, said = inputs.answer
        heard = inputs.audio.mask.any(-1) & said.any(-1)
        negative = ~same_answer(inputs) & heard.unsqueeze(0) & heard.unsqueeze(1)
        with torch.autocast(answer.device.type, enabled=False):
            rows = _direction(_mean(inputs.audio.x, inputs.audio.mask), self.audio)
            columns = _direction(_mean(answer, said), self.answer)
            return rows @ columns.mT, negative


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """In float32, or float64 for float64: (batch, dim)."""
    total = x.masked_fill(~mask.unsqueeze(-1), 0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return total / mask.sum(-1, keepdim=True).clamp_min(1)


def _direction(x: Tensor, mapped: nn.Linear | None) -> Tensor:
    y = x if mapped is None else cast(Tensor, mapped(x.to(mapped.weight.dtype))).to(x.dtype)
    return normalize(y, dim=-1, eps=1e-6)
