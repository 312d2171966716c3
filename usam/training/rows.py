"""Which rows a run learns from: those that fit the language model's positions, and whose clips can be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import soundfile
from tqdm import tqdm

from usam.data.collate import SHOWN, Collator, Skipped, check_share, too_long
from usam.data.manifest import ManifestError, Sample
from usam.processor.audio import AudioError
from usam.processor.chat import Rendered
from usam.processor.clip import Clip
from usam.processor.processor import UsamProcessor
from usam.saving import write_whole

LISTED = "skipped.jsonl"  # in a run's folder


def fitting(
    samples: Sequence[Sample], processor: UsamProcessor, context: int | None, policy: str, *, quiet: bool = True
) -> tuple[list[Sample], list[Skipped]]:
    """The rows that are learned from, and those that are left out, or cut, because they are too long.

    A clip's length is read from its file's header; one that cannot be opened is left to whoever reads it.

    Args:
        samples: the rows.
        processor: counts their tokens.
        context: the language model's positions; None takes every row.
        policy: `stop`, `skip` or `truncate_answer`, which needs room for one token of the answer.
        quiet: without a progress bar.

    Raises:
        ManifestError: rows are too long under `stop`, or all of them under `skip`, or without their answers.
    """
    if context is None:
        return list(samples), []
    lengths = [tokens(s, processor) for s in tqdm(samples, desc="measuring", unit="row", disable=quiet)]
    pairs = list(zip(samples, lengths, strict=True))
    cut = policy == "truncate_answer"
    found = [
        Skipped(s.origin, too_long(whole, context))
        for s, (whole, asked) in pairs
        if (asked if cut else whole) > context
    ]
    if found and (policy != "skip" or len(found) == len(samples)):
        shown = [f"{row.row}: {row.why}" for row in found[:SHOWN]]
        more = [f"and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
        remedy = "" if cut else ", or write data.too_long: skip, or truncate_answer"
        raise ManifestError(
            "\n".join([*shown, *more]) + f"\n{len(found):,} of {len(samples):,} rows are too long"
            f"{' even without their answers' * cut}: cut their clips or texts, take a projector with fewer tokens a "
            f"second{remedy}"
        )
    if cut:
        why = "; its answer is cut, and has no end"
        return list(samples), [Skipped(s.origin, too_long(n, context) + why) for s, (n, _) in pairs if n > context]
    out = {row.row for row in found}
    return [sample for sample in samples if sample.origin not in out], found


def tokens(sample: Sample, processor: UsamProcessor) -> tuple[int, int]:
    """How many tokens a row is for the language model, and how many up to the first of its last answer.

    Both are 0 when the header of a clip cannot be read.
    """
    try:
        rendered = processor.render(sample.messages)
    except ValueError as error:
        raise ManifestError(f"{sample.origin}: {error}") from error
    counts = [_samples(clip, processor) for clip in rendered.audio]
    if None in counts:
        return 0, 0
    heard = [processor.feature_extractor.placeholders(cast(int, count)) - 1 for count in counts]
    found = [_counted(row, sum(heard[: len(row.audio)]), processor) for row in rendered.rows]
    return max(whole for whole, _ in found), max(asked for _, asked in found)


def _counted(row: Rendered, heard: int, processor: UsamProcessor) -> tuple[int, int]:
    starts = row.starts(())
    ids, offsets = processor._tokenize(row.text, starts)
    asked = next((i + 1 for i, (_, end) in enumerate(offsets) if starts and end > starts[-1]), len(ids))
    return len(ids) + heard, asked + heard


def _samples(clip: Clip, processor: UsamProcessor) -> int | None:
    """Samples of a clip at the model's rate, of a file by its header."""
    rate: int = processor.feature_extractor.sampling_rate
    try:
        if not isinstance(clip.source, (str, Path)):
            return len(processor.feature_extractor.fetch_audio(clip))
        header = soundfile.info(str(clip.source).removeprefix("file://"))
    except (AudioError, soundfile.LibsndfileError):
        return None
    seconds = header.frames / header.samplerate - clip.start
    heard: float = min(seconds, clip.duration or seconds)
    return max(0, math.ceil(rate * heard))


def readable(
    samples: Sequence[Sample], processor: UsamProcessor, share: float, *, quiet: bool = True
) -> tuple[list[Sample], list[Skipped]]:
    """The rows whose clips can be read, each of which is read here, and the others.

    Raises:
        AudioError: more than `share` of the rows cannot be read.
    """
    collate = Collator(processor)
    kept, skipped = [], []
    for sample in tqdm(samples, desc="reading what is held out", unit="row", disable=quiet):
        try:
            collate._render(sample)
            kept.append(sample)
        except AudioError as error:
            skipped.append(Skipped(sample.origin, str(error)))
    check_share(skipped, len(samples), share)
    return kept, skipped


def listed(skipped: Iterable[Skipped], folder: Path) -> None:
    """Write which rows were skipped, and why, as lines of JSON."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in skipped]
    write_whole(folder / LISTED, "".join(f"{line}\n" for line in lines))
