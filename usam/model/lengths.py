"""Whose `length()` says otherwise than its `forward` does: looked for where placeholders and audio tokens differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from usam.fusions import run
from usam.model.inputs import audio_of
from usam.types import Frames, Prompt

if TYPE_CHECKING:
    from usam.model.model import UsamModel


@torch.no_grad()
def wrong_length(model: UsamModel, values: Tensor | None, mask: Tensor | None, prompt: Prompt | None) -> str | None:
    """The first part on the way whose config counts other frames than come out; None when all agree."""
    audio = None if values is None else audio_of(values, mask, None, model.config.parsed)
    if audio is None:  # the encoders were not asked
        return None
    streams: dict[str, Frames] = {}
    for name, encoder in model.encoders.parts():
        config = encoder.config
        heard = audio.at(config.sample_rate)
        streams[name] = encoder(heard.x, heard.mask)
        said = (config.length(heard.lengths), config.rate)
        if fault := _compare(f"encoders.{name}", said, streams[name], f"{heard.lengths.tolist()} samples"):
            return fault
    spec = model.config.parsed
    fusion: Any = spec.fusion
    lengths = {name: (frames.lengths, frames.rate) for name, frames in streams.items()}
    said = fusion.length(lengths, audio.lengths, audio.rate)
    frames = run(model.fusion, streams, audio, prompt)
    if fault := _compare("fusion", said, frames, f"clips of {audio.lengths.tolist()} samples"):
        return fault
    for i, module in enumerate(model.projector.stages):
        stage: Any = module
        before, said = frames.lengths, stage.config.length(frames.lengths, frames.rate)
        frames = model.projector.run(stage, frames, prompt, model.vocabulary)
        if fault := _compare(f"projector.{i}", said, frames, f"{before.tolist()} frames"):
            return fault
    return None


def _compare(place: str, said: tuple[Tensor, float], frames: Frames, given: str) -> str | None:
    lengths, rate = said
    if lengths.tolist() != frames.lengths.tolist():
        return (
            f"{place}: its config's length() counts {lengths.tolist()} frames for {given}, and its forward gives "
            f"{frames.lengths.tolist()}; mend the component, for the processor counts placeholders by length()"
        )
    if abs(rate - frames.rate) > 1e-6 * max(abs(rate), 1):
        return f"{place}: its config says {rate:g} frames a second, and its forward {frames.rate:g}; mend the component"
    return None
