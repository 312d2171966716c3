"""What a check of data finds: faults, what is remarkable, how much there is of all, and how that is told."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

SILENT = 1e-3  # of full scale (-60 dB): a clip is silent whose loudest sample lies below it
CLIPPED = 1e-3  # so many of a clip's samples
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
        f"{many(total.rows, 'row')}, {report.answers:,} with an answer; {many(total.clips, 'clip')}, "
        f"{clock(3600 * total.hours)} of sound" + (" (headers were read, and no samples)" if report.fast else "")
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


def many(count: int, what: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def clock(seconds: float) -> str:
    """`1.5 s`, `0:01:30`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole >= 60 else f"{seconds:.1f} s"
