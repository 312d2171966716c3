"""What a fusion promises: one clock, no padding, no order, and every frame at its own time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from usam.clock import rescale
from usam.component import build
from usam.fusions import widths_for
from usam.registry import ComponentError
from usam.spec.spec import Config
from usam.testing.every import EVERY, TOLERANCE, Case, own_frames, require_no_leak
from usam.testing.promises import Broken, Claim, Promise, Report, check, promises, require, require_same
from usam.types import Audio, Frames, Prompt, prefix_mask

SAMPLE_RATE = 16000
STREAMS = {"a": (6, 50.0), "b": (4, 12.5), "c": (5, 31.25)}  # width and rate
PROMPT_DIM, WORDS = 7, 6


def check_fusion(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Report:
    """Run every promise of a fusion, on three streams of different widths and rates: `check_fusion("concat")`.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(fusion_promises(component, expected_failures=expected_failures, **options))


def fusion_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(FusionCase(component, options), CLAIMS, expected_failures)


@dataclass(frozen=True)
class FusionCase(Case):
    """A fusion, and streams for it."""

    names: str = "abc"

    group = "usam.fusions"

    def construct(self, cls: Any, config: Any) -> Any:
        """A fusion takes the encoders' widths, and the prompt's where its class reads it; it knows the statistics."""
        fusion = cls(config, **widths_for(cls, {name: STREAMS[name][0] for name in self.names}, PROMPT_DIM))
        if fusion.statistics is not None and not fusion.statistics[self.names[0]].mean.is_meta:
            fusion.gather([self.clips()[0]])
        return fusion

    @cached_property
    def reads_prompt(self) -> bool:
        """Whether it has a third argument."""
        return bool(self.structure().reads_prompt)

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Three clips of up to a second; their prompts only for a fusion that reads them."""
        return (*self.clips(seed), *([prompts(3, seed=seed)] if self.reads_prompt else []))

    def clips(self, seed: int = 0) -> tuple[dict[str, Frames], Audio]:
        """Three clips of up to a second."""
        return streams([16000, 9001, 4003], self.names, seed=seed)

    def named(self, names: str) -> FusionCase:
        """The same fusion of other streams, or of the same in another order."""
        return FusionCase(self.component, self.options, names)


def streams(
    samples: Sequence[int], names: str, *, seed: int = 0, size: int = 0, garbage: float = 0.0
) -> tuple[dict[str, Frames], Audio]:
    """Random streams of clips; row i depends on `seed + i` alone."""
    size = max(size, *samples)
    found = {}
    for name in names:
        dim, rate = STREAMS[name]
        frames = rescale(size, SAMPLE_RATE, rate)
        rows = []
        for i, n in enumerate(samples):
            generator = torch.Generator().manual_seed(1000 * (seed + i) + ord(name))
            row, own = torch.randn(200, dim, generator=generator), rescale(n, SAMPLE_RATE, rate)
            rows.append(torch.cat([row[:own], row[own:frames] * garbage]))
        lengths = torch.tensor([rescale(n, SAMPLE_RATE, rate) for n in samples])
        found[name] = Frames(torch.stack(rows), prefix_mask(lengths, frames), rate)
    return found, Audio(torch.zeros(len(samples), size), prefix_mask(torch.tensor(samples), size), SAMPLE_RATE)


def prompts(items: int, *, seed: int = 0, words: int = WORDS, garbage: float = 0.0) -> Prompt:
    """Random instructions of a few words; row i depends on `seed + i` alone."""
    rows = []
    for i in range(seed, seed + items):
        row = torch.randn(50, PROMPT_DIM, generator=torch.Generator().manual_seed(i))
        own = WORDS - i % 3
        rows.append(torch.cat([row[:own], row[own:words] * garbage]))
    lengths = torch.tensor([WORDS - i % 3 for i in range(seed, seed + items)])
    return Prompt(torch.stack(rows), prefix_mask(lengths, words))


def _fuse(
    fusion: Any, found: Mapping[str, Frames], audio: Audio, prompt: Prompt | None = None, seed: int = 0
) -> Frames:
    """As a model calls it; without a prompt, one that reads it is given that of each row."""
    with torch.no_grad():
        return _called(fusion, found, audio, prompt, seed)


def _called(
    fusion: Any, found: Mapping[str, Frames], audio: Audio, prompt: Prompt | None = None, seed: int = 0
) -> Frames:
    frames: Frames
    if fusion.reads_prompt:
        frames = fusion(found, audio, prompts(len(audio.x), seed=seed) if prompt is None else prompt)
    else:
        frames = fusion(found, audio)
    return frames


def true_width(case: FusionCase) -> None:
    """Frames are (clip, time, dim), and their mask (clip, time); by-products have the clip as their first axis.

    Else the projector behind it does not fit, or by-products are told of the wrong clip.
    """
    fusion = case.build()
    found, audio = case.clips()
    frames = _fuse(fusion, found, audio)
    shape = (*frames.mask.shape, fusion.dim)
    require(tuple(frames.x.shape) == shape, f"frames {shape}", f"{tuple(frames.x.shape)}", "dim, and forward")
    require(frames.mask.dtype == torch.bool, "a mask of bool", f"{frames.mask.dtype}", "the mask in forward")
    for name, value in frames.aux.items():
        require(value.shape[:1] == (3,), f"aux['{name}'] by clip", f"{tuple(value.shape)}", "its first axis")


def keeps_the_clock(case: FusionCase) -> None:
    """A clip has `max(1, ceil(seconds * rate))` frames: in `config.length`, in the frames and in their mask.

    Else the processor writes other placeholders than there are frames.
    """
    fusion = case.build()
    config = fusion.config
    rate = config.rate or min(rate for _, rate in STREAMS.values())
    samples = [1, 319, 320, 321, 1279, 1280, 1281, 5000, 16001]
    found, audio = streams(samples, case.names)
    counts = {name: (frames.lengths, frames.rate) for name, frames in found.items()}
    lengths, at = config.length(counts, audio.lengths, SAMPLE_RATE)
    wanted = [max(1, rescale(n, SAMPLE_RATE, rate)) for n in samples]
    require(at == rate, f"the rate {rate:g}", f"{at:g}", "config.length")
    require(
        lengths.tolist() == wanted, f"{wanted} frames for {samples} samples", f"{lengths.tolist()}", "config.length"
    )
    for i, n in enumerate(samples):
        single, _ = config.length({name: (int(c[i]), r) for name, (c, r) in counts.items()}, n, SAMPLE_RATE)
        require(single == wanted[i], f"{wanted[i]} frames from ints", f"{single}", "config.length")
    frames = _fuse(fusion, found, audio)
    require(
        frames.lengths.tolist() == wanted, f"masks of {wanted}", f"{frames.lengths.tolist()}", "the mask in forward"
    )
    require(frames.x.shape[1] == max(wanted), f"{max(wanted)} frames", f"{frames.x.shape[1]}", "forward")
    require(frames.rate == rate, f"the rate {rate:g}", f"{frames.rate:g}", "Frames(..., rate) in forward")


def survives_empty_streams(case: FusionCase) -> None:
    """A stream with no valid frame, or none at all, gives finite values.

    Else one very short clip makes the loss of a whole step NaN.
    """
    fusion = case.build()
    found, audio = case.clips()
    first = found[case.names[0]]
    for what, empty in {
        "a stream without a valid frame": Frames(first.x, torch.zeros_like(first.mask), first.rate),
        "a stream of zero frames": Frames(first.x[:, :0], first.mask[:, :0], first.rate),
    }.items():
        frames = _fuse(fusion, {**found, case.names[0]: empty}, audio)
        finite = bool(frames.x[frames.mask].isfinite().all())
        require(finite, f"finite values with {what}", "NaN or infinity", "means over zero frames, in forward")


def ignores_the_order_of_names(case: FusionCase) -> None:
    """The order in which encoders are named, when it is built and when it is called, does not matter.

    Else two specs that mean the same are two models, and a checkpoint belongs to one of them.
    """
    found, audio = case.clips()
    fusion, other = case.build(), case.named(case.names[::-1]).build(seed=1)
    other.load_state_dict(fusion.state_dict())
    ours = _fuse(other, dict(reversed(found.items())), audio)
    look_at = "loops over dims or streams: go through self.names, which is sorted"
    require_same(ours.x, _fuse(fusion, found, audio).x, "the same frames for names in reverse", look_at)


def leaves_a_single_stream_unchanged(case: FusionCase) -> str | None:
    """One encoder and no `rate`: its frames come out as they are; a fusion with weights of its own keeps their time.

    Else a model with one encoder pays for a fusion that it does not need.
    """
    if case.config.rate is not None:
        return "it was given a rate"
    alone = case.named(case.names[0])
    found, audio = alone.clips()
    fusion = alone.build()
    frames = _fuse(fusion, found, audio)
    own = found[case.names[0]]
    require(frames.rate == own.rate, f"the rate {own.rate:g}", f"{frames.rate:g}", "config.length")
    same = frames.mask.shape == own.mask.shape and bool((frames.mask == own.mask).all())
    require(same, "the stream's own mask", "another", "forward")
    if not any(True for _ in fusion.parameters()) and fusion.statistics is None:
        require_same(frames.x[frames.mask], own.x[own.mask], "the stream's own frames", "forward", 1e-6)
    return None


def aligns_time(case: FusionCase) -> None:
    """What a frame hears lies around its own time, (i + 0.5) / rate, to half a frame of the stream.

    Measured by the gradient: the mean time of the source frames, weighted by how much each one matters.

    Else what encoders hear at one time comes out at different times, and drifts in long clips.
    """
    fusion = case.build()
    found, audio = streams([15360], case.names)  # whole frames of every stream
    for name, stream in found.items():
        source = stream.x.clone().requires_grad_()
        frames = _called(fusion, {**found, name: Frames(source, stream.mask, stream.rate)}, audio)
        heard = (torch.arange(source.shape[1]) + 0.5) / stream.rate
        direction = torch.randn(frames.x.shape[-1])
        for i in range(frames.x.shape[1]):
            gradient = torch.autograd.grad((frames.x[0, i] * direction).sum(), source, retain_graph=True)[0]
            weight = gradient[0].norm(dim=-1).double()
            centre, time = float((weight * heard).sum() / weight.sum()), (i + 0.5) / frames.rate
            require(
                abs(centre - time) <= 0.51 / stream.rate,
                f"that frame {i} ({time:.3f} s) hears stream '{name}' ({stream.rate:g}/s) around its own time",
                f"{centre:.3f} s",
                "how streams are brought to the clock: Fusion.align does it",
            )


def ignores_padding(case: FusionCase) -> None:
    """A clip alone and the same clip in a longer batch, noise behind it, give the same frames.

    Else an answer depends on what it is batched with.
    """
    fusion = case.build()
    samples = [1, 4003, 9001]
    batch = _fuse(fusion, *streams(samples, case.names, size=16000, garbage=10.0))
    for i, n in enumerate(samples):
        alone = _fuse(fusion, *streams([n], case.names, seed=i), seed=i)
        what = f"the frames of a clip of {n} samples, alone and in a batch of 16000,"
        require_same(own_frames(batch, i), own_frames(alone, 0), what, "what reads past a stream's mask", TOLERANCE)


def keeps_batch_items_apart(case: FusionCase) -> None:
    """A clip's frames depend neither on its neighbours nor on its place in the batch.

    Else answers depend on their neighbours, and one clip's gradient trains on another.
    """
    fusion = case.build()
    first = _fuse(fusion, *streams([9001, 4003, 16000], case.names, seed=0))
    other = _fuse(fusion, *streams([16000, 9001], case.names, seed=2), seed=2)
    look_at = "what mixes the batch axis"
    require_same(own_frames(other, 0), own_frames(first, 2), "the frames of a clip beside others", look_at, TOLERANCE)
    found, audio = streams([16000] * 3, case.names)
    source: Tensor = found[case.names[0]].x.requires_grad_()
    require_no_leak(_called(fusion, found, audio).x, source, look_at)


def hears_its_own_prompt(case: FusionCase) -> str | None:
    """Clip i hears prompt i and no other.

    Else a clip is fused for another one's task.
    """
    fusion = case.build()
    if not fusion.reads_prompt:
        return "it reads no prompt"
    found, audio = case.clips()
    prompt = prompts(3)
    before = _fuse(fusion, found, audio, prompt)
    other = prompt.x.clone()
    other[1] = -3 * other[1].flip(0)
    after = _fuse(fusion, found, audio, Prompt(other, prompt.mask))
    for i in (0, 2):
        same = f"clip {i} when prompt 1 changes,"
        require_same(own_frames(after, i), own_frames(before, i), same, "what mixes the batch axis")
    heard = not torch.equal(own_frames(after, 1), own_frames(before, 1))
    require(heard, "that clip 1 changes with prompt 1", "that it does not", "reads_prompt, which is True")
    return None


def ignores_prompt_padding(case: FusionCase) -> str | None:
    """Noise behind a prompt, and a longer batch of prompts, change nothing.

    Else an answer depends on how long its neighbour's instruction is.
    """
    fusion = case.build()
    if not fusion.reads_prompt:
        return "it reads no prompt"
    found, audio = case.clips()
    short = _fuse(fusion, found, audio, prompts(3))
    long = _fuse(fusion, found, audio, prompts(3, words=2 * WORDS, garbage=10.0))
    for i in range(3):
        what = f"clip {i}, its prompt among {WORDS} and {2 * WORDS} words,"
        require_same(own_frames(long, i), own_frames(short, i), what, "what reads past prompt.mask", TOLERANCE)
    return None


def fixes_its_prompt(case: FusionCase) -> str | None:
    """What `fixed` gives for a prompt is a fusion that needs none and does what this one does with it.

    Else `usam export --task` gives a model that answers otherwise.
    """
    fusion = case.build()
    if not fusion.reads_prompt:
        return "it reads no prompt"
    try:
        options, state = fusion.fixed(prompts(1))
    except ComponentError:
        return "it cannot be fixed for a task, and says so"
    cls, config = build(case.group, options, {})
    other = case.construct(cls, config)
    other.load_state_dict(state)
    look_at = "the options and tensors that fixed gives"
    require(not other.reads_prompt, "a fusion that reads no prompt", "one that does", look_at)
    found, audio = streams([9001], case.names)
    ours, reference = _fuse(other.eval(), found, audio), _fuse(fusion, found, audio, prompts(1))
    require_same(ours.x, reference.x, "the frames with that prompt", look_at, TOLERANCE)
    return None


def standardizes_its_streams(case: FusionCase) -> None:
    """With `standardize` it refuses streams before it knows their statistics; then scale and offset do not matter.

    Else a loud encoder drowns the others although the option was given.
    """
    fusion = case.structure(standardize=True).eval()
    found, audio = case.clips()
    look_at = "__init__: super().__init__(config, dims=dims) sees to it"
    require(fusion.statistics is not None, "that it knows statistics", "none", look_at)
    reference = _fuse(fusion, found, audio)
    louder = {name: replace(frames, x=frames.x * 7 + 3) for name, frames in found.items()}
    fusion.gather([louder])
    ours = _fuse(fusion, louder, audio)
    require_same(ours.x, reference.x, "the frames of the same streams at another scale", look_at, TOLERANCE)
    for _, statistics in fusion.statistics.parts():
        statistics.reset_parameters()
    try:
        _fuse(fusion, found, audio)
    except ValueError:
        return
    raise Broken("a ValueError before the statistics are known", "none", look_at)


CLAIMS: list[Claim] = [
    true_width,
    keeps_the_clock,
    survives_empty_streams,
    ignores_the_order_of_names,
    leaves_a_single_stream_unchanged,
    aligns_time,
    ignores_padding,
    keeps_batch_items_apart,
    hears_its_own_prompt,
    ignores_prompt_padding,
    fixes_its_prompt,
    standardizes_its_streams,
    *EVERY,
]
