"""Fusions bring the encoders' streams to one clock and make one tensor of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from usam.clock import N, at_least_one, rescale
from usam.component import Component, ComponentConfig, Parts, build, finish, own_dtype
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
        standardize: bool = False
        """Every channel of each stream gets mean 0 and variance 1 first, by statistics of training's clips, which are
        gathered once, when training begins, and saved with the model."""

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
        self.statistics: Parts | None = None
        if config.standardize:
            self.statistics = Parts({name: Statistics(dims[name]) for name in self.names})
            self.register_forward_pre_hook(_standardized)  # before any fusion's own forward

    def forward(self, streams: Mapping[str, Frames], audio: Audio) -> Frames:
        """Fuse the streams of the clips in `audio`: Frames of (clip, time, dim)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(streams, audio)")

    def fixed(self, prompt: Prompt) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Options and tensors of a fusion that needs no prompt and does what this one does with it (1, token, dim).

        Raises:
            ComponentError: there is none.
        """
        raise ComponentError(f"fusion '{self.config.type}' reads the prompt in a way that cannot be fixed for a task")

    @torch.no_grad()
    def gather(self, heard: Iterable[Mapping[str, Frames]]) -> None:
        """Take the statistics of a fusion that standardises from the streams of some clips.

        Raises:
            ValueError: there is no frame, or a value that is not finite.
        """
        sums = {name: Sums() for name in self.names}
        for streams in heard:
            for name, each in sums.items():
                each.add(streams[name])
        for name, statistics in self.statistics.parts() if self.statistics is not None else ():
            statistics.take(*sums[name].moments(name))

    @property
    def gathered(self) -> bool:
        """Whether it has the statistics that it needs."""
        return self.statistics is None or all(each.gathered for _, each in self.statistics.parts())

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


class Statistics(nn.Module):
    """A stream's channels at mean 0 and variance 1, by statistics that are part of the model."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(dim))
        self.register_buffer("scale", torch.empty(dim))  # 0 until it is known
        self.known = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Nothing is known."""
        nn.init.zeros_(self.mean)
        nn.init.zeros_(self.scale)
        self.known = False

    def take(self, mean: Tensor, variance: Tensor) -> None:
        """Of each channel; one that stands still is only centred."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(variance.sqrt() > STILL, variance.sqrt(), 1))

    @property
    def gathered(self) -> bool:
        """Whether they are known; looked at until they are, for to look waits for the device."""
        if not self.known:
            self.known = bool((self.scale > 0).all())
        return self.known

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same.

        Raises:
            ValueError: nothing is known yet.
        """
        if not (torch.compiler.is_compiling() or self.scale.is_meta or self.gathered):
            raise ValueError(
                "fusion.standardize: the statistics of the streams are not gathered yet: `usam train` and UsamTrainer "
                "do it when training begins, usam.model.statistics.gather(model, batches) at any time"
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        return ((x.to(wide) - self.mean.to(wide)) / self.scale.to(wide)).to(x.dtype)


STILL = 1e-6  # the deviation of a channel that stands still


class Sums:
    """What mean and variance are made of, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, frames: Frames) -> None:
        """The real frames of some clips."""
        x = frames.x[frames.mask].cpu().double()
        self.count += len(x)
        self.total = self.total + x.sum(0)
        self.squares = self.squares + x.square().sum(0)

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel of the stream called so."""
        if self.count == 0:
            raise ValueError(
                f"fusion.standardize: no clip gives a frame of encoders.{name}: there is nothing to gather"
            )
        mean, squares = self.total / self.count, self.squares / self.count
        if not bool(squares.isfinite().all()):
            raise ValueError(f"fusion.standardize: NaN or infinity in the frames of encoders.{name}")
        return mean, (squares - mean.square()).clamp_min(0)


def _standardized(fusion: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    streams, *rest = given
    return ({name: replace(f, x=fusion.statistics[name](f.x)) for name, f in streams.items()}, *rest)


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
        rows = x.index_select(1, index.clamp(0, x.shape[1] - 1))
        total = total + rows * weight.unsqueeze(-1).to(x.dtype)
        weights = weights + weight
    # Past the last real frame the stream stands still.
    held = x.gather(1, last.unsqueeze(-1).expand(-1, -1, x.shape[2]))
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
