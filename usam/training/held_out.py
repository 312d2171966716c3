"""What a run does with its held-out data: the `eval` part of a run file, and the numbers that come of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import GenerationConfig

from usam.data.manifest import ManifestError, Sample
from usam.generate import LONGEST
from usam.metrics import Metric, registry
from usam.processor.chat import blocks
from usam.processor.clip import KINDS, names_source
from usam.registry import did_you_mean
from usam.spec.page import Places, SpecError
from usam.spec.spec import _explain, component_config
from usam.training.routing import UNNAMED

OURS = {  # options of `generate` that are written elsewhere, or that would give something else than answers
    "max_new_tokens": "write it beside, as eval.generate.max_new_tokens",
    "max_length": "it would count the audio too; write eval.generate.max_new_tokens",
    "num_return_sequences": "a row has one answer",
    "return_dict_in_generate": "answers are text",
}
TAKEN = ("loss", "runtime", "samples_per_second", "steps_per_second", "audio_gap", "model_preparation_time")


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Generate(_Part):
    """Answers to held-out rows, and how good they are."""

    metrics: list[Any] | dict[str, Any] = Field(min_length=1)
    """Names of metrics, or `{type: name, option: value}`; a map gives them names of its own: `{wer_basic: {...}}`."""
    limit: Annotated[int, Field(ge=1)] | Literal["all"] | None = 200
    """The most rows, drawn once, so that each evaluation answers the same ones; `all` (or null) answers all."""
    seed: int = 0
    """What the rows are drawn with, and the answers where they are sampled."""
    max_new_tokens: int = Field(LONGEST, ge=1)
    """The longest answer."""
    batch_size: int | None = Field(None, ge=1)
    """Rows that a process answers together; null takes train.per_device_eval_batch_size."""
    by_task: bool = True
    """Also a value for each task."""
    options: dict[str, Any] = {}
    """Further options of transformers' `generate`, such as `num_beams`; without them it is greedy."""


class EarlyStopping(_Part):
    """The run ends where `train.metric_for_best_model` (the loss, without one) no longer gets better."""

    patience: int = Field(ge=1)
    """How many evaluations in a row may bring nothing better."""
    threshold: float = Field(0.0, ge=0)
    """By how much it must be better."""


class Evaluation(_Part):
    """The `eval` part of a run file."""

    generate: Generate | None = None
    """Answer held-out rows at every evaluation, and measure the answers."""
    early_stopping: EarlyStopping | None = None
    """End the run where nothing gets better."""
    canary: bool = True
    """Also the loss with each sample hearing another's audio, which a model that listens cannot bear. It costs as much
    as the evaluation's loss itself; of held-out data without audio there is none."""


def evaluation(tree: Mapping[str, Any] | None, places: Places | None = None) -> Evaluation:
    """The `eval` part, checked; its metrics are built once, so that a package that is missing is told now.

    Raises:
        SpecError: the key, and what to write instead.
        ComponentError: there is no such metric, or a package that it needs is not installed.
    """
    places = places or Places()
    if not isinstance(tree, (Mapping, type(None))):
        known = ", ".join(Evaluation.model_fields)
        raise SpecError(f"{places.at(('eval',))}expected a map of {known}; held-out manifests stand in data.eval")
    try:
        found = Evaluation.model_validate(dict(tree or {}))
    except ValidationError as error:
        raise SpecError(_explain(error, Evaluation, ("eval",), places)) from error
    if found.generate is not None:
        metrics(found.generate, places)
        check_options(found.generate.options, ("eval", "generate", "options"), places)
    return found


def check_options(options: Mapping[str, Any], where: tuple[str, ...] = (), places: Places | None = None) -> None:
    """Refuse what is no option of transformers' `generate`, and what would give something else than an answer a row.

    Raises:
        SpecError: the option, and what to write instead.
    """
    places = places or Places()
    known = [key for key in GenerationConfig().to_dict() if key not in OURS]
    for key in options:
        if key in OURS:
            raise SpecError(f"{places.at((*where, key))}{OURS[key]}")
        if key not in known:
            raise SpecError(
                f"{places.at((*where, key))}no option of transformers' generate; {did_you_mean(key, known)}"
            )


def metrics(generate: Generate | None, places: Places | None = None) -> dict[str, Metric]:
    """The metrics of `eval.generate`, by the names that they are logged under."""
    if generate is None:
        return {}
    places, where = places or Places(), ("eval", "generate", "metrics")
    found = named(generate.metrics, where, places)
    for place, name in enumerate(found):
        if name in TAKEN or name.startswith("loss_"):
            at = places.at((*where, name if isinstance(generate.metrics, dict) else str(place)))
            raise SpecError(f"{at}'{name}' is what a loss or a time is logged as; give it another name")
    return found


