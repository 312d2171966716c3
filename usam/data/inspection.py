"""One batch as the model sees it: the text, where audio stands, what is supervised, and what its parts do with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from usam.data.collate import Collator
from usam.data.manifest import Sample
from usam.model.model import UsamForConditionalGeneration
from usam.processor.chat import blocks
from usam.processor.clip import KINDS, Clip
from usam.processor.processor import UsamProcessor
from usam.types import IGNORE

WIDTH = 80  # columns of a terminal


@dataclass(frozen=True)
class Piece:
    """Tokens in a row that are all of one kind."""

    kind: str  # padding, audio, learned, instruction or text
    start: int  # of its first token in the row
    ids: tuple[int, ...]
    text: str  # decoded; of audio: whose it is


STYLES = {"padding": "2", "audio": "35", "learned": "1;32", "instruction": "36", "text": ""}  # ANSI (ECMA-48, 8.3.117)
MARKS = {"padding": ("<pad> x ", ""), "audio": ("", ""), "learned": ("[[", "]]"), "instruction": ("{", "}")}


def describe_batch(
    processor: UsamProcessor, samples: Sequence[Sample], *, color: bool = False, tokens: bool = False
) -> str:
    """Each row of a batch as the model is given it: its exact text, its audio, and what is learned.

    In colours, or with `{...}` around the instruction that prompt-routed projectors read, `[[...]]` around what is
    supervised, `<|audio|> x n` for the placeholders of a clip, and `<pad> x n`.

    Args:
        processor: the model's processor.
        samples: the rows, which are padded to one length.
        color: ANSI colours in place of marks.
        tokens: also each token's id.
    """
    batch, owners = Collator(processor).rows(samples)
    rate = processor.feature_extractor.sampling_rate
    heard = [int(row.sum()) for row in batch.get("input_values_mask", [])]
    lines = []
    clip = 0
    for i, sample in enumerate(owners):
        lengths = heard[clip:]
        pieces = list(_pieces(processor, {name: batch[name][i] for name in NAMES}, lengths))
        audio = [piece for piece in pieces if piece.kind == "audio"]
        clip += len(audio)
        counts = {kind: sum(len(p.ids) for p in pieces if p.kind == kind) for kind in STYLES}
        task = f"  task {sample.task}" if sample.task else ""
        lines += [f"--- {_visible(sample.origin)}{task}", "".join(_shown(piece, color) for piece in pieces)]
        own = sum(counts.values()) - counts["padding"]
        padding = f", and {counts['padding']} of padding" if counts["padding"] else ""
        lines.append(f"    {own} tokens, {counts['audio']} of them audio, {counts['learned']} supervised{padding}")
        for piece, samples_, named in zip(audio, lengths, _clips(sample), strict=False):
            lines += _span(piece, samples_ / rate, named)
        if tokens:
            lines += _ids(processor, pieces, color)
    if heard:
        lines.append("clips: " + ", ".join(f"{n / rate:.2f} s" for n in heard))
    return "\n".join(lines)


def legend() -> str:
    """What the colours mean."""
    return "colours: " + "  ".join(_painted(kind, kind) for kind in ("instruction", "audio", "learned", "padding"))


NAMES = ("input_ids", "labels", "attention_mask", "prompt_mask")


def _pieces(processor: UsamProcessor, row: dict[str, Tensor], heard: Sequence[int]) -> Iterator[Piece]:
    """The row's tokens in runs of one kind; the placeholders of each clip are one."""
    ids = row["input_ids"].tolist()
    kinds = []
    masks = (row[name].tolist() for name in NAMES[1:])
    for token, label, own, mark in zip(ids, *masks, strict=True):
        if not own:
            kinds.append("padding")
        elif token == processor.audio_token_id:
            kinds.append("audio")
        else:
            kinds.append("learned" if label != IGNORE else "instruction" if mark else "text")
    at, clips = 0, iter(heard)
    for kind, run in groupby(kinds):
        count = len(list(run))
        while count:
            size = processor.feature_extractor.placeholders(next(clips)) if kind == "audio" else count
            piece = tuple(ids[at : at + size])
            text = str(size) if kind in ("padding", "audio") else str(processor.tokenizer.decode(piece))
            yield Piece(kind, at, piece, text)
            at, count = at + size, count - size


def _shown(piece: Piece, color: bool) -> str:
    text = _visible(piece.text)
    if piece.kind == "audio":
        text = f"<|audio|> x {text}"
    if not color:
        before, after = MARKS.get(piece.kind, ("", ""))
        return f"{before}{text}{after}" + "\n" * (piece.kind == "padding")
    return _painted(piece.kind, f"<pad> x {text}\n" if piece.kind == "padding" else text)


