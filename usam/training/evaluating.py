"""A Trainer that measures held-out data: losses by part and task, answers by metrics, and whether the audio matters."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import has_length

from usam.data.manifest import ManifestError, Sample
from usam.generate import Answerer
from usam.processor.lengths import context_length
from usam.processor.processor import UsamProcessor
from usam.saving import write_whole
from usam.spec.page import SpecError
from usam.training import held_out, rows
from usam.training.checkpoints import PREDICTIONS
from usam.training.guards import GuardedTrainer
from usam.training.held_out import Evaluation, Means
from usam.training.resuming import IncompleteRun
from usam.training.routing import UNNAMED
from usam.training.sampling import OPTIONS, _randomness_kept
from usam.types import IGNORE

logger = logging.getLogger(__name__)

# Below this share of the loss, what the right audio is worth is no more than what a model can get from the kind of
# sound alone, or from rounding: one that transcribes or describes loses many times as much.
DEAF = 0.01


class EvaluatingTrainer(GuardedTrainer):
    """GuardedTrainer that evaluates: see `Evaluation`.

    Args:
        args, kwargs: as GuardedTrainer takes them.
        evaluation: the `eval` part of a run; None measures losses alone.
    """

    def __init__(self, *args: Any, evaluation: Evaluation | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evaluation = evaluation or Evaluation(canary=False)
        self.metrics = held_out.metrics(self.evaluation.generate)
        self._means: Means | None = None  # of an evaluation
        self._dealt: _Dealt | None = None  # its batches
        self._rows = 0  # and rows
        self._others: tuple[Any, list[Sample] | str] | None = None  # what is held out, with the audio shuffled
        self._said_once: set[str] = set()
        self._stopping: EarlyStoppingCallback | None = None
        if self.metrics and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise SpecError("eval.generate: FSDP and DeepSpeed spread the weights over processes; leave one out")
        if (judge := held_out.measured_by(str(self.args.metric_for_best_model), self.metrics)) is not None:
            self.args.greater_is_better = judge.higher_is_better
        if (stop := self.evaluation.early_stopping) is not None:
            self._stopping = EarlyStoppingCallback(stop.patience, stop.threshold)
            self.add_callback(self._stopping)
        for dataset in self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]:
            self._check_names(dataset)

    def _check_names(self, dataset: Any) -> None:
        """Refuse two values of one name, and a best model of a task that no held-out row has."""
        if not _of_samples(dataset):
            return
        tasks = {dataset[i].task or UNNAMED for i in range(len(dataset))}
        parts = set(self.accelerator.unwrap_model(self.model).config.parsed.losses)
        if both := (parts | {"shuffled_audio"}) & tasks:
            raise SpecError(f"eval_loss_{min(both)} would be both a loss's and a task's: give the task another name")
        wanted = str(self.args.metric_for_best_model).removeprefix("eval_")
        for name in self.metrics:
            task = wanted.removeprefix(f"{name}_")
            by_task = self.evaluation.generate is not None and self.evaluation.generate.by_task
            if wanted not in self.metrics and task != wanted and not (by_task and task in tasks):
                known = ", ".join(sorted(tasks)) if by_task else "none, for eval.generate.by_task is false"
                raise SpecError(f"train.metric_for_best_model: no held-out row has the task '{task}'; tasks: {known}")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As GuardedTrainer; that answers have room is seen before anything is learned."""
        if self.metrics and _of_samples(self.eval_dataset):
            self._check_room(self.eval_dataset)
        return super().train(*args, **kwargs)

    def _check_room(self, dataset: Any) -> None:
        generate = self.evaluation.generate
        context = context_length(cast(Any, self.accelerator.unwrap_model(self.model)).config.text_config)
        if generate is None or context is None:
            return
        samples = [dataset[i] for i in held_out.drawn(len(dataset), generate.limit, generate.seed)]
        lengths = rows.measured(samples, cast(Any, self.processing_class))
        held_out.check_room(samples, lengths, context, generate.max_new_tokens, "eval.generate.max_new_tokens")

    # Batches

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches of every sample, each of one task; the processes take turns.

        `dataloader_drop_last` is about steps of training. Streams, and what `compute_metrics` is to see in its order,
        come as the Trainer gives them.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = cast(Any, self.eval_dataset)[dataset]
        if not has_length(dataset) or isinstance(dataset, IterableDataset) or self.compute_metrics is not None:
            drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
            try:
                return super().get_eval_dataloader(eval_dataset)
            finally:
                self.args.dataloader_drop_last = drop
        samples = [dataset[i] for i in range(len(dataset))] if _of_samples(dataset) else range(len(dataset))
        lengths = getattr(dataset, "lengths", None)
        order = None if lengths is None else lengths["tokens"].tolist()
        found = held_out.batches(cast(Any, samples), self.args.eval_batch_size, order)
        options = {name: getattr(self.args, f"dataloader_{name}", None) for name in OPTIONS}
        options["persistent_workers"] = False  # the loader lives for one evaluation
        dealt = _Dealt(found, self.args.process_index, self.args.world_size)
        return DataLoader(
            dataset,
            batch_sampler=cast(Any, dealt),
            collate_fn=self.data_collator,
            **{name: value for name, value in options.items() if value is not None},
        )

    # Losses

    def measure(self, tasks: Sequence[str | None] | None, labels: Any, loss: Any, parts: Mapping[str, Any]) -> None:
        """Take in what one batch of an evaluation lost."""
        if self._means is None or (self._dealt is not None and not self._dealt.count()):
            return
        self._rows += len(labels)
        values = {"": float(loss), **{name: float(value) for name, value in parts.items()}}
        self._means.add(tasks, values, int((labels[:, 1:] != IGNORE).sum()))

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The mean loss over all supervised tokens, each unweighted part, each task; and what `Evaluation` asks for.

        It leaves random numbers and the model's modes as they were.

        Raises:
            IncompleteRun: fewer samples were looked at than there are.
        """
        prefix, dataset = metric_key_prefix, getattr(dataloader, "dataset", None)
        with _randomness_kept(self.args.device), _modes_kept(self.model):
            output, means = self._losses(dataloader, *args, metric_key_prefix=prefix, **kwargs)
            for name, value in means.means().items():
                output.metrics[f"{prefix}_loss_{name}".removesuffix("_")] = value
            for task in means.tasks:
                output.metrics[f"{prefix}_loss_{task}"] = means.means(task)[""]
            if self._dealt is None or not _of_samples(dataset):
                return output
            if self.evaluation.canary:
                self._listen(dataset, prefix, output.metrics, *args, **kwargs)
            if self.metrics:
                output.metrics.update(self._answered(dataset, prefix))
        return output

    def _losses(self, dataloader: Any, *args: Any, metric_key_prefix: str, **kwargs: Any) -> tuple[Any, Means]:
        """What the Trainer's loop gives, and the losses of all processes."""
        dealt = getattr(dataloader, "batch_sampler", None)
        self._dealt = dealt if isinstance(dealt, _Dealt) else None
        self._means, self._rows = Means(), 0
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
            own = self._means, self._rows if self._dealt is None else self._dealt.seen
        finally:
            self._means = None
        means, seen = Means(), 0
        for theirs, count in gather_object([own]):
            means.update(theirs)
            seen += count
        given = len(dataloader.dataset) if has_length(dataloader.dataset) else None
        if means.sums and given is not None and seen < given:
            raise IncompleteRun(f"{metric_key_prefix}: {seen} of {given} samples were looked at; the data ended early")
        return output, means

    # Does it listen?

    def _listen(self, dataset: Any, prefix: str, found: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The loss with each sample hearing another's audio, and how much worse it is."""
        if self._others is None or self._others[0] is not dataset:
            self._others = dataset, self._with_other_audio([dataset[i] for i in range(len(dataset))])
        others = self._others[1]
        if isinstance(others, str):
            if others not in self._said_once:
                logger.warning("eval.canary: skipped, for %s; write false to say so", others)
            self._said_once.add(others)
            return
        loader = self.get_eval_dataloader(others)
        _, means = self._losses(loader, *args, metric_key_prefix=f"{prefix}_shuffled_audio", **kwargs)
        loss, shuffled = found[f"{prefix}_loss"], means.means()[""]
        found[f"{prefix}_loss_shuffled_audio"] = shuffled
        found[f"{prefix}_audio_gap"] = gap = shuffled - loss
        if self.state.global_step > 0 and gap < DEAF * abs(loss):
            logger.warning(
                "step %d: the model hardly listens: with each sample hearing another's audio %s_loss is %.4g instead "
                "of %.4g, and the difference is less than %.0f %% of it; so far it learns from the texts alone; "
                "look at the projector's learning rate, and whether prompts give the answers away",
                self.state.global_step, prefix, shuffled, loss, 100 * DEAF,
            )  # fmt: skip

    def _with_other_audio(self, samples: list[Sample]) -> list[Sample] | str:
        """Each sample with another's clips; one that these would make too long keeps its own."""
        others = held_out.deranged(samples)
        context = context_length(cast(Any, self.accelerator.unwrap_model(self.model)).config.text_config)
        if isinstance(others, str) or context is None or not isinstance(self.processing_class, UsamProcessor):
            return others
        tokens = rows.measured(others, self.processing_class)["tokens"]
        return [b if n <= context else a for a, b, n in zip(samples, others, tokens, strict=True)]

    # Answers

    def _answered(self, dataset: Any, prefix: str) -> dict[str, float]:
        """The value of each metric, over all rows that are answered and over those of each task."""
        generate = self.evaluation.generate
        assert generate is not None
        samples = [dataset[i] for i in held_out.drawn(len(dataset), generate.limit, generate.seed)]
        replies = self._replies(samples)
        answers, references = [text for text, _ in replies], [sample.references for sample in samples]
        extra = [sample.extra for sample in samples]
        scores = {name: metric(answers, references, extra=extra) for name, metric in self.metrics.items()}
        columns = {column for metric in self.metrics.values() for column in metric.columns}
        tasks = held_out.by_task([sample.task for sample in samples]) if generate.by_task else {}
        found = {}
        for name, score in scores.items():
            found[f"{prefix}_{name}"] = score.value
            found.update({f"{prefix}_{key}_of_{name}": value for key, value in score.details.items()})
            for task, places in tasks.items():
                found[f"{prefix}_{name}_{task}"] = self.metrics[name].value(score.statistics[places])
        lines = [
            {
                "id": sample.origin if sample.id is None else sample.id,
                "task": sample.task,
                "prediction": text,
                "complete": complete,
                "references": list(sample.references),
                **({"extra": {column: sample.extra[column] for column in sorted(columns)}} if columns else {}),
                "scores": {name: score.each[i] for name, score in scores.items()},
            }
            for i, (sample, (text, complete)) in enumerate(zip(samples, replies, strict=True))
        ]
        self._tell_ids(prefix)
        if self.is_world_process_zero():
            which = prefix.removeprefix("eval").strip("_")
            file = Path(
                cast(str, self.args.output_dir),
                PREDICTIONS,
                f"{which and which + '-'}step-{self.state.global_step}.jsonl",
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return found

    def _replies(self, samples: Sequence[Sample]) -> list[tuple[str, bool]]:
        """(answer, whether it came to its end) of each sample; the longest first, and the processes take turns.

        Raises:
            ManifestError: a row has no answer; says why.
        """
        generate = self.evaluation.generate
        assert generate is not None
        if not isinstance(self.processing_class, UsamProcessor):
            raise ValueError("answers are made with the model's processor: give it as processing_class")
        model: Any = self.accelerator.unwrap_model(self.model)
        answerer = Answerer(model, self.processing_class)
        lengths = rows.measured(samples, self.processing_class)
        size = generate.batch_size or self.args.per_device_eval_batch_size
        turns = held_out.turns(lengths, size)
        mine = [i for turn in turns[self.args.process_index :: self.args.world_size] for i in turn]
        torch.manual_seed(generate.seed)
        found: list[tuple[int, str, bool]] = []
        with self.compute_loss_context_manager():
            options = {"max_new_tokens": generate.max_new_tokens, **generate.options}
            chats = (samples[i].question for i in mine)
            for i, reply in zip(mine, answerer.replies(chats, batch_size=size, **options), strict=True):
                if reply.fault is not None:
                    raise ManifestError(f"{samples[i].origin}: {reply.fault}") from reply.fault
                found.append((i, reply.text, reply.complete))
        return [(text, complete) for _, text, complete in sorted(gather_object(found))]

    def _tell_ids(self, prefix: str) -> None:
        """What each metric is, once in a run's log."""
        ids = {f"{prefix}_{name}_id": metric.id for name, metric in self.metrics.items()}
        if not any(ids.keys() <= line.keys() for line in self.state.log_history):
            self.log(cast(Any, ids))

    # Going on

    def gathered(self) -> dict[str, Any]:
        """Also how many evaluations brought nothing better."""
        waited = {} if self._stopping is None else {"waited": self._stopping.early_stopping_patience_counter}
        return {**super().gathered(), **waited}

    def take_up(self, gathered: Mapping[str, Any]) -> None:
        """Also how many evaluations brought nothing better."""
        super().take_up(gathered)
        if self._stopping is not None:
            self._stopping.early_stopping_patience_counter = gathered.get("waited", 0)

    def ended(self, checkpoint: Path) -> bool:
        """Whether the run had stopped early when the checkpoint was saved."""
        if self._stopping is None or not self._progress(checkpoint).is_file():
            return False
        waited = torch.load(self._progress(checkpoint), weights_only=True, map_location="cpu").get("waited", 0)
        return bool(waited >= self._stopping.early_stopping_patience)


class _Dealt:
    """The batches of one process: as many as any other has, with one that does not count where some are wanting."""

    def __init__(self, batches: Sequence[list[int]], rank: int, processes: int) -> None:
        self.own = list(batches[rank::processes])
        self.steps = -(-len(batches) // processes)
        self.filler = list(batches[:1])
        self.seen = 0  # samples
        self._step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.own
        yield from self.filler * (self.steps - len(self.own))

    def count(self) -> bool:
        """Whether the batch that was just looked at counts."""
        self._step += 1
        counts = self._step <= len(self.own)
        if counts:
            self.seen += len(self.own[self._step - 1])
        return counts


def _of_samples(dataset: Any) -> bool:
    return has_length(dataset) and len(dataset) > 0 and isinstance(dataset[0], Sample)


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module is then in training mode or not, as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
