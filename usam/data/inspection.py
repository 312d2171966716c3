"""One batch as the model sees it: the text, where audio stands, what is supervised, and what its parts do with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from usam.data.collate import Collator
from usam.data.manifest import Sample
from usam.model.model import UsamForConditionalGeneration
from usam.processor.processor import UsamProcessor
from usam.types import IGNORE


def describe_batch(processor: UsamProcessor, samples: Sequence[Sample]) -> str:
    """Each row's text with `<|audio|> x n` for runs of placeholders and `[[...]]` around what is supervised.

    `{...}` is the instruction that prompt-routed projectors read.
    """
    batch, owners = Collator(processor).rows(samples)
    rate = processor.feature_extractor.sampling_rate
    seconds = [float(row.sum()) / rate for row in batch.get("input_values_mask", [])]
    lines = []
    for i, sample in enumerate(owners):
        ids, labels = batch["input_ids"][i].tolist(), batch["labels"][i].tolist()
        own = batch["attention_mask"][i].bool().tolist()
        marks = batch["prompt_mask"][i].tolist()
        text, audio = [], 0
        kinds = [
            (token == processor.audio_token_id, label != IGNORE, bool(mark))
            for token, label, mark in zip(ids, labels, marks, strict=True)
        ]
        position = 0
        for (is_audio, supervised, instruction), run in groupby(kinds):
            count = len(list(run))
            place = slice(position, position + count)
            piece = [token for token, real in zip(ids[place], own[place], strict=True) if real]
            position += count
            if not piece:
                continue
            if is_audio:
                text.append(f"<|audio|> x {count}")
                audio += count
            else:
                words = processor.tokenizer.decode(piece)
                text.append(f"[[{words}]]" if supervised else f"{{{words}}}" if instruction else words)
        supervised_count = sum(label != IGNORE for label in labels)
        lines += [
            f"--- {sample.origin}",
            "".join(text),
            f"    {sum(own)} tokens, {audio} of them audio, {supervised_count} supervised",
        ]
    if seconds:
        lines.append("clips: " + ", ".join(f"{s:.2f} s" for s in seconds))
    return "\n".join(lines)


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
