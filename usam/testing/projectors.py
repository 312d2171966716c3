"""What a projector promises: its time, its width, and that each item hears its own prompt and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from usam.component import build
from usam.registry import ComponentError
from usam.spec.spec import Config
from usam.testing.every import (
    EVERY,
    TOLERANCE,
    Case,
    own_frames,
    require_no_leak,
    require_nothing_kept,
    vocabulary,
)
from usam.testing.promises import Broken, Claim, Promise, Report, check, promises, require, require_same
from usam.types import Frames, Prompt, Vocabulary, prefix_mask

IN_DIM, PROMPT_DIM, OUT_DIM = 12, 10, 8
TIME, RATE = 40, 25.0
WORDS = 6


def check_projector(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Report:
    """Run every promise of a projector, on frames at 25 per second: `check_projector("linear", stack=5)`.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(projector_promises(component, expected_failures=expected_failures, **options))


def projector_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(ProjectorCase(component, options), CLAIMS, expected_failures)


@dataclass(frozen=True)
class ProjectorCase(Case):
    """A projector, and frames and prompts for it."""

    out_dim: int | None = OUT_DIM

    group = "usam.projectors"

    def construct(self, cls: Any, config: Any) -> Any:
        """A projector takes the widths around it."""
        out_dim = IN_DIM if cls.keeps_width and self.out_dim is not None else self.out_dim
        return cls(config, in_dim=IN_DIM, prompt_dim=PROMPT_DIM, out_dim=out_dim)

    @cached_property
    def lent(self) -> tuple[Vocabulary, ...]:
        """The vocabulary, for a projector that reads it."""
        projector = self.structure()
        return (vocabulary(projector.dim),) if projector.reads_vocabulary else ()

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Three items of up to 1.6 s; the vocabulary only for a projector that reads it."""
        return (*items([TIME, TIME // 2 + 1, 3], seed=seed), *self.lent)


def items(
    lengths: Sequence[int], *, seed: int = 0, time: int = 0, words: int = WORDS, garbage: float = 0.0
) -> tuple[Frames, Prompt]:
    """Random frames and prompts; item i depends on `seed + i` alone."""
    time = max(time, *lengths)
    rows, prompts = [], []
    for i, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed + i)
        x, p = torch.randn(500, IN_DIM, generator=generator), torch.randn(50, PROMPT_DIM, generator=generator)
        own = words_of(seed + i)
        rows.append(torch.cat([x[:length], x[length:time] * garbage]))
        prompts.append(torch.cat([p[:own], p[own:words] * garbage]))
    said = torch.tensor([words_of(seed + i) for i in range(len(lengths))])
    frames = Frames(torch.stack(rows), prefix_mask(torch.tensor(lengths), time), RATE)
    return frames, Prompt(torch.stack(prompts), prefix_mask(said, words))


def words_of(item: int) -> int:
    """How long an item's prompt is."""
    return WORDS - item % 3


def _project(projector: Any, frames: Frames, prompt: Prompt | None, lent: Vocabulary | None = None) -> Frames:
    """As a model calls it; one that reads the vocabulary is lent the same each time, if no other is given."""
    with torch.no_grad():
        return _called(projector, frames, prompt, lent)


def _called(projector: Any, frames: Frames, prompt: Prompt | None, lent: Vocabulary | None = None) -> Frames:
    more = (lent or vocabulary(projector.dim),) if projector.reads_vocabulary else ()
    out: Frames = projector(frames, prompt, *more)
    return out


def true_width(case: ProjectorCase) -> None:
    """Frames have the width that was asked for, or the one it chose; by-products have the item as their first axis.

    Else the language model, or the next stage, does not fit.
    """
    for asked in (OUT_DIM, None):
        projector = replace(case, out_dim=asked).build()
        frames = _project(projector, *case.inputs())
        wanted = IN_DIM if projector.keeps_width else asked or projector.dim
        require(projector.dim == wanted, f"dim {wanted} for out_dim={asked}", f"{projector.dim}", "__init__")
        shape = (*frames.mask.shape, wanted)
        require(tuple(frames.x.shape) == shape, f"frames {shape}", f"{tuple(frames.x.shape)}", "dim, and forward")
        require(frames.mask.dtype == torch.bool, "a mask of bool", f"{frames.mask.dtype}", "the mask in forward")
        for name, value in frames.aux.items():
            require(value.shape[:1] == (3,), f"aux['{name}'] by item", f"{tuple(value.shape)}", "its first axis")


