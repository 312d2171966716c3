"""A Trainer that looks at the lengths of rows: batches of a budget, and transformers' samplers that group by length."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, trainer_pt_utils, trainer_utils
from transformers.trainer_utils import has_length

from usam.data.manifest import Sample
from usam.data.mixture import Mixture, MixtureSampler
from usam.data.sampling import Budget, BudgetSampler
from usam.data.steps import Steps
from usam.data.stream import PassedOver, Stream
from usam.processor.processor import UsamProcessor
from usam.spec.page import SpecError
from usam.training import rows

BY_LENGTH = ("group_by_length", "batch_rebalance")  # of `train_sampling_strategy`
OPTIONS = (  # of a loader, `dataloader_` in front
    "num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context", "in_order"
)  # fmt: skip


class SamplingTrainer(Trainer):
    """transformers' Trainer with a budget for its batches, and with lengths for the samplers that ask for them.

    Args:
        args, kwargs: as the Trainer takes them.
        budget: what a batch of training may hold; None makes batches as the Trainer does.
        lengths: of the rows of `train_dataset`, an array of `LENGTH`; None takes its own `lengths`, or measures.
        mixture: draws the rows of each epoch of training; None: they are all rows.
    """

    def __init__(
        self,
        *args: Any,
        budget: Budget | None = None,
        lengths: NDArray[Any] | None = None,
        mixture: Mixture | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.budget = budget
        self.mixture = mixture
        if mixture is not None and (strategy := self.args.train_sampling_strategy) not in ("random", "group_by_length"):
            raise SpecError(
                f"train.train_sampling_strategy: {strategy} does not go with a mixture, which has an order of its own: "
                "write random or group_by_length, or leave weights and data.temperature out"
            )
        self.lengths = lengths
        self._by_dataset: dict[int, tuple[Any, NDArray[Any]]] = {}  # of datasets, by their identity
        self._sampler: BudgetSampler | None = None  # of `_sampled`
        self._sampled: Any = None
        self.add_callback(_Epochs())

    def get_train_dataloader(self) -> Any:
        """The Trainer's own, or one with our batches, which accelerate deals out to the processes."""
        if isinstance(self.train_dataset, Stream):
            return self._streamed(self.train_dataset)
        args = self.args
        together = super().get_total_train_batch_size(args) // self._train_batch_size
        if self.budget is None:
            steps = self._steps(together)
            return super().get_train_dataloader() if steps is None else self._loader(steps)
        if not _measurable(self.train_dataset):
            raise ValueError("a budget needs a dataset of samples that can be counted and measured, such as a Manifest")
        if self._sampled is not self.train_dataset or self._sampler is None or self._sampler.together != together:
            lengths = self._measure(self.train_dataset)
            seed, mixture = self._data_seed, self.mixture
            self._sampler = BudgetSampler(lengths, self.budget, seed=seed, together=together, mixture=mixture)
            self._sampled = self.train_dataset
        return self._loader(self._sampler)

    def _steps(self, together: int) -> Steps | None:
        """Batches for steps of as many each, where the Trainer's own would be fewer, or accelerate would fill them."""
        size, strategy = self._train_batch_size, self.args.train_sampling_strategy
        if not has_length(self.train_dataset) or strategy == "batch_rebalance" or self.accelerator.split_batches:
            return None
        sampler = self._get_train_sampler()
        if together == 1 or len(sampler) % (size * together) == 0:
            return None
        return Steps(sampler, size, together, drop_last=self.args.dataloader_drop_last)

    def _loader(self, batches: Any) -> Any:
        loader: Any = DataLoader(
            cast(Any, self.train_dataset),
            batch_sampler=batches,
            collate_fn=self.data_collator,
            **self._loading(),
        )
        return self.accelerator.prepare(loader)

    def _streamed(self, stream: Stream) -> Any:
        """The batches of this process, which a stream deals out itself."""
        for asked, what in ((self.budget, "a budget"), (self.mixture, "a mixture")):
            if asked is not None:
                raise ValueError(
                    f"{what} needs a dataset of samples that can be counted and measured; a stream has none"
                )
        if (strategy := self.args.train_sampling_strategy) != "random":
            raise ValueError(f"train_sampling_strategy: {strategy} needs all rows; a stream has an order of its own")
        batch = self._train_batch_size
        loader: Any = DataLoader(
            cast(Any, stream.part(batch, self.args.process_index, self.args.world_size)),
            batch_size=batch,
            collate_fn=PassedOver(self.data_collator),
            **self._loading(),
        )
        device = self.accelerator.device
        return prepare_data_loader(
            loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def _loading(self) -> dict[str, Any]:
        """How a loader reads, as the Trainer's arguments say."""
        args = self.args
        start = partial(trainer_utils.seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index)
        options = {name: getattr(args, f"dataloader_{name}") for name in OPTIONS if hasattr(args, f"dataloader_{name}")}
        return {**options, "worker_init_fn": start}

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """The rows of a step, with a budget on average."""
        if self._sampler is None:
            return cast(int, super().get_total_train_batch_size(args))
        return round(len(cast(Any, self.train_dataset)) * self._sampler.together / len(self._sampler))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The Trainer's own; those that look at lengths are given ours."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args, strategy = self.args, self.args.train_sampling_strategy
        if self.mixture is not None and strategy not in BY_LENGTH:
            return MixtureSampler(self.mixture, seed=self._data_seed)
        if strategy not in BY_LENGTH or not _measurable(dataset):
            return super()._get_train_sampler(train_dataset)
        tokens = self._measure(dataset)["tokens"].tolist()
        together = super().get_total_train_batch_size(args) // self._train_batch_size
        if strategy == "group_by_length":
            step = self._train_batch_size * together
            if self.mixture is not None:
                return MixtureSampler(self.mixture, seed=self._data_seed, lengths=tokens, batch=step)
            return _GroupedByLength(step, lengths=tokens, seed=self._data_seed)
        return trainer_pt_utils.BatchRebalanceSampler(
            lengths=tokens,
            effective_batch_size=self._train_batch_size * together,
            dp_size=together // args.gradient_accumulation_steps,
            grad_accum=args.gradient_accumulation_steps,
            seed=self._data_seed,
            rank=args.process_index,
            drop_last=args.dataloader_drop_last,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The Trainer's own; the one that looks at lengths is given ours."""
        if self.args.train_sampling_strategy != "group_by_length" or not _measurable(eval_dataset):
            return super()._get_eval_sampler(eval_dataset)
        tokens = self._measure(eval_dataset)["tokens"].tolist()
        return _GroupedByLength(self.args.eval_batch_size, lengths=tokens, seed=self._data_seed)

    @property
    def _data_seed(self) -> int:
        return cast(int, self.args.seed if self.args.data_seed is None else self.args.data_seed)

    def _measure(self, dataset: Any, most: rows.Most | None = None) -> NDArray[Any]:
        """`LENGTH` of each row."""
        given = self.lengths if dataset is self.train_dataset else None
        given = getattr(dataset, "lengths", None) if given is None else given
        if given is not None:
            return cast(NDArray[Any], given)
        if id(dataset) not in self._by_dataset:
            if not isinstance(self.processing_class, UsamProcessor):
                raise ValueError("rows are measured with their processor: give it as processing_class, or lengths")
            self._by_dataset[id(dataset)] = dataset, rows.measured(dataset, self.processing_class, most=most)
        return self._by_dataset[id(dataset)][1]

    def try_largest(self) -> None:
        """Take the largest batches of the budget forward and backward, and leave no trace of it.

        What the optimizer keeps, from its first step on, comes on top. Under DeepSpeed nothing is tried.

        Raises:
            SpecError: there is not enough memory.
        """
        if self._sampler is None or self.is_deepspeed_enabled:  # whose engine counts each backward as one of a step
            return
        model = self.model_wrapped
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            with _randomness_kept(self.args.device):
                for batch in self._sampler.largest():
                    self._try(model, batch)
        finally:
            model.zero_grad()
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(buffers[name])

    def _try(self, model: Any, batch: list[int]) -> None:
        assert self._sampler is not None
        samples = [cast(Any, self.train_dataset)[i] for i in batch]
        try:
            (inputs,), count = super().get_batch_samples(iter([self.data_collator(samples)]), 1, self.args.device)
            self.training_step(model, inputs, count)
            model.zero_grad()
        except (RuntimeError, MemoryError) as error:
            if not (should_reduce_batch_size(error) or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
                raise
            seconds, silence, tokens, filler = self._sampler.padding(batch)
            raise SpecError(
                f"{self._sampler.fullest(batch)}: one of the largest batches, {len(batch)} rows with "
                f"{seconds + silence:.1f} s of audio and {tokens + filler:,.0f} tokens, does not fit into memory; "
                "lower it, or take a smaller dtype or gradient_checkpointing"
            ) from error


class _Epochs(TrainerCallback):
    """The samplers of a resumed run lie deeper in its loader than the Trainer and accelerate look."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        inside = _inside(train_dataloader)
        while inside is not None:
            if hasattr(inside, "set_epoch"):
                inside.set_epoch(int(state.epoch or 0))
            inside = _inside(inside)


def _measurable(dataset: Any) -> bool:
    return has_length(dataset) and len(dataset) > 0 and isinstance(dataset[0], Sample)


def _inside(loader: Any) -> Any:
    return next((getattr(loader, name) for name in ("batch_sampler", "sampler") if hasattr(loader, name)), None)


class _GroupedByLength(trainer_pt_utils.LengthGroupedSampler):
    """transformers' sampler, whose order depends on the epoch alone, so that a resumed run goes on with it."""

    def __init__(self, batch_size: int, *, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return cast(Iterator[int], super().__iter__())


@contextmanager
def _randomness_kept(device: torch.device) -> Iterator[None]:
    """What is drawn inside changes nothing of what is drawn afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
