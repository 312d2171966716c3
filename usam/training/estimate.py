"""What a training will take: parameters, memory, operations, and how often it hears its data in a day."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import TrainingArguments

from usam.config import resolve
from usam.data.cost import HOUR, Cost, How, cache_per_token, frames_per_hour, hollow_model, rates, step
from usam.data.manifest import Manifest, Sample
from usam.data.sampling import Budget, BudgetSampler, Length, columns
from usam.model.summary import Row, table
from usam.processor.processor import UsamProcessor
from usam.spec.page import SpecError
from usam.spec.spec import Spec
from usam.training import rows
from usam.training.checks import DATA
from usam.training.run import Run, cache_of, samples_of

DAY = 24 * HOUR
ASKED = 40  # tokens around an answer: the instruction and what the template writes
MEASURED = 2000  # rows of a manifest whose lengths are looked at
LOOKS = 5  # batches, from the smallest to the largest, whose operations stand for all
# Dense products in bfloat16, in 10^12 a second, as the makers publish them.
DEVICES = {
    "a100": (312, "NVIDIA A100 Tensor Core GPU datasheet, 2021"),
    "h100": (989, "NVIDIA H100 Tensor Core GPU datasheet, SXM, without sparsity"),
    "h200": (989, "NVIDIA H200 Tensor Core GPU datasheet, SXM, without sparsity"),
    "b200": (2250, "NVIDIA Blackwell architecture brief, 2024, without sparsity"),
    "l4": (121, "NVIDIA L4 Tensor Core GPU datasheet, without sparsity"),
    "l40s": (362, "NVIDIA L40S datasheet, without sparsity"),
    "rtx4090": (165, "NVIDIA Ada GPU architecture whitepaper, sums in float32, without sparsity"),
    "mi300x": (1307, "AMD Instinct MI300X data sheet, without sparsity"),
}


@dataclass(frozen=True)
class Plan:
    """What is trained on, and how.

    Args:
        how: dtypes, optimizer and checkpointing.
        batch_size: rows of a batch; with a budget, the most of them, and None is no bound.
        seconds: of a clip, where no data says it.
        answer_tokens: of an answer, where no data says it.
        budget: the most that a batch may hold; None takes `batch_size` rows as they come.
        accumulate: batches of a step.
        cached: `data.cache` keeps the frames of frozen encoders.
    """

    how: How = field(default_factory=How)
    batch_size: int | None = 8
    seconds: float = 10.0
    answer_tokens: int = 20
    budget: Budget | None = None
    accumulate: int = 1
    cached: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a training takes; bytes, and operations of one batch, but where it says otherwise."""

    parts: list[Row]
    rates: dict[str, float]  # frames a second of each stage; 0: as many for any clip
    batch: dict[str, float]  # rows, seconds and tokens of the largest batch, padding included
    cost: Cost  # of the largest batch
    operations: float  # of an average batch
    spared: float  # of these, what the frozen encoders take, which a cache spares
    per_token: float | None  # keys and values of a token while generating
    frames: dict[str, int]  # bytes that a cache in float32 holds for an hour, by encoder
    hours: float  # of audio in an average batch, padding left out
    batches: int | None = None  # of an epoch
    rows: int | None = None  # of the data
    measured: int | None = None

    def hours_a_day(self, flops: float) -> float:
        """Hours of audio that a machine of so many operations a second hears in a day."""
        return DAY * flops / self.operations * self.hours

    def epochs_a_day(self, flops: float) -> float | None:
        """Epochs of the data in a day; None without data."""
        return None if self.batches is None else DAY * flops / (self.operations * self.batches)

    def to_dict(self) -> dict[str, Any]:
        """As data."""
        cost, work = self.cost, self.cost.work
        return {
            "parameters": {r.part: {"all": r.parameters, "trainable": r.trainable} for r in self.parts},
            "rates": self.rates,
            "batch": self.batch,
            "bytes": {
                "weights": cost.weights,
                "gradients": cost.gradients,
                "optimizer": cost.optimizer,
                "activations": cost.activations,
                "logits": cost.logits,
                "peak": cost.peak,
                "generated_token": self.per_token,
                "cached_hour": self.frames,
            },
            "flops": {"forward": dict(work.forward), "backward": dict(work.backward), "total": work.total},
            "average_flops": self.operations,
            "encoders_flops": self.spared,
            "average_hours": self.hours,
            "batches": self.batches,
            "rows": self.rows,
            "measured": self.measured,
        }


