"""What lies in folders: runs with their logs, records of `usam eval`, and tables of `usam ablate`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from usam.evaluation import record
from usam.evaluation.record import Record
from usam.evaluation.table import Column, Difference, Row, Score, Table
from usam.model.checkpoint import read_usam_config
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import Spec
from usam.training.checkpoints import checkpoints

LOG, TABLE = "trainer_state.json", "table.json"
ABSENT = (ComponentError, SpecError, OSError, ValueError)
"""What a part of a run that is gone, or moved away, is told by."""


class ReportError(ValueError):
    """There is nothing to draw in a folder, or a file in it is broken: the message names it and says what to do."""


@dataclass(frozen=True)
class Series:
    """One value of a log over its steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def last(self) -> float:
        """The value at the end."""
        return self.values[-1]


@dataclass(frozen=True)
class Trained:
    """A run's folder, read."""

    name: str
    folder: Path
    """Where its model, its run file and its log lie: of a run that is not done its newest checkpoint."""
    log: tuple[Mapping[str, Any], ...]
    step: int
    planned: int
    done: bool
    """Whether the folder holds the model of the run's end."""

    def series(self, key: str) -> Series:
        """What the log says of a key; of two lines of one step the later one counts."""
        found = {line["step"]: float(line[key]) for line in self.log if _is_number(line.get(key)) and "step" in line}
        return Series(tuple(sorted(found)), tuple(found[step] for step in sorted(found)))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the log that have numbers, in the order in which they first came."""
        return tuple(dict.fromkeys(key for line in self.log for key, value in line.items() if _is_number(value)))

    @property
    def odd(self) -> list[str]:
        """Keys of the log with a value that is no finite number."""
        pairs = ((key, value) for line in self.log for key, value in line.items())
        return list(dict.fromkeys(key for key, value in pairs if isinstance(value, float) and not _is_number(value)))

    @cached_property
    def spec(self) -> Spec | None:
        """The spec of its model; None where the folder holds none that can be read."""
        try:
            return read_usam_config(self.folder).parsed
        except ABSENT:
            return None

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The names of its losses."""
        named = [key.removeprefix("loss_") for key in self.keys if key.startswith("loss_") and "/" not in key]
        return tuple(dict.fromkeys([*named, *(self.spec.losses if self.spec is not None else ())]))

    @cached_property
    def metrics(self) -> dict[str, str]:
        """The id of each metric of `eval.generate`, by the name that it is logged under."""
        found: dict[str, str] = {}
        for line in self.log:
            for key, value in line.items():
                if key.startswith("eval_") and key.endswith("_id") and isinstance(value, str):
                    found[key.removeprefix("eval_").removesuffix("_id")] = value
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Found:
    """All that some folders hold."""

    runs: tuple[Trained, ...]
    records: Mapping[str, Record]
    tables: Mapping[str, Table]


def find(places: Iterable[str | Path] | Mapping[str, str | Path]) -> Found:
    """What lies in folders: each a run, a record, an ablation's output, or a folder of these.

    The records in a run's folder, and in `eval/` there, are the run's.

    Args:
        places: folders, or patterns of them such as `scores/*`; or a map that gives each a name.

    Raises:
        ReportError: no such folder, nothing in it that could be drawn, or a file that is broken.
        RecordError: a record is broken, or not finished.
    """
    given = places.items() if isinstance(places, Mapping) else [("", place) for place in places]
    listed: dict[Path, str] = {}
    for name, place in given:
        folders = _matched(place)
        for folder in folders:
            first = [str(name), *([folder.name] if len(folders) > 1 else [])]
            for inner in _inside(folder):
                parts = [*first, *inner.relative_to(folder).parts]
                listed.setdefault(inner.resolve(), "/".join(parts) if name else "")
    names = _named(listed)
    return Found(
        tuple(_trained(folder, names[folder]) for folder in listed if _log(folder) is not None),
        {names[folder]: Record.read(folder) for folder in listed if _is_record(folder)},
        {names[folder]: _table(folder / TABLE) for folder in listed if (folder / TABLE).is_file()},
    )


