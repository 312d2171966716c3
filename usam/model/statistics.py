"""The statistics by which a fusion standardises its streams, gathered once from clips of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from usam.model.inputs import audio_of
from usam.model.model import UsamModel
from usam.types import Frames


def ungathered(model: nn.Module) -> UsamModel | None:
    """What of a model still needs statistics."""
    bodies = (module for module in model.modules() if isinstance(module, UsamModel))
    return next((body for body in bodies if not body.fusion.gathered), None)


@torch.no_grad()
def gather(model: Any, batches: Iterable[Mapping[str, Any]]) -> None:
    """Fill what `fusion.standardize` needs, from the clips of some batches; encoders are in eval mode meanwhile.

    Args:
        model: whole, or without its head.
        batches: as `forward` takes them, with clips or with `audio_frames` of encoders; those without are passed over.

    Raises:
        ValueError: the fusion does not standardise, or the batches hold no clip.
    """
    body = getattr(model, "model", model)
    if body.fusion.statistics is None:
        raise ValueError("the fusion gathers no statistics: write fusion.standardize: true")
    modes = [(module, module.training) for module in body.encoders.modules()]
    body.encoders.eval()
    try:
        body.fusion.gather(_streams(body, batches))
    finally:
        for module, training in modes:
            module.training = training


def _streams(body: Any, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Frames]]:
    for batch in batches:
        values, mask, given = (batch.get(n) for n in ("input_values", "input_values_mask", "audio_frames"))
        if values is None and given is None:
            continue
        audio = audio_of(values, mask, given, body.config.parsed)
        if audio is None:
            raise ValueError(
                "audio_frames of the fusion are behind the statistics: give those of the encoders, or clips"
            )
        yield body.streams(audio, given)
