"""Collation reads the audio of a batch and makes the tensors that the model learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from usam.data.manifest import Manifest, ManifestError, Sample
from usam.processor.audio import AudioError
from usam.processor.chat import blocks
from usam.processor.clip import KINDS, Clip, names_source
from usam.processor.feature_extractor import Heard

if TYPE_CHECKING:
    from usam.processor.chat import Rendered
    from usam.processor.feature_extractor import UsamFeatureExtractor
    from usam.processor.processor import UsamProcessor


Change = Callable[[Any, int, str, int], Any]
"""What is done to a clip (samples,) at a rate, of a row (file:line), at its place in it: `Augment` is one."""


@dataclass(frozen=True)
class Skipped:
    """A row that is not learned from."""

    row: str  # file:line
    why: str
    instead: str | None = None  # the row that takes its place


SHOWN = 5  # rows that an error tells
KEPT = 1 << 28  # bytes, over an hour of floats at 16 kHz: the memory of a larger batch is given back
ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Rows:
    """Where the rows of a batch come from."""

    origins: tuple[str, ...]  # file:line
    clips: tuple[int, ...]  # how many of the batch's clips are each row's


class Collator:
    """Samples to tensors, with labels on the answers.

    Args:
        processor: the model's processor.
        tasks: also give `tasks`, each row's own or None, and `rows`, a Rows, which UsamTrainer takes out before the
            model is called, and `batch`, what `passed_along` gives, which the model hands to its losses; and, where
            rows are of named sources, `sources`, that of each sample.
        spares: all rows, in a list or a Manifest; a row of them whose clip cannot be read gives its place to the next
            one that can, and the batch also has `skipped`, a list of Skipped, which UsamTrainer takes out. None: that
            is an error.
        share: of the spares, how many may be skipped so.
        context: the language model's positions; None does not look at them.
        cut: cut the answer of a row that is too long, which then has no end, instead of raising.
        augment: what is done to each clip: it is given the clip, the rate, the row's file:line and the clip's place.
        stand_in: of a stream, which has no list of spares: a row whose clip cannot be read gives its place to the next
            one of its batch that can; if there is none, that is an error.

    Raises:
        AudioError, ManifestError: a clip cannot be read, a chat not rendered, or it is too long; the row is named.
    """

    def __init__(
        self,
        processor: UsamProcessor,
        *,
        tasks: bool = False,
        spares: Sequence[Sample] | None = None,
        share: float = 0.0,
        context: int | None = None,
        cut: bool = False,
        augment: Change | None = None,
        stand_in: bool = False,
    ) -> None:
        self.processor = processor
        self.tasks = tasks
        self.spares = spares
        self.share = share
        self.context = context
        self.cut = cut
        self.stand_in = stand_in
        self.augment = augment
        self._rows = _different(spares or ())
        self._memory = Memory()

    def augmented(self, augment: Change) -> Collator:
        """The same with clips that are changed."""
        other = copy(self)
        other.augment = augment
        return other

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        skipped: list[Skipped] = []
        with self._memory.lent() as room:
            read = [
                self._read(sample, skipped, [*samples[i + 1 :], *samples[:i]], room) for i, sample in enumerate(samples)
            ]
            batch, owners = self._encoded(read)
        if self.tasks:
            clips = tuple(len(row.audio) for _, rendered in read for row in rendered.rows)
            batch["rows"] = Rows(tuple(sample.origin for sample in owners), clips)
            batch |= {"tasks": [sample.task for sample in owners], "batch": passed_along(owners)}
            sources = [sample.source for sample, _ in read]  # of those that are learned from
            batch |= {"sources": sources} if None not in sources else {}
        if self.spares is not None or self.stand_in:
            batch["skipped"] = skipped
        return batch

    def rows(self, samples: Sequence[Sample]) -> tuple[dict[str, Any], list[Sample]]:
        """The tensors, and the sample of each row: a chat has several where its template rewrites past answers."""
        return self._encoded([(sample, self._render(sample)) for sample in samples])

    def _encoded(self, read: Sequence[tuple[Sample, Rendered]]) -> tuple[dict[str, Any], list[Sample]]:
        rows = [(sample, row) for sample, rendered in read for row in rendered.rows]
        batch = dict(self.processor.encode([row for _, row in rows], labels=True))
        if self.context is not None and batch["input_ids"].shape[1] > self.context:
            lengths = batch["attention_mask"].sum(-1).tolist()
            fitted = [self._fitted(*pair, length) for pair, length in zip(rows, lengths, strict=True)]
            batch = dict(self.processor.encode(fitted, labels=True))
        return batch, [sample for sample, _ in rows]

    def _read(
        self, sample: Sample, skipped: list[Skipped], beside: Sequence[Sample], room: Lent
    ) -> tuple[Sample, Rendered]:
        """The sample with its sound, or the next one that can be read."""
        failed: list[Skipped] = []
        for one in chain([sample], beside if self.stand_in else self._after(sample)):
            try:
                rendered = self._render(one, room)
            except AudioError as error:
                if not self.stand_in and _place(self.spares or (), sample) is None:
                    raise
                failed.append(Skipped(one.origin, str(error)))
                if not self.stand_in:
                    check_share(failed, self._rows, self.share)
                continue
            skipped += [replace(row, instead=one.origin) for row in failed]
            return one, rendered
        others = "any other of its batch" if self.stand_in else "any other"
        raise AudioError(f"{sample.origin}: neither this row nor {others} can be read: {failed[0].why}")

    def _after(self, sample: Sample) -> Iterator[Sample]:
        assert self.spares is not None
        place = _place(self.spares, sample)
        assert place is not None
        following = self.spares[place + 1 :]
        yield from (spare for spare in following if spare.source == sample.source)  # the mixture stays what it is
        yield from (spare for spare in following if spare.source != sample.source)
        yield from self.spares[:place]

    def _render(self, sample: Sample, room: Lent | None = None) -> Rendered:
        ears = self.processor.feature_extractor
        try:
            turns = self.processor._turns(sample.messages)
            if self.augment is None:
                turns.clips = [Heard(ears.fetch_audio(clip, room=room)) for clip in turns.clips]
            else:  # which may have made of them what is no sound
                turns.clips = [
                    Clip(self.augment(clip, ears.sampling_rate, sample.origin, place))
                    for place, clip in enumerate(ears.fetch_audio(list(turns.clips)))
                ]
            return turns.render()
        except AudioError as error:
            raise AudioError(f"{sample.origin}: {error}") from error
        except ValueError as error:
            raise ManifestError(f"{sample.origin}: {error}") from error

    def _fitted(self, sample: Sample, rendered: Rendered, length: int) -> Rendered:
        """The chat cut, at a token's edge, to the language model's positions."""
        assert self.context is not None
        if length <= self.context:
            return rendered
        if not self.cut:
            raise ManifestError(f"{sample.origin}: {too_long(length, self.context)}")
        extractor = self.processor.feature_extractor
        counts = [extractor.placeholders(len(extractor.fetch_audio(clip))) for clip in rendered.audio]
        room = self.context - sum(counts) + len(counts)
        starts = rendered.starts
        _, offsets = self.processor._tokenize(rendered.text, starts)
        for last in range(room - 1, -1, -1):
            end = offsets[last][1]
            if not starts or end <= starts[-1]:
                break
            text = rendered.text[:end]
            if len(self.processor._tokenize(text, starts)[0]) <= room:  # a word that is cut may be more tokens
                return replace(rendered, text=text, answers=_until(rendered.answers, end))
        raise ManifestError(f"{sample.origin}: {too_long(length, self.context)}, with no room for any of its answer")


class Memory:
    """Memory for the clips of a batch, until they stand in its tensors: that of the last batch, once more.

    What a system gives anew it clears first, page by page, which takes longer than to read plain samples.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[Any]] = []  # while it is lent, others that collate at the same time find none

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory."""
        return {"_free": []}

    @contextmanager
    def lent(self) -> Iterator[Lent]:
        """What the clips of a batch are read to."""
        lent = Lent(self._free.pop() if self._free else np.empty(0, np.uint8))
        try:
            yield lent
        finally:
            grown = len(lent.memory) < lent.taken <= KEPT
            self._free[:] = [np.empty(lent.taken, np.uint8) if grown else lent.memory]


class Lent:
    """Hands out parts of a memory, and new arrays when it is used up; a `Room`."""

    def __init__(self, memory: NDArray[Any]) -> None:
        self.memory, self.taken = memory, 0

    def __call__(self, samples: int, dtype: type[Any]) -> NDArray[Any]:
        """An array of so many samples."""
        begin, size = self.taken, samples * np.dtype(dtype).itemsize
        self.taken += size + -size % ALIGNED
        if self.taken > len(self.memory):
            return np.empty(samples, dtype)
        return self.memory[begin : begin + size].view(dtype)


def _place(samples: Sequence[Sample], sample: Sample) -> int | None:
    """Where a sample stands among others, the last place; None when it is none of them."""
    if isinstance(samples, Manifest):
        return samples.find(sample.origin)
    return max((place for place, one in enumerate(samples) if one.origin == sample.origin), default=None)


def _different(samples: Sequence[Sample]) -> int:
    if isinstance(samples, Manifest):
        return len(np.unique(samples.numbers))
    return len({sample.origin for sample in samples})


def _until(spans: Sequence[tuple[int, int]], end: int) -> tuple[tuple[int, int], ...]:
    return tuple((start, min(stop, end)) for start, stop in spans)


def check_share(skipped: Sequence[Skipped], rows: int, share: float) -> None:
    """Refuse to go on when too many rows cannot be read.

    Raises:
        AudioError: tells how many, and some of them.
    """
    if len(skipped) > share * rows + 1e-9:  # 0.29 * 100 is a little less than 29
        shown = "\n".join(row.why for row in skipped[:SHOWN])
        raise AudioError(
            f"{len(skipped):,} of {rows:,} rows cannot be read, more than data.bad_share ({share:g}) allows:\n{shown}"
        )


def too_long(tokens: int, context: int) -> str:
    return f"{tokens:,} tokens, and the language model has {context:,} positions"


def passed_along(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What losses may want to know of each sample: `ids` (else file:line), `tasks`, `sources`, and `extra`, columns."""
    return {
        "ids": [sample.origin if sample.id is None else sample.id for sample in samples],
        "tasks": [sample.task for sample in samples],
        "sources": [sample.source for sample in samples],
        "extra": [dict(sample.extra) for sample in samples],
    }


def with_sound(messages: Sequence[Any], ears: UsamFeatureExtractor) -> list[Any]:
    """The same messages with every clip that they name read into an array at the extractor's rate, within its limit."""
    heard = []
    for message in messages:
        parts = blocks(message)
        if not isinstance(message["content"], str):
            named = [b["type"] in KINDS and names_source(b) for b in parts]
            parts = [
                Clip(ears.fetch_audio(Clip.of(b))).block() if own else b for b, own in zip(parts, named, strict=True)
            ]
            message = {**message, "content": parts}
        heard.append(message)
    return heard
