"""A table as Markdown, CSV, LaTeX and JSON, and its figures as SVG."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usam.evaluation.ablate import duration
from usam.evaluation.table import Column, Difference, Row, Score, Table
from usam.registry import ComponentError
from usam.saving import write_whole

NONE = "–"
ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def write(table: Table, folder: Path) -> list[Path]:
    """Write `table.md`, `.csv`, `.tex` and `.json` into a folder; returns the files."""
    texts = {"md": markdown(table), "csv": as_csv(table), "tex": latex(table), "json": as_json(table)}
    for kind, text in texts.items():
        write_whole(folder / f"table.{kind}", text)
    return [folder / f"table.{kind}" for kind in texts]


def cells(table: Table) -> list[list[str]]:
    """The table as text: a row of heads, then one a variation."""
    heads = ["variation"]
    for column in table.columns:
        heads += [f"{column.name} {'↑' if column.higher_is_better else '↓'}", "difference"]
        heads += ["p"] if _tested(table, column) else []
    lines = [[*heads, "parameters", "trainable", "tokens/s", "time", "seeds"]]
    for row in table.rows:
        line = [row.name]
        for column in table.columns:
            score = row.scores.get(column.name)
            line += [_value(score), _difference(score)] + ([_p(score)] if _tested(table, column) else [])
        took = NONE if row.seconds is None else duration(row.seconds)
        lines.append([*line, f"{row.parameters:,}", f"{row.trainable:,}", f"{row.tokens:g}", took, str(len(row.seeds))])
    return lines


def _tested(table: Table, column: Column) -> bool:
    scores = [row.scores.get(column.name) for row in table.rows]
    return any(score and score.difference and score.difference.p is not None for score in scores)


def _value(score: Score | None) -> str:
    if score is None:
        return NONE
    around = "" if score.low is None or score.high is None else f" [{_number(score.low)}, {_number(score.high)}]"
    return _number(score.value) + around


def _difference(score: Score | None) -> str:
    found = score.difference if score else None
    if found is None:
        return NONE
    around = "" if found.low is None or found.high is None else f" [{_signed(found.low)}, {_signed(found.high)}]"
    return _signed(found.value) + around


def _p(score: Score | None) -> str:
    found = score.difference if score else None
    if found is None or found.p is None:
        return NONE
    return "<0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{_number(abs(value))}"


def markdown(table: Table) -> str:
    """As a page of Markdown, with what the numbers mean and what went wrong below."""
    heads, *lines = [[cell.replace("|", r"\|") for cell in line] for line in cells(table)]
    page = [heads, ["---"] + ["---:"] * (len(heads) - 1), *lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in page)
    return "\n\n".join([text, *_faults(table), *table.notes]) + "\n"


def _faults(table: Table) -> list[str]:
    lines = [f"- {row.name}, seed {seed}: {why}" for row in table.rows for seed, why in row.faults.items()]
    return ["\n".join(["Not in these numbers:", *lines])] if lines else []


def latex(table: Table) -> str:
    """As a tabular of LaTeX, which needs no package."""
    heads, *lines = [[_escaped(cell) for cell in line] for line in cells(table)]
    body = [" & ".join(line) + r" \\" for line in lines]
    notes = [f"% {note}" for note in [*"\n".join(_faults(table)).splitlines(), *table.notes]]
    return "\n".join(
        [*notes, rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\hline", " & ".join(heads) + r" \\", r"\hline",
         *body, r"\hline", r"\end{tabular}", ""]
    )  # fmt: skip


def _escaped(text: str) -> str:
    return re.sub("|".join(map(re.escape, ESCAPED)), lambda found: ESCAPED[found[0]], text)


def as_csv(table: Table) -> str:
    """One line for each variation and column, with every number in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["variation", "metric", "task", "value", "low", "high", "difference", "difference_low", "difference_high", "p",
         "exact", "samples", "seeds", "paired_seeds", "parameters", "trainable", "tokens_a_second", "seconds", "faults"]
    )  # fmt: skip
    for row in table.rows:
        for column in table.columns:
            writer.writerow(_line(row, column))
    return out.getvalue()


def _line(row: Row, column: Column) -> list[Any]:
    score = row.scores.get(column.name)
    own = [score.value, score.low, score.high] if score else [None] * 3
    apart: Difference | None = score.difference if score else None
    tested = [apart.value, apart.low, apart.high, apart.p, apart.exact] if apart else [None] * 5
    faults = "; ".join(f"seed {seed}: {why}" for seed, why in row.faults.items())
    return [
        row.name, column.metric, column.task, *own, *tested, score.samples if score else None, len(row.seeds),
        apart.seeds if apart else None, row.parameters, row.trainable, row.tokens, row.seconds, faults,
    ]  # fmt: skip


def as_json(table: Table) -> str:
    """All of it; what is no number is null."""
    return json.dumps(_finite(table.to_dict()), indent=2, ensure_ascii=False) + "\n"


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def draw(table: Table, folder: Path) -> list[Path]:
    """A figure for each column, `<metric>.svg`: bars with their intervals, black on white; returns the files.

    Raises:
        ComponentError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ComponentError(
            "matplotlib is not installed: pip install 'usam[figures]', or pip install matplotlib"
        ) from error
    files = []
    for column in table.columns:
        rows = [(row, score) for row in table.rows if (score := row.scores.get(column.name)) is not None]
        if not rows:
            continue
        with matplotlib.rc_context({"svg.hashsalt": "usam", "svg.fonttype": "none"}):
            figure = Figure(figsize=(7, 1.4 + 0.42 * len(rows)), layout="constrained")
            bars(figure.subplots(), table, column, rows)
            out = io.BytesIO()
            figure.savefig(out, format="svg", metadata={"Date": None})
        files.append(folder / f"{re.sub(r'[^0-9A-Za-z_-]+', '-', column.name)}.svg")
        write_whole(files[-1], out.getvalue())
    return files


def bars(axes: Any, table: Table, column: Column, rows: Sequence[tuple[Row, Score]]) -> None:
    """A column as bars with their intervals and seeds, one a row, on axes of matplotlib."""
    for place, (row, score) in enumerate(rows):
        own = row.name == table.against
        axes.barh(place, score.value, color="0.75" if own else "white", edgecolor="black", hatch="//" if own else None)
        if score.low is not None and score.high is not None:
            reach = [[max(0.0, score.value - score.low)], [max(0.0, score.high - score.value)]]
            axes.errorbar(score.value, place, xerr=reach, color="black", capsize=4, linewidth=1.2)
        axes.plot(list(score.by_seed.values()), [place] * len(score.by_seed), "k.", markersize=4)
    axes.set_yticks(range(len(rows)), [row.name for row, _ in rows])
    axes.invert_yaxis()
    better = "higher" if column.higher_is_better else "lower"
    axes.set_xlabel(f"{column.name} ({better} is better)")
    axes.set_title(
        f"Hatched: '{table.against}'. Dots: seeds. Lines: 95 % intervals over samples.", fontsize=9, loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
