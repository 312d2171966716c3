"""What the losses are given: the states at the supervised positions, and what they are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from usam.model.head import Head
from usam.model.inputs import check_labels
from usam.types import IGNORE, Frames, LossInputs


def loss_inputs(
    model: Any, hidden: Tensor, labels: Tensor, audio: Frames | None, batch: Mapping[str, Any] | None
) -> LossInputs:
    """A batch as the losses of `model` see it.

    Args:
        model: with a token table and a head.
        hidden: (batch, length, dim), the language model's last states.
        labels: (batch, length).
        audio: each sample's projected clips; None for text alone.
        batch: what the collator passed along.
    """
    supervised = labels[:, 1:] != IGNORE  # the state at t predicts the token at t + 1
    wanted = labels[:, 1:][supervised]
    if torch.compiler.is_compiling():
        torch._check(wanted.numel() > 0)  # tells the losses, which may ask, without a graph break
    check_labels(labels, wanted, tuple(hidden.shape[:2]), model.config.audio_token_id)
    answer_mask = labels != IGNORE
    answer = model.model.embed(labels.masked_fill(~answer_mask, 0)).detach()
    if audio is None:
        empty = hidden.new_zeros(hidden.shape[0], 0, hidden.shape[2])
        audio = Frames(empty, empty.new_zeros(empty.shape[:2], dtype=torch.bool), 0.0)
    return LossInputs(
        hidden=hidden[:, :-1][supervised],
        labels=wanted,
        head=Head(model.lm_head),
        audio=audio,
        answer=(answer, answer_mask),
        aux=audio.aux,
        batch=batch or {},
    )
