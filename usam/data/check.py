"""A check of data reads every row as training would: what cannot be used, what is suspicious, and how much there is."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from usam.clock import rescale
from usam.config import UsamConfig
from usam.data.collate import too_long
from usam.data.convert import ByName
from usam.data.findings import CLIPPED, SILENT, Fault, Heard, Report, Seen, Tally, clock, many
from usam.data.reading import Rules
from usam.encoders import Encoder
from usam.processor.audio import AudioError, AudioWarning, open_audio
from usam.processor.chat import Rendered, blocks, flatten, mark_tokens
from usam.processor.clip import KINDS, Clip
from usam.processor.lengths import context_length
from usam.processor.processor import UsamProcessor
from usam.readers import ManifestError, Sample, located, read
from usam.registry import did_you_mean
from usam.spec.spec import Spec

FULL = 0.999  # of full scale: samples beyond it are clipped, if many are
FRAME = 0.02  # seconds, where no spec says how long a frame is
UNUSABLE = ("row", "audio", "chat", "prompt", "context", "labels")  # faults
REPEATED = 0.2, 10  # an answer is remarkable that stands in such a share of a task's rows, and in as many rows


@dataclass(frozen=True, slots=True)
class Part:
    """A manifest, and what it is for: `train`, `eval`."""

    file: str
    split: str = "train"


def check(
    parts: Sequence[Part],
    spec: Spec | None = None,
    *,
    reader: str | None = None,
    audio_root: str | None = None,
    fast: bool = False,
    workers: int = 0,
    need_answer: bool = False,
    max_seconds: float | None = None,
    progress: Callable[[Iterable[Seen]], Iterable[Seen]] = iter,
) -> Report:
    """Read every row of some manifests, in order, and say what was found.

    Clips are the same whose decoded samples are, at their own rate and after channels are averaged or chosen, whatever
    their file is called and however it is losslessly coded; with `fast`, those of one file or bytes, and one range.

    Args:
        parts: the manifests.
        spec: whose prompts, chat template, tokens and context rows are held against; None looks at data alone.
        reader: name of the reader of all manifests, where it shall not be recognised.
        audio_root: what `{audio_root}` at the beginning of a path stands for.
        fast: decode nothing; headers and containers are still held against the length of their files.
        workers: processes that read; 0 reads in this one.
        need_answer: whether a row without an answer is a fault.
        max_seconds: clips that are longer are noted; None notes none.
        progress: goes through what is seen, and shows how far it is.

    Raises:
        ManifestError: a manifest that is missing, empty or of no known format.
        RuntimeError: a process that reads was killed.
    """
    rows = _Rows(parts, spec, reader=reader, audio_root=audio_root, fast=fast, max_seconds=max_seconds)
    report = Report(fast, rows.context)
    gathered = _Gathered(parts, report, None if spec is None else spec.prompts, need_answer)
    loader: Iterable[Seen | ManifestError] = DataLoader(rows, batch_size=None, num_workers=workers) if workers else rows
    for seen in progress(_raised(loader)):
        gathered.add(seen)
    gathered.close()
    return report


def first(
    parts: Sequence[Part],
    prompts: Mapping[str, str] | None,
    count: int,
    *,
    reader: str | None = None,
    audio_root: str | None = None,
    without: Container[str] | None = None,
) -> list[Sample]:
    """The first rows.

    Args:
        parts: the manifests.
        prompts: instruction of each task; None writes a task's name in braces.
        count: how many rows.
        reader: name of the reader, where it shall not be recognised.
        audio_root: what `{audio_root}` at the beginning of a path stands for.
        without: rows (file:line) to pass over, with all others that are wrong; None passes over none.

    Raises:
        ManifestError: what is wrong with a row.
    """
    asked = _Prompts(prompts or {})
    rows = (row for part in parts for row in _samples(part.file, asked, reader, audio_root))
    found: list[Sample] = []
    while len(found) < count and (row := next(rows, None)) is not None:
        origin, one, absent = row
        if prompts is not None and absent is not None:
            one = ManifestError(f"{origin}: {_no_prompt(absent, prompts)}")
        if without is None and isinstance(one, ManifestError):
            raise one
        if isinstance(one, Sample) and origin not in (without or ()):
            found.append(one)
    return found


def counted(row: Rendered, heard: int, processor: UsamProcessor) -> tuple[int, int, bool]:
    """Tokens of a rendered row, those up to the first of its last answer, and whether any is learned.

    Args:
        row: the row.
        heard: tokens of its clips beyond their one placeholder each.
        processor: the processor.
    """
    starts = row.starts
    ids, offsets = processor._tokenize(row.text, starts)
    asked = next((i + 1 for i, (_, end) in enumerate(offsets) if starts and end > starts[-1]), len(ids))
    learned = any(mark_tokens(ids, offsets, row.answers, {processor.audio_token_id})[1:])
    return len(ids) + heard, asked + heard, learned


def _raised(rows: Iterable[Seen | ManifestError]) -> Iterator[Seen]:
    """What is seen; an error of a whole file, which a worker hands over, is raised here."""
    for seen in rows:
        if isinstance(seen, ManifestError):
            raise ManifestError(str(seen)) from seen
        yield seen


def _no_prompt(task: str, prompts: Mapping[str, str]) -> str:
    return f"task '{task}' has no prompt in the spec's 'prompts'; {did_you_mean(task, list(prompts))}"


class _Prompts(ByName):
    """Prompts of a spec; a task that has none stands for itself, and is remembered."""

    absent: str | None = None

    def __missing__(self, task: str) -> str:
        self.absent = task
        return super().__missing__(task)


def _samples(
    file: str,
    prompts: _Prompts,
    reader: str | None,
    audio_root: str | None,
    own: Callable[[int], bool] = lambda i: True,
) -> Iterator[tuple[str, Sample | ManifestError, str | None]]:
    """Each row's place, the row or what is wrong with it, and its task if that has no prompt.

    Args:
        own: whether a row of this number is wanted.
    """
    rules = Rules(prompts, reader=reader, audio_root=audio_root)
    opened = read(Path(located(file)), prompts, reader)
    for i, (origin, row) in enumerate(opened.rows):
        if not own(i):
            continue
        prompts.absent = None
        found: Sample | ManifestError
        try:
            found = rules.sample(origin, row, opened.layout, opened.name, opened.folder)
        except ManifestError as error:
            found = error
        yield origin, found, prompts.absent


class _Rows(IterableDataset[Any]):
    """The rows of some manifests, looked at one after the other; of several workers, each takes its share in turn."""

    def __init__(
        self,
        parts: Sequence[Part],
        spec: Spec | None,
        *,
        reader: str | None,
        audio_root: str | None,
        fast: bool,
        max_seconds: float | None,
    ) -> None:
        self.parts = parts
        self.prompts = _Prompts({} if spec is None else spec.prompts)
        self.reader, self.audio_root, self.fast, self.max_seconds = reader, audio_root, fast, max_seconds
        self.processor = None if spec is None else UsamProcessor.from_spec(spec)
        self.rate = 16000 if spec is None else spec.sample_rate
        self.context = None if spec is None else context_length(UsamConfig.from_spec(spec).text_config)
        rates = [] if spec is None else [cast(Encoder.Config, encoder).rate for encoder in spec.encoders.values()]
        self.frame = 1 / min(rates) if rates else FRAME

    def __iter__(self) -> Iterator[Seen | ManifestError]:
        worker = get_worker_info()
        mine, of = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        try:
            for number, part in enumerate(self.parts):
                rows = _samples(part.file, self.prompts, self.reader, self.audio_root, lambda i: i % of == mine)
                for origin, found, absent in rows:
                    yield self._look(origin, found, absent, number)
        except ManifestError as error:
            yield error

    def _look(self, origin: str, found: Sample | ManifestError, absent: str | None, part: int) -> Seen:
        if isinstance(found, ManifestError):
            return Seen(origin, part, faults=[Fault("row", origin, str(found).removeprefix(f"{origin}: "))])
        words = repr([(m["role"], flatten(m)[0]) for m in found.question])
        seen = Seen(origin, part, found.task, _digest(words.encode()), found.answer, absent=absent)
        for clip in _clips(found):
            try:
                seen.clips.append(self._hear(clip, seen))
            except AudioError as error:
                seen.faults.append(Fault("audio", origin, str(error)))
        if found.answer is not None and not found.answer.strip():
            seen.faults.append(Fault("answer", origin, "the answer is empty"))
        if self.processor is not None and not any(fault.kind == "audio" for fault in seen.faults):
            self._count(found, seen, self.processor)
        return seen

    def _hear(self, clip: Clip, seen: Seen) -> Heard:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with open_audio(
                clip.source, self.rate, start=clip.start, duration=clip.duration, channel=clip.channel
            ) as sound:
                digest = _place(clip) if self.fast else None
                if not self.fast:
                    digest, peak, full = _decode(sound.blocks, sound.rate)
        seconds = sound.frames / sound.rate
        notes = [("file", str(w.message)) for w in told if issubclass(w.category, AudioWarning)]
        if not self.fast:
            if peak < SILENT:
                notes.append(("silent", f"{sound.name}: its loudest sample is {peak:.2g} of full scale"))
            if full >= CLIPPED * sound.frames:
                notes.append(("clipped", f"{sound.name}: {full / sound.frames:.1%} of its samples are at full scale"))
        if seconds < self.frame:
            notes.append(("short", f"{sound.name}: {seconds:.4f} s; a frame is {self.frame:.3g} s"))
        if self.max_seconds is not None and seconds > self.max_seconds:
            notes.append(("long", f"{sound.name}: {clock(seconds)}, more than {self.max_seconds:g} s"))
        seen.notes += [Fault(kind, seen.origin, why) for kind, why in notes]
        samples = int(rescale(sound.frames, sound.rate, self.rate))
        return Heard(seconds, sound.rate, sound.channels, sound.kind, samples, digest)

    def _count(self, found: Sample, seen: Seen, processor: UsamProcessor) -> None:
        try:
            rendered = processor.render(found.messages)
        except ValueError as error:
            seen.faults.append(Fault("chat", seen.origin, str(error)))
            return
        more = [processor.feature_extractor.placeholders(clip.samples) - 1 for clip in seen.clips]
        rows = [counted(row, sum(more[: len(row.audio)]), processor) for row in rendered.rows]
        seen.tokens = max(tokens for tokens, _, _ in rows)
        if self.context is not None and seen.tokens > self.context:
            seen.faults.append(Fault("context", seen.origin, too_long(seen.tokens, self.context)))
        if found.answer is not None and not any(learned for *_, learned in rows):
            seen.faults.append(Fault("labels", seen.origin, "the answer has no token to learn from"))


def _clips(found: Sample) -> list[Clip]:
    return [Clip.of(block) for message in found.messages for block in blocks(message) if block["type"] in KINDS]


def _decode(blocks_: Iterator[np.ndarray[Any, Any]], rate: int) -> tuple[bytes, float, int]:
    """A hash of the samples, the loudest, and how many are at full scale; a block at a time."""
    digest = hashlib.blake2b(str(rate).encode(), digest_size=16)
    peak, full = 0.0, 0
    for block in blocks_:
        digest.update(np.ascontiguousarray(block).data)
        size = np.abs(block)
        peak = max(peak, float(size.max()))
        full += int((size >= FULL).sum())
    return digest.digest(), peak, full


def _place(clip: Clip) -> bytes | None:
    """A hash of where a clip is, or of the bytes that it is given as; None where neither can be told."""
    source = clip.source
    if isinstance(source, Mapping) and source.get("bytes") is not None:
        source = source["bytes"]
    if isinstance(source, str):
        source = os.path.realpath(source.removeprefix("file://"))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        source = _digest(bytes(source))
    elif not (hasattr(source, "archive") and hasattr(source, "offset")):
        return None
    return _digest(repr((source, clip.start, clip.duration, clip.channel)).encode())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


class _Gathered:
    """What is told of rows together: counts, and which are the same."""

    def __init__(
        self, parts: Sequence[Part], report: Report, prompts: Mapping[str, str] | None, need_answer: bool
    ) -> None:
        self.parts, self.report, self.prompts, self.need_answer = parts, report, prompts, need_answer
        self.heard: dict[str, dict[bytes, str]] = {part.split: {} for part in parts}  # row by clip
        self.seen: dict[bytes, tuple[str, bytes]] = {}  # row and answer by split, sound and question
        self.said: Counter[tuple[str | None, bytes]] = Counter()  # rows by task and answer
        self.words: dict[bytes, str] = {}  # of answers that stand twice
        self.answered: Counter[str | None] = Counter()
        self.absent: dict[str, tuple[str, int]] = {}  # first row and rows by task
        report.files |= {part.file: Tally() for part in parts}

    def add(self, seen: Seen) -> None:
        """Count one row."""
        report, part = self.report, self.parts[seen.part]
        if seen.answer is None and self.need_answer and not any(fault.kind == "row" for fault in seen.faults):
            seen.faults.append(Fault("unanswered", seen.origin, "no answer to learn from"))
        self._same(seen, part)
        for clip in seen.clips:
            report.rates[clip.rate] += 1
            report.channels[clip.channels] += 1
            report.kinds[clip.kind] += 1
            report.seconds.append(clip.seconds)
        if seen.tokens is not None:
            report.tokens.append(seen.tokens)
        if self.prompts is None:
            seen.absent = None
        elif seen.absent is not None:
            row, count = self.absent.get(seen.absent, (seen.origin, 0))
            self.absent[seen.absent] = row, count + 1
        if seen.answer is not None:
            report.answers += 1
            self._say(seen)
        report.unusable += seen.absent is not None or any(fault.kind in UNUSABLE for fault in seen.faults)
        for tally in (report.total, report.files[part.file], report.tasks.setdefault(seen.task or "-", Tally())):
            tally.add(seen)
        report.faults += seen.faults
        report.notes += seen.notes

    def _same(self, seen: Seen, part: Part) -> None:
        """Rows and clips that were there before."""
        digests = [clip.digest for clip in seen.clips]
        if any(fault.kind in ("row", "audio") for fault in seen.faults) or None in digests:
            return
        own = cast(list[bytes], digests)
        answer = b"" if seen.answer is None else _digest(seen.answer.encode())
        key = _digest(b"".join([part.split.encode(), seen.asked, *own]))
        row, before = self.seen.setdefault(key, (seen.origin, answer))
        if row != seen.origin:
            kind = "duplicate" if before == answer else "contradiction"
            what = "is the same row as" if before == answer else "has another answer than"
            seen.notes.append(Fault(kind, seen.origin, f"{what} {row}"))
        for digest in own:
            self.heard[part.split].setdefault(digest, seen.origin)
            for split, others in self.heard.items():
                if split != part.split and digest in others:
                    why = f"its clip is that of {others[digest]} in {split}"
                    seen.faults.append(Fault("leak", seen.origin, why))

    def _say(self, seen: Seen) -> None:
        assert seen.answer is not None
        digest = _digest(seen.answer.encode())
        self.said[seen.task, digest] += 1
        self.answered[seen.task] += 1
        if self.said[seen.task, digest] == REPEATED[1]:
            self.words[digest] = seen.answer

    def close(self) -> None:
        """What can only be told in the end.

        Raises:
            ManifestError: a file without rows.
        """
        for task, (row, count) in self.absent.items():
            assert self.prompts is not None
            self.report.faults.append(Fault("prompt", row, f"{_no_prompt(task, self.prompts)} ({many(count, 'row')})"))
        for (of_task, digest), count in self.said.most_common():
            if count < REPEATED[1]:
                break
            if count >= REPEATED[0] * self.answered[of_task]:
                task = f" of task '{of_task}'" if of_task else ""
                why = f"answers {count:,} of {many(self.answered[of_task], 'row')}{task}"
                self.report.notes.append(Fault("repeated", f"{self.words[digest]!r:.60}", why))
        for file, tally in self.report.files.items():
            if not tally.rows:
                raise ManifestError(f"{file}: no rows; write one JSON map a line")
