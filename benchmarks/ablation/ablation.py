"""The paper's ablation in miniature: makes the runs of grid.yaml that are not recorded, and writes docs/ablation.md.

python benchmarks/ablation/ablation.py --folder runs/paper
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from _record import machine  # noqa: E402

GRID = HERE / "grid.yaml"
REMARKS = HERE / "remarks.md"  # written by hand, of the table as it is
RECORDS = HERE.parent / "results" / "ablation"
DOCS = ROOT / "docs"
BASE = "base"
COMMAND = "make ablation"
CLIPS = {"train": 2000, "dev": 100, "test": 200}  # of each task
EPOCHS = (
    1  # a third of the demo's, so that all rows fit into two hours; development tells words by then: 11 % are wrong
)


@dataclass(frozen=True)
class Task:
    """A task of the miniature, and what the paper measures of the task that it stands for."""

    title: str
    column: str
    """Of `usam ablate`'s table."""
    ours: str
    theirs: str
    lower_is_better: bool = False


TASKS = {
    "asr": Task("Speech recognition", "wer asr", "WER", "%WER clean, other", lower_is_better=True),
    "s2tt": Task("Translation of speech", "bleu_zh s2tt", "BLEU of Chinese characters", "BLEU4"),
    "aac": Task("Captions of sounds", "cider_d aac", "CIDEr-D", "METEOR, SPIDEr"),
    "mc": Task("Captions of music", "rouge_l mc", "ROUGE-L", "BLEU4, ROUGE-L"),
}
# Table 3 of U-SAM (arXiv 2505.13880v3), by the names in grid.yaml.
PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    BASE: {"asr": (2.0, 5.0), "s2tt": (38.3,), "aac": (26.7, 49.0), "mc": (6.0, 22.5)},
    "without Whisper": {"asr": (39.1, 45.0), "s2tt": (14.7,), "aac": (27.2, 50.1), "mc": (6.8, 23.8)},
    "without CED": {"asr": (2.2, 5.1), "s2tt": (39.0,), "aac": (10.9, 24.0), "mc": (5.7, 20.0)},
    "without MERT": {"asr": (2.1, 5.2), "s2tt": (38.7,), "aac": (26.5, 49.3), "mc": (2.7, 11.4)},
    "without TAPM": {"asr": (5.1, 7.9), "s2tt": (31.0,), "aac": (28.0, 51.5), "mc": (4.0, 16.8)},
    "without SACLM": {"asr": (3.0, 6.5), "s2tt": (32.1,), "aac": (25.0, 47.9), "mc": (5.2, 17.0)},
    "without TAPM and SACLM": {"asr": (7.0, 8.5), "s2tt": (29.0,), "aac": (22.7, 36.0), "mc": (3.5, 15.2)},
}
BETTER, WORSE, EITHER, SMALL = "better", "worse", "better and worse", "not told apart"
NONE = "–"


def published(row: str, task: str) -> str:
    """Whether the paper's row is better or worse than its whole model."""
    signs = {ours > whole for ours, whole in zip(PAPER[row][task], PAPER[BASE][task], strict=True)}
    if len(signs) > 1:
        return EITHER
    return WORSE if signs.pop() == TASKS[task].lower_is_better else BETTER


def found(score: Mapping[str, Any] | None, task: str) -> str | None:
    """Whether a row is better or worse than the base, by the interval of the difference; None while it is not known."""
    apart = (score or {}).get("difference")
    if apart is None:
        return None
    if apart["low"] <= 0 <= apart["high"]:
        return SMALL
    return WORSE if (apart["value"] > 0) == TASKS[task].lower_is_better else BETTER


def verdict(row: str, task: str, ours: str | None) -> str:
    """Whether a row's direction is the paper's."""
    if row == BASE or row not in PAPER or ours is None:
        return NONE
    theirs = published(row, task)
    if EITHER in (ours, theirs) or ours == SMALL:
        return "open"
    return "yes" if ours == theirs else "**no**"


# The page


def page(table: Mapping[str, Any] | None, about: Mapping[str, Any]) -> str:
    """docs/ablation.md: of the table that `usam ablate` wrote, None before the first run."""
    rows = table["rows"] if table else []
    parts = [
        "# The paper's ablation in miniature",
        "What each part of the paper's model is worth, trained on the four tasks of the [miniature world](world.md): "
        "small encoders that were each trained on a domain of their own and then frozen, a small language model, "
        "synthesised clips. Beside it stand the numbers of the paper's Table 3, whose encoders, language model and "
        "data are thousands of times larger: what can be compared is the direction of a difference, and not its size.",
        f"This page is written by `{COMMAND}`, which makes what is not recorded in `benchmarks/results/ablation` and "
        "may be stopped at any time. The rows are those of `benchmarks/ablation/grid.yaml`, a file of "
        "[`usam ablate`](ablate.md). A run is that of `usam demo`, but of one epoch. What stands here was found on the "
        "test split, and nothing was chosen by it.",
        _progress(table, about),
    ]
    if any(row["seeds"] for row in rows):
        assert table is not None
        parts += ["## Does the direction agree?", _summary(rows)]
        parts += ["## What to make of it", REMARKS.read_text(encoding="utf-8").rstrip()]
        for task, own in TASKS.items():
            parts += [f"## {own.title}", _of_task(rows, task)]
            parts += [f"![{own.ours} of each row, with intervals and the value of each seed]({figure(own)})"]
        parts += [
            "## Size and time",
            _sizes(rows),
            "## What the numbers are",
            "\n".join(f"- {n}" for n in table["notes"]),
        ]
    return "\n\n".join(parts) + "\n"


