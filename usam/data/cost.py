"""What a step of training takes: memory and floating point operations, by running it hollow (`usam.data.hollow`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from usam.component import is_frozen
from usam.data.hollow import Flops, Memory, Values, hollow
from usam.data.sampling import Length
from usam.model.assembly import outline, parts, place_of, plan_dtypes
from usam.model.build import config_of
from usam.model.inputs import audio_of
from usam.model.model import UsamForConditionalGeneration
from usam.registry import ComponentError, did_you_mean
from usam.spec.page import SpecError
from usam.spec.spec import Spec
from usam.types import IGNORE
from usam.versions.compat import CACHE

WORDS = 1000  # token ids that stand for text
HOUR = 3600


@dataclass(frozen=True)
class Work:
    """Floating point operations of a step, by part."""

    forward: Mapping[str, int]
    backward: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.forward.values()) + sum(self.backward.values())


@dataclass(frozen=True)
class Cost:
    """A step of training; memory in bytes."""

    work: Work
    weights: int
    gradients: int
    optimizer: int
    activations: int  # alive when the forward pass is done
    logits: int  # the most that a loss holds beside them
    peak: int  # the most at once, from the second step on, when the optimizer has its state


@dataclass(frozen=True)
class How:
    """How a model is trained.

    Args:
        dtype: of all weights; None: what the spec says, frozen weights of a source in `stored`.
        autocast: of the products, as `train.bf16` and `train.fp16` ask for.
        optimizer: as `train.optim` names it.
        checkpointing: computes states again in the backward pass instead of keeping them.
        accumulate: whether gradients of another micro-batch are there already.
        cached: without the frozen encoders, whose frames are read.
    """

    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    optimizer: str = "adamw_torch"
    checkpointing: bool = False
    accumulate: bool = False
    cached: bool = False


def hollow_model(spec: Spec, how: How) -> UsamForConditionalGeneration:
    """The model without memory, with the dtypes that it has when it trains, ready to."""
    config = config_of(spec, weights=False)
    skeleton = outline(config)
    stored: dict[str, Tensor] = {}
    for prefix, part in parts(skeleton):
        if getattr(part.config, "path", None) is not None:
            dtype = stored_dtype(spec, place_of(prefix))
            own = (prefix, "lm_head.") if prefix == "model.language_model." else (prefix,)
            stored |= {n: torch.empty(0, dtype=dtype) for n, _ in skeleton.named_parameters() if n.startswith(own)}
    dtypes = plan_dtypes(skeleton, stored, (), how.dtype)
    with torch.device("meta"):
        model = UsamForConditionalGeneration(config, dtypes).train()
    if how.checkpointing:
        enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    return model


def stored_dtype(spec: Spec, place: str) -> torch.dtype:
    """What frozen weights that are not here are taken to be stored in."""
    if place != "llm":
        return torch.float32
    arch: Mapping[str, Any] = getattr(spec.llm, "arch", None) or {}
    named = str(arch.get("dtype") or arch.get("torch_dtype") or "bfloat16")
    found = getattr(torch, named, torch.bfloat16)
    return found if isinstance(found, torch.dtype) else torch.bfloat16


def bytes_of(tensors: Iterator[Tensor] | Sequence[Tensor]) -> int:
    """Of tensors, each once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def batch_of(spec: Spec, model: UsamForConditionalGeneration, rows: Sequence[Length], values: Values) -> dict[str, Any]:
    """A hollow batch of rows of these lengths: clips, an instruction and an answer each, padded to the longest."""
    config: Any = model.config
    audio = int(config.audio_token_id)
    clips: list[int] = []
    lines: list[tuple[int, int, int]] = []  # placeholders, words that ask, words that answer
    for row in rows:
        samples = max(1, round(row.seconds * spec.sample_rate))
        own = row.clips // row.rows
        heard = own * spec.placeholders(samples) if own else 0
        answer = max(1, row.tokens - row.asked + 1)
        clips += [samples] * own * row.rows
        lines += [(heard, max(1, row.tokens - answer - heard), answer)] * row.rows
    length = max(map(sum, lines))
    words = torch.arange(WORDS + 1) % int(config.text_config.vocab_size)
    words = words[words != audio]
    ids = words[(torch.arange(length) + torch.arange(len(lines)).unsqueeze(-1)) % len(words)]
    real, asks, answers = (torch.zeros(ids.shape, dtype=torch.bool) for _ in range(3))
    for i, (heard, asked, answer) in enumerate(lines):
        first = length - heard - asked - answer  # padding stands on the left
        real[i, first:] = True
        ids[i, first : first + heard] = audio
        asks[i, first + heard : length - answer] = True
        answers[i, length - answer :] = True
    batch: dict[str, Any] = {
        "input_ids": values.hold(ids),
        "attention_mask": values.hold(real.long()),
        "prompt_mask": values.hold(asks),
        "labels": values.hold(ids.masked_fill(~answers, IGNORE)),
        "batch": {"ids": list(range(len(lines))), "tasks": [None] * len(lines), "extra": [{}] * len(lines)},
    }
    if clips:
        mask = torch.arange(max(clips)) < torch.tensor(clips).unsqueeze(-1)
        batch["input_values"] = torch.empty(mask.shape, device="meta")
        batch["input_values_mask"] = values.hold(mask)
    return batch


