"""Which rows a run learns from: those that fit the language model's positions, and whose clips can be read."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from usam.data.check import counted
from usam.data.collate import SHOWN, Collator, Skipped, check_share, too_long
from usam.data.index import code_of, content
from usam.data.manifest import Indexed, Manifest, ManifestError, Sample
from usam.data.sampling import LENGTH, Budget, Length, columns
from usam.processor.audio import AudioError
from usam.processor.clip import Clip
from usam.processor.processor import UsamProcessor
from usam.saving import write_whole

LISTED = "skipped.jsonl"  # in a run's folder
Most = Callable[[int], int]
FAR = 10**12  # samples: how many they may become tells one augmentation's lengths from another's
COUNTS = (
    "usam.processor.processor",
    "usam.processor.feature_extractor",
    "usam.processor.lengths",
)  # what counts tokens


def measured(
    samples: Sequence[Sample], processor: UsamProcessor, *, most: Most | None = None, quiet: bool = True
) -> NDArray[Any]:
    """The lengths of rows, an array of `LENGTH`; see `length`.

    Those of indexed manifests are kept beside the index, and read where they were measured before with a processor that
    renders and counts as this one. A clip that is then replaced by one of another length is not noticed. Rows whose
    clips could not be read are measured again.
    """
    if not isinstance(samples, Manifest):
        return columns(length(s, processor, most) for s in _shown_by(samples, quiet))
    found = np.empty(len(samples), LENGTH)
    chosen, begin = samples.numbers, 0
    digest = ""
    for part in samples.parts:
        mine = np.flatnonzero((chosen >= begin) & (chosen < begin + len(part)))
        rows, begin = chosen[mine] - begin, begin + len(part)
        if not isinstance(part, Indexed):
            found[mine] = columns(length(part[int(row)], processor, most) for row in _shown_by(rows, quiet))
            continue
        digest = digest or _digest(processor) + ("" if most is None else f" {most(FAR)}")
        name = f"lengths-{hashlib.sha256(f'{part.key} {digest}'.encode()).hexdigest()[:16]}"
        kept = part.index.kept(name, LENGTH)
        before = kept[1] if kept is not None else np.zeros(len(part), LENGTH)
        wanting = rows[before["tokens"][rows] == 0]
        if len(wanting):
            after = before.copy()
            after[wanting] = columns(length(part[int(row)], processor, most) for row in _shown_by(wanting, quiet))
            if not np.array_equal(before, after):
                part.index.keep(name, {}, after)
            before = after
        found[mine] = before[rows]
    return found


def _shown_by(what: Any, quiet: bool) -> Iterable[Any]:
    return cast(Iterable[Any], tqdm(what, desc="measuring", unit="row", disable=quiet))


def _digest(processor: UsamProcessor) -> str:
    """A hash of all that a processor is, as it is saved, and of what counts."""
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return content(Path(folder)) + code_of(__name__, *COUNTS)


def fitting(
    samples: Sequence[Sample],
    processor: UsamProcessor,
    context: int | None,
    policy: str,
    *,
    lengths: NDArray[Any] | None = None,
    quiet: bool = True,
) -> tuple[Sequence[Sample], list[Skipped]]:
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
        return samples, []
    if lengths is None:
        lengths = measured(samples, processor, quiet=quiet)
    cut = policy == "truncate_answer"
    out = lengths["asked" if cut else "tokens"] > context
    if out.any() and (policy != "skip" or out.all()):
        found = _skipped(samples, np.flatnonzero(out)[:SHOWN], lambda row: too_long(lengths[row]["tokens"], context))
        remedy = "" if cut else ", or write data.too_long: skip, or truncate_answer"
        raise ManifestError(
            f"{_shown(found, int(out.sum()))}\n{out.sum():,} of {len(samples):,} rows are too long"
            f"{' even without their answers' * cut}: cut their clips or texts, take a projector with fewer tokens a "
            f"second{remedy}"
        )
    why = "; its answer is cut, and has no end" if cut else ""
    long = np.flatnonzero(lengths["tokens"] > context)
    skipped = _skipped(samples, long, lambda row: too_long(lengths[row]["tokens"], context) + why)
    return samples if cut or not out.any() else chosen(samples, np.flatnonzero(~out)), skipped


def within(
    samples: Sequence[Sample], lengths: NDArray[Any], budget: Budget, policy: str
) -> tuple[Sequence[Sample], list[Skipped]]:
    """The rows that a batch has room for, and those that are left out because it has not.

    Args:
        samples: the rows.
        lengths: what `measured` gave.
        budget: the most that a batch may hold.
        policy: `skip` leaves rows out.

    Raises:
        ManifestError: rows are larger than the budget, and are not left out, or all of them are.
    """
    seconds, count = lengths["clips"] * lengths["seconds"], lengths["rows"] * lengths["tokens"]
    most, room = budget.seconds or math.inf, budget.tokens or math.inf

    def why(row: int) -> str:
        over = [f"{seconds[row]:.1f} s of audio, and data.batch_seconds is {most:g}"] if seconds[row] > most else []
        over += [f"{count[row]:,} tokens, and data.batch_tokens is {room:,}"] if count[row] > room else []
        return "; ".join(over)

    out = (seconds > most) | (count > room)
    if out.any() and (policy != "skip" or out.all()):
        found = _skipped(samples, np.flatnonzero(out)[:SHOWN], why)
        raise ManifestError(
            f"{_shown(found, int(out.sum()))}\n{out.sum():,} of {len(samples):,} rows alone are larger than a batch "
            "may be: raise the budget, cut their clips or texts, or write data.too_long: skip"
        )
    left = chosen(samples, np.flatnonzero(~out)) if out.any() else samples
    return left, _skipped(samples, np.flatnonzero(out), why)


def chosen(samples: Sequence[Sample], rows: NDArray[np.intp]) -> Sequence[Sample]:
    """Some of the samples: of a Manifest a Manifest, else a list."""
    return samples.select(rows) if hasattr(samples, "select") else [samples[row] for row in rows.tolist()]


def _skipped(samples: Sequence[Sample], rows: NDArray[np.intp], why: Callable[[int], str]) -> list[Skipped]:
    return [Skipped(samples[row].origin, why(row)) for row in rows.tolist()]


def cut_to(lengths: NDArray[Any], context: int) -> NDArray[Any]:
    """The lengths when answers are cut to the language model's positions."""
    cut = lengths.copy()
    cut["tokens"] = np.minimum(cut["tokens"], context)
    return cut


