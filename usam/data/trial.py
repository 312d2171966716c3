"""A trial of a spec: its structure without memory, a chat of each task, one step of training and of evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from usam.component import building
from usam.config import UsamConfig, resolve
from usam.model.assembly import outline, parts, place_of, plan_dtypes
from usam.model.build import build_model
from usam.model.learning import check_learns
from usam.model.model import UsamForConditionalGeneration
from usam.model.statistics import gather
from usam.processor.lengths import context_length
from usam.processor.processor import UsamProcessor
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import Spec
from usam.types import IGNORE
from usam.weights import local_path

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
GIB = 2**30
SECONDS = (1.0, 0.6)  # of the clips that are tried
ANSWERS = ("A dog barks.", "Rain.")
RATE = 5e-5  # the Trainer's own


@dataclass
class Trial:
    """What came of a trial that found no fault."""

    not_tried: list[str] = field(default_factory=list)
    """What could not be tried here, and why."""

    @property
    def sound(self) -> bool:
        """Whether everything was tried: what is sound trains."""
        return not self.not_tried


def try_spec(spec: Spec, memory: float = 4.0) -> Trial:
    """Build, render, train and evaluate, each in small; widths are those of the spec.

    Args:
        spec: what to try.
        memory: GiB that one training step may take; a larger model is built without memory only.

    Raises:
        SpecError, ComponentError: what is wrong, with its key.
    """
    trial = Trial()
    full = resolve(spec)
    skeleton = outline(UsamConfig.from_spec(full))
    check_learns(skeleton)
    check_names(spec, skeleton)
    _check_length(full, skeleton)
    batch, placeholder = _render(full, trial)
    if placeholder is not None:
        skeleton.config.audio_token_id = placeholder
    if absent := sorted(_absent(skeleton)):
        trial.not_tried.append(f"weights that would come from the hub: {', '.join(absent)}")
    need = step_bytes(full, skeleton)
    if need > memory * GIB:
        trial.not_tried.append(f"a training step, which takes some {need / GIB:.1f} GiB here (--memory {memory:g})")
        return trial
    _step(full, skeleton, batch, weights=not absent)
    return trial


def _absent(skeleton: UsamForConditionalGeneration) -> set[str]:
    """Hub ids of sources that are not here; what is neither here nor a hub id is an error."""
    found = set()
    for prefix, part in parts(skeleton):
        path = getattr(part.config, "path", None)
        if path and not local_path(path).exists():
            if not HUB_ID.fullmatch(path):
                with building(place_of(prefix), part.config):
                    part.source()  # says what is wrong
            found.add(path)
    return found


def _render(spec: Spec, trial: Trial) -> tuple[dict[str, Tensor] | None, int | None]:
    """A batch of a chat of each task, and its placeholder; None when there is no tokenizer here."""
    name = getattr(spec.llm, "tokenizer", None) or getattr(spec.llm, "path", None)
    try:
        processor = UsamProcessor.from_spec(spec)
    except ComponentError as error:
        if name is None or not HUB_ID.fullmatch(name) or Path(name).exists():
            raise
        trial.not_tried.append(f"chats: {str(error).splitlines()[0]}")
        return None, None
    except ValueError as error:  # of the template, or of what the tokenizer lacks
        raise SpecError(f"template, llm.tokenizer: {error}") from error
    prompts = {"": "What do you hear?", **spec.prompts}
    samples: list[Any] = []
    for task, prompt in [("", prompts[""]), *prompts.items()]:
        clip = torch.randn(round(SECONDS[len(samples) % 2] * spec.sample_rate), generator=_noise()) * 0.1
        content = [{"type": "audio", "audio": clip.numpy()}, {"type": "text", "text": prompt}]
        answer = ANSWERS[len(samples) % 2]
        try:
            chat = processor.render([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
            processor.encode([chat], labels=True)
        except ValueError as error:
            raise SpecError(f"{f'prompts.{task}' if task else 'template'}: {error}") from error
        samples.append(chat)
    return dict(processor.encode(samples[:4], labels=True)), processor.audio_token_id


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _stand_in(spec: Spec, skeleton: UsamForConditionalGeneration) -> dict[str, Tensor]:
    """A batch without a tokenizer: any words around the placeholders."""
    config: Any = skeleton.config
    words = torch.arange(12) % min(int(config.text_config.vocab_size), 12)
    samples = [round(seconds * spec.sample_rate) for seconds in SECONDS]
    counts = [spec.placeholders(n) for n in samples]
    rows, marks = [], []
    for i, count in enumerate(counts):
        fill = words[:1].expand(max(counts) - count)
        audio = torch.full((count,), int(config.audio_token_id))
        rows.append(torch.cat([fill, words[:4], audio, words[4:] if i else words[4:].flip(0)]))
        marks.append(torch.tensor([False] * len(fill) + [True] * 4 + [False] * (count + 8)))
    ids, own = torch.stack(rows), torch.arange(max(samples)) < torch.tensor(samples).unsqueeze(-1)
    labels = ids.clone()
    labels[:, :-4] = IGNORE
    clips = torch.randn(own.shape, generator=_noise()).mul(0.1).masked_fill(~own, 0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "prompt_mask": torch.stack(marks),
        "input_values": clips,
        "input_values_mask": own,
        "labels": labels,
    }


def check_names(spec: Spec, skeleton: UsamForConditionalGeneration) -> None:
    """Refuse a misspelt option in an `arch`, which transformers keeps as it is and never reads.

    Raises:
        SpecError: its key, and what it was meant to be.
    """
    given = {f"encoders.{name}": (skeleton.model.encoders[name], config) for name, config in spec.encoders.items()}
    for place, (network, options) in {**given, "llm": (skeleton.model.language_model, spec.llm)}.items():
        arch: dict[str, Any] = getattr(options, "arch", None) or {}
        configs = [getattr(module, "config", None) for module in network.modules()]
        config: Any = next((found for found in configs if isinstance(found, PreTrainedConfig)), None)
        if config is None:
            continue
        known = {*config.__dataclass_fields__, *config.attribute_map}
        for name in sorted(arch.keys() - known):
            close = get_close_matches(name, known, n=1, cutoff=0.85)
            if close:
                raise SpecError(
                    f"{place}.arch.{name}: a {config.model_type} has no such option; did you mean '{close[0]}'?"
                )


def _check_length(spec: Spec, skeleton: UsamForConditionalGeneration) -> None:
    tokens, positions = spec.placeholders(spec.sample_rate), context_length(skeleton.config.text_config)
    if positions is not None and tokens >= positions:
        raise SpecError(
            f"projector: a second of audio becomes {tokens:,} tokens, and the language model has {positions:,} "
            "positions; write longer windows, fewer queries or another stage"
        )


def step_bytes(spec: Spec, skeleton: UsamForConditionalGeneration) -> int:
    """What a step on two short clips takes, roughly: weights, gradients, the optimizer's moments, and states."""
    weights = sum(t.numel() * t.element_size() for t in (*skeleton.parameters(), *skeleton.buffers()))
    trains = sum(p.numel() * p.element_size() for p in skeleton.parameters() if p.requires_grad)
    text: Any = skeleton.config.text_config
    tokens = 2 * (spec.audio_tokens(spec.sample_rate) + 200)
    frames, _ = spec.model_copy(update={"projector": []}).audio_length(spec.sample_rate)
    widths = [skeleton.model.fusion.dim, *(cast(Any, stage).dim for stage in skeleton.model.projector.stages)]
    states = tokens * (24 * text.hidden_size * text.num_hidden_layers + 4 * text.vocab_size)
    return int(weights + 3 * trains + 4 * (states + 2 * frames * 8 * sum(widths)))


