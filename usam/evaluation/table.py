"""What an ablation found: one row a variation, with means over seeds, intervals, and differences to one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from usam.config import resolve
from usam.data.cost import How, hollow_model
from usam.evaluation.ablate import DONE, FAILED, state
from usam.evaluation.grid import Ablation
from usam.evaluation.results import LOSS, TEXT, Result, result
from usam.evaluation.statistics import interval, paired
from usam.metrics import Metric, Statistics
from usam.spec.spec import Spec
from usam.training import held_out
from usam.training.routing import UNNAMED

CLIP = 10  # seconds of the clip whose tokens are counted


@dataclass(frozen=True)
class Column:
    """What is compared: a metric, of all answers or of those of one task; or the loss."""

    metric: str
    task: str | None
    higher_is_better: bool

    @property
    def name(self) -> str:
        """As the table heads it."""
        return self.metric if self.task is None else f"{self.metric} {self.task}"


@dataclass(frozen=True)
class Difference:
    """A variation's value less that of the one it is compared with, over the seeds that both have."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    """Of the permutation test; None of the loss, which has no value for each sample."""
    exact: bool | None
    seeds: int
    samples: int | None


@dataclass(frozen=True)
class Score:
    """A variation's value in one column."""

    value: float
    """The mean over seeds."""
    low: float | None
    high: float | None
    by_seed: Mapping[int, float]
    samples: int | None
    difference: Difference | None
    """None in the row that the others are compared with, and where the held-out rows are others."""


@dataclass(frozen=True)
class Row:
    """A variation."""

    name: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    """Those that are done."""
    faults: Mapping[int, str]
    """What is to be said of the other seeds."""
    scores: Mapping[str, Score]
    parameters: int
    trainable: int
    tokens: float
    """Audio tokens for a second of audio, in a clip of 10 s."""
    seconds: float | None
    """Of training, the mean over seeds; None where it was interrupted after its last step."""


@dataclass(frozen=True)
class Table:
    """All that an ablation found."""

    file: str
    against: str
    budget: str
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class OverSeeds(Metric):
    """The mean of a metric over seeds, whose counts of a sample stand side by side.

    So a sample with its answers of all seeds is what is drawn, and exchanged.

    Args:
        metric: the metric.
        seeds: how many.
    """

    def __init__(self, metric: Metric, seeds: int) -> None:
        super().__init__(metric.config)
        self.metric, self.seeds = metric, seeds

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Of one seed: they are put side by side where they come from."""
        return self.metric.statistics(prediction, references)

    def of(self, total: Statistics) -> float:
        """The mean of the seeds' values."""
        return fmean(self.metric.of(own) for own in np.split(total, self.seeds))


class RankedOverSeeds(OverSeeds):
    """The same of a metric whose value is no function of a sum."""

    def value(self, statistics: Statistics) -> float:
        """The mean of the seeds' values."""
        return fmean(self.metric.value(own) for own in np.split(statistics, self.seeds, axis=1))


def over_seeds(metric: Metric, seeds: int) -> OverSeeds:
    """The mean of a metric over so many seeds."""
    adds_up = type(metric).value is Metric.value
    return (OverSeeds if adds_up else RankedOverSeeds)(metric, seeds)


def table(ablation: Ablation) -> Table:
    """The table of what is done.

    Raises:
        SpecError: a run was not evaluated where it ended.
    """
    results: dict[str, dict[int, Result]] = {}
    faults: dict[str, dict[int, str]] = {}
    for cell in ablation.cells:
        now = state(cell)
        if now.kind == DONE:
            results.setdefault(cell.variation.name, {})[cell.seed] = result(cell)
        else:
            text = f"failed: {now.detail}" if now.kind == FAILED else str(now)
            faults.setdefault(cell.variation.name, {})[cell.seed] = text
    first = ablation.cells[0].run
    metrics = held_out.metrics(held_out.evaluation(first.eval).generate)
    every = [one for own in results.values() for one in own.values()]
    loss = TEXT if all(TEXT in cell.run.spec.losses for cell in ablation.cells) else LOSS
    columns = [*_columns(metrics, every), Column(loss, None, False)]
    base = results.get(ablation.against, {})
    rows = []
    for variation in ablation.variations:
        own = results.get(variation.name, {})
        other = base if variation.name != ablation.against else {}
        scores = {column.name: score for column in columns if (score := _score(column, metrics, own, other))}
        times = [one.seconds for one in own.values()]
        known = [seconds for seconds in times if seconds is not None]
        spec = ablation.of(variation)[0].run.spec
        total, trains = parameters(spec)
        rows.append(
            Row(
                variation.name,
                variation.overrides,
                tuple(own),
                faults.get(variation.name, {}),
                scores,
                total,
                trains,
                tokens_a_second(spec),
                fmean(known) if known else None,
            )
        )
    return Table(
        ablation.file.name, ablation.against, ablation.budget, ablation.seeds, tuple(columns), tuple(rows),
        tuple(_notes(ablation, base, results)),
    )  # fmt: skip