def plan_of(run: Run) -> Plan:
    """How a run trains.

    Raises:
        SpecError: arguments that the Trainer refuses.
    """
    data = {**DATA, **run.data}
    try:  # a GPU's options are asked about on machines without one
        args = TrainingArguments(**{"output_dir": "nowhere", **run.train, "bf16": False, "fp16": False})
    except (TypeError, ValueError) as error:
        raise SpecError(f"train: {error}") from error
    autocast = torch.bfloat16 if run.train.get("bf16") else torch.float16 if run.train.get("fp16") else None
    budget = None
    most = run.train.get("per_device_train_batch_size")
    if data["batch_seconds"] is not None or data["batch_tokens"] is not None:
        budget = Budget(data["batch_seconds"], data["batch_tokens"], most)
    return Plan(
        how=How(
            autocast=autocast,
            optimizer=str(getattr(args.optim, "value", args.optim)),
            checkpointing=bool(args.gradient_checkpointing),
            accumulate=args.gradient_accumulation_steps > 1,
        ),
        batch_size=args.per_device_train_batch_size if budget is None else most,
        budget=budget,
        accumulate=args.gradient_accumulation_steps,
        cached=cache_of(run.data) is not None,
    )


def estimate(
    spec: Spec,
    plan: Plan = Plan(),
    data: Run | str | Sequence[str] | None = None,
) -> Estimate:
    """Run the largest batch, and some of all sizes, without memory (`usam.data.hollow`).

    Args:
        spec: what is trained.
        plan: how.
        data: a run or manifests, whose lengths are taken; None takes clips of one length.

    Raises:
        SpecError, ComponentError: the spec or the plan is wrong, or a part cannot be followed without values.
        ManifestError: rows that are wrong.
    """
    full = resolve(spec)
    model = hollow_model(full, plan.how)
    samples = _samples(full, data)
    if samples is None:
        lengths = [_row(full, plan)]
        batches = [[0] * _most(lengths[0], plan)]
        largest = batches
    else:
        chosen = samples[:: max(1, math.ceil(len(samples) / MEASURED))]
        found = rows.measured(chosen, UsamProcessor.from_spec(full))
        lengths = [Length(*row.item()) for row in found if row["tokens"]]
        if not lengths:
            raise SpecError("no clip of the data can be opened; `usam data check` says why")
        batches, largest = _batches(lengths, plan)
    costs = [step(full, model, [lengths[i] for i in batch], plan.how) for batch in largest]
    worst = max(range(len(costs)), key=lambda i: costs[i].peak)
    looks = _spread(batches, lengths)
    work = [step(full, model, [lengths[i] for i in batch], plan.how).work for batch in looks] if samples else []
    work = work or [costs[0].work]
    ears = {f"encoders.{name}" for name in frames_per_hour(model)}
    spared = float(np.mean([sum(v for part, v in w.forward.items() if part in ears) for w in work]))
    operations = float(np.mean([w.total for w in work])) - spared * plan.cached
    cost = costs[worst]
    if plan.cached:
        cost = step(full, model, [lengths[i] for i in largest[worst]], replace(plan.how, cached=True))
        cost = replace(cost, peak=max(cost.peak, costs[worst].peak))  # the first epoch fills the cache
    seconds = np.mean([sum(lengths[i].seconds * lengths[i].clips for i in batch) for batch in batches])
    share = 1 if samples is None else len(samples) / len(lengths)
    return Estimate(
        parts=table(spec),
        rates=rates(full),
        batch=_size([lengths[i] for i in largest[worst]]),
        cost=cost,
        operations=operations,
        spared=spared,
        per_token=cache_per_token(model),
        frames=frames_per_hour(model),
        hours=float(seconds) / HOUR,
        batches=None if samples is None else max(1, round(len(batches) * share)),
        rows=None if samples is None else len(samples),
        measured=None if samples is None else len(lengths),
    )


def _samples(spec: Spec, data: Run | str | Sequence[str] | None) -> Sequence[Sample] | None:
    if data is None:
        return None
    return samples_of(data, "train") if isinstance(data, Run) else Manifest(data, spec.prompts)


def _row(spec: Spec, plan: Plan) -> Length:
    heard = spec.placeholders(max(1, round(plan.seconds * spec.sample_rate)))
    asked = heard + ASKED
    return Length(tokens=asked + plan.answer_tokens, asked=asked + 1, seconds=plan.seconds)


def _most(row: Length, plan: Plan) -> int:
    """How many rows of this length are a batch."""
    if plan.budget is None:
        return plan.batch_size or 8
    share = float(plan.budget.share(columns([row]))[0])
    if share > 1:
        raise SpecError(
            f"one row of {row.seconds:g} s and {row.tokens} tokens is larger than the budget of a batch; raise "
            "--batch-seconds or --batch-tokens, or lower --seconds"
        )
    return max(1, int(1 / share + 1e-9))


def _batches(lengths: Sequence[Length], plan: Plan) -> tuple[list[list[int]], list[list[int]]]:
    """The batches of an epoch, and the largest that may come."""
    if plan.budget is not None:
        large = int((plan.budget.share(columns(lengths)) > 1).sum())
        if large:
            raise SpecError(
                f"{large} of {len(lengths)} rows alone are larger than the budget of a batch; raise "
                "batch_seconds or batch_tokens"
            )
        sampler = BudgetSampler(lengths, plan.budget)
        return list(sampler), sampler.largest()
    size = plan.batch_size or 8
    order = np.random.RandomState(0).permutation(len(lengths)).tolist()
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    by_seconds = sorted(range(len(lengths)), key=lambda i: -lengths[i].seconds)[:size]
    by_tokens = sorted(range(len(lengths)), key=lambda i: -lengths[i].tokens)[:size]
    return batches, [by_seconds] if by_seconds == by_tokens else [by_seconds, by_tokens]


