"""transformers' Trainer for our models: what they learn from, what is logged of it, and what stops them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.trainer_utils import has_length

from usam.data.cache import FeatureCache
from usam.data.collate import check_share
from usam.model.assembly import parts
from usam.model.model import UsamForConditionalGeneration
from usam.spec.page import SpecError
from usam.training.resuming import IncompleteRun, ResumingTrainer
from usam.training.routing import Routing
from usam.training.sources import Seen


class UsamTrainer(ResumingTrainer):
    """transformers' Trainer with learning-rate scales, the loss's parts and the routing in the log, and guards.

    An evaluation that looked at fewer samples than it was given is an error.

    Args:
        args, kwargs: as ResumingTrainer takes them.
        share: the share of the rows that may be skipped because their clips cannot be read.
        cache: frames of the encoders, read instead of computed where they are stored.
        sources: names of the sources that rows are of, which are counted.
    """

    def __init__(
        self,
        *args: Any,
        share: float = 0.0,
        cache: FeatureCache | None = None,
        sources: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.share = share
        self.cache = cache
        if cache is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise SpecError("data.cache: FSDP and DeepSpeed spread the encoders' weights over processes; leave one out")
        self._parts: dict[str, list[Tensor]] = {}
        self._measured: dict[str, list[Tensor]] = {}  # of an evaluation
        self._routing = Routing()
        self._seen = Seen(sources)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own groups, split by each component's `lr_scale`."""
        optimizer = cast(torch.optim.Optimizer, super().create_optimizer(model))
        scales = learning_rate_scales(self.accelerator.unwrap_model(self.model))
        if set(scales.values()) - {1.0}:
            groups = []
            for group in optimizer.param_groups:
                for scale in sorted({scales.get(id(p), 1.0) for p in group["params"]}):
                    own = [p for p in group["params"] if scales.get(id(p), 1.0) == scale]
                    groups.append({**group, "params": own, "lr": group["lr"] * scale})
            optimizer.param_groups[:] = groups
        return optimizer

    def try_largest(self) -> None:
        """What is gathered for the log stays as it is, too."""
        before = self._parts, self._routing, self.skipped, self._seen
        self._parts, self._routing, self.skipped, self._seen = {}, Routing(), {}, Seen()
        try:
            super().try_largest()
        finally:
            self._parts, self._routing, self.skipped, self._seen = before

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's loss; stops at the first part that is not finite, and when too many rows cannot be read.

        Raises:
            FloatingPointError: names the loss and the step.
            AudioError: names the rows.
        """
        tasks = inputs.pop("tasks", None)  # the model knows no tasks
        sources = inputs.pop("sources", ())
        skipped = inputs.pop("skipped", ())
        clips = inputs.pop("clips", None)
        if self.cache is not None and "input_values" in inputs:
            heard = self.cache.frames(inputs["input_values"], inputs.get("input_values_mask"), clips)
            inputs = {**inputs, "audio_frames": heard}
        if skipped:
            self.skipped |= {row.row: row for row in skipped}
            check_share(list(self.skipped.values()), self._rows(), self.share)
        if not model.training:  # each batch by itself: how many tokens other processes have at the moment means nothing
            kwargs["num_items_in_batch"] = None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training:
            self._seen.add(sources)
        if model.training and tasks is not None:
            self._routing.add(tasks, outputs.get("aux") or {})
        for name, value in (outputs.get("losses") or {}).items():
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"loss '{name}' is {value.item()} at step {self.state.global_step + 1}; lower the learning rate "
                    "or its lr_scale, clip gradients (max_grad_norm), or train in bf16 instead of fp16"
                )
            if model.training:
                self._parts.setdefault(name, []).append(value.detach())
            else:  # weighted by samples, as the Trainer does with the sum
                value = self.gather_function(value.detach().repeat(self.args.eval_batch_size))
                self._measured.setdefault(name, []).append(value.float().cpu())
        return (loss, outputs) if return_outputs else loss

    def _rows(self) -> int:
        """Of the data, or of a stream those of all steps."""
        if has_length(self.train_dataset):
            return len(cast(Any, self.train_dataset))
        return int(self.args.max_steps * self.get_total_train_batch_size(self.args))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each unweighted part since the last line, and of what routers did with each task."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[f"loss_{name}"] = float(torch.stack(values).float().mean())
            self._parts.clear()
            logs |= self._routing.means()
            logs |= {f"seen/{name}": count for name, count in self._seen.totals(self.accelerator).items()}
        if "train_loss" in logs:  # of the whole run, also when it was resumed
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Batches of every sample: `dataloader_drop_last` is about steps of training."""
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The mean loss over all samples, and as `eval_loss_NAME` each unweighted part.

        It draws from no random numbers that training would draw from.

        Raises:
            IncompleteRun: fewer samples were looked at than there are.
        """
        self._measured = {}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        seen = max((sum(map(len, values)) for values in self._measured.values()), default=None)
        given = len(dataloader.dataset) if has_length(dataloader.dataset) else None
        if seen is not None and given is not None and seen < given:
            raise IncompleteRun(f"{metric_key_prefix}: {seen} of {given} samples were looked at; the data ended early")
        for name, values in self._measured.items():
            output.metrics[f"{metric_key_prefix}_loss_{name}"] = float(torch.cat(values).mean())
        return output

    def gathered(self) -> dict[str, Any]:
        """Also the loss's parts, the routing and the rows of each source; all processes ask together."""
        seen = self._seen.totals(self.accelerator)
        return {**super().gathered(), "parts": self._parts, "routing": self._routing.state, "seen": seen}

    def take_up(self, gathered: Mapping[str, Any]) -> None:
        """Also the loss's parts, the routing and the rows of each source."""
        super().take_up(gathered)
        self._seen.take_up(gathered.get("seen", {}))
        self._parts = gathered["parts"]
        self._routing = Routing(gathered["routing"])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.cache is not None:  # a run that goes on from here reads the same frames
            self.cache.flush()
        super()._save_checkpoint(model, trial)


def learning_rate_scales(model: Any) -> dict[int, float]:
    """The `lr_scale` of every parameter, by its identity."""
    inner = next((m for m in model.modules() if isinstance(m, UsamForConditionalGeneration)), None)
    if inner is None:
        return {}
    named = dict(parts(inner))
    scales = {}
    for name, parameter in inner.named_parameters():
        part = next((part for prefix, part in named.items() if name.startswith(prefix)), inner.config.llm())
        scales[id(parameter)] = float(part.config.lr_scale)
    return scales


def trainable(model: nn.Module) -> int:
    """How many parameters train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
