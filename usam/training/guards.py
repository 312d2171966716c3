"""What is not finite stops a run before the weights take harm, and the rows that it came from are named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from usam.data.collate import SHOWN, Rows
from usam.model.assembly import place_of
from usam.training.parts import by_sample
from usam.training.resuming import ResumingTrainer
from usam.types import IGNORE

REMEDY = (
    "look at these rows, lower the learning rate or its lr_scale, clip gradients (max_grad_norm), or train in bf16 "
    "instead of fp16"
)
CLIPS = ("input_values", "input_values_mask")
PREFIX = re.compile(r"(model\.)?((encoders|projector\.stages)\.[^.]+|\w+)")  # of a component's parameters


def coarse(model: nn.Module) -> list[str]:
    """Places of parts in float16 that gradients pass through: below 6e-8 they become zero there, below 6e-5 coarse."""
    learns, half = set[str](), dict[str, None]()
    for name, parameter in model.named_parameters():
        place = place_of(cast(re.Match[str], PREFIX.match(name))[0].replace("lm_head", "language_model"))
        if parameter.requires_grad:
            learns.add(place)
        if parameter.dtype == torch.float16:
            half[place] = None
    return [place for place in half if place in learns or not place.startswith("encoders.")]


def row_of(rows: Rows, inputs: Mapping[str, Any], row: int) -> dict[str, Any]:
    """A row as a batch of its own."""
    before = sum(rows.clips[:row])
    heard = slice(before, before + rows.clips[row])
    own: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in (*CLIPS, "audio_frames"):
            if not rows.clips[row]:
                continue
            if name == "audio_frames" and isinstance(value, Mapping):
                own[name] = {encoder: tuple(part[heard] for part in pair) for encoder, pair in value.items()}
            else:
                own[name] = tuple(part[heard] for part in value) if name == "audio_frames" else value[heard]
        elif name == "batch":
            own[name] = {key: column[row : row + 1] for key, column in value.items()}
        else:
            own[name] = value[row : row + 1] if isinstance(value, Tensor) and value.ndim else value
    return own


def told(rows: Rows, inputs: Mapping[str, Any], row: int, rate: int) -> str:
    """A row's place, and how long and loud its clips are."""
    own = row_of(rows, inputs, row)
    if "input_values" not in own:
        return rows.origins[row]
    values, masks = own["input_values"].float(), own["input_values_mask"].bool()
    said = [f"{int(m.sum()) / rate:.1f} s, {level(x[m])}" for x, m in zip(values, masks, strict=True)]
    return f"{rows.origins[row]} ({'; '.join(said)})"


def level(clip: Tensor) -> str:
    """How loud a clip is at its loudest."""
    peak = float(clip.abs().max()) if clip.numel() else 0.0
    if peak == 0:
        return "silent"
    return f"peak {20 * torch.log10(torch.tensor(peak)).item():.1f} dBFS" if peak < float("inf") else f"peak {peak}"


def at_fault(rows: Rows, inputs: Mapping[str, Any], tokens: Tensor | None) -> list[int]:
    """The rows of a batch whose loss is not finite, by its values at their tokens; empty where these do not say."""
    if tokens is None or len(tokens) != int((inputs["labels"][:, 1:] != IGNORE).sum()):
        return []
    sums = by_sample(tokens, inputs["labels"])[:, 0]
    return (~sums.isfinite()).nonzero().flatten().tolist()


def alone(model: nn.Module, rows: Rows, inputs: Mapping[str, Any], *, backward: bool) -> list[int]:
    """The rows of a batch whose loss, or gradients, are not finite when they are a batch of their own."""
    found = []
    for row in range(len(rows.origins)):
        own = row_of(rows, inputs, row)
        if not bool((own["labels"][:, 1:] != IGNORE).any()):
            continue
        model.zero_grad()
        loss = model(**own).loss
        if backward and loss.isfinite():
            loss.backward()
        if not loss.isfinite() or not finite_gradients(model):
            found.append(row)
    model.zero_grad()
    return found


