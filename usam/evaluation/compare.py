"""Two records of the same rows beside each other: which system is better, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from usam.evaluation.record import LEVEL, Record, RecordError, aligned, number
from usam.evaluation.statistics import Paired, paired
from usam.metrics import Metric
from usam.training.held_out import by_task

SHOWN = 5


@dataclass(frozen=True)
class Compared:
    """One metric over all rows, or over those of a task."""

    metric: str
    task: str | None
    samples: int
    a: float
    b: float
    test: Paired


@dataclass(frozen=True)
class Comparison:
    """What two records say of each other."""

    a: str
    b: str
    ids: Mapping[str, str]
    """Of the metrics, by name."""
    differs: Mapping[str, tuple[Any, Any]]
    """What was asked otherwise beside the model: `decoding`, `prompts` ..."""
    rows: tuple[Compared, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        rows = [{**{k: v for k, v in asdict(row).items() if k != "test"}, **asdict(row.test)} for row in self.rows]
        return {"a": self.a, "b": self.b, "ids": dict(self.ids), "differs": dict(self.differs), "metrics": rows}

    def table(self) -> str:
        """For people."""
        head = ["metric", "task", "A", "B", "A - B", f"{LEVEL:.0%} interval", "p bootstrap", "p permutation", "samples"]
        rows = [head]
        for one in self.rows:
            test = one.test
            exact = " exact" if test.exact else ""
            rows.append(
                [
                    one.metric, one.task or "all", number(one.a), number(one.b), number(test.difference),
                    f"{number(test.low)} to {number(test.high)}", number(test.p_bootstrap),
                    f"{number(test.p_permutation)}{exact}", f"{one.samples:,}",
                ]
            )  # fmt: skip
        notes = [f"note: A and B also differ in {', '.join(self.differs)}"] if self.differs else []
        ids = [f"{name}: {found}" for name, found in self.ids.items()]
        return "\n".join([f"A: {self.a}", f"B: {self.b}", *notes, *aligned(rows), *ids])


def compare(
    a: str | Path | Record,
    b: str | Path | Record,
    metrics: Mapping[str, Metric] | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Two records of the same rows, paired by their ids.

    Args:
        a, b: folders, or the records themselves.
        metrics: which; by default those that both were scored by, with the same options.
        draws: resamples, and exchanges where these are drawn.
        seed: what they are drawn with.

    Raises:
        RecordError: the records are of other data or other rows, or share no metric.
    """
    first, second = (one if isinstance(one, Record) else Record.read(one) for one in (a, b))
    names = _name(first), _name(second)
    _check_data(first, second, names)
    metrics = _shared(first, second, names) if metrics is None else metrics
    theirs = {answer["id"]: answer for answer in second.answers}
    _check_rows({answer["id"]: answer for answer in first.answers}, theirs, names)
    answers = [(answer, theirs[answer["id"]]) for answer in first.answers]
    tasks = by_task([answer["task"] for answer, _ in answers])
    rows = []
    for name, metric in metrics.items():
        references = [mine["references"] for mine, _ in answers]
        extra = [mine.get("extra", {}) for mine, _ in answers]
        said = ([pair[side]["prediction"] for pair in answers] for side in (0, 1))
        one, other = (metric.over(texts, references, extra=extra) for texts in said)
        for task, places in [(None, list(range(len(answers)))), *tasks.items()]:
            own = one[places], other[places]
            test = paired(metric, *own, level=LEVEL, draws=draws, seed=seed)
            rows.append(Compared(name, task, len(places), metric.value(own[0]), metric.value(own[1]), test))
    asked = first.about["asked"], second.about["asked"]
    differs = {
        key: (asked[0].get(key), asked[1].get(key))
        for key in dict.fromkeys([*asked[0], *asked[1]])
        if key not in ("model", "spec", "data") and asked[0].get(key) != asked[1].get(key)
    }
    return Comparison(*names, {name: metric.id for name, metric in metrics.items()}, differs, tuple(rows))


def _name(record: Record) -> str:
    return str(record.folder or record.about["model"]["path"])


def _check_data(first: Record, second: Record, names: tuple[str, str]) -> None:
    mine, theirs = ({file["sha256"]: file["file"] for file in one.about["data"]} for one in (first, second))
    if mine.keys() != theirs.keys():
        only = [
            f"{names[side]} has {name} (sha256 {digest:.12})"
            for side, own, other in ((0, mine, theirs), (1, theirs, mine))
            for digest, name in own.items()
            if digest not in other
        ]
        raise RecordError(f"the data are not the same, so that nothing is compared: {'; '.join(only)}")


def _check_rows(mine: Mapping[Any, Any], theirs: Mapping[Any, Any], names: tuple[str, str]) -> None:
    for own, other, here, there in ((mine, theirs, names[0], names[1]), (theirs, mine, names[1], names[0])):
        if only := [key for key in own if key not in other]:
            shown = ", ".join(map(repr, only[:SHOWN])) + ", ..." * (len(only) > SHOWN)
            raise RecordError(
                f"{len(only):,} of {len(own):,} rows of {here} are not in {there}: {shown}; evaluate both with the "
                "same rows (--limit, --seed, --task, --bad-audio)"
            )


def _shared(first: Record, second: Record, names: tuple[str, str]) -> dict[str, Metric]:
    ids = [{name: found["id"] for name, found in one.about["metrics"].items()} for one in (first, second)]
    both = [name for name, found in ids[0].items() if ids[1].get(name) == found]
    if not both:
        told = "; ".join(f"{name}: {', '.join(own.values()) or 'none'}" for name, own in zip(names, ids, strict=True))
        raise RecordError(f"no metric was taken of both with the same options ({told}); say which with --metrics")
    return {name: metric for name, metric in first.metrics.items() if name in both}