def spares(samples: Sequence[Sample], lengths: NDArray[Any], budget: Budget) -> Sequence[Sample]:
    """The rows so that what stands in for one is no larger: each is followed by shorter ones, down to the shortest.

    A collator knows the last place of a row, goes on from there, and then from the start.
    """
    rising = np.argsort(budget.share(lengths), kind="stable")
    return chosen(samples, np.concatenate([rising, rising[::-1]]))


def _shown(found: Sequence[Skipped], count: int) -> str:
    more = [f"and {count - SHOWN:,} more"] if count > SHOWN else []
    return "\n".join([*(f"{row.row}: {row.why}" for row in found[:SHOWN]), *more])


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
) -> tuple[Sequence[Sample], list[Skipped]]:
    """The rows whose clips can be read, each of which is read here, and the others.

    Raises:
        AudioError: more than `share` of the rows cannot be read.
    """
    collate = Collator(processor)
    kept, skipped = [], []
    for row, sample in enumerate(tqdm(samples, desc="reading what is held out", unit="row", disable=quiet)):
        try:
            collate._render(sample)
            kept.append(row)
        except AudioError as error:
            skipped.append(Skipped(sample.origin, str(error)))
    check_share(skipped, len(samples), share)
    return chosen(samples, np.array(kept, np.intp)), skipped


def listed(skipped: Iterable[Skipped], folder: Path) -> None:
    """Write which rows were skipped, and why, as lines of JSON."""
    lines = [json.dumps(asdict(row), ensure_ascii=False) for row in skipped]
    write_whole(folder / LISTED, "".join(f"{line}\n" for line in lines))
