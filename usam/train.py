"""Training: a run file names a spec, its data and the arguments of transformers' Trainer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.hf import build_model, load, parts, processor_beside
from usam.model import UsamForConditionalGeneration
from usam.page import Places, SpecError, parse_yaml, write_yaml
from usam.patch import merge, parse_override
from usam.processor import UsamProcessor
from usam.registry import did_you_mean
from usam.routing import Routing
from usam.spec import Spec, read

PARTS = ("model", "start", "data", "train")

# What audio batches need, unless the run file says otherwise.
DEFAULTS = {
    "output_dir": "runs/usam",
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "report_to": "none",
    "save_total_limit": 2,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


@dataclass(frozen=True)
class Run:
    """A run file, checked: the spec, the manifests, the Trainer's arguments, and the model to start from, if any."""

    spec: Spec
    data: Mapping[str, Any]
    train: Mapping[str, Any]
    start: str | None = None

    def to_yaml(self) -> str:
        """The run as a page of YAML that `read_run` reads back."""
        start = {"start": self.start} if self.start is not None else {}
        return write_yaml({"model": self.spec.to_dict(), **start, "data": dict(self.data), "train": dict(self.train)})


def read_run(file: str | Path, *overrides: str) -> Run:
    """Read a run file and lay `a.b=c` overrides over it (`model.llm.lora.r=16`, `train.learning_rate=1e-3`).

    Raises:
        SpecError: the file, line and key, and what to write instead.
        ComponentError: a component of the spec is unknown or fails to load.
    """
    path = Path(file)
    if not path.is_file():
        raise SpecError(f"{path}: no such run file (looked in {path.parent.resolve()})")
    places = Places()
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path), places)
    if not isinstance(tree, dict):
        raise SpecError(f"{path}: a run file is a map of 'model', 'data' and 'train'; found {tree!r}")
    for key in tree:
        if key not in PARTS:
            raise SpecError(f"{places.at((key,))}no such part of a run; {did_you_mean(key, PARTS)}")
    if "model" not in tree:
        raise SpecError(f"{path}: a run needs 'model': a bundled spec, a file, or a whole spec")
    source = tree["model"]
    if isinstance(source, str) and (path.parent / source).exists():
        source = path.parent / source
    start = tree.get("start") or (source if isinstance(source, (str, Path)) and Path(source).is_dir() else None)
    if start is not None:
        start = str(path.parent / start) if (path.parent / start).is_dir() else str(start)
    model, lines = read(source)
    rest = {key: tree.get(key) or {} for key in ("data", "train")}
    for override in overrides:
        patch, origin = parse_override(override)
        (head, value), *_ = patch.items()
        if head == "model":
            model = merge(model, value, lines, origin)
        elif head in rest and isinstance(value, dict):
            rest = merge(rest, patch, places, origin)
        else:
            raise SpecError(f"{origin}: starts with 'model.', 'data.' or 'train.'")
    _check(rest, places)
    for split in ("train", "eval"):
        if split in rest["data"]:
            rest["data"][split] = _beside(rest["data"][split], path.parent)
    return Run(Spec.from_tree(model, lines), rest["data"], rest["train"], start)


def _check(tree: Mapping[str, Any], places: Places) -> None:
    for part in ("data", "train"):
        if not isinstance(tree[part], Mapping):
            raise SpecError(f"{places.at((part,))}expected a map, found {tree[part]!r}")
    for key in tree["data"]:
        if key not in ("train", "eval"):
            raise SpecError(f"{places.at(('data', key))}no such split; {did_you_mean(key, ['train', 'eval'])}")
    if "train" not in tree["data"]:
        raise SpecError(f"{places.at(('data',))}a run needs 'data.train': one manifest, or a list")
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key in tree["train"]:
        if key not in known:
            raise SpecError(
                f"{places.at(('train', key))}no argument of transformers' Trainer; {did_you_mean(key, known)}"
            )
    if tree["train"].get("label_smoothing_factor"):
        raise SpecError(
            f"{places.at(('train', 'label_smoothing_factor'))}write it as model.losses.cross_entropy.label_smoothing"
        )


def _beside(files: Any, folder: Path) -> list[str]:
    names = [files] if isinstance(files, str) else list(files)
    return [str(folder / name) if not Path(name).exists() else str(name) for name in names]


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