def _step(
    spec: Spec, skeleton: UsamForConditionalGeneration, batch: dict[str, Tensor] | None, *, weights: bool
) -> None:
    """Evaluate, train one step, evaluate."""
    quantised = getattr(spec.llm, "quantization_config", None) is not None
    if weights and (quantised or any(part.source() for _, part in parts(skeleton))):
        model = build_model(spec, seed=0)
    else:  # from what is there already
        model = UsamForConditionalGeneration(skeleton.config, plan_dtypes(skeleton, {}, (), None), seed=0)
    batch = _stand_in(spec, model) if batch is None else batch
    if not model.model.fusion.gathered:
        gather(model, [batch])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        _evaluate(model, batch, "at the start")
        head: Any = spec.llm
        scales = {**{prefix: part.config.lr_scale for prefix, part in parts(model)}, "": head.lr_scale}
        groups = [
            {"params": [p], "lr": RATE * next(scale for prefix, scale in scales.items() if name.startswith(prefix))}
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
        output = _run(model.train(), batch, "in a training step")
        if not output.loss.requires_grad:
            raise SpecError("nothing that trains has a part in the loss; train another part, or add another loss")
        output.loss.backward()
        torch.optim.AdamW(groups).step()
        _evaluate(model, batch, "after one training step")


def _evaluate(model: nn.Module, batch: dict[str, Tensor], when: str) -> None:
    with torch.no_grad():
        _run(model.eval(), batch, when)


def _run(model: nn.Module, batch: dict[str, Tensor], when: str) -> Any:
    try:
        output = model(**batch)
    except (SpecError, ComponentError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ComponentError(
            f"the spec builds a model that cannot be trained ({when}): "
            + (str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
        ) from error
    for name, value in output.losses.items():
        if not value.isfinite():
            raise SpecError(
                f"losses.{name}: it is {value.item()} {when}; look for temperatures, scales and weights far from "
                "their defaults, and for parts that train in float16"
            )
    if not output.loss.isfinite():
        raise SpecError(f"losses: their weighted sum is {output.loss.item()} {when}; write smaller weights")
    return output
