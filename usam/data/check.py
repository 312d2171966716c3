"""A check of data reads every row as training would: what cannot be used, what is suspicious, and how much there is."""

from __future__ import annotations

import hashlib
import os
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from usam.clock import rescale
from usam.config import UsamConfig
from usam.data.collate import too_long
from usam.data.convert import ByName
from usam.encoders import Encoder
from usam.processor.audio import AudioError, AudioWarning, open_audio
from usam.processor.chat import Rendered, blocks, flatten, mark_tokens
from usam.processor.clip import KINDS, Clip
from usam.processor.lengths import context_length
from usam.processor.processor import UsamProcessor
from usam.readers import ManifestError, Sample, read
from usam.readers.usam import sample
from usam.registry import did_you_mean
from usam.spec.spec import Spec

SILENT = 1e-3  # of full scale (-60 dB): a clip is silent whose loudest sample lies below it
FULL = 0.999  # of full scale: samples beyond it are clipped, if many are
CLIPPED = 1e-3  # so many of a clip's samples
FRAME = 0.02  # seconds, where no spec says how long a frame is
REPEATED = 0.2, 10  # an answer is remarkable that stands in such a share of a task's rows, and in as many rows
QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "half": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
BINS = 10  # of the histogram

KINDS_OF_FAULTS = {
    "row": "rows that are no rows of their format",
    "audio": "clips that cannot be read",
    "chat": "rows that the chat template refuses",
    "prompt": "tasks without a prompt in the spec",
    "context": "rows longer than the language model's context",
    "labels": "answers without a token to learn from",
    "answer": "empty answers",
    "unanswered": "rows without an answer to learn from",
    "leak": "held-out clips that are trained on as well",
}
UNUSABLE = ("row", "audio", "chat", "prompt", "context", "labels")
KINDS_OF_NOTES = {
    "duplicate": "rows that stand there twice (sound, question and answer)",
    "contradiction": "rows with the sound and question of another, and another answer",
    "silent": f"silent clips (no sample above {SILENT:g} of full scale)",
    "clipped": f"clips that may be clipped ({CLIPPED:.1%} of samples at full scale)",
    "short": "clips shorter than a frame",
    "long": "long clips",
    "file": "files that are not as they should be",
    "repeated": "answers that repeat much",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A manifest, and what it is for: `train`, `eval`."""

    file: str
    split: str = "train"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row, or remarkable."""

    kind: str
    row: str  # file:line
    why: str

    def __str__(self) -> str:
        return self.why if self.why.startswith(f"{self.row}: ") else f"{self.row}: {self.why}"


@dataclass(frozen=True, slots=True)
class Heard:
    """One clip, without its samples."""

    seconds: float
    rate: int
    channels: int
    kind: str  # container and codec
    samples: int  # at the model's rate
    digest: bytes | None  # of what is heard; None where it was not looked at


@dataclass(slots=True)
class Seen:
    """One row, without its sound."""

    origin: str
    part: int
    task: str | None = None
    asked: bytes = b""  # a hash of the question's words
    answer: str | None = None
    clips: list[Heard] = field(default_factory=list)
    tokens: int | None = None
    absent: str | None = None  # the task that has no prompt
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)


@dataclass
class Tally:
    """How much there is of something."""

    rows: int = 0
    clips: int = 0
    hours: float = 0.0
    faults: int = 0

    def add(self, seen: Seen) -> None:
        """Count a row."""
        self.rows += 1
        self.clips += len(seen.clips)
        self.hours += sum(clip.seconds for clip in seen.clips) / 3600
        self.faults += bool(seen.faults or seen.absent)


@dataclass
class Report:
    """What was found; per row and clip some 300 bytes are kept, and no sound."""

    fast: bool = False
    context: int | None = None  # the language model's positions
    answers: int = 0
    unusable: int = 0  # rows
    total: Tally = field(default_factory=Tally)
    files: dict[str, Tally] = field(default_factory=dict)
    tasks: dict[str, Tally] = field(default_factory=dict)
    rates: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: array[float] = field(default_factory=lambda: array("d"))  # of each clip
    tokens: array[int] = field(default_factory=lambda: array("q"))  # of each row
    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether there is no fault; notes are none."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        lows, highs, counts = histogram(self.seconds)
        return {
            "sound": self.sound,
            "read": "headers" if self.fast else "samples",
            **asdict(self.total),
            "faults": [asdict(fault) for fault in self.faults],
            "notes": [asdict(note) for note in self.notes],
            "answers": self.answers,
            "by_file": {name: asdict(tally) for name, tally in self.files.items()},
            "by_task": {name: asdict(tally) for name, tally in self.tasks.items()},
            "seconds": quantiles(self.seconds),
            "histogram": [{"from": a, "to": b, "clips": n} for a, b, n in zip(lows, highs, counts, strict=True)],
            "rates": {str(rate): n for rate, n in self.rates.most_common()},
            "channels": {str(count): n for count, n in self.channels.most_common()},
            "formats": dict(self.kinds.most_common()),
            "tokens": quantiles(self.tokens),
            "context": self.context,
        }


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
            one = ValueError(_no_prompt(absent, prompts))
        if without is None and isinstance(one, ValueError):
            raise ManifestError(f"{origin}: {one}") from one
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
) -> Iterator[tuple[str, Sample | ValueError, str | None]]:
    """Each row's place, the row or what is wrong with it, and its task if that has no prompt.

    Args:
        own: whether a row of this number is wanted.
    """
    path = Path(os.path.expandvars(os.path.expanduser(file)))
    root = None if audio_root is None else os.path.expandvars(os.path.expanduser(audio_root))
    opened = read(path, prompts, reader)
    for i, (origin, row) in enumerate(opened.rows):
        if not own(i):
            continue
        prompts.absent = None
        found: Sample | ValueError
        try:
            found = (
                row
                if isinstance(row, ValueError)
                else sample(opened.layout.own(row), origin, opened.folder, prompts, False, root)
            )
        except ValueError as error:
            found = error
        except RecursionError:
            found = ValueError("maps or lists are nested too deeply")
        if isinstance(found, ValueError) and opened.name != "usam":
            found = ValueError(f"{found} (read as '{opened.name}')")
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

    def _look(self, origin: str, found: Sample | ValueError, absent: str | None, part: int) -> Seen:
        if isinstance(found, ValueError):
            return Seen(origin, part, faults=[Fault("row", origin, str(found))])
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
            notes.append(("long", f"{sound.name}: {_clock(seconds)}, more than {self.max_seconds:g} s"))
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
            self.report.faults.append(Fault("prompt", row, f"{_no_prompt(task, self.prompts)} ({_rows(count)})"))
        for (of_task, digest), count in self.said.most_common():
            if count < REPEATED[1]:
                break
            if count >= REPEATED[0] * self.answered[of_task]:
                of = f"{count:,} of {_rows(self.answered[of_task])}" + (f" of task '{of_task}'" if of_task else "")
                self.report.notes.append(Fault("repeated", f"{self.words[digest]!r:.60}", f"answers {of}"))
        for file, tally in self.report.files.items():
            if not tally.rows:
                raise ManifestError(f"{file}: no rows; write one JSON map a line")


