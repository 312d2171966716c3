"""What flows between components: audio, frames, prompts, and what a loss is given."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from usam.clock import ratio, rescale

IGNORE = -100  # the label of what is not supervised, as transformers has it


def prefix_mask(lengths: Tensor, size: int) -> Tensor:
    """True on the first `lengths[i]` of `size` positions: (batch, size)."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(-1)


@dataclass(frozen=True)
class Audio:
    """Waveforms in [-1, 1], one clip a row; the mask is True on a clip's own samples, which come first."""

    x: Tensor  # clip sample
    mask: Tensor  # clip sample
    rate: int  # samples per second

    @property
    def lengths(self) -> Tensor:
        """Samples of each clip: (clip,)."""
        return self.mask.sum(-1, dtype=torch.int32).long()  # a sum in 64 bits is slower

    def at(self, rate: int) -> Audio:
        """The same sound at another rate; zero where masked, `ceil(n * rate / self.rate)` samples long.

        A Kaiser-windowed sinc (110 dB, pass band to 0.45 of the lower rate), evaluated by phase.
        """
        x = self.x.masked_fill(~self.mask, 0)
        if rate == self.rate:
            return Audio(x, self.mask, rate)
        size = rescale(x.shape[-1], self.rate, rate)
        mask = prefix_mask(rescale(self.lengths, self.rate, rate), size)
        with torch.autocast(x.device.type, enabled=False):
            y = _resample(x.float(), self.rate, rate, size)
        return Audio(y.to(x.dtype).masked_fill(~mask, 0), mask, rate)


HALF_WIDTH = 37  # of the filter, in samples of the lower rate: transition band 0.45 to 0.55 at 110 dB
KAISER_BETA = 0.1102 * (110 - 8.7)