def _size(batch: Sequence[Length]) -> dict[str, float]:
    clips, most = sum(row.clips for row in batch), max(row.seconds for row in batch)
    lines = sum(row.rows for row in batch)
    return {"rows": lines, "seconds": clips * most, "tokens": lines * max(row.tokens for row in batch)}


def _spread(batches: list[list[int]], lengths: Sequence[Length]) -> list[list[int]]:
    """A few batches of all sizes, each as many as the others stand for."""
    order = sorted(batches, key=lambda batch: _size([lengths[i] for i in batch])["tokens"])
    places = (np.arange(min(LOOKS, len(order))) + 0.5) / min(LOOKS, len(order)) * len(order)
    return [order[int(place)] for place in places]


def speed_of(device: str | None, tflops: float | None, mfu: float, count: int) -> tuple[float, str]:
    """Operations a second, and where the figure comes from.

    Raises:
        SpecError: a device that is not in the list.
    """
    if tflops is not None:
        return tflops * 1e12 * mfu * count, f"{tflops:g} TFLOPS"
    assert device is not None
    if device not in DEVICES:
        raise SpecError(f"no device '{device}' in the list: {', '.join(DEVICES)}; or write --tflops")
    peak, source = DEVICES[device]
    return peak * 1e12 * mfu * count, f"{device}: {peak} TFLOPS in bfloat16\n  ({source})"


def text(found: Estimate, speeds: Mapping[str, float], mfu: float, count: int) -> str:
    """The estimate in tables of at most 80 columns.

    Args:
        found: the estimate.
        speeds: operations a second of all devices together, by what they are called.
        mfu: share of the peak that is reached.
        count: devices.
    """
    cost, work, size = found.cost, found.cost.work, found.batch
    lines = _columns(
        [("part", "parameters", "trainable"), *((r.part, f"{r.parameters:,}", f"{r.trainable:,}") for r in found.parts)]
    )
    stages = [(name, f"{rate:g}" if rate else "-") for name, rate in found.rates.items()]
    lines += ["", *_columns([("a second of audio", "frames"), *stages])]
    largest = f"{size['rows']:g} rows, {size['seconds']:,.0f} s of audio, {size['tokens']:,.0f} tokens"
    lines += ["", f"largest batch: {largest}, padding included"]
    memory = {
        "weights": cost.weights,
        "gradients": cost.gradients,
        "optimizer": cost.optimizer,
        "activations": cost.activations,
        "logits and what losses hold": cost.logits,
        "most at once": cost.peak,
    }
    lines += ["", *_columns([("memory of its step", "GiB"), *((n, f"{b / 2**30:,.3f}") for n, b in memory.items())])]
    order = {r.part: None for r in found.parts} | dict.fromkeys(work.forward) | dict.fromkeys(work.backward)
    each = [
        (part or "between", _tera(work.forward.get(part, 0)), _tera(work.backward.get(part, 0)))
        for part in order
        if part in work.forward or part in work.backward
    ]
    whole = ("total", _tera(sum(work.forward.values())), _tera(sum(work.backward.values())))
    lines += ["", *_columns([("10^12 operations of its step", "forward", "backward"), *each, whole]), ""]
    if found.per_token is not None:
        lines += [f"generating: {found.per_token / 2**10:,.1f} KiB of keys and values for a token of a row"]
    if found.frames:
        hour = sum(found.frames.values()) / 2**30
        lines += [f"data.cache: {hour:.2f} GiB for an hour of audio in float32, half of it in float16"]
    if found.rows is not None:
        part = "" if found.measured == found.rows else f", {found.measured:,} of them measured"
        lines += [f"data: {found.rows:,} rows{part}; an epoch has {found.batches:,} batches"]
    average = f"{found.operations / 1e12:,.3f} x 10^12 operations for {found.hours * HOUR:,.1f} s of audio"
    lines += [f"average batch: {average}"]
    if found.spared:
        spares = f"{found.spared / 1e12:,.3f} x 10^12 a batch"
        lines += [f"frozen encoders: {spares}, which data.cache spares after an epoch"]
    for name, flops in speeds.items():
        epochs = found.epochs_a_day(flops)
        told = "" if epochs is None else f", {epochs:,.2f} epochs"
        lines += [
            "",
            f"{count} x {name}",
            f"at {mfu:.0%} of it, a day: {found.hours_a_day(flops):,.0f} hours of audio{told}",
        ]
    return "\n".join(lines)


def _tera(operations: float) -> str:
    return f"{operations / 1e12:,.4f}"


def _columns(cells: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in cells
    ]
