"""The training objective: what the losses are given, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from usam.model.head import Head
from usam.model.inputs import check_labels
from usam.types import IGNORE, Frames, LossInputs

ONLY_ITS_OWN = ("use_cache", "output_hidden_states", "output_attentions")


def needed(model: Any, labels: Tensor | None, *asked: Any) -> dict[str, bool]:
    """What has to be computed: the language model's `states`, and the projected `frames`.

    States are needed for an answer, by a loss that reads them, without any loss, or if they are asked for. Frames are
    needed by the language model, or by a loss that reads them.

    Args:
        model: with losses.
        labels: None for an answer.
        asked: caches and which logits to keep, that none be ignored; the last one, further options of `forward`.
    """
    *given, options = asked
    kept = any(value is not None and not (isinstance(value, int) and value == 0) for value in given)
    losses = [loss for _, loss in model.losses.parts()]
    states = labels is None or not losses or kept or any(options.get(name) for name in ONLY_ITS_OWN)
    states = states or any(loss.needs_states for loss in losses)
    return {"states": states, "frames": states or any(loss.needs_frames for loss in losses)}


def weighted(
    model: Any, outputs: Any, labels: Tensor, total: Tensor | int | None, batch: Mapping[str, Any] | None
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """The weighted sum of a model's losses, the unweighted parts, and their by-products.

    Args:
        model: with losses, a token table and a head.
        outputs: what its body gave.
        labels: (batch, length).
        total: supervised tokens of the whole batch, of which this micro-batch has a share: gradient accumulation then
            sums to the mean.
        batch: what the collator passed along.
    """
    inputs = loss_inputs(model, outputs, labels, batch)
    share = 1.0 if total is None else inputs.labels.numel() / total
    parts: dict[str, Tensor] = {}
    aux: dict[str, Tensor] = {}
    # Zero, where no state is read with a path to all that hears: distributed training waits for every gradient.
    loss = inputs.hidden.new_zeros((), dtype=torch.float32)
    if outputs.last_hidden_state is None:
        loss = loss + inputs.hidden.sum() + inputs.audio.x[:, :0].sum()
    for name, module in model.losses.parts():
        found = module(inputs)
        parts[name] = found.value.detach()
        aux |= {f"{name}.{key}": value for key, value in found.aux.items()}
        loss = loss + module.config.weight * found.value.float()
    return loss * share, parts, aux


def loss_inputs(model: Any, outputs: Any, labels: Tensor, batch: Mapping[str, Any] | None) -> LossInputs:
    """A batch as the losses of `model` see it; arguments as of `weighted`."""
    supervised = labels[:, 1:] != IGNORE  # the state at t predicts the token at t + 1
    wanted = labels[:, 1:][supervised]
    if torch.compiler.is_compiling():
        torch._check(wanted.numel() > 0)  # tells the losses, which may ask, without a graph break
    embeds, audio = outputs.inputs_embeds, outputs.audio
    check_labels(labels, wanted, tuple(embeds.shape[:2]), model.config.audio_token_id)
    answer_mask = labels != IGNORE
    answer = model.model.embed(labels.masked_fill(~answer_mask, 0)).detach()
    if audio is None:
        empty = embeds.new_zeros(embeds.shape[0], 0, embeds.shape[2])
        audio = Frames(empty, empty.new_zeros(empty.shape[:2], dtype=torch.bool), 0.0)
    states = outputs.last_hidden_state
    # Without states, none: with a path to what hears, which `nothing` follows.
    hidden = embeds.flatten(0, 1)[:0] if states is None else states[:, :-1][supervised]
    return LossInputs(
        hidden=hidden,
        labels=wanted,
        head=Head(model.lm_head),
        audio=audio,
        answer=(answer, answer_mask),
        aux=audio.aux,
        batch=batch or {},
        vocabulary=model.model.vocabulary,
    )
