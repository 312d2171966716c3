"""How good models are: metrics of records with their intervals, and an ablation's bars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from usam.evaluation.record import Record, number
from usam.evaluation.table import Column, Table
from usam.evaluation.writing import bars, cells
from usam.report.drawing import MARKERS, svg
from usam.report.page import Figure, Panel

BROAD = 4.6  # inches, where names stand beside bars
SURE = 0.05  # a p value below it is told as a difference


@dataclass(frozen=True)
class _Point:
    record: str
    task: str
    value: float
    low: float
    high: float
    samples: int

    @property
    def name(self) -> str:
        return f"{self.task}, {self.record}" if self.task else self.record

    @property
    def told(self) -> str:
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"


def evaluations(records: Mapping[str, Record]) -> Figure:
    """The values of records, metric by metric; values of other options or versions are other metrics."""
    panels, says, missing = [], [], []
    table = [["record", "metric", "task", "value", "interval", "samples", "id"]]
    found: dict[tuple[str, str], list[_Point]] = {}
    better: dict[tuple[str, str], bool] = {}
    for name, record in records.items():
        for metric, about in record.about["metrics"].items():
            key = metric, str(about["id"])
            better[key] = bool(about["higher_is_better"])
            for task, one in _parts(about):
                point = _Point(name, task, one["value"], one["low"], one["high"], one["samples"])
                found.setdefault(key, []).append(point)
                around = f"{number(point.low)} to {number(point.high)}"
                table.append([name, metric, task or "all", number(point.value), around, f"{point.samples:,}", key[1]])
        skipped = len(record.about["skipped"])
        missing += [f"{name}: {skipped:,} rows were skipped, and are in no value."] if skipped else []
        cut = record.about["cut_off"]
        missing += [f"{name}: {cut:,} of {record.about['answered']:,} answers were cut off."] if cut else []
    several = {metric for metric, _ in found if sum(other == metric for other, _ in found) > 1}
    for (metric, id_), listed in found.items():
        points = sorted(listed, key=lambda point: point.task)  # those of one task beside each other
        way = "higher" if better[metric, id_] else "lower"
        title = f"{metric}: {id_}" if metric in several else metric
        panels.append(Panel(_intervals(title, points, way), f"{title}: {len(points)} values with intervals"))
        says += list(_best(title, points, better[metric, id_]))
    for metric in sorted(several):
        missing.append(f"{metric}: records have it with different options or versions (ids); they are not compared.")
    if not records:
        missing.append("No record of usam eval is among the folders: usam eval MODEL DATA --output FOLDER writes one.")
    how = "A mark is a value over all rows of a record, or of one task; its line the 95 % bootstrap interval over rows."
    levels = {record.about["bootstrap"]["level"] for record in records.values()}
    if levels and levels != {0.95}:
        how = how.replace("95 %", " or ".join(f"{level:.0%}" for level in sorted(levels)))
    return Figure("evaluations", "Evaluations", how, panels, says, table if len(table) > 1 else (), missing)


def _parts(about: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The whole, and each task where there are several; of one task alone that."""
    tasks = about["tasks"]
    if len(tasks) == 1:
        yield from tasks.items()
        return
    yield "", about
    yield from tasks.items()


def _intervals(title: str, points: Sequence[_Point], way: str) -> str:
    records = list(dict.fromkeys(point.record for point in points))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, point in enumerate(points):
            reach = [[max(0.0, point.value - point.low)], [max(0.0, point.high - point.value)]]
            which = records.index(point.record)
            axes.errorbar(
                point.value, place, xerr=reach, color="black", marker=MARKERS[which % len(MARKERS)], markersize=6,
                markerfacecolor="black" if which % 2 == 0 else "white", capsize=3, linewidth=1.2,
            )  # fmt: skip
        axes.set_yticks(range(len(points)), [point.name for point in points])
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, *(point.low for point in points)))
        axes.set(title=title, xlabel=f"{way} is better")

    return svg(draw, width=BROAD, height=1.0 + 0.27 * len(points))


