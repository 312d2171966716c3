"""What a spec builds: widths, rates, parameters and tokens, read off the structure on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from torch import nn

from usam.config import UsamConfig
from usam.model.assembly import outline
from usam.model.model import UsamForConditionalGeneration
from usam.spec.spec import Spec, find


@dataclass(frozen=True)
class Row:
    """One line of the table: a part of the model."""

    part: str
    type: str
    width: str
    rate: str
    parameters: int
    trainable: int


def table(spec: Spec) -> list[Row]:
    """Every part of the model with its width, its rate, and what of it trains."""
    model = outline(UsamConfig.from_spec(spec))
    rows = list(_rows(spec, model))
    own = [*model.parameters()]
    total = sum(p.numel() for p in own)
    rows.append(Row("total", "", "", "", total, sum(p.numel() for p in own if p.requires_grad)))
    return rows


def _rows(spec: Spec, model: UsamForConditionalGeneration) -> Iterator[Row]:
    encoders = dict(model.model.encoders.parts())
    for name, encoder in encoders.items():
        config = encoder.config
        rate = f"{config.sample_rate} Hz -> {config.rate:g}/s"
        yield _row(f"encoders.{name}", config.type, f"{encoder.dim}", rate, encoder)
    samples = 10 * spec.sample_rate
    clock: Any = spec.fusion
    streams = {n: (c.length(10 * c.sample_rate), c.rate) for n, c in ((n, e.config) for n, e in encoders.items())}
    frames, rate_ = clock.length(streams, samples, spec.sample_rate)
    yield _row("fusion", spec.fusion.type, f"{model.model.fusion.dim}", f"{rate_:g}/s", model.model.fusion)
    before = model.model.fusion.dim
    for i, module in enumerate(model.model.projector.stages):
        stage: Any = module
        frames, rate_ = stage.config.length(frames, rate_)
        yield _row(f"projector.{i}", stage.config.type, f"{before} -> {stage.dim}", _pace(frames, rate_), stage)
        before = stage.dim
    text: Any = model.config.text_config
    width = f"{model.config.llm().dim}"
    yield _row("llm", f"{spec.llm.type} ({text.model_type})", width, "", model.model.language_model)
    if (blocks := model.model.cross_attention) is not None:
        name = f"{blocks.config.type} ({len(blocks.blocks)})"
        yield _row("llm.injection", name, f"{blocks.audio_dim} -> {blocks.dim}", "", blocks)
    tied = " (tied)" if model.config.tie_word_embeddings else ""
    yield _row("llm head", "", f"{width} -> {text.vocab_size}{tied}", "", nn.Module() if tied else model.lm_head)
    for name, loss in model.losses.parts():
        yield _row(f"losses.{name}", loss.config.type, f"x {loss.config.weight:g}", "", loss)


def _row(part: str, kind: str, width: str, rate: str, module: nn.Module) -> Row:
    own = list(module.parameters())
    return Row(part, kind, width, rate, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))


def _pace(frames: int, rate: float) -> str:
    return f"{rate:g}/s" if rate else f"{frames} a clip"


def heading(source: str) -> str:
    """What a spec file says of itself: the comment it begins with; empty without one."""
    lines = takewhile(lambda line: line.startswith("#"), find(source).read_text(encoding="utf-8").splitlines())
    return "\n".join(line[1:].strip() for line in lines if "yaml-language-server" not in line)


def tokens_line(spec: Spec) -> str:
    """How many tokens a second of audio costs, in words."""
    one, ten, hour = (spec.audio_tokens(seconds * spec.sample_rate) for seconds in (1, 10, 3600))
    _, rate = spec.audio_length(spec.sample_rate)
    speed = f"{rate:g} tokens a second" if rate else "as many tokens for any clip"
    beside = "; beside the text, where a clip is one token" if spec.beside else ""
    return f"audio: {spec.sample_rate} Hz; {speed}; 1 s = {one}, 10 s = {ten}, 1 h = {hour:,} tokens{beside}"


def difference(first: Spec, second: Spec) -> list[str]:
    """Lines `- key = value` and `+ key = value` where two specs differ; none when they are the same."""
    old, new = dict(_leaves(first.to_dict())), dict(_leaves(second.to_dict()))
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        if old.get(key) != new.get(key):
            lines += [f"- {key} = {old[key]}"] if key in old else []
            lines += [f"+ {key} = {new[key]}"] if key in new else []
    return lines


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list) and tree:
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{path}.{i}")
    else:
        yield path, repr(tree)


def text_table(rows: Sequence[Row]) -> str:
    """The table in columns of plain text."""
    cells = [("part", "component", "width", "rate", "parameters", "trainable")]
    cells += [(r.part, r.type, r.width, r.rate, f"{r.parameters:,}", f"{r.trainable:,}") for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(6)]
    lines = []
    for row in cells:
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        lines.append("  ".join([*left, *right]).rstrip())
    return "\n".join(lines)