def _matched(place: str | Path) -> list[Path]:
    folder = Path(place).expanduser()
    if folder.is_dir():
        return [folder]
    if folder.exists():
        raise ReportError(f"{place}: is a file; name the folder that it lies in")
    if any(c in str(place) for c in "*?["):
        root = Path(folder.anchor or ".")
        found = sorted(one for one in root.glob(str(folder.relative_to(folder.anchor))) if one.is_dir())
        if found:
            return found
    raise ReportError(f"{place}: no such folder; name the train.output_dir of a run, or the folder of a record")


def _inside(folder: Path) -> list[Path]:
    """The folders with something to draw: this one and the records in it, else those in it."""
    if _holds(folder):
        return [folder, *(one.parent for one in (*folder.glob("*/eval.json"), *folder.glob("eval/*/eval.json")))]
    found = [one for one in sorted(folder.iterdir()) if one.is_dir() and _holds(one)]
    if not found:
        raise ReportError(
            f"{folder}: neither a run (no {LOG} in it or in a checkpoint), nor a record of usam eval (no "
            f"{record.RECORD}), nor what usam ablate wrote (no {TABLE}), and none of its folders is one"
        )
    return found


def _holds(folder: Path) -> bool:
    return _log(folder) is not None or _is_record(folder) or (folder / TABLE).is_file()


def _is_record(folder: Path) -> bool:
    return (folder / record.RECORD).is_file() or (folder / record.UNFINISHED).is_file()


def _log(folder: Path) -> Path | None:
    """The log of a run; of one that is not done that of its newest checkpoint which has one."""
    places = [folder, *reversed(checkpoints(folder))]
    return next((place / LOG for place in places if (place / LOG).is_file()), None)


def _named(listed: Mapping[Path, str]) -> dict[Path, str]:
    """Names that were given, else the ends of paths, as long as they must be to differ."""
    names = {}
    for path, name in listed.items():
        ends = ("/".join(path.parts[-depth:]) for depth in range(1, len(path.parts) + 1))
        names[path] = name or next(end for end in ends if _ending(listed, end) == 1)
    return names


def _ending(listed: Iterable[Path], end: str) -> int:
    return sum("/".join(path.parts[-end.count("/") - 1 :]) == end for path in listed)


def _trained(folder: Path, name: str) -> Trained:
    file = _log(folder)
    assert file is not None
    state = _map(file)
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(line, dict) for line in log):
        raise ReportError(f"{file}: 'log_history' is no list of maps; was it written by usam train?")
    steps: list[Any] = [state.get(key) for key in ("global_step", "max_steps")]
    step, planned = (int(value) if _is_number(value) else 0 for value in steps)
    return Trained(name, file.parent, tuple(log), step, planned, file.parent == folder)


def _map(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{file}: no JSON: {error}; copy it again, or leave this folder out") from error
    if not isinstance(found, dict):
        raise ReportError(f"{file}: expected a JSON map, found {json.dumps(found):.60}")
    return found


def _table(file: Path) -> Table:
    """What `usam ablate` wrote; scores that are no number are left out of their rows."""
    tree = _map(file)
    try:
        columns = tuple(Column(**column) for column in tree["columns"])
        rows = tuple(_row(row) for row in tree["rows"])
        seeds, notes = tuple(tree["seeds"]), tuple(tree["notes"])
        return Table(tree["file"], tree["against"], tree["budget"], seeds, columns, rows, notes)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
        raise ReportError(f"{file}: not what usam ablate writes: {what}; usam ablate --table writes it anew") from error


def _row(tree: Mapping[str, Any]) -> Row:
    scores = {name: _score(score) for name, score in tree["scores"].items() if score and score["value"] is not None}
    faults = {int(seed): why for seed, why in tree["faults"].items()}
    lists = {"overrides": tuple(tree["overrides"]), "seeds": tuple(tree["seeds"])}
    return Row(**{**tree, **lists, "scores": scores, "faults": faults})


def _score(tree: Mapping[str, Any]) -> Score:
    difference = Difference(**tree["difference"]) if tree["difference"] else None
    by_seed = {int(seed): value for seed, value in tree["by_seed"].items() if value is not None}
    return Score(**{**tree, "by_seed": by_seed, "difference": difference})