def figure(task: Task) -> str:
    """Where the figure of a task stands, from the page."""
    return f"ablation/{task.column.replace(' ', '-')}.svg"


def _progress(table: Mapping[str, Any] | None, about: Mapping[str, Any]) -> str:
    if table is None:
        return "**No run is done yet.**"
    asked = len(table["rows"]) * len(table["seeds"])
    done = sum(len(row["seeds"]) for row in table["rows"])
    seeds = ", ".join(map(str, table["seeds"]))
    text = f"Done: {done} of {asked} runs, seeds {seeds}; {about['machine']}; {about['date']}."
    missing = [row["name"] for row in table["rows"] if len(row["seeds"]) < len(table["seeds"])]
    if missing:
        text += f" **Rows of which runs are still missing: {', '.join(missing)}.** Their numbers are of fewer seeds."
    return text


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["row", *(f"{task.title.lower()}" for task in TASKS.values())]
    lines, said = [], []
    for row in rows:
        if row["name"] == BASE or row["name"] not in PAPER:
            continue
        line = []
        for task, own in TASKS.items():
            ours = found(row["scores"].get(own.column), task)
            said.append(verdict(row["name"], task, ours))
            line.append(NONE if ours is None else f"{said[-1]}: {ours}, paper {published(row['name'], task)}")
        lines.append([row["name"], *line])
    counts = f"{said.count('yes')} agree, {said.count('**no**')} contradict, {said.count('open')} are open"
    return (
        f"Of {len(said)} directions {counts}, {said.count(NONE)} are not known yet. Open: the 95 % interval of our "
        "difference holds zero, or the paper's own numbers for the task point both ways.\n\n" + _markdown(heads, lines)
    )


def _of_task(rows: Sequence[Mapping[str, Any]], task: str) -> str:
    own = TASKS[task]
    arrow = "↓" if own.lower_is_better else "↑"
    heads = ["row", f"{own.ours} {arrow}", "difference", "p", f"paper: {own.theirs}", "agrees"]
    lines = []
    for row in rows:
        name, score = row["name"], row["scores"].get(own.column)
        apart = (score or {}).get("difference")
        lines.append(
            [
                "the whole model" if name == BASE else name,
                NONE if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]",
                NONE if apart is None else f"{apart['value']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]",
                NONE
                if apart is None or apart["p"] is None
                else "<0.001"
                if apart["p"] < 0.001
                else f"{apart['p']:.3f}",
                ", ".join(map(str, PAPER[name][task])) if name in PAPER else NONE,
                verdict(name, task, found(score, task)),
            ]
        )
    return _markdown(heads, lines)


def _sizes(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["row", "parameters", "trainable", "audio tokens a second", "seconds of training", "seeds"]
    lines = [
        [
            "the whole model" if row["name"] == BASE else row["name"],
            f"{row['parameters']:,}", f"{row['trainable']:,}", f"{row['tokens']:g}",
            NONE if row["seconds"] is None else f"{row['seconds']:.0f}", str(len(row["seeds"])),
        ]
        for row in rows
    ]  # fmt: skip
    return _markdown(heads, lines)


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *lines])


def state(records: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The table that was written last, and what is said of it; None before the first."""
    file = records / "table.json"
    if not file.is_file():
        return None, {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    return kept["table"], kept["about"]


def publish(output: Path, records: Path, docs: Path) -> None:
    """Keep the table that `usam ablate` wrote into a folder, and write the page and its figures from it."""
    table = json.loads((output / "table.json").read_text(encoding="utf-8"))
    about = {"machine": machine(), "date": date.today().isoformat(), "command": COMMAND}
    records.mkdir(parents=True, exist_ok=True)
    kept = json.dumps({"about": about, "table": table}, indent=1, ensure_ascii=False)
    (records / "table.json").write_text(kept + "\n", encoding="utf-8")
    (docs / "ablation").mkdir(exist_ok=True)
    for task in TASKS.values():
        drawn = output / Path(figure(task)).name
        if drawn.is_file():
            shutil.copyfile(drawn, docs / figure(task))
    (docs / "ablation.md").write_text(page(*state(records)), encoding="utf-8")


def prepare(folder: Path) -> None:
    """Write the run of the demo with the test split in place of development's, for nothing is chosen here any more."""
    from usam.demo import recipe

    made = recipe.prepare(folder, clips=CLIPS, epochs=EPOCHS)
    run = yaml.safe_load(made.run_file.read_text(encoding="utf-8"))
    run["data"]["eval"] = [str(file) for file in made.world["test"].values()]
    run["eval"] = {"generate": {"metrics": ["wer"], "limit": 400, "max_new_tokens": 100, "batch_size": 50}}
    (folder / "base.yaml").write_text(recipe.page(run), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, make the runs, record, write the page; returns the status of `usam ablate`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/ablation"), help="of the prepared run, and of the runs"
    )
    parser.add_argument("--jobs", default="2", help="runs at a time")
    parser.add_argument("--prepared", action="store_true", help="the folder holds base.yaml already")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="make this row alone; repeatable")
    parser.add_argument("--records", type=Path, default=RECORDS, help="what runs found, kept for another day")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page goes")
    options = parser.parse_args(arguments)
    if not options.prepared:
        prepare(options.folder)
    grid = options.folder / "ablation.yaml"
    shutil.copyfile(GRID, grid)
    command = [sys.executable, "-m", "usam.cli", "ablate", str(grid), "--jobs", options.jobs]
    command += ["--records", str(options.records), *(word for row in options.only for word in ("--only", row))]
    status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    output = options.folder / "ablation"
    if (output / "table.json").is_file():
        publish(output, options.records, options.docs)
    return status


if __name__ == "__main__":
    sys.exit(main())
