"""Which rows a run learns from: those that fit the language model's positions, and whose clips can be read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import soundfile
from tqdm import tqdm

from usam.data.check import counted
from usam.data.collate import SHOWN, Collator, Skipped, check_share, too_long
from usam.data.manifest import ManifestError, Sample
from usam.data.sampling import Budget, Length
from usam.processor.audio import AudioError
from usam.processor.clip import Clip
from usam.processor.processor import UsamProcessor
from usam.saving import write_whole

LISTED = "skipped.jsonl"  # in a run's folder
Most = Callable[[int], int]


def measured(
    samples: Sequence[Sample], processor: UsamProcessor, *, most: Most | None = None, quiet: bool = True
) -> dict[str, Length]:
    """The length of each row, by its file:line; see `length`."""
    return {s.origin: length(s, processor, most) for s in tqdm(samples, desc="measuring", unit="row", disable=quiet)}


def fitting(
    samples: Sequence[Sample],
    processor: UsamProcessor,
    context: int | None,
    policy: str,
    *,
    lengths: Mapping[str, Length] | None = None,
    quiet: bool = True,
) -> tuple[list[Sample], list[Skipped]]:
    """The rows that are learned from, and those that are left out, or cut, because they are too long.

    A clip's length is read from its file's header; one that cannot be opened is left to whoever reads it.

    Args:
        samples: the rows.
        processor: counts their tokens.
        context: the language model's positions; None takes every row.
        policy: `stop`, `skip` or `truncate_answer`, which needs room for one token of the answer.
        lengths: what `measured` gave; None measures.
        quiet: without a progress bar.

    Raises:
        ManifestError: rows are too long under `stop`, or all of them under `skip`, or without their answers.
    """
    if context is None:
        return list(samples), []
    if lengths is None:
        lengths = measured(samples, processor, quiet=quiet)
    pairs = [(s, (lengths[s.origin].tokens, lengths[s.origin].asked)) for s in samples]
    cut = policy == "truncate_answer"
    found = [
        Skipped(s.origin, too_long(whole, context))
        for s, (whole, asked) in pairs
        if (asked if cut else whole) > context
    ]
    if found and (policy != "skip" or len(found) == len(samples)):
        remedy = "" if cut else ", or write data.too_long: skip, or truncate_answer"
        raise ManifestError(
            f"{_shown(found)}\n{len(found):,} of {len(samples):,} rows are too long"
            f"{' even without their answers' * cut}: cut their clips or texts, take a projector with fewer tokens a "
            f"second{remedy}"
        )
    if cut:
        why = "; its answer is cut, and has no end"
        return list(samples), [Skipped(s.origin, too_long(n, context) + why) for s, (n, _) in pairs if n > context]
    out = {row.row for row in found}
    return [sample for sample in samples if sample.origin not in out], found


def within(
    samples: Sequence[Sample], lengths: Mapping[str, Length], budget: Budget, policy: str
) -> tuple[list[Sample], list[Skipped]]:
    """The rows that a batch has room for, and those that are left out because it has not.

    Args:
        samples: the rows.
        lengths: what `measured` gave.
        budget: the most that a batch may hold.
        policy: `skip` leaves rows out.

    Raises:
        ManifestError: rows are larger than the budget, and are not left out, or all of them are.
    """
    found = []
    for sample in samples:
        row, over = lengths[sample.origin], []
        if budget.seconds is not None and (seconds := row.clips * row.seconds) > budget.seconds:
            over.append(f"{seconds:.1f} s of audio, and data.batch_seconds is {budget.seconds:g}")
        if budget.tokens is not None and (count := row.rows * row.tokens) > budget.tokens:
            over.append(f"{count:,} tokens, and data.batch_tokens is {budget.tokens:,}")
        if over:
            found.append(Skipped(sample.origin, "; ".join(over)))
    if found and (policy != "skip" or len(found) == len(samples)):
        raise ManifestError(
            f"{_shown(found)}\n{len(found):,} of {len(samples):,} rows alone are larger than a batch may be: raise the "
            "budget, cut their clips or texts, or write data.too_long: skip"
        )
    out = {row.row for row in found}
    return [sample for sample in samples if sample.origin not in out], found


def _shown(found: Sequence[Skipped]) -> str:
    more = [f"and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
    return "\n".join([*(f"{row.row}: {row.why}" for row in found[:SHOWN]), *more])


def cut_to(lengths: Mapping[str, Length], context: int) -> dict[str, Length]:
    """The lengths when answers are cut to the language model's positions."""
    return {origin: replace(row, tokens=min(row.tokens, context)) for origin, row in lengths.items()}


def spares(samples: Sequence[Sample], lengths: Mapping[str, Length], budget: Budget) -> list[Sample]:
    """The rows so that what stands in for one is no larger: each is followed by shorter ones, down to the shortest.

    A collator knows the last place of a row, goes on from there, and then from the start.
    """
    rising = sorted(samples, key=lambda sample: budget.share(lengths[sample.origin]))
    return [*rising, *reversed(rising)]


def tokens(sample: Sample, processor: UsamProcessor) -> tuple[int, int]:
    """How many tokens a row is for the language model, and how many up to the first of its last answer.

    Both are 0 when the header of a clip cannot be read.
    """
    row = length(sample, processor)
    return row.tokens, row.asked


def length(sample: Sample, processor: UsamProcessor, most: Most | None = None) -> Length:
    """What a row takes in a batch; it has no tokens and no seconds when the header of a clip cannot be read.

    Args:
        sample: the row.
        processor: counts its tokens.
        most: how many samples a clip of so many may become by augmentation; None: no more.
    """
    try:
        rendered = processor.render(sample.messages)
    except ValueError as error:
        raise ManifestError(f"{sample.origin}: {error}") from error
    counts = [_samples(clip, processor) for clip in rendered.audio]
    if most is not None:
        counts = [None if count is None else most(count) for count in counts]
    heard_as = {"clips": sum(len(row.audio) for row in rendered.rows), "rows": len(rendered.rows)}
    if None in counts:
        return Length(tokens=0, **heard_as)
    heard = [processor.feature_extractor.placeholders(cast(int, count)) - 1 for count in counts]
    found = [counted(row, sum(heard[: len(row.audio)]), processor) for row in rendered.rows]
    seconds = max(cast(list[int], counts), default=0) / processor.feature_extractor.sampling_rate
    return Length(max(whole for whole, *_ in found), max(asked for _, asked, _ in found), seconds, **heard_as)


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