def finite_gradients(model: nn.Module) -> bool:
    """Whether every gradient of a model is finite, of what this process holds of it; none is."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    own = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
    held = [grad for grad in own if grad.numel()]  # a norm of nothing is an error
    return not held or bool(torch.nn.utils.get_total_norm(held, norm_type=float("inf")).isfinite())


class GuardedTrainer(ResumingTrainer):
    """ResumingTrainer that stops, on all processes together, at the first loss or gradient that is not finite.

    Args:
        args, kwargs: as ResumingTrainer takes them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step: list[Any] = []  # the batches of the step that is being made
        self._faults: list[str] = []  # the losses that were not finite in it
        self.add_callback(_BeforeStep(self))

    def inputs_of(self, batch: Any) -> tuple[Any, Rows | None]:
        """What of a batch the model is given, and whose its rows are."""
        return {name: value for name, value in batch.items() if name != "rows"}, batch.get("rows")

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """The batches of one step, remembered until it is made."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        self._step = batches
        return batches, count

    def stop(self, what: str, rows: Rows | None, inputs: Any, tokens: Tensor | None, *, now: bool) -> None:
        """Stop because of a loss, of several processes when the step's gradients are there.

        Raises:
            FloatingPointError: names the rows: by the values at their tokens, else those that it happens with alone.
        """
        place = ""
        if rows is not None:
            found = at_fault(rows, inputs, tokens)
            if not found and self._sees_whole_model:
                found = alone(self.accelerator.unwrap_model(self.model), rows, inputs, backward=False)
            place = listed(self._told(rows, inputs, found or range(len(rows.origins))), len(rows.origins))
        self._faults.append(self._message(what, place))
        if now or self.args.world_size == 1 or self.is_deepspeed_enabled:
            raise FloatingPointError(self._faults.pop())

    def check_step(self) -> None:
        """Look at the gradients of a step before the optimizer does; what the scaler of fp16 skips is no fault.

        Raises:
            FloatingPointError: names the rows of all processes.
        """
        sound = self.accelerator.scaler is not None or finite_gradients(self.model)
        wrong: Any = torch.tensor(float(bool(self._faults) or not sound), device=self.args.device)
        if self.args.world_size > 1:
            wrong = self.accelerator.reduce(wrong, "sum")
        if wrong.item() > 0:
            faults = gather_object(self._faults)
            if not faults:
                found, every = self._broken()
                found, every = gather_object(found), gather_object(every)
                faults = [self._message("the gradient is not finite", listed(found or every, len(every)))]
            raise FloatingPointError("\n".join(faults))
        self._step = []

    @property
    def _sees_whole_model(self) -> bool:
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _broken(self) -> tuple[list[str], list[str]]:
        """The rows of this process's step whose gradients are not finite by themselves, and all of its rows."""
        found: list[str] = []
        every: list[str] = []
        for batch in self._step:
            inputs, rows = self.inputs_of(self._prepare_inputs(batch))
            if rows is not None:
                every += self._told(rows, inputs, range(len(rows.origins)))
                if self._sees_whole_model:
                    own = alone(self.accelerator.unwrap_model(self.model), rows, inputs, backward=True)
                    found += self._told(rows, inputs, own)
        return found, every

    def _told(self, rows: Rows, inputs: Any, which: Iterable[int]) -> list[str]:
        rate = self.accelerator.unwrap_model(self.model).config.parsed.sample_rate
        return [told(rows, inputs, row, rate) for row in which]

    def _message(self, what: str, place: str) -> str:
        step = f"{what} at step {self.state.global_step + 1}" + (f", in {place}" if place else "")
        floats = [(n, p) for n, p in self.model.named_parameters() if p.is_floating_point() and p.element_size() > 1]
        broken = [name for name, p in floats if not p.isfinite().all()]
        if broken:
            return f"{step}; weights are not finite either ({', '.join(broken[:3])}): go back to a checkpoint before"
        return f"{step}; {REMEDY}"


class _BeforeStep(TrainerCallback):
    def __init__(self, trainer: GuardedTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.check_step()


def listed(told: Sequence[str], of: int) -> str:
    """Rows as a part of a sentence, and of how many they are; a row that has several is named once."""
    names = list(dict.fromkeys(told))
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}, of {of:,} rows" if names else ""