def _columns(metrics: Mapping[str, Metric], results: Sequence[Result]) -> Iterator[Column]:
    tasks = sorted({line["task"] or UNNAMED for result in results[:1] for line in result.answers})
    for name, metric in metrics.items():
        yield Column(name, None, metric.higher_is_better)
        for task in tasks if len(tasks) > 1 else ():
            yield Column(name, task, metric.higher_is_better)


def _score(
    column: Column, metrics: Mapping[str, Metric], own: Mapping[int, Result], base: Mapping[int, Result]
) -> Score | None:
    """The value of a variation's runs, and the difference to those of the same seeds; None without any run."""
    if not own:
        return None
    shared = [seed for seed in own if seed in base]
    if column.metric not in metrics:
        losses = {seed: result.losses[column.metric] for seed, result in own.items()}
        apart = [losses[seed] - base[seed].losses[column.metric] for seed in shared]
        loss = Difference(fmean(apart), None, None, None, None, len(shared), None) if shared else None
        return Score(fmean(losses.values()), None, None, losses, None, loss)
    metric = metrics[column.metric]
    found = {seed: result.statistics(metric, column.task) for seed, result in own.items()}
    values = {seed: metric.value(counts) for seed, counts in found.items()}
    samples = len(next(iter(found.values())))
    low, high = interval(over_seeds(metric, len(found)), _beside(list(found.values())))
    difference = None
    if shared and all(own[seed].rows == base[seed].rows for seed in shared):
        theirs = [base[seed].statistics(metric, column.task) for seed in shared]
        tested = paired(over_seeds(metric, len(shared)), _beside([found[s] for s in shared]), _beside(theirs))
        difference = Difference(
            tested.difference, tested.low, tested.high, tested.p_permutation, tested.exact, len(shared), samples
        )
    return Score(fmean(values.values()), low, high, values, samples, difference)


def _beside(statistics: Sequence[Statistics]) -> Statistics:
    """The counts of all seeds in one row for each sample."""
    return np.concatenate(statistics, axis=1)


def parameters(spec: Spec) -> tuple[int, int]:
    """How many parameters a model has, and how many of them train."""
    model = hollow_model(spec, How())
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if trains)


def tokens_a_second(spec: Spec) -> float:
    """Audio tokens for a second of audio, in a clip of 10 s."""
    whole = resolve(spec)
    return float(whole.audio_tokens(CLIP * whole.sample_rate)) / CLIP


def _notes(
    ablation: Ablation, base: Mapping[int, Result], results: Mapping[str, Mapping[int, Result]]
) -> Iterator[str]:
    counts = {len(result.answers) for own in results.values() for result in own.values()}
    samples = " or ".join(f"{count:,}" for count in sorted(counts)) or "no"
    yield (
        f"Budget of every run: {ablation.budget}. Runs of one seed see the same rows in the same order, and start from "
        "equal weights wherever they have a part at one place."
    )
    several = len(ablation.seeds) > 1
    yield (
        f"Values: {f'means over {len(ablation.seeds)} seeds' if several else 'of one seed'}. In brackets: 95 % "
        f"bootstrap intervals over the {samples} held-out samples that were answered"
        f"{', each drawn with its answers of all seeds' if several else ''}: they hold what other samples would give, "
        "and say nothing of other seeds."
    )
    yield (
        f"Difference: to '{ablation.against}', seed by seed, with its interval. p: of a paired permutation test, in "
        "which the two variations exchange a sample's answers of all seeds; of several comparisons none is corrected. "
        f"The loss ({TEXT}, unweighted, where all variations have it) has no value for each sample, and so neither "
        "interval nor p."
    )
    yield (
        f"tokens/s: audio tokens for a second of audio, in a clip of {CLIP} s. time: of training; of a run that was "
        "interrupted, that of its last part, for as many steps as all."
    )
    own = [v for v in ablation.variations if any(o.startswith(("data", "train.data_seed")) for o in v.overrides)]
    if own:
        yield f"Train on data of their own, and so on other batches: {', '.join(v.name for v in own)}."
    other = [
        name
        for name, cells in results.items()
        if any(seed in base and cells[seed].rows != base[seed].rows for seed in cells)
    ]
    if other:
        yield f"Answer other held-out rows than '{ablation.against}', so that nothing is paired: {', '.join(other)}."