# What is printed


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """From the least to the greatest, and the mean; empty without values."""
    if not len(values):
        return {}
    found = np.quantile(np.asarray(values), list(QUANTILES.values()))
    return {**dict(zip(QUANTILES, found.tolist(), strict=True)), "mean": float(np.mean(np.asarray(values)))}


def histogram(values: Sequence[float]) -> tuple[list[float], list[float], list[int]]:
    """Where bins begin and end, which are equally wide on a scale of ratios, and what each holds."""
    if not len(values):
        return [], [], []
    x = np.asarray(values)
    low, high = max(float(x.min()), 1e-3), max(float(x.max()), 1e-3)
    edges = np.geomspace(low, high, BINS + 1) if high > 1.05 * low else np.array([low, high])
    counts, _ = np.histogram(x.clip(edges[0], edges[-1]), edges) if len(edges) > 2 else ([len(x)], None)
    return edges[:-1].tolist(), edges[1:].tolist(), [int(n) for n in counts]


def describe(report: Report, show: int = 100) -> str:
    """The report for people, at most 80 columns wide but for paths and reasons.

    Args:
        report: what was found.
        show: faults of one kind that are named; the others are counted.
    """
    total = report.total
    lines = [
        f"{_rows(total.rows)}, {report.answers:,} with an answer; {_many(total.clips, 'clip')}, "
        f"{_clock(3600 * total.hours)} of sound" + (" (headers were read, and no samples)" if report.fast else "")
    ]
    lines += ["", *_table("file", report.files)]
    if len(report.tasks) > 1 or "-" not in report.tasks:
        lines += ["", *_table("task", report.tasks)]
    if report.seconds:
        lines += ["", *_durations(report.seconds), ""]
        for name, held, unit in (("rates", report.rates, " Hz"), ("channels", report.channels, "")):
            lines.append(f"{name:10}" + "; ".join(f"{what}{unit} x {n:,}" for what, n in held.most_common()))
        lines.append(f"{'formats':10}" + "; ".join(f"{what} x {n:,}" for what, n in report.kinds.most_common()))
    if report.tokens:
        lines += ["", _spread("tokens", quantiles(report.tokens), 0)]
        if report.context is not None:
            lines.append(f"          the language model has {report.context:,} positions")
    lines += _listed("suspicious", report.notes, KINDS_OF_NOTES, show)
    lines += _listed("faults", report.faults, KINDS_OF_FAULTS, show)
    return "\n".join(lines)


def _table(name: str, tallies: Mapping[str, Tally]) -> list[str]:
    width = min(40, max(len(name), *map(len, tallies)))
    lines = [f"{name:{width}} {'rows':>10} {'clips':>10} {'hours':>10} {'at fault':>8}"]
    for what, t in tallies.items():
        short = what if len(what) <= width else "..." + what[3 - width :]
        lines.append(f"{short:{width}} {t.rows:10,} {t.clips:10,} {t.hours:10.3f} {t.faults:8,}")
    return lines


def _spread(name: str, found: Mapping[str, float], places: int) -> str:
    told = (f"{what} {found[what]:.{places if found[what] < 100 else 0}f}" for what in QUANTILES)
    return f"{name:10}" + "  ".join(told)


def _durations(seconds: Sequence[float]) -> list[str]:
    lows, highs, counts = histogram(seconds)
    most = max(counts)
    lines = [_spread("seconds", quantiles(seconds), 2)]
    for low, high, count in zip(lows, highs, counts, strict=True):
        lines.append(f"{low:10.2f} to {high:8.2f} {'#' * -(-40 * count // most):40} {count:,}")
    return lines


def _listed(title: str, found: Sequence[Fault], kinds: Mapping[str, str], show: int) -> list[str]:
    lines = []
    for kind, means in kinds.items():
        own = [fault for fault in found if fault.kind == kind]
        if own:
            lines += ["", f"{title}: {means}: {len(own):,}", *(f"  {fault}" for fault in own[:show])]
        if len(own) > show:
            lines.append(f"  ... and {len(own) - show:,} more (--show {len(own)} names them)")
    return lines


def _rows(count: int) -> str:
    return _many(count, "row")


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 60 else f"{seconds:.1f} s"