def true_rate(case: ProjectorCase) -> None:
    """`config.length` tells the frames and the rate, in ints, in tensors and in the mask; at least 1 for 1.

    Else the processor writes other placeholders than there are frames.
    """
    projector = case.build()
    config = projector.config
    some = torch.arange(1, 200)
    ints = [config.length(int(n), RATE) for n in some]
    counts = [n for n, _ in ints]
    whole, rate = config.length(some, RATE)
    require(all(type(n) is int for n in counts), "ints for ints", f"{type(counts[0]).__name__}", "config.length")
    require(whole.tolist() == counts, "the same from ints and from tensors", "others", "config.length: use usam.clock")
    require(min(counts) >= 1, "at least 1 frame for 1 frame", f"{min(counts)}", "config.length: round up")
    require(counts == sorted(counts), "no fewer frames for more", "fewer", "config.length")
    many = config.length(10_000, RATE)[0]
    if rate == 0:
        same = counts[0] == counts[-1] == many
        look_at = "config.length: the rate, or the count"
        require(same, "as many frames for any clip, as a rate of 0 says", f"{counts[0]} to {many}", look_at)
    else:
        close = abs(many - 10_000 * rate / RATE) <= 0.02 * 10_000 * rate / RATE + 2
        require(close, f"{10_000 * rate / RATE:g} frames for 10000", f"{many}", "config.length")
    lengths = [TIME, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 33, 34, 35]
    frames = _project(projector, *items(lengths))
    wanted = [config.length(n, RATE)[0] for n in lengths]
    require(
        frames.lengths.tolist() == wanted, f"masks of {wanted}", f"{frames.lengths.tolist()}", "the mask in forward"
    )
    require(frames.rate == rate, f"the rate {rate:g}", f"{frames.rate:g}", "Frames(..., rate) in forward")
    for time in (1, 2, TIME - 1):
        found, most = _project(projector, *items([time])).x.shape[1], config.length(time, RATE)[0]
        require(found == most, f"{most} frames for {time}", f"{found}", "config.length and forward")


def _heard(projector: Any, seed: int) -> Tensor:
    """How much each frame that goes out depends on each that comes in: (time out, time in), of one item."""
    frames, prompt = items([TIME], seed=seed)
    x = frames.x.clone().requires_grad_()
    out = _called(projector, Frames(x, frames.mask, frames.rate), prompt).x[0]
    direction = torch.randn(out.shape[-1])
    rows = [torch.autograd.grad((row * direction).sum(), x, retain_graph=True)[0][0].norm(dim=-1) for row in out]
    return torch.stack(rows)


def hears_every_frame(case: ProjectorCase) -> None:
    """Every frame that comes in matters to some that goes out, for one of three items at least.

    Else a part of the sound is thrown away, and nothing says so.
    """
    projector = case.build()
    try:
        heard = sum(_heard(projector, seed).sum(0) for seed in range(3))
    except RuntimeError as error:
        raise Broken(
            "frames that depend on those that come in", str(error), "what forward reads of frames.x"
        ) from error
    deaf = (cast(Tensor, heard) == 0).nonzero().flatten().tolist()
    require(not deaf, "that every frame is heard", f"that {deaf[:5]} of {TIME} are not", "what forward skips")


def follows_time(case: ProjectorCase) -> str | None:
    """Later frames hear later ones, unless the rate is 0.

    Else frames are out of order, which costs a transcription its words.
    """
    projector = case.build()
    if projector.config.length(TIME, RATE)[1] == 0:
        return "its rate is 0: its frames do not follow time"
    weight = cast(Tensor, sum(_heard(projector, seed).double() for seed in range(3)))
    if len(weight) < 2:
        return "one frame goes out"
    centres = (weight * torch.arange(TIME)).sum(1) / weight.sum(1)
    half = len(centres) // 2
    early, late = float(centres[:half].mean()), float(centres[-half:].mean())
    found = f"that the first half hears around frame {early:.1f}, the second around {late:.1f}"
    require(early < late, "that later frames hear later ones", found, "a reshape or an order that turns time around")
    return None


def fixes_its_prompt(case: ProjectorCase) -> str | None:
    """What `fixed` gives for a prompt is a stage that needs none and does what this one does with it.

    Else `usam export --task` gives a model that answers otherwise.
    """
    projector = case.build()
    if not projector.reads_prompt:
        return "it reads no prompt"
    frames, prompt = items([TIME])
    try:
        options, state = projector.fixed(prompt)
    except ComponentError:
        return "it cannot be fixed for a task, and says so"
    other = case.construct(*build(case.group, options, {}))
    other.load_state_dict(state)
    require(not other.reads_prompt, "a stage that reads no prompt", "one that does", "the options that fixed gives")
    ours = _project(other.eval(), frames, None)
    look_at = "the options and tensors that fixed gives"
    require_same(ours.x, _project(projector, frames, prompt).x, "the frames with that prompt", look_at, TOLERANCE)
    return None


