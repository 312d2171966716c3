"""What a run learns from: how long its clips and its rows are, and how much of its batches is padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.trainer_pt_utils import LengthGroupedSampler

from usam.data.mixture import Mixture, MixtureSampler
from usam.data.sampling import BudgetSampler
from usam.evaluation.ablate import duration
from usam.model.checkpoint import processor_beside
from usam.report.drawing import COLOURS, HIGH, WIDE, fill, svg
from usam.report.page import Figure, Panel
from usam.report.reading import ABSENT, Trained
from usam.spec.page import SpecError
from usam.training.estimate import plan_of
from usam.training.held_out import drawn
from usam.training.routing import UNNAMED
from usam.training.rows import measured
from usam.training.run import Run, read_run, samples_of
from usam.training.sources import mixture_of

MOST = 2000  # rows of a split that are measured
BINS = 24
SPLITS = ("train", "eval")
CALLED = {"train": "training", "eval": "held out"}


@dataclass(frozen=True)
class Split:
    """Rows of a run, measured."""

    lengths: NDArray[Any]
    tasks: tuple[str, ...]
    rows: int
    """All that there are, of which these are some."""
    unread: int
    """Rows whose clips have no header that could be read; they are not among the lengths."""
    mixture: Mixture | None


@dataclass(frozen=True)
class Data:
    """What a run learns from and is tried on."""

    run: Run
    splits: Mapping[str, Split]


def read_data(trained: Trained) -> Data | str:
    """The rows of a run by its `run.yaml`, or why they are not there."""
    file = trained.folder / "run.yaml"
    if not file.is_file():
        return "its folder has no run.yaml, which says what it learned from"
    try:
        run = read_run(file)
        processor = processor_beside(trained.folder, run.spec)
        splits = {}
        for split in SPLITS if not run.data.get("stream") else SPLITS[1:]:
            if run.data.get(split) is None:
                continue
            samples = samples_of(run, split)
            whole = len(samples) <= MOST
            some = samples.select(drawn(len(samples), MOST, 0))
            lengths = measured(some, processor)
            read = np.flatnonzero(lengths["tokens"] > 0)
            tasks = [sample.task or UNNAMED for sample in some]
            mixture = mixture_of(run, samples) if split == "train" and whole and len(read) == len(some) else None
            kept = tuple(tasks[i] for i in read.tolist())
            splits[split] = Split(lengths[read], kept, len(samples), len(some) - len(read), mixture)
    except ABSENT as error:
        return f"its data cannot be read: {' '.join(str(error).split())}"
    return Data(run, splits)


def durations(found: Mapping[str, Data | str]) -> Figure:
    """Histograms of seconds and tokens, by task."""
    panels, says, missing = [], [], []
    before: dict[tuple[str, str], tuple[str, bytes]] = {}
    for name, data in found.items():
        if isinstance(data, str):
            missing.append(f"{name}: {data}.")
            continue
        missing += _unsaid(name, data)
        for field, unit, what in (
            ("seconds", "s", "seconds of the longest clip"),
            ("tokens", "", "tokens, audio's included"),
        ):
            key = b"".join(split.lengths[field].tobytes() for split in data.splits.values())
            twin = next((other for (other, of), (kind, held) in before.items() if of == field and held == key), None)
            before[name, field] = field, key
            if twin is not None:
                says.append(f"{name}: {what} as in {twin}, row for row.")
                continue
            if not any(len(split.lengths) for split in data.splits.values()):
                continue
            label = f"{name}: {what}, by task" if len(found) > 1 else f"{what}, by task"
            said = [
                f"{name}, {CALLED[split]}: {_told(own, field, unit)}"
                for split, own in data.splits.items()
                if len(own.lengths)
            ]
            panels.append(Panel(_histograms(label, data.splits, field, unit), f"Histograms: {label}", " ".join(said)))
    how = (
        "Each strip is a task: hatched the training rows, the thick line those held out, as shares of the task's rows. "
        "A row of tokens is what the language model reads: text, audio and answer."
    )
    return Figure("data", "Seconds and tokens of the data", how, panels, says, (), missing)


def _unsaid(name: str, data: Data) -> list[str]:
    found = [f"{name}: nothing is held out (data.eval)."] if data.run.data.get("eval") is None else []
    if data.run.data.get("stream"):
        found.append(f"{name}: training rows are a stream, which is not looked through beforehand (data.stream).")
    for split, own in data.splits.items():
        if own.unread:
            found.append(f"{name}, {CALLED[split]}: the clips of {own.unread:,} rows could not be read.")
        if own.rows > MOST:
            found.append(f"{name}, {CALLED[split]}: {MOST:,} of {own.rows:,} rows were measured, drawn by chance.")
    return found


def _histograms(title: str, splits: Mapping[str, Split], field: str, unit: str) -> str:
    tasks = sorted({task for split in splits.values() for task in split.tasks})
    most = max(float(split.lengths[field].max()) for split in splits.values() if len(split.lengths))
    edges = np.linspace(0, most * 1.001 or 1.0, BINS + 1)

    def draw(figure: Any) -> None:
        strips = figure.subplots(len(tasks), 1, sharex=True, squeeze=False)[:, 0]
        for axes, task in zip(strips, tasks, strict=True):
            for split, look in (("train", None), ("eval", {"color": "black", "linewidth": 1.6})):
                own = splits.get(split)
                values: Any = [] if own is None else own.lengths[field][[t == task for t in own.tasks]]
                if len(values) == 0:
                    continue
                shares = np.histogram(values, edges)[0] / len(values)
                if look is None:
                    axes.stairs(shares, edges, fill=True, **fill(1))
                else:
                    axes.stairs(shares, edges, **look)
            axes.set_ylabel(task, rotation=0, ha="right", va="center")
            axes.set_yticks([])
            axes.grid(False)
        strips[0].set_title(title)
        strips[-1].set_xlabel(unit or "tokens")

    return svg(draw, width=WIDE, height=1.0 + 0.55 * len(tasks))


def _told(split: Split, field: str, unit: str) -> str:
    values = split.lengths[field].astype(float)
    unit = f" {unit}" if unit else " tokens"
    medians = {task: float(np.median(values[[t == task for t in split.tasks]])) for task in sorted(set(split.tasks))}
    longest = max(medians, key=lambda task: medians[task])
    whole = ""
    if field == "seconds" and split.rows <= MOST:
        whole = f", {duration((values * split.lengths['clips']).sum())} together"
    text = f"{len(values):,} rows of {values.min():.3g} to {values.max():.4g}{unit}{whole}; half have at most "
    text += f"{np.median(values):.3g}"
    if len(medians) > 1:
        text += (
            f"; of the {len(medians)} tasks {longest} has the longest, half of them above {medians[longest]:.3g}{unit}"
        )
    return f"{text}."


# Padding


def padding(found: Mapping[str, Data | str]) -> Figure:
    """How much of each training batch of an epoch is padding."""
    panels, missing = [], []
    for name, data in found.items():
        if isinstance(data, str):
            missing.append(f"{name}: {data}.")
            continue
        split = data.splits.get("train")
        if split is None or not len(split.lengths):
            missing.append(f"{name}: the lengths of its training rows are not known beforehand.")
            continue
        try:
            batches, how = batches_of(data.run, split)
        except ABSENT as error:
            missing.append(f"{name}: its batches cannot be made: {error}.")
            continue
        shares = {field: padded(split.lengths, batches, field) for field in ("seconds", "tokens")}
        title = f"{name}: padding of batches" if len(found) > 1 else "padding of batches"
        told = " and ".join(f"{whole:.1%} of the {field}" for field, (_, whole) in shares.items())
        more = f"; made of {len(split.lengths):,} of {split.rows:,} rows" if split.rows > len(split.lengths) else ""
        said = f"{name}: {told} of an epoch's {len(batches):,} batches are padding ({how}{more})."
        drawing = _shares(title, {field: each for field, (each, _) in shares.items()})
        panels.append(Panel(drawing, f"Histogram: {title}", said))
    how = "How many batches have how much padding: hatched of their tokens, the thick line of their seconds of audio."
    return Figure("padding", "Padding of batches", how, panels, missing=missing)


def batches_of(run: Run, split: Split) -> tuple[list[list[int]], str]:
    """Batches of one epoch as a process has them, and how they were drawn."""
    plan, seed = plan_of(run), int(run.train.get("data_seed", run.train.get("seed", 42)) or 0)
    strategy = run.train.get("train_sampling_strategy", "random")
    if plan.budget is not None:
        fit = np.flatnonzero(plan.budget.share(split.lengths) <= 1)
        mixture = split.mixture if len(fit) == len(split.lengths) else None
        sampler = BudgetSampler(split.lengths[fit], plan.budget, seed=seed, mixture=mixture)
        bounds = {"batch_seconds": plan.budget.seconds, "batch_tokens": plan.budget.tokens}
        said = ", ".join(f"data.{key} {value:g}" for key, value in bounds.items() if value)
        return [fit[batch].tolist() for batch in sampler], f"rows of about one length together: {said}"
    if strategy == "batch_rebalance":
        raise SpecError("train_sampling_strategy batch_rebalance deals rows out by the number of processes")
    size = plan.batch_size or 8
    tokens = split.lengths["tokens"].tolist()
    if split.mixture is not None:
        lengths = {"lengths": tokens, "batch": size} if strategy == "group_by_length" else {}
        order, said = (
            list(MixtureSampler(split.mixture, seed=seed, **lengths)),
            "drawn from the sources by their weights",
        )
    elif strategy == "group_by_length":
        generator = torch.Generator().manual_seed(seed)
        order, said = list(LengthGroupedSampler(size, lengths=tokens, generator=generator)), "of about one length"
    elif strategy == "sequential":
        order, said = list(range(len(tokens))), "in the order of the data"
    else:
        order, said = np.random.RandomState(seed).permutation(len(tokens)).tolist(), "drawn by chance, anew"
    return [order[i : i + size] for i in range(0, len(order), size)], f"{size} rows each, {said}"


def padded(lengths: NDArray[Any], batches: Sequence[Sequence[int]], field: str) -> tuple[list[float], float]:
    """The share of padding of each batch, and of all together: a batch is as long as its longest row."""
    times = lengths["clips" if field == "seconds" else "rows"].astype(float)
    values = lengths[field].astype(float)
    own = np.array([(times[list(batch)] * values[list(batch)]).sum() for batch in batches])
    held = np.array([times[list(batch)].sum() * values[list(batch)].max() for batch in batches])
    each = np.divide(held - own, held, out=np.zeros_like(own), where=held > 0)
    return each.tolist(), float((held - own).sum() / held.sum()) if held.sum() else 0.0


def _shares(title: str, shares: Mapping[str, Sequence[float]]) -> str:
    most = max(0.05, *(max(each) for each in shares.values()))
    edges = np.linspace(0, 100 * most * 1.001, BINS + 1)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for field, look in (
            ("tokens", {**fill(1), "fill": True}),
            ("seconds", {"color": COLOURS[0], "linewidth": 1.6}),
        ):
            axes.stairs(np.histogram(100 * np.array(shares[field]), edges)[0], edges, **look)
        axes.set(title=title, xlabel="padding, % of a batch", ylabel="batches")

    return svg(draw, height=HIGH)
