"""Fusions bring the encoders' streams to one clock and make one tensor of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from usam.clock import N, at_least_one, rescale
from usam.component import Component, ComponentConfig, build, finish, own_dtype
from usam.registry import ComponentError, Registry
from usam.spec.spec import Config
from usam.types import Audio, Frames, Prompt, named, prefix_mask, same_dtype


class Fusion(Component):
    """Streams by encoder name go in, one stream comes out.

    The clock: frame i stands for the time (i + 0.5) / rate, and a clip has `max(1, ceil(seconds * rate))`
    frames. A stream is averaged where the clock is slower and interpolated where it is faster, never
    reads past its last real frame, and gives zeros where it has none. One encoder and no `rate`: its
    frames as they are.

    Args:
        dims: width of each encoder's frames, by encoder name.
    """

    class Config(ComponentConfig):
        """Options every fusion has."""

        rate: float | None = Field(None, ge=0.1, le=1000)
        """Frames per second of the common clock; null takes the lowest rate among the encoders."""

        def length(self, streams: Mapping[str, tuple[N, float]], samples: N, sample_rate: int) -> tuple[N, float]:
            """Frames and rate of the fused stream; ints or integer tensors.

            Args:
                streams: frames and rate of each encoder's stream.
                samples: samples of the clip at `sample_rate`.
                sample_rate: samples per second.
            """
            if self.rate is None and len(streams) == 1:
                ((frames, rate),) = streams.values()
                return at_least_one(frames), rate
            rate = self.rate or min(rate for _, rate in streams.values())
            return at_least_one(rescale(samples, sample_rate, rate)), rate

    reads_prompt: bool = False
    """Whether it reads the instruction. Of the class: `__init__` takes `prompt_dim` too. Of one fusion, by its options:
    `forward` takes a third argument, the clips' `Prompt`; clip i hears prompt i."""
    any_dtype: bool = False
    """Whether `forward` takes prompts of any dtype; inside a model they come in that of its weights else."""
    dim: int
    """Width of the fused frames."""

    def __init__(self, config: Any, *, dims: Mapping[str, int]) -> None:
        super().__init__(config)
        self.names = sorted(dims)  # config.json is written with sorted keys: the order must not depend on it

    def forward(self, streams: Mapping[str, Frames], audio: Audio) -> Frames:
        """Fuse the streams of the clips in `audio`: Frames of (clip, time, dim)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(streams, audio)")

    def fixed(self, prompt: Prompt) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Options and tensors of a fusion that needs no prompt and does what this one does with it (1, token, dim).

        Raises:
            ComponentError: there is none.
        """
        raise ComponentError(f"fusion '{self.config.type}' reads the prompt in a way that cannot be fixed for a task")

    def align(self, streams: Mapping[str, Frames], audio: Audio) -> tuple[list[Tensor], Tensor, float]:
        """The streams on one clock, in name order: tensors (clip, time, dim), their mask, the rate."""
        rates = {name: frames.rate for name, frames in streams.items()}
        most = {name: (frames.x.shape[1], rates[name]) for name, frames in streams.items()}
        size, rate = self.config.length(most, audio.x.shape[-1], audio.rate)
        each = {name: (frames.lengths, rates[name]) for name, frames in streams.items()}
        lengths, _ = self.config.length(each, audio.lengths, audio.rate)
        mask = prefix_mask(lengths, size)
        aligned = [_on_clock(streams[name], rate, size).masked_fill(~mask.unsqueeze(-1), 0) for name in self.names]
        return aligned, mask, rate


def widths_for(cls: type[Fusion], dims: Mapping[str, int], prompt_dim: int) -> dict[str, Any]:
    """What a fusion is made with beside its config: `prompt_dim` only where it may read the prompt."""
    return {"dims": dims, **({"prompt_dim": prompt_dim} if cls.reads_prompt else {})}


def run(fusion: Any, streams: dict[str, Frames], audio: Audio, prompt: Prompt | None) -> Frames:
    """A fusion on streams, and on a prompt if it reads one, of its own dtype; `aux` is named `fusion.<name>`."""
    dtype = own_dtype(fusion)
    streams = same_dtype({name: streams[name] for name in sorted(streams)}, dtype)
    if fusion.reads_prompt:
        cast = prompt is not None and dtype is not None and not fusion.any_dtype
        read = Prompt(prompt.x.to(dtype), prompt.mask) if cast and prompt is not None else prompt
        found: Frames = fusion(streams, audio, read)
    else:
        found = fusion(streams, audio)
    return Frames(found.x, found.mask, found.rate, named("fusion.", found.aux))


def _on_clock(frames: Frames, rate: float, size: int) -> Tensor:
    """A stream at another rate: (batch, size, dim); zeros for an item that has no frame."""
    x = frames.x.masked_fill(~frames.mask.unsqueeze(-1), 0)
    if x.shape[1] == 0:
        return nn.functional.pad(x, (0, 0, 0, size))
    if rate == frames.rate and x.shape[1] >= size:
        taps = [(torch.arange(size, device=x.device), torch.ones(size, device=x.device, dtype=torch.float64))]
    else:
        taps = _taps(frames.rate / rate, size, x.device)
    last = (frames.lengths - 1).clamp_min(0).unsqueeze(-1)
    total = torch.zeros(x.shape[0], size, x.shape[2], dtype=x.dtype, device=x.device)
    weights = torch.zeros(x.shape[0], size, dtype=torch.float64, device=x.device)
    for index, weight in taps:
        counts = (index <= last) & (index >= 0)
        weight = weight * counts
        total = total + _take(x, index.clamp_min(0).minimum(last)) * weight.unsqueeze(-1).to(x.dtype)
        weights = weights + weight
    held = _take(x, last.expand(-1, size))  # past the last real frame the stream stands still
    mean = total / weights.clamp_min(1e-12).unsqueeze(-1).to(x.dtype)
    return torch.where(weights.unsqueeze(-1) > 1e-9, mean, held)


def _taps(step: float, size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """(source index, weight) of each tap, for `step` source frames a target frame."""
    start = torch.arange(size, dtype=torch.float64, device=device) * step
    if step > 1:  # the mean over the target frame's span, each source frame by its share of it
        first = start.floor()
        taps = []
        for k in range(math.ceil(step) + 1):
            low = torch.maximum(first + k, start)
            high = torch.minimum(first + k + 1, start + step)
            taps.append(((first + k).long(), (high - low).clamp_min(0)))
        return taps
    centre = start + step / 2 - 0.5  # in source frames, which stand at 0, 1, 2 ...
    first = centre.floor()
    share = centre - first
    inside = first >= 0
    return [
        (first.long(), torch.where(inside, 1 - share, 0.0)),
        ((first + 1).long(), torch.where(inside, share, 1.0)),
    ]


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[2]))


registry: Registry[Fusion] = Registry(Fusion, "usam.fusions")
register = registry.register


def build_fusion(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    dims: Mapping[str, int],
    prompt_dim: int | None = None,
    weights: bool = True,
    **options: Any,
) -> Fusion:
    """One fusion, outside any spec: `build_fusion("concat", dims={"whisper": 1280, "ced": 768}, rate=25)`.

    `prompt_dim`, for those that read the prompt, defaults to the widest stream's.
    """
    cls, config = build("usam.fusions", component, options)
    fusion: Fusion = finish(cls(config, **widths_for(cls, dims, prompt_dim or max(dims.values()))), config, weights)
    return fusion
