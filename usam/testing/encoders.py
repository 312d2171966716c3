"""What an encoder promises: the arithmetic of its time, and that a clip's frames depend on that clip alone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from usam.spec.spec import Config
from usam.testing.every import EVERY, TOLERANCE, Case, front_end, own_frames, require_no_leak, written_elsewhere
from usam.testing.promises import Claim, Promise, Report, check, promises, require, require_same
from usam.types import Frames, prefix_mask


def check_encoder(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    seconds: float = 1.0,
    **options: Any,
) -> Report:
    """Run every promise of an encoder: `check_encoder("whisper", path="openai/whisper-tiny")`.

    Args:
        component: as everywhere: a name, a dict or a Config; `options` are laid over it.
        expected_failures: promises that it cannot keep, each with the reason.
        seconds: the longest clip; take more than the encoder's own window.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(encoder_promises(component, expected_failures=expected_failures, seconds=seconds, **options))


def encoder_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    seconds: float = 1.0,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(EncoderCase(component, options, seconds), CLAIMS, expected_failures)


@dataclass(frozen=True)
class EncoderCase(Case):
    """An encoder, and clips for it."""

    seconds: float

    group = "usam.encoders"

    @property
    def longest(self) -> int:
        """Samples of the longest clip."""
        return max(2, int(self.seconds * self.config.sample_rate))

    def construct(self, cls: Any, config: Any) -> Any:
        """An encoder needs no width from outside."""
        return cls(config)

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Three clips, the longest one first."""
        lengths = [self.longest, self.longest * 2 // 3, self.longest // 2 + 1]
        return clips(lengths, names=[f"{seed}.{i}" for i in range(3)])

    def at_dtype(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        """Audio stays in float32."""
        return inputs

    def lengths(self, config: Any) -> list[int]:
        """1, and both sides of every length at which a frame is added, over six frames."""
        last = max(2, min(self.longest, int(6 * config.sample_rate / config.rate)))
        steps = [n for n in range(1, last) if config.length(n + 1) != config.length(n)]
        return sorted({1, last, *steps, *(n + 1 for n in steps)})


def clips(
    lengths: Sequence[int], *, names: Sequence[Any], size: int = 0, garbage: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Noise, the same for the same name, as (audio, mask); `garbage` is how loud the padding is."""
    size = max(size, *lengths)
    audio = torch.stack([sound(f"padding of {name}", size) * garbage for name in names])
    for row, name, length in zip(audio, names, lengths, strict=True):
        row[:length] = sound(name, length)
    return audio, prefix_mask(torch.tensor(lengths), size)


