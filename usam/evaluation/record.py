"""The record of an evaluation: what was asked of which model, every answer as it came, and what the answers score."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usam.evaluation.statistics import interval
from usam.metrics import Metric
from usam.saving import whole
from usam.training.held_out import by_task, named

RECORD, ANSWERS, UNFINISHED, JOURNAL = "eval.json", "answers.jsonl", "asked.json", "journal-*.jsonl"
FORMAT = 1
LEVEL = 0.95
KEYS = ("asked", "data", "metrics", "bootstrap", "answered", "cut_off", "skipped")  # of a record, beside others
ANSWER = ("id", "task", "prediction", "references")  # of an answer


class RecordError(ValueError):
    """A folder holds no record, or one that is broken: the message names the file and says what to do."""


@dataclass(frozen=True)
class Record:
    """What an evaluation found."""

    about: Mapping[str, Any]
    """All but the answers; `docs/evaluation.md` has the keys."""
    answers: Sequence[Mapping[str, Any]]
    """In the order of the data: `id`, `row` (file:line), `task`, `prompt` (as rendered), `prediction`, `complete` (not
    cut off), `tokens`, `references`, `extra` (the row's `meta` and `x_` columns), `scores`, `details`."""
    folder: Path | None = None
    """Where it lies."""

    @classmethod
    def read(cls, folder: str | Path) -> Record:
        """The record in a folder.

        Raises:
            RecordError: there is none, it is unfinished, or a file in it is broken.
        """
        folder = Path(folder)
        if not (folder / RECORD).is_file():
            if (folder / UNFINISHED).is_file():
                raise RecordError(f"{folder}: this evaluation is not finished; give its command again, and it goes on")
            raise RecordError(f"{folder}: no {RECORD} in it; 'usam eval MODEL DATA --output {folder}' writes one")
        about = _parsed((folder / RECORD).read_text(encoding="utf-8"), str(folder / RECORD))
        if (found := about.get("format")) != FORMAT:
            raise RecordError(f"{folder / RECORD}: format {found!r} is not {FORMAT}, which this usam reads")
        if lacking := [key for key in KEYS if key not in about]:
            raise RecordError(f"{folder / RECORD}: has no '{lacking[0]}'; evaluate again, into another folder")
        answers = read_lines(folder / ANSWERS)
        if len(answers) != about["answered"]:
            raise RecordError(f"{folder / ANSWERS}: {len(answers)} answers, and {RECORD} says {about['answered']}")
        places = [f"{folder / ANSWERS}:{i + 1}" for i in range(len(answers))]
        for answer, place in zip(answers, places, strict=True):
            if lacking := [key for key in ANSWER if key not in answer]:
                raise RecordError(f"{place}: has no '{lacking[0]}'; evaluate again, into another folder")
            if not isinstance(answer["id"], (str, int)):
                raise RecordError(f"{place}: its 'id' is {answer['id']!r:.60}, and no text or whole number")
        check_ids([answer["id"] for answer in answers], places)
        return cls(about, answers, folder)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that it was scored by, with their options."""
        return named({name: found["component"] for name, found in self.about["metrics"].items()})

    def scored(self, metrics: Mapping[str, Metric], *, draws: int = 1000, seed: int = 0) -> Record:
        """The same answers, scored by these metrics as well; the model is not needed.

        Raises:
            ValueError: a metric reads a column that a row does not have, or cannot measure it; the row is named.
        """
        predictions = [answer["prediction"] for answer in self.answers]
        references = [answer["references"] for answer in self.answers]
        ids = [answer["id"] for answer in self.answers]
        extra = [answer.get("extra", {}) for answer in self.answers]
        tasks = by_task([answer["task"] for answer in self.answers])
        columns = {column: by_column(extra, column) for column in self.about.get("by", ())}
        groups = {(column, value): places for column, own in columns.items() for value, places in own.items()}
        values: dict[str, Any] = {}
        each: dict[str, Sequence[float]] = {}
        details: dict[str, list[dict[str, float]]] = {}
        for name, metric in metrics.items():
            score = metric(predictions, references, ids, extra)
            parts: dict[Any, Sequence[int]] = {"": range(len(predictions)), **tasks, **groups}
            found: dict[Any, dict[str, Any]] = {}
            for task, places in parts.items():
                own = score.statistics[list(places)]
                low, high = interval(metric, own, level=LEVEL, draws=draws, seed=seed)
                found[task] = {"value": metric.value(own), "low": low, "high": high, "samples": len(own)}
                found[task]["details"] = metric.details(own)
            values[name] = {
                "id": metric.id,
                "component": metric.config.to_dict(),
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                **found.pop(""),
                "by": {column: {value: found.pop((column, value)) for value in own} for column, own in columns.items()},
                "tasks": found,
            }
            each[name] = score.each
            details[name] = [metric.details(score.statistics[i : i + 1]) for i in range(len(ids))]
        answers = [
            {
                **answer,
                "scores": {**answer.get("scores", {}), **{name: each[name][i] for name in each}},
                "details": {**answer.get("details", {}), **{name: own[i] for name, own in details.items() if own[i]}},
            }
            for i, answer in enumerate(self.answers)
        ]
        bootstrap = {"level": LEVEL, "draws": draws, "seed": seed, "method": "percentile"}
        kept = self.about.get("metrics", {})
        return replace(
            self, about={**self.about, "metrics": {**kept, **values}, "bootstrap": bootstrap}, answers=answers
        )

    def write(self, folder: str | Path) -> Record:
        """Write it into a folder, whole; what is left there of an unfinished one goes."""
        with whole(folder, (UNFINISHED, JOURNAL)) as place:
            (place / ANSWERS).write_text("".join(map(line_of, self.answers)), encoding="utf-8")
            (place / RECORD).write_text(json.dumps(self.about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return replace(self, folder=Path(folder))

    def table(self) -> str:
        """The metrics, overall and by task, for people."""
        about = self.about
        most = about["asked"]["decoding"]["max_new_tokens"]
        notes = [f"{about['answered']:,} answers"]
        notes += [f"{about['cut_off']:,} cut off at {most:,} tokens"] if about["cut_off"] else []
        notes += [f"{len(about['skipped']):,} rows skipped"] if about["skipped"] else []
        rows = [["metric", "task", "value", f"{about['bootstrap']['level']:.0%} interval", "samples"]]
        for name, found in about["metrics"].items():
            groups = {
                f"{column.removeprefix('x_')}={value}": one
                for column, own in found.get("by", {}).items()
                for value, one in own.items()
            }
            for task, one in {"all": found, **found["tasks"], **groups}.items():
                low, high = number(one["low"]), number(one["high"])
                rows.append([name, task, number(one["value"]), f"{low} to {high}", f"{one['samples']:,}"])
        details = [
            f"{name}: {number(value)} {key}"
            for name, found in about["metrics"].items()
            for key, value in found.get("details", {}).items()
        ]
        ids = [f"{name}: {found['id']}" for name, found in about["metrics"].items()]
        told = [f"note: {note}" for note in about.get("notes", ())]
        return "\n".join([", ".join(notes), *aligned(rows if about["metrics"] else []), *details, *ids, *told])


def by_column(extra: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[int]]:
    """Places of the answers that have each value of a column, sorted; a list counts for each of its values."""
    found: dict[str, list[int]] = {}
    for place, own in enumerate(extra):
        value = own.get(column)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            found.setdefault(str(one), []).append(place)
    return dict(sorted(found.items()))


def line_of(answer: Mapping[str, Any]) -> str:
    """A line of JSON."""
    return json.dumps(answer, ensure_ascii=False) + "\n"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """A file of lines of JSON.

    Raises:
        RecordError: it is missing, or a line is broken, which is named.
    """
    if not file.is_file():
        raise RecordError(f"{file}: is missing; evaluate again, into another folder")
    lines = file.read_text(encoding="utf-8").split("\n")
    return [_parsed(line, f"{file}:{i}") for i, line in enumerate(lines, 1) if line]


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{where}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise RecordError(f"{where}: expected a JSON map, found {text:.60}")
    return found


def check_ids(ids: Sequence[Any], rows: Sequence[str]) -> None:
    """Refuse two rows of one id.

    Raises:
        RecordError: names the ids, and the rows that have them.
    """
    places: dict[Any, list[str]] = {}
    for name, row in zip(ids, rows, strict=True):
        places.setdefault(name, []).append(row)
    if twice := {name: found for name, found in places.items() if len(found) > 1}:
        shown = "; ".join(f"{name!r} in {', '.join(found)}" for name, found in list(twice.items())[:5])
        more = f", of {len(twice):,} such ids" if len(twice) > 5 else ""
        raise RecordError(f"an id names one row; several have {shown}{more}")


def number(value: float) -> str:
    """Four digits that say something."""
    return f"{value:.4g}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines, its columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
