"""One batch as the model sees it: the exact text, where the audio stands, what is supervised."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from usam.data.collate import Collator
from usam.data.manifest import Sample
from usam.processor import UsamProcessor
from usam.types import IGNORE


def describe_batch(processor: UsamProcessor, samples: Sequence[Sample]) -> str:
    """Each sample's text with `<|audio|> x n` for runs of placeholders and `[[...]]` around what is supervised.

    `{...}` is the instruction that prompt-routed projectors read.
    """
    batch = Collator(processor)(samples)
    rate = processor.feature_extractor.sampling_rate
    seconds = [float(row.sum()) / rate for row in batch.get("input_values_mask", [])]
    lines = []
    for i, sample in enumerate(samples):
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
