"""Does a loss select? How much of what it keeps of a clip sounds, and how much of what sounds it keeps.

`semantic_contrastive` scores and keeps audio tokens: the frames that leave the projector, all clips of a sample in one
row. What it keeps of them is held against rows that know when something sounds, such as those of the miniature world,
beside the same number of tokens at random, the same number of the loudest, and of those in which most sounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from usam.clock import rescale
from usam.data.collate import Collator, passed_along
from usam.data.manifest import ManifestError, Sample
from usam.data.world.truth import sounding
from usam.model.model import UsamForConditionalGeneration
from usam.model.splice import owners
from usam.processor.processor import UsamProcessor
from usam.registry import did_you_mean
from usam.spec.spec import Spec
from usam.training.held_out import by_task, clips

Floats = NDArray[np.float64]

MOMENTS = 1000  # of a second, at which a clip is looked at
EXAMPLE = "write meta: {events: [{name: dog, onset: 0.2, offset: 0.9}]}, in seconds of the clip"


@dataclass(frozen=True)
class Kept:
    """The audio tokens of one row: what is true of them, and what a loss made of them."""

    origin: str
    task: str | None
    sounding: Floats  # token: the share of its stretch of the clip in which something sounds
    energy: Floats  # token: the mean square of that stretch
    scores: Floats  # token
    kept: Floats  # token: 1 where it is kept, 0 where not, between where it is weighed


@dataclass(frozen=True)
class Choice:
    """How good a choice of tokens is; nan where nothing was chosen, or nothing sounds."""

    precision: float
    """Of the time that chosen tokens listen to, the share in which something sounds."""
    recall: float
    """Of the time in which something sounds, the share that chosen tokens listen to."""


@dataclass(frozen=True)
class Selection:
    """What a loss keeps of some rows, beside other choices of as many tokens in each of them."""

    rows: int
    tokens: int
    sounding: float
    """The share of all time in which something sounds."""
    keep_rate: float
    """The share of all tokens that are kept."""
    single: float
    """The share of rows of which no more than one token is kept."""
    kept: Choice
    random: Choice
    """As many of each row, each as likely: the expectation."""
    loudest: Choice
    """As many of each row, those of most energy."""
    best: Choice
    """As many of each row, those in which most sounds: no choice has a higher precision, or recall."""
    ranking: float
    """How often, of a moment that sounds and one of the same row that does not, the first one's token scores higher,
    ties counting half; 0.5 is chance, nan where there are no such two. It asks for the order and no threshold."""
    ranking_of_energy: float
    """The same with the energy of tokens as their scores."""


def spans(spec: Spec, samples: int) -> Floats:
    """When each audio token of a clip listens: (token, 2), seconds, to the millisecond.

    From the moment that the clip must last longer than, for the token to exist, to the one at which the next tokens
    begin. So tokens of one window share its stretch, and windows that overlap are counted up to the next one.

    Args:
        spec: has the arithmetic of time.
        samples: of the clip, at the spec's sample rate.

    Raises:
        ValueError: the tokens do not follow time, as those of a perceiver.
    """
    tokens, rate = spec.audio_length(samples)
    if rate == 0:
        last = spec.projector[-1].type if spec.projector else "none"
        raise ValueError(f"audio tokens of this spec (projector '{last}') do not follow time: no token has its moment")
    end = samples / spec.sample_rate
    moments = torch.arange(1, rescale(samples, spec.sample_rate, MOMENTS) + 1)
    counts = spec.audio_tokens(rescale(moments, MOMENTS, spec.sample_rate).clamp_max(samples))
    begins = torch.searchsorted(counts, torch.arange(tokens), right=True).numpy() / MOMENTS
    different = np.append(np.unique(begins), end)
    return np.stack([begins, different[np.searchsorted(different, begins, side="right")]], -1)


def listen(
    model: UsamForConditionalGeneration,
    processor: UsamProcessor,
    samples: Sequence[Sample],
    *,
    loss: str | None = None,
    batch_size: int = 8,
) -> list[Kept]:
    """What a model's loss keeps of rows that know when something sounds, out of training; rows without audio are none.

    A row's `meta` has `events`, each with `onset` and `offset` or `spans`, as `usam.data.world` writes them; in a row
    of several clips each event also says of which `clip` it is, 0 for the first.

    Args:
        model: with a loss that gives `kept` (sample, time) in its `aux`, and perhaps `scores`.
        processor: the model's.
        samples: rows with answers.
        loss: its name in the spec, where several losses keep tokens.
        batch_size: rows that are looked at together; scores that are normalised over a batch depend on it.

    Raises:
        ManifestError: a row without answer or events, or with an event that cannot be placed; the row is named.
        ValueError: no loss, or more than one, keeps tokens; or tokens do not follow time.
    """
    heard = [sample for sample in samples if clips(sample)]
    for sample in heard:
        if not sample.references:
            raise ManifestError(f"{sample.origin}: has no answer that frames could matter to; write 'answer'")
        for place in range(len(clips(sample))):
            _truth(sample, place)
    trained = model.training
    model.eval()
    try:
        return [kept for some in _batches(heard, batch_size) for kept in _looked_at(model, processor, some, loss)]
    finally:
        model.train(trained)


def _batches(samples: Sequence[Sample], size: int) -> Iterator[Sequence[Sample]]:
    return (samples[i : i + size] for i in range(0, len(samples), size))


@torch.no_grad()
def _looked_at(
    model: UsamForConditionalGeneration, processor: UsamProcessor, samples: Sequence[Sample], loss: str | None
) -> Iterator[Kept]:
    batch, rows = Collator(processor).rows(samples)
    batch = {key: x.to(model.device) if isinstance(x, torch.Tensor) else x for key, x in batch.items()}
    aux = model(**batch, batch=passed_along(rows), logits_to_keep=1).aux or {}
    name = _selecting(aux, loss)
    kept = aux[f"{name}.kept"].double().cpu().numpy()
    scores = aux.get(f"{name}.scores", aux[f"{name}.kept"]).double().cpu().numpy()
    spec = model.config.parsed
    waves, lengths = batch["input_values"].double().cpu().numpy(), batch["input_values_mask"].sum(-1)
    row_of = owners(model.model.is_audio(batch["input_ids"]), spec.placeholders(lengths)).tolist()
    for i, sample in enumerate(rows):
        own = [clip for clip, row in enumerate(row_of) if row == i]
        stretches = [spans(spec, int(lengths[clip])) for clip in own]
        total = sum(map(len, stretches))
        yield Kept(
            sample.origin,
            sample.task,
            np.concatenate([_sounding(_truth(sample, place), one) for place, one in enumerate(stretches)]),
            np.concatenate(
                [_energy(waves[clip], one, spec.sample_rate) for clip, one in zip(own, stretches, strict=True)]
            ),
            scores[i, :total],
            kept[i, :total],
        )


def _selecting(aux: Mapping[str, Any], loss: str | None) -> str:
    """The name of the loss that keeps tokens."""
    names = [key.removesuffix(".kept") for key in aux if key.endswith(".kept")]
    if not names:
        raise ValueError("no loss of this model keeps tokens: build it with losses.semantic_contrastive")
    if loss is None and len(names) > 1:
        raise ValueError(f"{len(names)} losses of this model keep tokens: name one of {', '.join(names)} as `loss`")
    if loss is not None and loss not in names:
        raise ValueError(f"no loss '{loss}' keeps tokens; {did_you_mean(loss, names)}")
    return loss or names[0]


def _truth(sample: Sample, place: int) -> dict[str, Any]:
    """What is known of one of a sample's clips."""
    meta = sample.extra.get("meta")
    events = meta.get("events") if isinstance(meta, Mapping) else None
    if not isinstance(events, (list, tuple)):
        raise ManifestError(f"{sample.origin}: its meta has no list of 'events'; {EXAMPLE}")
    count = len(clips(sample))
    for event in events:
        if not isinstance(event, Mapping) or not ("spans" in event or {"onset", "offset"} <= event.keys()):
            raise ManifestError(f"{sample.origin}: {event!r} is no event with an onset and an offset; {EXAMPLE}")
        if count > 1 and "clip" not in event:
            raise ManifestError(f"{sample.origin}: has {count} clips: each event says of which, clip: 0 for the first")
        if event.get("clip", 0) not in range(count):
            raise ManifestError(
                f"{sample.origin}: an event is of clip {event['clip']}; the row has clips 0 to {count - 1}"
            )
    return {"events": [event for event in events if event.get("clip", 0) == place]}