def _resample(x: Tensor, source: int, target: int, size: int) -> Tensor:
    step = ratio(target, source)
    up, down = step.numerator, step.denominator
    cutoff = min(1.0, target / source)  # of the source's Nyquist
    reach = math.ceil(HALF_WIDTH / cutoff)
    # Output m sits at source position m * down / up: `up` phases, which repeat every `down` source samples.
    phase = torch.arange(up, dtype=torch.float64, device=x.device) * (down / up)
    tap = torch.arange(-reach, reach + down, dtype=torch.float64, device=x.device)
    t = (tap - phase.unsqueeze(-1)) * cutoff
    inside = (t.abs() < HALF_WIDTH).double()
    window = torch.special.i0(KAISER_BETA * (1 - (t / HALF_WIDTH).square()).clamp_min(0).sqrt())
    kernel = torch.sinc(t) * window * inside * (cutoff / torch.special.i0(t.new_tensor(KAISER_BETA)))
    blocks = -(-size // up)
    x = F.pad(x, (reach, max(0, blocks * down + reach + down - x.shape[-1])))
    y = F.conv1d(x.unsqueeze(1), kernel.unsqueeze(1).to(x.dtype), stride=down)  # clip phase block
    return y.transpose(1, 2).flatten(1)[:, :size]


@dataclass(frozen=True)
class Frames:
    """A stream of features; the mask is True on an item's own frames, which come first."""

    x: Tensor  # batch time dim
    mask: Tensor  # batch time
    rate: float  # frames per second; 0 where they do not follow time
    aux: Mapping[str, Tensor] = field(default_factory=dict)  # by-products; first axis the item

    @property
    def lengths(self) -> Tensor:
        """Frames of each item: (batch,)."""
        return self.mask.sum(-1)


@dataclass(frozen=True)
class Prompt:
    """Embeddings of the instruction alone, without audio, template or system tokens."""

    x: Tensor  # batch token prompt_dim
    mask: Tensor  # batch token

    def mean(self) -> Tensor:
        """Over an instruction's own tokens, in float32 or wider: (batch, prompt_dim); zeros where it has none."""
        own = self.mask.unsqueeze(-1)
        wide = torch.promote_types(self.x.dtype, torch.float32)
        return self.x.to(wide).masked_fill(~own, 0).sum(-2) / own.sum(-2).clamp_min(1)


@dataclass(frozen=True)
class Vocabulary:
    """The language model's words, lent to whoever asks: its table and its head stay the model's own.

    Both are called as the model calls them, with what they do to a row (a scale, adapters, quantisation).
    """

    size: int  # rows of the table
    dim: int  # width of an embedding, and of a projected frame
    embed: Callable[[Tensor], Tensor]  # ids (...) -> embeddings (..., dim), as the language model reads them
    logits: Callable[
        [Tensor, Tensor], Tensor
    ]  # states (..., dim), ids (word,) -> the head's logits of these (..., word)
    ends: tuple[int, ...] = ()  # ids that end an answer
    frames_read: bool = True  # whether anyone reads the frames that are made with it, and not their by-products alone

    def scores(self, x: Tensor, ids: Tensor) -> Tensor:
        """Products of vectors (..., dim) with the embeddings of ids (word,), in float32 or wider: (..., word)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return x.to(wide) @ self.embed(ids).to(wide).mT

    def parts(self, rows: int, device: torch.device) -> tuple[Tensor, ...]:
        """All ids, in parts whose scores beside `rows` vectors may stand in memory at once."""
        most = max(1, (SCORES if device.type == "cuda" else SCORES_ELSEWHERE) // max(1, rows))
        return torch.split(torch.arange(self.size, device=device), most)


SCORES, SCORES_ELSEWHERE = 2**26, 2**24  # entries


@dataclass(frozen=True)
class LossInputs:
    """What every loss is given, at N supervised positions of B samples."""

    hidden: Tensor  # N dim: the states that predict the labels; 0 dim where no loss of the model needs them
    labels: Tensor  # N
    head: Callable[[Tensor], Tensor]  # hidden -> logits; may say its `size`, and whether it `trains`
    audio: Frames  # each sample's projected clips, joined in order
    answer: tuple[Tensor, Tensor]  # detached input embeddings of the supervised tokens, and their mask
    aux: Mapping[str, Tensor] = field(default_factory=dict)  # by-products of the projector
    batch: Mapping[str, Any] = field(default_factory=dict)  # what else the collator passed along: ids, tasks, columns
    vocabulary: Vocabulary | None = None  # the language model's words


@dataclass(frozen=True)
class LossOutput:
    """A loss's unweighted value and what a plot may want to see."""

    value: Tensor  # scalar
    aux: Mapping[str, Tensor] = field(default_factory=dict)


def joined(*parts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """One mapping of several; a name that stands in two is the later one's."""
    if all(isinstance(part, dict) for part in parts):
        return {name: value for part in parts for name, value in part.items()}
    return ChainMap({}, *reversed(cast(Any, parts)))


def named(prefix: str, aux: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same with this before each name."""
    if isinstance(aux, dict):
        return {f"{prefix}{name}": value for name, value in aux.items()}
    return Named(prefix, aux)


class Named(Mapping[str, Tensor]):
    """What is not computed yet, under longer names."""

    def __init__(self, prefix: str, aux: Mapping[str, Tensor]) -> None:
        self.prefix, self.aux = prefix, aux

    def __getitem__(self, name: str) -> Tensor:
        if not name.startswith(self.prefix):
            raise KeyError(name)
        return self.aux[name.removeprefix(self.prefix)]

    def __iter__(self) -> Iterator[str]:
        return iter([f"{self.prefix}{name}" for name in self.aux])

    def __len__(self) -> int:
        return len(self.aux)


def same_dtype(streams: dict[str, Frames], dtype: torch.dtype | None = None) -> dict[str, Frames]:
    """Streams in a dtype; without one as they are if they agree, else in float32."""
    found = {frames.x.dtype for frames in streams.values()}
    wanted = dtype or (torch.float32 if len(found) > 1 else None)
    if wanted is None or found == {wanted}:
        return streams
    return {name: Frames(f.x.to(wanted), f.mask, f.rate, f.aux) for name, f in streams.items()}