def sound(name: Any, length: int) -> Tensor:
    """Noise at a tenth of full scale; a shorter one is the beginning of a longer one."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(name).encode()))
    blocks = [torch.randn(1000, generator=generator) for _ in range(-(-length // 1000))]
    return 0.1 * torch.cat(blocks)[:length]


def _encode(encoder: Any, audio: Tensor, mask: Tensor) -> Frames:
    with torch.no_grad():
        frames: Frames = encoder(audio, mask)
    return frames


def true_width(case: EncoderCase) -> None:
    """Frames are (batch, time, dim), their mask (batch, time), and each by-product has the item as its first axis.

    Else a fusion or a projector that was built for `dim` does not fit, or by-products are told of the wrong clip.
    """
    encoder = case.build()
    audio, mask = case.inputs()
    frames = _encode(encoder, audio, mask)
    shape = (len(audio), encoder.config.length(audio.shape[1]), encoder.dim)
    require(tuple(frames.x.shape) == shape, f"frames {shape}", f"{tuple(frames.x.shape)}", "dim, and config.length")
    found = f"{tuple(frames.mask.shape)} of {frames.mask.dtype}"
    right = tuple(frames.mask.shape) == shape[:2] and frames.mask.dtype == torch.bool
    require(right, f"a mask {shape[:2]} of bool", found, "the mask in forward")
    for name, value in frames.aux.items():
        require(value.shape[:1] == (len(audio),), f"aux['{name}'] by item", f"{tuple(value.shape)}", "its first axis")


def true_rate(case: EncoderCase) -> None:
    """Clips of any length give `config.length` frames, in ints, in tensors and in the mask, at `config.rate`.

    Else the processor writes other placeholders than there are frames, and a batch fails or hears what is next to it.
    """
    encoder = case.build()
    config = encoder.config
    _require_arithmetic(config)
    lengths = case.lengths(config)
    for n in (1, lengths[len(lengths) // 2], case.longest):
        found = _encode(encoder, *clips([n], names=[0])).x.shape[1]
        require(found == config.length(n), f"{config.length(n)} frames for {n} samples", f"{found}", "config.length")
    frames = _encode(encoder, *clips(lengths, names=range(len(lengths))))
    wanted = [config.length(n) for n in lengths]
    wrong = [(n, w, f) for n, w, f in zip(lengths, wanted, frames.lengths.tolist(), strict=True) if w != f]
    some = ", ".join(f"{f} instead of {w} for {n} samples" for n, w, f in wrong[:3])
    require(not wrong, "masks of config.length frames", some, "the mask in forward: config.length(mask.sum(-1))")
    require(frames.rate == config.rate, f"the rate {config.rate}", f"{frames.rate}", "Frames(..., rate) in forward")
    prefix = prefix_mask(frames.lengths, frames.mask.shape[1])
    require(bool((prefix == frames.mask).all()), "masks that are prefixes", "gaps in one", "the mask in forward")


def _require_arithmetic(config: Any) -> None:
    some = torch.arange(1, 2 + int(3 * config.sample_rate / config.rate))
    ints = [config.length(int(n)) for n in some]
    require(all(type(n) is int for n in ints), "ints for ints", f"{type(ints[0]).__name__}", "config.length")
    whole = config.length(some)
    found = f"{whole.dtype} that differ for {[int(n) for n, a, b in zip(some, whole, ints, strict=True) if a != b][:3]}"
    same = whole.tolist() == ints and whole.dtype == torch.int64
    require(same, "the same from ints and from integer tensors", found, "config.length: use usam.clock")
    require(ints == sorted(ints), "that longer clips have no fewer frames", "fewer", "config.length")
    minute = config.length(100 * config.sample_rate)
    jump = int(config.length(torch.arange(1, config.sample_rate + 1)).diff().max())  # frames that come at once
    close = abs(minute - 100 * config.rate) <= 2 * max(1, jump)
    require(close, f"about {100 * config.rate:g} frames for 100 s", f"{minute}", "config.rate and config.length")


def survives_silence(case: EncoderCase) -> None:
    """Digital silence, and a clip of one sample, give finite frames.

    Else one silent or very short clip makes the loss of a whole step NaN.
    """
    encoder = case.build()
    audio, mask = clips([case.longest, 1], names="ab")
    for what, sound in {"silence": torch.zeros_like(audio), "a clip of one sample": audio}.items():
        finite = bool(_encode(encoder, sound, mask).x.isfinite().all())
        require(finite, f"finite frames for {what}", "NaN or infinity", "logarithms and divisions in the front-end")


def hears_its_clip(case: EncoderCase) -> None:
    """Another sound in a third of a clip changes frames of that third.

    Else a part of every clip is lost, and nothing says so.
    """
    encoder = case.build()
    audio, mask = clips([case.longest], names="a")
    other, _ = clips([case.longest], names="b")
    before = own_frames(_encode(encoder, audio, mask), 0)
    for part, name in enumerate(("first", "second", "last")):
        samples, frames = (slice(part * n // 3, (part + 1) * n // 3) for n in (case.longest, len(before)))
        changed = audio.clone()
        changed[:, samples] = other[:, samples]
        after = own_frames(_encode(encoder, changed, mask), 0)
        heard = frames.start == frames.stop or not torch.equal(after[frames], before[frames])
        found = "that they do not change"
        require(
            heard, f"other frames in the {name} third for another sound there", found, "what forward reads of audio"
        )


def ignores_padding(case: EncoderCase) -> None:
    """A clip alone and the same clip in a longer batch, noise behind it, give the same frames.

    Else an answer depends on what it is batched with, and training sees other frames than serving.
    """
    encoder = case.build()
    lengths = [1, case.longest // 3, case.longest * 2 // 3, case.longest]
    size = case.longest * 4 // 3
    batch = _encode(encoder, *clips(lengths, names=range(4), size=size, garbage=10.0))
    for i, n in enumerate(lengths):
        alone = _encode(encoder, *clips([n], names=[i]))
        what = f"the frames of a clip of {n} samples, alone and in a batch of {size},"
        look_at = "convolutions, norms and attention that see the padding, and a mask that counts it"
        require_same(own_frames(batch, i), own_frames(alone, 0), what, look_at, TOLERANCE)


def keeps_batch_items_apart(case: EncoderCase) -> None:
    """A clip's frames depend neither on its neighbours nor on its place in the batch.

    Else answers depend on their neighbours, and one clip's gradient trains on another.
    """
    encoder = case.build()
    lengths = [case.longest, case.longest * 2 // 3, case.longest // 2]
    first = _encode(encoder, *clips(lengths, names="abc"))
    other = _encode(encoder, *clips(lengths[::-1], names="cxa"))
    look_at = "what mixes the batch axis: a norm over the batch, a reshape that moves items"
    require_same(own_frames(other, 2), own_frames(first, 0), "the frames of a clip beside others", look_at, TOLERANCE)
    audio, mask = clips([case.longest] * 3, names="abc")
    audio.requires_grad_()
    require_no_leak(encoder(audio, mask).x, audio, look_at)


def keeps_its_front_end_in_float32(case: EncoderCase) -> str | None:
    """Cast to bfloat16, the encoder's windows and filters stay as they were.

    Else a spectrogram is rounded to three digits, and is not what the weights were trained on.
    """
    encoder = case.build()
    others = written_elsewhere(encoder)
    before = {n: t.clone() for n, t in front_end(encoder) if n.rpartition(".")[0] not in others}
    if not before:
        return "it has no buffers of its own outside the checkpoint"
    for name, buffer in front_end(encoder.to(torch.bfloat16)):
        if name in before:
            look_at = "_apply of the module that owns it: make it anew after a cast"
            require(buffer.dtype == before[name].dtype, f"{name} in {before[name].dtype}", f"{buffer.dtype}", look_at)
            require_same(buffer, before[name], f"{name} as it was", look_at)
    return None


CLAIMS: list[Claim] = [
    true_width,
    true_rate,
    survives_silence,
    hears_its_clip,
    ignores_padding,
    keeps_batch_items_apart,
    keeps_its_front_end_in_float32,
    *EVERY,
]
