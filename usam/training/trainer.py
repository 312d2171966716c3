"""transformers' Trainer for our models: what they learn from, what is logged of it, and what stops them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import has_length

from usam.data.augment import Augment
from usam.data.cache import FeatureCache
from usam.data.collate import Collator, Rows, check_share
from usam.model.statistics import gather, ungathered
from usam.spec.page import SpecError
from usam.training import groups
from usam.training.evaluating import EvaluatingTrainer
from usam.training.guards import coarse
from usam.training.parts import Parts
from usam.training.routing import Routing
from usam.training.sources import Seen
from usam.types import IGNORE

logger = logging.getLogger(__name__)

LOOKED_AT = 256  # rows, for the statistics of streams
BESIDE = ("tasks", "rows", "sources", "skipped", "clips")  # what a batch tells the Trainer, and not the model


class UsamTrainer(EvaluatingTrainer):
    """transformers' Trainer with learning-rate scales, the loss's parts and the routing in the log, and guards.

    An evaluation that looked at fewer samples than it was given is an error.

    Args:
        args, kwargs: as EvaluatingTrainer takes them.
        share: the share of the rows that may be skipped because their clips cannot be read.
        cache: frames of the encoders, read instead of computed where they are stored.
        groups: parameters with a learning rate of their own, as Run has them.
        augment: what is done to the clips of training, never to those of an evaluation; needs a Collator. Lengths,
            where they are given, are those of the longest that clips may become.
        sources: names of the sources that rows are of, which are counted.
    """

    data_collator: Any

    def __init__(
        self,
        *args: Any,
        share: float = 0.0,
        cache: FeatureCache | None = None,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
        augment: Augment | None = None,
        sources: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_processes(self.args)
        self.share = share
        self.groups = groups or {}
        self.augment = augment
        if augment is not None:
            if not isinstance(self.data_collator, Collator):
                raise ValueError("augmentation is what a usam.data.collate.Collator does: give it as data_collator")
            self.add_callback(_Epoch(augment))
        self._rates: dict[str, float] = {}  # of the groups, at the last step
        self.cache = cache
        if cache is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise SpecError("data.cache: FSDP and DeepSpeed spread the encoders' weights over processes; leave one out")
        self._parts = Parts()
        self._routing = Routing()
        self._seen = Seen(sources)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As EvaluatingTrainer; what a fusion needs to standardise its streams is gathered first, and only once."""
        body = None if resume_from_checkpoint else ungathered(self.model)
        if body is not None:
            self._gather(body)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _gather(self, body: Any) -> None:
        """Statistics of rows from all over the data, or of a stream's first; of all processes one looks."""
        data: Any = self.train_dataset
        rows: Iterator[Any]
        if has_length(data):
            count = min(len(data), LOOKED_AT)
            rows = (data[i * len(data) // count] for i in range(count))
        else:
            rows = islice(iter(data), LOOKED_AT)
        if self.is_world_process_zero():
            gather(body, self._encodable(rows))
        told = [{name: tensor.cpu() for name, tensor in body.fusion.statistics.state_dict().items()}]
        body.fusion.statistics.load_state_dict(broadcast_object_list(told)[0])

    def _encodable(self, rows: Iterator[Any]) -> Iterator[Any]:
        device = next(iter(self.model.parameters())).device
        while some := list(islice(rows, self.args.per_device_train_batch_size)):
            inputs, _ = self.inputs_of(send_to_device(self.data_collator(some), device))
            yield inputs

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own groups, split by those of the run and by each component's `lr_scale`.

        Warns where gradients pass through weights in float16 and nothing keeps them from becoming zero.
        """
        if not (self.args.fp16 or self.args.bf16) and (parts := coarse(self.accelerator.unwrap_model(self.model))):
            logger.warning(
                "%s: in float16, where gradients below 6e-8 become zero on their way through; write dtype: bfloat16 or "
                "float32 there, or train.bf16: true, or on a GPU train.fp16: true, which scales the loss",
                ", ".join(parts),
            )
        optimizer = cast(torch.optim.Optimizer, super().create_optimizer(model))
        groups.split(optimizer, groups.grouped(self.accelerator.unwrap_model(self.model), self.groups))
        return optimizer

    def _get_learning_rate(self) -> float:
        """That of what is in no group; of the first group where nothing is in none."""
        self._rates = groups.rates(self.optimizer)
        return cast(float, super()._get_learning_rate())

    def try_largest(self) -> None:
        """What is gathered for the log stays as it is, too."""
        before = self._parts, self._routing, self.skipped, self._seen, self.data_collator
        if self.augment is not None:
            self.data_collator = self.data_collator.augmented(self.augment.longest())
        self._parts, self._routing, self.skipped, self._seen = Parts(), Routing(), {}, Seen()
        try:
            super().try_largest()
        finally:
            self._parts, self._routing, self.skipped, self._seen, self.data_collator = before

    def get_train_dataloader(self) -> Any:
        """With augmentation."""
        plain = self.data_collator
        if self.augment is not None:
            self.data_collator = plain.augmented(self.augment)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def _measure(self, dataset: Any, most: Any = None) -> Any:
        """Rows of training are as long as augmentation may make them."""
        if self.augment is not None and dataset is self.train_dataset:
            most = self.augment.most
        return super()._measure(dataset, most)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's loss; stops at the first part that is not finite, and when too many rows cannot be read.

        Raises:
            FloatingPointError: names the loss and the step.
            AudioError: names the rows.
        """
        tasks = inputs.get("tasks")
        sources = inputs.get("sources", ())
        skipped = inputs.get("skipped")
        inputs, rows = self.inputs_of(inputs)
        if skipped:
            self.skipped |= {row.row: row for row in skipped}
            check_share(list(self.skipped.values()), self._planned(), self.share)
        if not model.training:  # each batch by itself: how many tokens other processes have at the moment means nothing
            kwargs["num_items_in_batch"] = None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        aux = outputs.get("aux") or {}
        if model.training:
            self._seen.add(sources)
        if model.training:
            share = self._share(inputs, kwargs.get("num_items_in_batch"))
            self._parts.steps += int(self.accelerator.gradient_state.sync_gradients)
            if tasks is not None:
                self._routing.add(tasks, aux)
        for name, value in (outputs.get("losses") or {}).items():
            tokens = aux.get(f"{name}.tokens")
            if not math.isfinite(value.item()):
                self.stop(f"loss '{name}' is {value.item()}", rows, inputs, tokens, now=not model.training)
            elif model.training:
                self._parts.add(name, value.item(), share)
                if tokens is not None and tasks is not None:
                    self._parts.add_tokens(name, tokens, inputs["labels"], tasks)
        if not model.training:
            self.measure(tasks, inputs.get("labels"), loss, outputs.get("losses") or {})
        return (loss, outputs) if return_outputs else loss

    def inputs_of(self, batch: Any) -> tuple[Any, Rows | None]:
        """Without tasks, which the model does not know; with what the cache knows of the clips."""
        inputs = {name: value for name, value in batch.items() if name not in BESIDE}
        if self.cache is not None and "input_values" in inputs:
            clips = batch.get("clips")
            heard = self.cache.frames(inputs["input_values"], inputs.get("input_values_mask"), clips)
            inputs["audio_frames"] = heard
        return inputs, batch.get("rows")

    def _share(self, inputs: Any, total: Any) -> float:
        """This micro-batch's share of its step, by supervised tokens: those of all processes sum to 1."""
        if total is None or "labels" not in inputs:
            return 1 / int(self.current_gradient_accumulation_steps * self.args.world_size)
        share: float = float((inputs["labels"][:, 1:] != IGNORE).sum() / total)
        return share if self.args.average_tokens_across_devices else share / int(self.args.world_size)

    def _planned(self) -> int:
        """Of the data, or of a stream those of all steps."""
        if has_length(self.train_dataset):
            return len(cast(Any, self.train_dataset))
        return int(self.args.max_steps * self.get_total_train_batch_size(self.args))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each unweighted part since the last line, by task too, and what routers did with each task.

        All processes call it together: what is told is of all of them.
        """
        if "loss" in logs:
            logs |= self._rates | self._parts.means(gather_object) | self._routing.means(gather_object)
            logs |= {f"seen/{name}": count for name, count in self._seen.totals(self.accelerator).items()}
        if "train_loss" in logs:  # of the whole run, also when it was resumed
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def gathered(self) -> dict[str, Any]:
        """Also the loss's parts, the routing and the rows of each source; all processes ask together."""
        seen = self._seen.totals(self.accelerator)
        return {**super().gathered(), "parts": self._parts.state, "routing": self._routing.state, "seen": seen}

    def take_up(self, gathered: Mapping[str, Any]) -> None:
        """Also the loss's parts, the routing and the rows of each source."""
        super().take_up(gathered)
        self._seen.take_up(gathered.get("seen", {}))
        self._parts = Parts(gathered["parts"])
        self._routing = Routing(gathered["routing"])

    def merged(self, gathered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Also the loss's parts and the routing, which the first process gets."""
        first = self.args.process_index == 0
        parts = Parts.joined(each["parts"] for each in gathered)
        if not first:
            parts = Parts({"steps": parts.steps, "sums": {}, "tasks": {}})
        routing = Routing.joined([each["routing"] for each in gathered if first])
        own = {"parts": parts.state, "routing": routing.state, "seen": gathered[0]["seen"]}
        return {**super().merged(gathered), **own}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.cache is not None:  # a run that goes on from here reads the same frames
            self.cache.flush()
        super()._save_checkpoint(model, trial)


class _Epoch(TrainerCallback):
    """Each epoch has its own augmentation."""

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.augment.set_epoch(int(state.epoch or 0))


def check_processes(args: TrainingArguments) -> None:
    """Refuse processes that were started together and would train each by itself, into one folder.

    Raises:
        SpecError: says what to write.
    """
    started = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if started > args.world_size:
        raise SpecError(
            f"train.use_cpu: {started} processes were started, and without a GPU each would train by itself; write "
            "use_cpu: true"
        )


def trainable(model: nn.Module) -> int:
    """How many parameters train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