def hears_its_own_prompt(case: ProjectorCase) -> None:
    """Item i hears prompt i and no other; one that does not read the prompt does without.

    Else an item is routed or asked by another one's instruction.
    """
    projector = case.build()
    frames, prompt, *_ = case.inputs()
    before = _project(projector, frames, prompt)
    other = prompt.x.clone()
    other[1] = -3 * other[1].flip(0)
    after = _project(projector, frames, Prompt(other, prompt.mask))
    look_at = "what mixes the batch axis: a reshape, an expert chosen for the whole batch"
    for i in (0, 2):
        require_same(own_frames(after, i), own_frames(before, i), f"item {i} when prompt 1 changes,", look_at)
    if projector.reads_prompt:
        heard = not torch.equal(own_frames(after, 1), own_frames(before, 1))
        require(heard, "that item 1 changes with prompt 1", "that it does not", "reads_prompt, which is True")
        return
    try:
        without = _project(projector, frames, None)
    except Exception as error:
        raise Broken("that it works without a prompt", f"{type(error).__name__}: {error}", "reads_prompt") from error
    look_at = "reads_prompt, which is False"
    require_same(own_frames(without, 1), own_frames(before, 1), "item 1 without a prompt", look_at)
    require_same(own_frames(after, 1), own_frames(before, 1), "item 1 with another prompt", look_at)


def ignores_prompt_padding(case: ProjectorCase) -> None:
    """Noise behind a prompt, and a longer batch of prompts, change nothing.

    Else an answer depends on how long its neighbour's instruction is.
    """
    projector = case.build()
    lengths = [TIME, TIME // 2, 3]
    short = _project(projector, *items(lengths))
    long = _project(projector, *items(lengths, words=2 * WORDS, garbage=10.0))
    for i in range(3):
        what = f"item {i}, whose prompt has {words_of(i)} words, among {WORDS} and {2 * WORDS},"
        require_same(own_frames(long, i), own_frames(short, i), what, "what reads past prompt.mask", TOLERANCE)


def ignores_padding(case: ProjectorCase) -> None:
    """An item alone and the same item in a longer batch, noise behind it, give the same frames.

    Else an answer depends on what it is batched with.
    """
    projector = case.build()
    lengths = [1, 7, TIME // 2 + 1, TIME]
    batch = _project(projector, *items(lengths, time=TIME + 13, garbage=10.0))
    for i, n in enumerate(lengths):
        alone = _project(projector, *items([n], seed=i))
        what = f"the frames of an item of {n} frames, alone and in a batch of {TIME + 13},"
        require_same(own_frames(batch, i), own_frames(alone, 0), what, "what reads past frames.mask", TOLERANCE)


def keeps_batch_items_apart(case: ProjectorCase) -> None:
    """An item's frames depend neither on its neighbours nor on its place in the batch.

    Else answers depend on their neighbours, and one item's gradient trains on another.
    """
    projector = case.build()
    first = _project(projector, *items([TIME, 9, 17], seed=0))
    other = _project(projector, *items([17, 33], seed=2))
    look_at = "what mixes the batch axis: a sum over the wrong axis, a capacity shared by the batch"
    require_same(own_frames(other, 0), own_frames(first, 2), "the frames of an item beside others", look_at, TOLERANCE)
    frames, prompt = items([TIME] * 3)
    frames.x.requires_grad_()
    require_no_leak(_called(projector, frames, prompt).x, frames.x, look_at)


def borrows_the_vocabulary(case: ProjectorCase) -> str | None:
    """What it is lent of the language model it reads, says if it is missing, and does not keep.

    Else the token table stands twice in checkpoints, or is an old one after adapters trained.
    """
    projector = case.build()
    if not projector.reads_vocabulary:
        return "it reads no vocabulary"
    frames, prompt, lent = case.inputs()
    before = _project(projector, frames, prompt, lent)
    other = _project(projector, frames, prompt, vocabulary(projector.dim, seed=8))
    read = not torch.equal(own_frames(before, 0), own_frames(other, 0))
    require(read, "other frames with another vocabulary", "the same", "reads_vocabulary, which is True")
    require_nothing_kept(projector, lent)
    try:
        projector(frames, prompt)
    except ValueError:
        return None
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise Broken("a ValueError that says what is missing", found, "what forward does without it") from error
    raise Broken("a ValueError without a vocabulary", "none", "reads_vocabulary, which is True")


CLAIMS: list[Claim] = [
    true_width,
    true_rate,
    hears_every_frame,
    follows_time,
    hears_its_own_prompt,
    fixes_its_prompt,
    ignores_prompt_padding,
    ignores_padding,
    keeps_batch_items_apart,
    borrows_the_vocabulary,
    *EVERY,
]