def _best(title: str, points: Sequence[_Point], higher: bool) -> Iterator[str]:
    """Of each task with several records which is best, and whether its interval meets the next one's."""
    for task in dict.fromkeys(point.task for point in points):
        own = sorted((p for p in points if p.task == task), key=lambda p: p.value, reverse=higher)
        what = f"{title}, {task}" if task else title
        if len(own) == 1:
            yield f"{what}: {own[0].record} has {own[0].told}."
            continue
        first, *others = own
        apart = [p for p in others if (p.high < first.low if higher else p.low > first.high)]
        meeting = (
            "no other's" if len(apart) == len(others) else ", ".join(p.record for p in others if p not in apart) + "'s"
        )
        rest = "; ".join(f"{p.record} {p.told}" for p in others)
        yield f"{what}: {first.record} is best with {first.told}, whose interval meets {meeting}; {rest}."


def ablations(tables: Mapping[str, Table]) -> list[Figure]:
    """A figure for each ablation; one that says so where there is none."""
    if not tables:
        missing = ["No output of usam ablate is among the folders."]
        return [Figure("ablation", "Ablation", "", missing=missing)]
    return [
        _ablation(f"ablation-{i}" if i else "ablation", name, table) for i, (name, table) in enumerate(tables.items())
    ]


def _ablation(place: str, name: str, table: Table) -> Figure:
    panels, missing = [], []
    for column in table.columns:
        rows = [(row, row.scores[column.name]) for row in table.rows if column.name in row.scores]
        if not rows:
            missing.append(f"{column.name}: no variation has a value.")
            continue

        def draw(figure: Any, column: Column = column, rows: Any = rows) -> None:
            axes = figure.subplots()
            bars(axes, table, column, rows)
            axes.set_title(column.name)

        label = f"{column.name} of {len(rows)} variations, with intervals; {table.against} is hatched"
        drawing = svg(draw, width=BROAD, height=1.2 + 0.34 * len(rows))
        panels.append(Panel(drawing, label, " ".join(_found(table, column))))
    for row in table.rows:
        absent = [column.name for column in table.columns if row.seeds and column.name not in row.scores]
        missing += [f"{row.name}: {', '.join(absent)} is no finite number, and has no bar."] if absent else []
        missing += [f"{row.name}, seed {seed}: {why}" for seed, why in row.faults.items()]
        if not row.seeds and not row.faults:
            missing.append(f"{row.name}: no seed of it is done.")
    how = (
        f"A bar is a variation's mean over seeds, hatched that of '{table.against}', which the others are compared "
        "with; dots are seeds, lines 95 % intervals over samples. p is of a paired permutation test, uncorrected. "
        f"Budget of every run: {table.budget}."
    )
    return Figure(place, f"Ablation: {name}", how, panels, (), cells(table), missing)


def _found(table: Table, column: Column) -> Iterator[str]:
    scores = {row.name: row.scores[column.name] for row in table.rows if column.name in row.scores}
    pick = max if column.higher_is_better else min
    best = pick(scores, key=lambda name: scores[name].value)
    yield f"{column.name}: {best} is best of {len(scores)} with {number(scores[best].value)}."
    better: list[str] = []
    worse: list[str] = []
    untested = 0
    for name, score in scores.items():
        apart = score.difference
        if apart is None:
            continue
        if apart.p is None:
            untested += 1
        elif apart.p < SURE:
            wins = (apart.value > 0) == column.higher_is_better
            (better if wins else worse).append(f"{name} ({apart.value:+.3g}, p {apart.p:.2g})")
    if untested < sum(score.difference is not None for score in scores.values()):
        yield (
            f"{column.name}, beside {table.against}, with p below {SURE}: better {', '.join(better) or 'none'}; "
            f"worse {', '.join(worse) or 'none'}."
        )