def _painted(kind: str, text: str) -> str:
    """The text in a colour, line by line, so that no colour runs on to the edge of the terminal."""
    style = STYLES[kind]
    return "\n".join(f"\x1b[{style}m{line}\x1b[0m" if line and style else line for line in text.split("\n"))


def _visible(text: str) -> str:
    """Text whose control characters, but for line breaks and tabs, are written as escapes: none moves the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t " else c.encode("unicode_escape").decode() for c in text)


def _clips(sample: Sample) -> list[Clip]:
    return [Clip.of(block) for message in sample.messages for block in blocks(message) if block["type"] in KINDS]


def _span(piece: Piece, seconds: float, clip: Clip) -> Iterator[str]:
    """Where a clip stands in the row, and what of which file it is."""
    stop = piece.start + len(piece.ids)
    channel = "" if clip.channel is None else f", channel {clip.channel}"
    name = os.path.basename(clip.source) if isinstance(clip.source, str) else f"a {type(clip.source).__name__}"
    yield (
        f"    audio at {piece.start} to {stop - 1}: {clip.start:.2f} to {clip.start + seconds:.2f} s of "
        f"{_visible(name)}{channel}, {len(piece.ids) / seconds:.1f} tokens a second"
    )


def _ids(processor: UsamProcessor, pieces: Sequence[Piece], color: bool) -> Iterator[str]:
    """Every token as `id'text'`, in lines that fit a terminal."""
    line, width = "   ", 3
    for piece in pieces:
        if piece.kind in ("padding", "audio"):
            words = [f"{piece.ids[0]} x {len(piece.ids)}"]
        else:
            words = [f"{token}{_visible(repr(processor.tokenizer.decode([token])))}" for token in piece.ids]
            before, after = ("", "") if color else MARKS.get(piece.kind, ("", ""))
            words[0], words[-1] = before + words[0], words[-1] + after
        for word in words:
            if width + 1 + len(word) > WIDTH and width > 3:
                yield line
                line, width = "   ", 3
            line += f" {_painted(piece.kind, word) if color else word}"
            width += 1 + len(word)
    yield line


BARS = "▁▂▃▄▅▆▇█"


@torch.inference_mode()
def describe_parts(
    model: UsamForConditionalGeneration, processor: UsamProcessor, samples: Sequence[Sample], clips: int = 6
) -> str:
    """What the mixture's router and the score network do with a batch; empty for a model that has neither.

    Args:
        model: the model, in eval mode.
        processor: its processor.
        samples: of any tasks, each with an answer and one clip.
        clips: of how many the scores are drawn.
    """
    batch, owners = Collator(processor).rows(samples)
    tasks = [sample.task or "-" for sample in owners]
    aux = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).aux or {}
    lines = []
    for key in sorted(aux):
        stage, _, name = key.partition(".")
        if name == "router_probs":
            lines += _gates(f"router of projector.{stage}", aux[key], aux[f"{stage}.router_entropy"], tasks)
    for key in sorted(aux):
        loss, _, name = key.partition(".")
        if name == "scores":
            lines += _scores(loss, aux[key], aux[f"{loss}.kept"].bool(), owners, clips)
    return "\n".join(lines)


def _gates(title: str, probs: Tensor, entropy: Tensor, tasks: Sequence[str]) -> list[str]:
    lines = [f"{title:24} {'  '.join(f'expert {i}' for i in range(probs.shape[1]))}  entropy"]
    for task in sorted(set(tasks)):
        rows = [i for i, name in enumerate(tasks) if name == task]
        gates = "  ".join(f"{gate:8.2f}" for gate in probs[rows].float().mean(0).tolist())
        lines.append(f"  {task:22} {gates}  {float(entropy[rows].float().mean()):7.2f}")
    return lines


def _scores(name: str, scores: Tensor, kept: Tensor, samples: Sequence[Sample], clips: int) -> list[str]:
    lines = [f"{name}: {float(kept.sum() / kept.shape[0]):.1f} frames kept a clip; scores, and below what is kept"]
    for row, keep, sample in list(zip(scores, kept, samples, strict=True))[:clips]:
        own = row > 0  # a score lies above 0, padding at 0
        bars = "".join(BARS[min(int(score * 8), 7)] for score in row[own].tolist())
        marks = "".join("^" if mark else " " for mark in keep[own].tolist())
        lines += [f"  {sample.answer or '':26} {bars}", f"  {'':26} {marks}"]
    return lines