def step(spec: Spec, model: UsamForConditionalGeneration, rows: Sequence[Length], how: How) -> Cost:
    """What one step on a batch of these rows takes.

    Args:
        spec: the model's, resolved.
        model: what `hollow_model` gave.
        rows: the batch.
        how: as `hollow_model` was told.

    Raises:
        ComponentError: a part cannot be computed without values, or the optimizer not without bitsandbytes' kernels.
    """
    there = [*model.parameters(), *model.buffers()]
    weights = bytes_of(there)
    memory, flops = Memory(there), Flops(_parts(model))
    logits = _Logits(memory, model.losses)
    try:
        with warnings.catch_warnings(), hollow(how.autocast) as values, flops, memory:
            warnings.simplefilter("ignore")  # of a batch that nobody made
            batch = batch_of(spec, model, rows, values)
            if how.cached:
                batch |= _frames(model, batch)
            loss = model(**batch).loss
            activations = memory.now
            loss.backward()
            del loss, batch
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, (SpecError, ComponentError)):
            raise
        raise ComponentError(
            f"a step cannot be followed without values: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    finally:
        flops.close()
        logits.close()
    peak = memory.peak
    gradients = bytes_of([p.grad for p in model.parameters() if p.grad is not None])
    if how.accumulate:
        peak += gradients
    state, more = optimizer_bytes(model, how.optimizer)
    model.zero_grad()
    return Cost(
        work=Work(dict(flops.forward), dict(flops.backward)),
        weights=weights,
        gradients=gradients,
        optimizer=state,
        activations=activations,
        logits=logits.most,
        peak=weights + state + max(peak, gradients + more),
    )


def _parts(model: UsamForConditionalGeneration) -> dict[str, nn.Module]:
    named = {place_of(prefix): part for prefix, part in parts(model) if isinstance(part, nn.Module)}
    return {**named, "llm": model.model.language_model, "llm head": model.lm_head}


def _frames(model: UsamForConditionalGeneration, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache gives for the clips of a batch."""
    if "input_values" not in batch:
        return {}
    audio = audio_of(batch["input_values"], batch["input_values_mask"], None, model.config.parsed)
    assert audio is not None
    found = {}
    for name, encoder in model.model.encoders.parts():
        if is_frozen(encoder):
            heard = audio.at(encoder.config.sample_rate)
            lengths = encoder.config.length(heard.lengths)
            size = encoder.config.length(heard.x.shape[1])
            mask = torch.arange(size, device="meta") < lengths.unsqueeze(-1)
            found[name] = torch.empty(len(heard.x), size, encoder.dim, device="meta"), mask
    return {"audio_frames": found}


@dataclass
class _Logits:
    """The most that losses hold beside what was there before."""

    memory: Memory
    losses: Any
    most: int = 0
    hooks: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        for _, loss in self.losses.parts():
            self.hooks += [loss.register_forward_pre_hook(self._begin), loss.register_forward_hook(self._end)]

    def _begin(self, *_: Any) -> None:
        self.before, self.high = self.memory.now, self.memory.peak
        self.memory.peak = self.memory.now

    def _end(self, *_: Any) -> None:
        self.most = max(self.most, self.memory.peak - self.before)
        self.memory.peak = max(self.memory.peak, self.high)

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def optimizer_bytes(model: UsamForConditionalGeneration, name: str) -> tuple[int, int]:
    """What an optimizer keeps, and the most that its step takes beside it; of gradients that are there.

    Raises:
        SpecError: no such optimizer, or one that does not run without its device.
    """
    known = TrainingArguments.__dataclass_fields__["optim"].metadata.get("choices") or ()
    try:
        arguments = TrainingArguments(output_dir="nowhere", optim=name, use_cpu=True)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        options = {**options, **({"fused": False, "foreach": False} if "fused" in options else {})}
        optimizer = kind([p for p in model.parameters() if p.grad is not None], **options)
        memory = Memory([*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)])
        with memory:
            optimizer.step()
    except (ValueError, TypeError, RuntimeError, ImportError, NotImplementedError) as error:
        raise SpecError(
            f"optimizer '{name}': what it keeps cannot be told here ({str(error).splitlines()[0]}); "
            f"{did_you_mean(name, known) if known else 'write one of torch, such as adamw_torch'}"
        ) from error
    state = bytes_of([t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)])
    return state, max(0, memory.peak - state)


def cache_per_token(model: UsamForConditionalGeneration) -> float | None:
    """Bytes of keys and values for each token while an answer is generated; None for a cache of another kind."""
    count = 16
    with hollow() as values, torch.no_grad():
        ids = values.hold(torch.zeros(1, count, dtype=torch.long))
        embeds = model.model.embed(ids)
        out = model.eval().model.language_model(inputs_embeds=embeds, use_cache=True)
    model.train()
    layers = getattr(out.get(CACHE), "layers", None) or []
    found = [t for layer in layers for t in (getattr(layer, "keys", None), getattr(layer, "values", None))]
    held = [t for t in found if isinstance(t, Tensor)]
    return bytes_of(held) / count if held else None


def frames_per_hour(model: UsamForConditionalGeneration) -> dict[str, int]:
    """Bytes in float32 that a cache of frames holds for an hour of audio, of each encoder that does not train."""
    return {
        name: encoder.config.length(HOUR * encoder.config.sample_rate) * encoder.dim * 4
        for name, encoder in model.model.encoders.parts()
        if is_frozen(encoder)
    }


def rates(spec: Spec) -> dict[str, float]:
    """Frames that a second of audio becomes, stage by stage; 0 where there are as many for any clip.

    Args:
        spec: a resolved one.
    """
    found = {}
    streams = {}
    samples = 10 * spec.sample_rate
    for name, config in cast(dict[str, Any], spec.encoders).items():
        found[f"encoders.{name}"] = config.rate
        streams[name] = config.length(10 * config.sample_rate), config.rate
    frames, rate = cast(Any, spec.fusion).length(streams, samples, spec.sample_rate)
    found["fusion"] = rate
    for i, stage in enumerate(cast(Any, spec.projector)):
        frames, rate = stage.length(frames, rate)
        found[f"projector.{i}"] = rate
    return found