def named(
    nodes: Sequence[Any] | Mapping[str, Any], where: tuple[str, ...] = (), places: Places | None = None
) -> dict[str, Metric]:
    """Metrics by their names: a list of names and of `{type: name, option: value}`, or a map that names each itself.

    Raises:
        SpecError: the key, and what to write instead.
        ComponentError: there is no such metric, or a package that it needs is not installed.
    """
    places = places or Places()
    found: dict[str, Metric] = {}
    for key, node in nodes.items() if isinstance(nodes, Mapping) else enumerate(nodes):
        at = (*where, str(key))
        if isinstance(key, str):  # in a map the type defaults to the name
            node = {"type": key, **(node or {})} if isinstance(node, Mapping | None) else node
        config = component_config("usam.metrics", node, at, places)
        metric = registry.get(config.type)(config)
        name = key if isinstance(key, str) else metric.name
        if name in found:
            raise SpecError(f"{places.at(at)}'{name}' stands here twice; write a map, which gives each its own name")
        found[name] = metric
    return found


def by_task(tasks: Sequence[str | None]) -> dict[str, list[int]]:
    """Places of the samples of each task, sorted; nothing where no sample has a task."""
    found: dict[str, list[int]] = {}
    for place, task in enumerate(tasks if any(tasks) else ()):
        found.setdefault(task or UNNAMED, []).append(place)
    return dict(sorted(found.items()))


def measured_by(name: str, found: Mapping[str, Metric]) -> Metric | None:
    """The metric that `wer`, `eval_wer` or `eval_wer_<task>` is a value of; None where it is none of these."""
    bare = name.removeprefix("eval_")
    fits = [own for own in found if bare == own or bare.startswith(f"{own}_")]
    return found[max(fits, key=len)] if fits else None


def check(tree: Mapping[str, Any] | None, data: Mapping[str, Any], train: Mapping[str, Any], places: Places) -> None:
    """Check the `eval` part of a run, and what the other parts say of it.

    Raises:
        SpecError, ComponentError: as `evaluation`; or it needs what is not there, or is contradicted.
    """
    found = evaluation(tree, places)
    if tree and data.get("eval") is None:
        raise SpecError(f"{places.at(('eval',))}there is nothing held out to look at; name it in data.eval")
    if found.early_stopping is not None and train.get("eval_strategy", "no") == "no":
        where = places.at(("eval", "early_stopping"))
        raise SpecError(f"{where}nothing is evaluated before the end; write train.eval_strategy: steps, or epoch")
    judge = measured_by(str(train.get("metric_for_best_model")), metrics(found.generate))
    wanted = False if judge is None else judge.higher_is_better
    if train.get("greater_is_better") not in (None, wanted):
        what = "a loss" if judge is None else f"'{judge.name}'"
        better = "higher" if wanted else "lower"
        where = places.at(("train", "greater_is_better"))
        raise SpecError(f"{where}of {what} the {better} value is the better one; leave this out")