def _sounding(truth: Mapping[str, Any], stretches: Floats) -> Floats:
    moments = round(stretches.max() * MOMENTS)
    return _means(sounding(truth, MOMENTS, moments).astype(float), stretches, MOMENTS)


def _energy(wave: Floats, stretches: Floats, rate: int) -> Floats:
    return _means(wave**2, stretches, rate)


def _means(x: Floats, stretches: Floats, rate: int) -> Floats:
    """The mean of `x`, which has so many values a second, in each stretch."""
    edges = np.minimum(np.round(stretches * rate).astype(int), len(x))
    sums = np.append(0.0, np.cumsum(x))
    return np.asarray((sums[edges[:, 1]] - sums[edges[:, 0]]) / np.maximum(edges[:, 1] - edges[:, 0], 1))


def measured(rows: Sequence[Kept]) -> Selection:
    """What was kept of some rows, all of their tokens together.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("no row has audio: there is nothing to select from")
    truth, kept = np.concatenate([row.sounding for row in rows]), np.concatenate([row.kept for row in rows])

    def choice(of: Callable[[Kept], Floats]) -> Choice:
        chosen = np.concatenate([of(row) for row in rows])
        found = float(chosen @ truth)
        return Choice(_share(found, float(chosen.sum())), _share(found, float(truth.sum())))

    return Selection(
        rows=len(rows),
        tokens=len(kept),
        sounding=float(truth.mean()),
        keep_rate=float(kept.mean()),
        single=float(np.mean([np.count_nonzero(row.kept) <= 1 for row in rows])),
        kept=choice(lambda row: row.kept),
        random=choice(lambda row: np.full_like(row.kept, row.kept.mean())),
        loudest=choice(lambda row: dealt(row.kept, row.energy)),
        best=choice(lambda row: dealt(row.kept, row.sounding)),
        ranking=_ranking((row.scores, row.sounding) for row in rows),
        ranking_of_energy=_ranking((row.energy, row.sounding) for row in rows),
    )


def measured_by_task(rows: Sequence[Kept]) -> dict[str, Selection]:
    """The same for the rows of each task; nothing where no row has a task."""
    places = by_task([row.task for row in rows])
    return {task: measured([rows[place] for place in own]) for task, own in places.items()}


def dealt(weights: Floats, by: Floats) -> Floats:
    """The same weights, the greatest to whom `by` is greatest for; of equals the first comes first."""
    found = np.empty_like(weights)
    found[np.argsort(-by, kind="stable")] = np.sort(weights)[::-1]
    return found


def _ranking(rows: Iterator[tuple[Floats, Floats]]) -> float:
    right = pairs = 0.0
    for scores, truth in rows:
        weight = np.outer(truth, 1 - truth)
        np.fill_diagonal(weight, 0)
        above = np.sign(scores[:, None] - scores[None, :]) / 2 + 0.5
        right, pairs = right + float((weight * above).sum()), pairs + float(weight.sum())
    return _share(right, pairs)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
