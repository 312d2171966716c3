"""Which samples of a batch have the same answer: no loss may push such a pair apart."""

from __future__ import annotations

import torch
from torch import Tensor

from usam.types import IGNORE, LossInputs


def answer_ids(inputs: LossInputs) -> Tensor:
    """Each sample's answer from the first column on, then IGNORE: (batch, token)."""
    mask = inputs.answer[1][:, 1:]  # the token at 0 is predicted by no state: it has no label
    ids = torch.full(mask.shape, IGNORE, dtype=inputs.labels.dtype, device=mask.device)
    ids = ids.masked_scatter(mask, inputs.labels)
    first = mask.logical_not().to(torch.uint8).argsort(dim=1, stable=True)  # an answer may stand anywhere in its row
    return ids.gather(1, first)


def same_answer(inputs: LossInputs) -> Tensor:
    """True where samples i and j have the same token ids: (batch, batch); no answer is the same as no answer."""
    ids = answer_ids(inputs)
    return (ids.unsqueeze(0) == ids.unsqueeze(1)).all(-1)
