"""What a run that is done left: its answers, its loss and its time; in its folder, or in a record that may travel."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from usam.evaluation.grid import Cell
from usam.evaluation.identity import identity, is_of, made_of
from usam.metrics import Metric, Statistics
from usam.saving import write_whole
from usam.spec.page import SpecError
from usam.training.checkpoints import PREDICTIONS
from usam.training.routing import UNNAMED

BEGUN = "ablation.json"  # in a run's folder, written before it begins: what it is made of
FORMAT = 1
LOSS = "loss"
TEXT = "cross_entropy"  # the loss that stands in the table where all variations have it
ANSWER = ("id", "task", "prediction", "references")
EXTRA = "extra"  # the columns that metrics read, where they do


@dataclass(frozen=True)
class Result:
    """What one run that is done left."""

    steps: int
    step: int
    """Of the model that was evaluated: the last, or the best."""
    losses: Mapping[str, float]
    seconds: float | None
    """Of training; None where it was interrupted after its last step."""
    answers: Sequence[Mapping[str, Any]]
    """To the held-out rows: `id`, `task`, `prediction`, `references`, and `extra` where metrics read columns."""

    @property
    def rows(self) -> list[Any]:
        """What makes two runs' answers those to the same rows."""
        return [(line["id"], line["task"], line["references"]) for line in self.answers]

    def statistics(self, metric: Metric, task: str | None) -> Statistics:
        """What a metric counts in each answer, or in those of a task."""
        lines = [line for line in self.answers if task is None or (line["task"] or UNNAMED) == task]
        extra = [line.get("extra", {}) for line in lines]
        return metric.over([line["prediction"] for line in lines], [line["references"] for line in lines], extra=extra)


def saved(folder: Path) -> bool:
    """Whether a run's folder holds a trained model and its log."""
    return (folder / "config.json").is_file() and (folder / "trainer_state.json").is_file()


def begun(cell: Cell) -> dict[str, Any] | None:
    """What was written when a run began; None where none did."""
    try:
        found: dict[str, Any] = json.loads((cell.folder / BEGUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def in_folder(cell: Cell) -> bool:
    """Whether the very run that is asked for is done in its folder."""
    return saved(cell.folder) and is_of(cell, begun(cell))


def result(cell: Cell) -> Result:
    """Of a run that is done: from its folder, else from its record.

    Raises:
        SpecError: it was not evaluated where it ended.
    """
    return _of_folder(cell) if in_folder(cell) else _of_record(recorded(cell) or {})


def _of_folder(cell: Cell) -> Result:
    log = json.loads((cell.folder / "trainer_state.json").read_text(encoding="utf-8"))
    steps = int(log["global_step"])
    best = cell.run.train.get("load_best_model_at_end") and log.get("best_global_step")
    step = int(best or steps)
    found = [line for line in log["log_history"] if "eval_loss" in line and line["step"] == step]
    if not found:
        raise SpecError(
            f"{cell.folder}: was not evaluated at its step {step}, where it ended: leave train.eval_strategy "
            "out, which evaluates once in the end, or let train.eval_steps divide the steps"
        )
    losses = {LOSS: float(found[-1]["eval_loss"]), TEXT: float(found[-1].get(f"eval_loss_{TEXT}", math.nan))}
    times = [line["train_runtime"] for line in log["log_history"] if "train_runtime" in line]
    part = steps - int((begun(cell) or {}).get("from", 0))  # what was not interrupted
    seconds = times[-1] * steps / part if times and part > 0 else None
    file = cell.folder / PREDICTIONS / f"step-{step}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return Result(steps, step, losses, seconds, [json.loads(line) for line in lines])


# Records


def write_record(cell: Cell) -> None:
    """Write what a run that is done in its folder left into its record, with what it is made of.

    Raises:
        SpecError: it was not evaluated where it ended.
    """
    assert cell.record is not None
    if not in_folder(cell) or is_recorded(cell):
        return
    left, parts = _of_folder(cell), made_of(cell)
    about = {
        "format": FORMAT,
        "variation": cell.variation.name,
        "overrides": list(cell.variation.overrides),
        "seed": cell.seed,
        "identity": identity(parts),
        "made_of": parts,
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "steps": left.steps,
        "step": left.step,
        "losses": {name: value for name, value in left.losses.items() if math.isfinite(value)},
        "seconds": left.seconds,
    }
    text = json.dumps(about, indent=1, ensure_ascii=False)
    kept = [
        {key: line[key] for key in ANSWER} | ({EXTRA: line[EXTRA]} if line.get(EXTRA) else {}) for line in left.answers
    ]
    answers = [json.dumps(line, ensure_ascii=False) for line in kept]
    lines = ",\n  ".join(answers)  # one a line, so that two records can be compared
    cell.record.parent.mkdir(parents=True, exist_ok=True)
    write_whole(cell.record, f'{text[:-2]},\n "answers": [\n  {lines}\n ]\n}}\n')


def recorded(cell: Cell) -> dict[str, Any] | None:
    """A run's record; None where it has none.

    Raises:
        SpecError: it is broken.
    """
    if cell.record is None or not cell.record.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(cell.record.read_text(encoding="utf-8"))
        _of_record(found)
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"{cell.record}: no record of a run ({type(error).__name__}: {error}); remove it, and the run is made anew"
        ) from error
    if found.get("format") != FORMAT:
        raise SpecError(f"{cell.record}: format {found.get('format')!r} is not {FORMAT}, which this usam reads")
    return found


def is_recorded(cell: Cell) -> bool:
    """Whether the record of a run is that of the very run that is asked for."""
    return is_of(cell, recorded(cell))


def _of_record(found: Mapping[str, Any]) -> Result:
    losses = {name: float(found["losses"].get(name, math.nan)) for name in (LOSS, TEXT)}
    answers = [{key: line[key] for key in ANSWER} for line in found["answers"]]
    return Result(int(found["steps"]), int(found["step"]), losses, found["seconds"], answers)