def arguments(found: Evaluation, train: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer that follow from the `eval` part."""
    metric = train.get("metric_for_best_model")
    judge = measured_by(str(metric), metrics(found.generate))
    more = {"metric_for_best_model": "loss"} if found.early_stopping is not None and metric is None else {}
    return {"greater_is_better": judge is not None and judge.higher_is_better, **more}


class Means:
    """Means of losses over the supervised tokens, of all samples and of each task: what training minimises.

    So a value depends neither on how many samples make a batch, nor on how many processes share them, where a loss is
    a mean over tokens. One that compares the samples of a batch depends on its batch here as it does in training.
    """

    def __init__(self) -> None:
        self.sums: dict[tuple[str | None, str], list[float]] = {}  # (task, loss): its sum, tokens

    def add(self, tasks: Sequence[str | None] | None, values: Mapping[str, float], tokens: int) -> None:
        """One batch: its tasks, each loss's mean over its tokens, and how many these are."""
        own = {task or UNNAMED for task in tasks or ()} if any(tasks or ()) else set()
        if len(own) > 1:
            own = {""}  # a batch of several tasks says nothing of any
        for task in (None, *own):
            for name, value in values.items():
                total = self.sums.setdefault((task, name), [0.0, 0.0])
                total[0] += value * tokens
                total[1] += tokens

    def update(self, other: Means) -> None:
        """Take in what another process has."""
        for key, (total, tokens) in other.sums.items():
            mine = self.sums.setdefault(key, [0.0, 0.0])
            mine[0] += total
            mine[1] += tokens

    def means(self, task: str | None = None) -> dict[str, float]:
        """The mean of each loss, over all samples or those of a task."""
        return {name: total / n for (of, name), (total, n) in self.sums.items() if of == task and n > 0}

    @property
    def tasks(self) -> list[str]:
        """The tasks, sorted; none where a batch had several."""
        found = {task for task, _ in self.sums if task is not None}
        return [] if "" in found else sorted(found)


def batches(samples: Sequence[Any], size: int, order: Sequence[float] | None = None) -> list[list[int]]:
    """Places of the samples in batches of one task each; by `order`, the greatest first, where it is given."""
    by_task: dict[str | None, list[int]] = {}
    for place, sample in enumerate(samples):
        by_task.setdefault(getattr(sample, "task", None), []).append(place)
    found = []
    for places in by_task.values():
        if order is not None:
            places = sorted(places, key=lambda place: -order[place])
        found += [places[i : i + size] for i in range(0, len(places), size)]
    return found


def drawn(count: int, limit: int | Literal["all"] | None, seed: int) -> list[int]:
    """Places of at most `limit` of `count` rows, in their order; the same ones each time."""
    if limit is None or limit == "all" or limit >= count:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), limit))


def turns(lengths: NDArray[Any], size: int) -> list[list[int]]:
    """Places of the rows that are answered together, the longest first; processes take turns at these."""
    order = np.lexsort((lengths["tokens"], lengths["seconds"]))[::-1].tolist()
    return [order[i : i + size] for i in range(0, len(order), size)]


def check_room(samples: Sequence[Sample], lengths: NDArray[Any], context: int | None, most: int, option: str) -> None:
    """Refuse rows that leave no room for an answer in the language model's positions.

    Args:
        samples: the rows.
        lengths: what `usam.training.rows.measured` gave.
        context: the positions; None refuses nothing.
        most: tokens of the longest answer.
        option: what that is written as.

    Raises:
        ManifestError: names the first such row, how many there are, and what to do.
    """
    if context is None:
        return
    asked = np.maximum(lengths["asked"] - 1, 0).tolist()
    full = [s.origin for s, n in zip(samples, asked, strict=True) if n + most > context]
    if full:
        room = context - max(asked)
        remedy = f"lower it to {room:,}" if room > 0 else "cut their clips or texts"
        raise ManifestError(
            f"{full[0]}: leaves no room for an answer of {most:,} tokens ({option}) in the language model's "
            f"{context:,} positions, as {len(full):,} of {len(samples):,} rows to be answered do; {remedy}"
        )


def clips(sample: Sample) -> list[Mapping[str, Any]]:
    """The clips of a sample, as blocks."""
    return [block for message in sample.messages for block in _blocks(message) if _is_clip(block)]


def with_clips(sample: Sample, others: Sequence[Mapping[str, Any]]) -> Sample:
    """The sample with other clips in the places of its own."""
    given = iter(others)
    messages = tuple(
        {**message, "content": [next(given) if _is_clip(block) else block for block in _blocks(message)]}
        if not isinstance(message["content"], str)
        else message
        for message in sample.messages
    )
    return replace(sample, messages=messages)


def deranged(samples: Sequence[Sample], seed: int = 0) -> list[Sample] | str:
    """The samples, each with another's clips, of its own task as far as that has others; or why that cannot be.

    All clips stand in one row, sample by sample and task by task, each task's samples in an order drawn with `seed`;
    every sample takes those that follow its own by the most that any sample has, and the last ones take the first.
    """
    heard = {place: clips(sample) for place, sample in enumerate(samples)}
    most = max(map(len, heard.values()), default=0)
    if most == 0:
        return "no sample has audio"
    order = [place for place, own in heard.items() if own]
    random.Random(seed).shuffle(order)
    order.sort(key=lambda place: samples[place].task or "")
    row = [clip for place in order for clip in heard[place]]
    if len(row) < 2 * most:
        return "too few samples have audio to give each another's"
    found, start = list(samples), most
    for place in order:
        count = len(heard[place])
        found[place] = with_clips(samples[place], [row[(start + i) % len(row)] for i in range(count)])
        start += count
    return found


def _blocks(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    return iter(() if isinstance(message["content"], str) else blocks(message))


def _is_clip(block: Mapping[str, Any]) -> bool:
    return block["type"] in KINDS and names_source(block)
