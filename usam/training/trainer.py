"""transformers' Trainer for our models: what is logged, what stops it, and the run that starts it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.model.assembly import parts
from usam.model.build import build_model
from usam.model.checkpoint import load, processor_beside
from usam.model.model import UsamForConditionalGeneration
from usam.processor.processor import UsamProcessor
from usam.training.routing import Routing
from usam.training.run import Run
from usam.weights import reading

# What audio batches need, unless the run file says otherwise.
DEFAULTS = {
    "output_dir": "runs/usam",
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "report_to": "none",
    "save_total_limit": 2,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


class UsamTrainer(Trainer):
    """transformers' Trainer with learning-rate scales, the loss's parts and the routing in the log, and a guard."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts: dict[str, list[Tensor]] = {}
        self._routing = Routing()

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

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's loss; stops at the first part that is not finite.

        Raises:
            FloatingPointError: names the loss and the step.
        """
        tasks = inputs.pop("tasks", None)  # the model knows no tasks
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
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
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each unweighted part since the last line, and of what routers did with each task."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[f"loss_{name}"] = float(torch.stack(values).float().mean())
            self._parts.clear()
            logs |= self._routing.means()
        super().log(logs, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """A file that is broken, or would execute code, is named."""
        with reading(f"{checkpoint}: optimizer or scheduler", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A file that is broken, or would execute code, is named."""
        with reading(f"{checkpoint}: rng_state", checkpoint):
            super()._load_rng_state(checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A delta holds what trains: the rest is missing by design, but nothing may be left over."""
        if load_result.unexpected_keys:
            raise ValueError(f"the checkpoint does not fit the model: unexpected {load_result.unexpected_keys}")


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


def train(run: Run, *, resume: str | bool | None = None) -> Path:
    """Train a run's model and save it, with its processor and the run itself, in `train.output_dir`.

    Args:
        run: what `read_run` returned.
        resume: a checkpoint folder, or True for the last one in `output_dir`.
    """
    arguments = TrainingArguments(**{**DEFAULTS, **run.train})
    set_seed(arguments.seed)
    if run.start is None:
        model, processor = build_model(run.spec), UsamProcessor.from_spec(run.spec)
    else:
        model, processor = load(run.start, spec=run.spec), processor_beside(run.start, run.spec)
    data = Manifest(run.data["train"], run.spec.prompts, need_answer=True)
    held_out = Manifest(run.data["eval"], run.spec.prompts, need_answer=True) if run.data.get("eval") else None
    trainer = UsamTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=held_out,
        data_collator=Collator(processor, tasks=True),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    folder = Path(cast(str, arguments.output_dir))
    (folder / "run.yaml").write_text(run.to_yaml(), encoding="utf-8")
    return folder


def trainable(model: nn.Module) -> int:
    """How many parameters train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
