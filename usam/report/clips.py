"""What a trained model does with a few clips: whom its routers ask at each moment, and which frames its scores keep."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from usam.data.collate import Collator
from usam.data.manifest import Sample
from usam.data.world.truth import sounding
from usam.generate import Answerer
from usam.projectors.moe import Said
from usam.report.drawing import HIGH, WIDE, fill, legend, room, style, svg
from usam.report.lengths import MOST
from usam.report.page import Figure, Panel
from usam.report.reading import ABSENT, Trained
from usam.training.held_out import clips as clips_of
from usam.training.held_out import drawn
from usam.training.routing import UNNAMED
from usam.training.run import Run, read_run, samples_of

BROAD = 4.6  # inches of a spectrogram
COLUMNS, BANDS, WINDOW = 400, 128, 512  # of a spectrogram; bands have as many frequencies each
QUIET = -60  # dB below the loudest, drawn white
LONGEST = 64  # tokens of an answer that the model gives itself
OUTSIDE = ("input_ids", "input_values", "input_values_mask", "attention_mask", "prompt_mask", "labels", "batch")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Routed:
    """What one mixture's router says of a clip."""

    stage: str
    rate: float
    weights: Floats  # time expert; one row where the whole clip has the same
    whole: bool  # the router looks at no frame


@dataclass(frozen=True)
class Scored:
    """What one loss says of a clip's frames."""

    loss: str
    rate: float
    scores: Floats  # time
    kept: Floats  # time


@dataclass(frozen=True)
class Look:
    """What a model does with one clip."""

    name: str
    task: str
    answer: str
    own: bool  # the answer is the model's own, for the row has none
    wave: NDArray[np.float32]
    sample_rate: int
    events: Sequence[Mapping[str, Any]] = ()
    routed: Sequence[Routed] = ()
    scored: Sequence[Scored] = ()


@dataclass
class Heard:
    """What hooks saw while a batch went through the projector."""

    routers: dict[str, tuple[Said, float]] = field(default_factory=dict)
    rate: float = 0.0
    frames: list[int] = field(default_factory=list)  # of each clip


@dataclass(frozen=True)
class Looked:
    """What a run's model does with some clips; or why that cannot be seen."""

    looks: Sequence[Look] = ()
    notes: Sequence[str] = ()


def look(trained: Trained, *, files: Sequence[str | Path] = (), rows: int = 2, device: str | None = None) -> Looked:
    """Load a run's model and let it look at a few clips.

    Args:
        trained: the run.
        files: clips to look at under each task that the model knows; none takes held-out rows.
        rows: how many of these, of each task.
        device: where the model runs.
    """
    if not (trained.folder / "config.json").is_file():
        return Looked(notes=["its folder holds no model"])
    try:
        answerer = Answerer.load(trained.folder, device_map=device)
        if not has_parts(answerer.model):
            return Looked()
        samples, notes = _asked(answerer, files) if files else _held_out(read_run(trained.folder / "run.yaml"), rows)
        return Looked(seen(answerer, samples, own=bool(files)) if samples else (), notes)
    except ABSENT as error:
        return Looked(notes=[f"its model could not look at clips: {' '.join(str(error).split())}"])


def _held_out(run: Run, rows: int) -> tuple[list[Sample], list[str]]:
    """A few rows of each task that have one clip and an answer."""
    if run.data.get("eval") is None:
        return [], ["nothing is held out (data.eval); --clip FILE draws others"]
    samples = samples_of(run, "eval")
    by_task: dict[str, list[Sample]] = {}
    left = 0
    for sample in samples.select(drawn(len(samples), MOST, 0)):
        if len(clips_of(sample)) == 1 and sample.answer:
            by_task.setdefault(sample.task or UNNAMED, []).append(sample)
        else:
            left += 1
    notes = [f"{left:,} held-out rows have no answer, or not one clip, and cannot be drawn"] if left else []
    return [own[i] for _, own in sorted(by_task.items()) for i in drawn(len(own), rows, 0)], notes


def _asked(answerer: Answerer, files: Sequence[str | Path]) -> tuple[list[Sample], list[str]]:
    """Files under each task, with what the model answers itself."""
    tasks = sorted(answerer.processor.prompts)
    if not tasks:
        return [], ["it knows no task (prompts), so that nothing can be asked of a file"]
    chats = [(str(file), task, answerer.ask(str(file), task=task)) for file in files for task in tasks]
    found, notes = [], []
    replies = answerer.replies((chat for *_, chat in chats), max_new_tokens=LONGEST)
    for (file, task, chat), reply in zip(chats, replies, strict=True):
        if reply.fault is not None:
            raise reply.fault
        if not reply.text.strip():
            notes.append(f"{file}, {task}: it answers nothing, so that no frame can matter to its answer")
            continue
        answer = {"role": "assistant", "content": reply.text}
        found.append(Sample(Path(file).name, (*chat, answer), task))
    return found, notes


def has_parts(model: Any) -> bool:
    """Whether there is anything to see: a router, or scores."""
    routers = [stage for stage in model.model.projector.stages if getattr(stage, "router", None) is not None]
    return bool(routers) or any(hasattr(loss, "scores") for _, loss in model.losses.parts())


@torch.no_grad()
def seen(answerer: Answerer, samples: Sequence[Sample], *, own: bool = False) -> list[Look]:
    """What the model does with each clip of samples that have an answer, all in one batch."""
    model, processor = answerer.model, answerer.processor
    batch = Collator(processor, tasks=True)(samples)
    if len(batch["input_ids"]) != len(samples):
        raise ValueError("rows whose earlier answers are rewritten by the chat template are not drawn")
    values, mask = batch["input_values"].float(), batch["input_values_mask"].bool()
    inputs = {key: value for key, value in batch.items() if key in OUTSIDE}
    inputs = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in inputs.items()}
    with _listening(model) as heard, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "semantic_contrastive: none of the", UserWarning)  # nothing is learned
        aux = model(**inputs).aux or {}
    rate = int(processor.feature_extractor.sampling_rate)
    looks = list[Look]()
    for row, sample in enumerate(samples):
        meta, before = sample.extra.get("meta"), 0
        name = str(sample.origin.rpartition("/")[2] if sample.id is None else sample.id)
        count = len(clips_of(sample))
        for number in range(1, count + 1):
            i = len(looks)
            looks.append(
                Look(
                    name=f"{name}, clip {number}" if count > 1 else name,
                    task=sample.task or UNNAMED,
                    answer=sample.answer or "",
                    own=own,
                    wave=values[i][mask[i]].numpy(),
                    sample_rate=rate,
                    events=_events(meta) if count == 1 else (),
                    routed=[_routed(stage, said, of, i) for stage, (said, of) in heard.routers.items()],
                    scored=list(_scored(aux, heard.rate, row, slice(before, before + heard.frames[i]))),
                )
            )
            before += heard.frames[i]
    return looks


@contextmanager
def _listening(model: Any) -> Iterator[Heard]:
    """What routers say, and how many frames at which rate come out of the projector: to this thread alone."""
    heard, mine = Heard(), get_ident()

    def of_stage(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            if get_ident() == mine and isinstance(out.aux, Said):
                heard.routers[name] = out.aux, float(out.rate)

        return hook

    def of_all(module: Any, args: Any, out: Any) -> None:
        if get_ident() == mine:
            heard.rate, heard.frames = float(out.rate), out.lengths.tolist()

    projector = model.model.projector
    hooks = [stage.register_forward_hook(of_stage(str(i))) for i, stage in enumerate(projector.stages)]
    hooks.append(projector.register_forward_hook(of_all))
    try:
        yield heard
    finally:
        for handle in hooks:
            handle.remove()


def _events(meta: Any) -> Sequence[Mapping[str, Any]]:
    events = meta.get("events") if isinstance(meta, Mapping) else None
    keys = {"name", "onset", "offset"}
    known = isinstance(events, list) and all(isinstance(one, Mapping) and keys <= one.keys() for one in events)
    return cast(list[Any], events) if known else ()


def _routed(stage: str, said: Said, rate: float, clip: int) -> Routed:
    routes, count = said.routes, said.routes.probs.shape[-1]
    if said.top_k is None:
        gates = routes.probs
    else:  # those of the chosen few; masked choices stand behind the last
        gates = routes.gates.new_zeros(len(routes.gates), count + 1)
        gates = gates.scatter(1, routes.experts.long(), routes.gates)[:, :count]
    shape = (said.mask.shape[0], 1) if said.by_clip else said.mask.shape
    weights = gates.reshape(*shape, count)[clip].double().cpu().numpy()
    frames = 1 if said.by_clip else int(said.mask[clip].sum())
    return Routed(stage, rate, weights[:frames], said.by_clip)


def _scored(aux: Mapping[str, Any], rate: float, row: int, frames: slice) -> Iterator[Scored]:
    for key in list(aux):
        loss = key.removesuffix(".scores")
        if loss != key and f"{loss}.kept" in aux:
            found = (aux[name][row, frames].double().cpu().numpy() for name in (key, f"{loss}.kept"))
            yield Scored(loss, rate, *found)


# Routers


def routers(found: Mapping[str, Looked]) -> Figure:
    """Weights of experts over a clip's time."""
    panels, missing = [], []
    for name, looked in found.items():
        before = f"{name}: " if len(found) > 1 else ""
        missing += [f"{name}: {note}." for note in looked.notes]
        if not any(look.routed for look in looked.looks) and not looked.notes:
            missing.append(f"{name}: its projector has no router.")
        stages = list(dict.fromkeys(routed.stage for look in looked.looks for routed in look.routed))
        for stage in stages:
            own = [(one, routed) for one in looked.looks for routed in one.routed if routed.stage == stage]
            where = f" of stage {stage}" if len(stages) > 1 else ""
            whole = [(one, routed) for one, routed in own if routed.whole]
            if whole:
                title = f"{before}weights of experts{where}, at every moment"
                said = (
                    f"{name}: the router{where} reads the instruction alone, so that a clip has the same weights from "
                    f"its beginning to its end: {'; '.join(_first(whole))}."
                )
                panels.append(Panel(_stacked(title, whole), f"{title}, of {len(whole)} clips", said))
            for one, routed in own:
                if not routed.whole:
                    title = f"{before}{one.task}, {one.name}{where}"
                    label = f"Weights of experts over the clip's time: {title}"
                    panels.append(Panel(_over_time(title, routed), label, f"{title}: {_moving(routed)}."))
    how = (
        "Where the router reads the instruction alone a clip is one bar, shared out among the experts; else a line is "
        "an expert's weight at each moment, dotted where all are alike."
    )
    return Figure("routers", "Router weights within a clip", how, panels, missing=missing)


def _first(whole: Sequence[tuple[Look, Routed]]) -> Iterator[str]:
    """The largest weight of each task."""
    for task in dict.fromkeys(one.task for one, _ in whole):
        weights = next(routed.weights[0] for one, routed in whole if one.task == task)
        yield f"task {task} has expert {weights.argmax()} first, with {weights.max():.2f}"


def _moving(routed: Routed) -> str:
    mean, changes = routed.weights.mean(0), int((np.diff(routed.weights.argmax(1)) != 0).sum())
    best = int(mean.argmax())
    span = routed.weights[:, best]
    return (
        f"expert {best} weighs most, {mean[best]:.2f} on average and between {span.min():.2f} and {span.max():.2f}; "
        f"the first place changes {changes} times in {len(span)} frames"
    )


def _stacked(title: str, whole: Sequence[tuple[Look, Routed]]) -> str:
    count = whole[0][1].weights.shape[1]
    labels = [f"expert {e}" for e in range(count)]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        weights = np.stack([routed.weights[0] for _, routed in whole])
        left = np.zeros(len(whole))
        handles = []
        for e in range(count):
            handles.append(axes.barh(range(len(whole)), weights[:, e], left=left, height=0.7, **fill(e)))
            left = left + weights[:, e]
        axes.set_yticks(range(len(whole)), [f"{one.task}, {one.name}" for one, _ in whole])
        axes.invert_yaxis()
        axes.set(title=title, xlabel="weight")
        axes.grid(False)
        legend(figure, handles, labels)

    return svg(draw, width=BROAD, height=1.0 + 0.27 * len(whole) + room(labels))


def _over_time(title: str, routed: Routed) -> str:
    frames, count = routed.weights.shape
    labels = [f"expert {e}" for e in range(count)]
    edges = np.arange(frames + 1) / (routed.rate or 1)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        handles = []
        for e in range(count):
            values = np.append(routed.weights[:, e], routed.weights[-1, e])
            handles += axes.plot(edges, values, drawstyle="steps-post", **style(e, frames))
        axes.axhline(1 / count, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set(title=title, xlabel="s" if routed.rate else "token (no time)", ylabel="weight", ylim=(-0.03, 1.03))
        legend(figure, handles, labels)

    return svg(draw, width=WIDE, height=HIGH + room(labels))


# Scores


def selection(found: Mapping[str, Looked]) -> Figure:
    """Scores of frames, and those that are kept, under the spectrogram and what is known of it."""
    panels, missing = [], []
    for name, looked in found.items():
        missing += [f"{name}: {note}." for note in looked.notes]
        if not any(one.scored for one in looked.looks) and not looked.notes:
            missing.append(f"{name}: no loss of it scores frames, as semantic_contrastive does.")
        for one in looked.looks:
            for scored in one.scored:
                title = f"{name}: {one.task}, {one.name}" if len(found) > 1 else f"{one.task}, {one.name}"
                told = f"{title}: {'its own answer' if one.own else 'answer'} “{one.answer}”; {_kept(one, scored)}."
                if scored.rate == 0:
                    missing.append(f"{title}: its frames follow no time, so that they stand under no spectrogram.")
                    continue
                panels.append(
                    Panel(_spectrogram(title, one, scored), f"Spectrogram, scores, kept frames: {title}", told)
                )
    how = (
        "Above: when the known events of a clip sound, and the frames that are kept. Middle: its spectrogram, pale "
        "where frames are dropped. Below: how much each frame matters to the answer, from 0 to 1."
    )
    return Figure("selection", "Frames that matter to the answer", how, panels, missing=missing)


def hard(scored: Scored) -> bool:
    """Whether frames are kept or not, rather than weighed."""
    return bool(np.isin(scored.kept.round(6), (0, 1)).all())


def _kept(one: Look, scored: Scored) -> str:
    frames = len(scored.scores)
    text = f"scores lie between {scored.scores.min():.2f} and {scored.scores.max():.2f}"
    if not hard(scored):
        return f"{text}; nothing is dropped, frames are weighed by their scores"
    kept = scored.kept > 0.5
    text += f", and {kept.sum()} of {frames} frames are kept ({kept.mean():.0%})"
    if not one.events:
        return text
    true = sounding({"events": one.events}, scored.rate, frames)
    right = (kept & true).sum()
    recall = f"{right / true.sum():.0%} of those in which something sounds are kept" if true.any() else "nothing sounds"
    return f"{text}; something sounds in {right / kept.sum():.0%} of these, and in {true.mean():.0%} of all; {recall}"


def unscored(one: Look) -> Panel:
    """A clip's spectrogram alone, under what is known of it."""
    title = f"{one.task}, {one.name}"
    return Panel(_spectrogram(title, one, None), f"Spectrogram: {title}")


def _spectrogram(title: str, one: Look, scored: Scored | None) -> str:
    seconds = len(one.wave) / one.sample_rate
    names = list(dict.fromkeys(str(event["name"]) for event in one.events))
    drops = scored is not None and hard(scored)
    lanes = [*names, *(["kept"] if drops else [])]
    heights = [0.16 * max(1, len(lanes)), 1.1, *([] if scored is None else [0.7])]

    def draw(figure: Any) -> None:
        above, middle, *below = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        for lane, name in enumerate(names):
            spans = [span for event in one.events if str(event["name"]) == name for span in _sounds(event)]
            above.broken_barh(spans, (lane - 0.35, 0.7), facecolor="white", edgecolor="black", hatch="////")
        above.set_yticks(range(len(lanes)), lanes)
        above.set_ylim(max(len(lanes), 1) - 0.4, -0.6)
        above.spines[["bottom", *([] if lanes else ["left"])]].set_visible(False)
        above.tick_params(bottom=False, labelbottom=False, left=False)
        above.grid(False)
        above.set_title(title)
        extent = (0, seconds, 0, one.sample_rate / 2000)
        middle.imshow(
            spectrogram(one.wave), origin="lower", aspect="auto", extent=extent, cmap="gray_r", interpolation="none"
        )
        middle.set(ylabel="kHz", ylim=(0, one.sample_rate / 2000), xlim=(0, seconds))
        middle.grid(False)
        if scored is None:
            middle.set(xlabel="s")
            return
        edges = np.arange(len(scored.scores) + 1) / scored.rate
        if drops:
            above.broken_barh(_spans(scored.kept > 0.5, edges), (len(names) - 0.35, 0.7), facecolor="black")
            for start, width in _spans(scored.kept <= 0.5, edges):
                if start < seconds:  # the last frame may reach beyond the clip
                    middle.axvspan(start, min(start + width, seconds), facecolor="white", alpha=0.5, linewidth=0)
        values = np.append(scored.scores, scored.scores[-1:])
        below[0].plot(edges, values, color="black", drawstyle="steps-post", linewidth=1.3)
        below[0].set(ylim=(-0.05, 1.05), xlim=(0, max(seconds, edges[-1])), xlabel="s", ylabel="score")
        figure.align_ylabels([middle, *below])

    return svg(draw, width=BROAD, height=1.1 + sum(heights))


def _sounds(event: Mapping[str, Any]) -> list[tuple[float, float]]:
    spans = event.get("spans", [(event["onset"], event["offset"])])
    return [(onset, offset - onset) for onset, offset in spans]


def _spans(true: NDArray[np.bool_], edges: Floats) -> list[tuple[float, float]]:
    """(start, width) of each stretch of frames."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], true, [False]]).astype(int)))
    return [(float(edges[a]), float(edges[b] - edges[a])) for a, b in zip(turns[::2], turns[1::2], strict=True)]


def spectrogram(wave: NDArray[Any]) -> NDArray[np.uint8]:
    """Loudness in 32 steps, 0 at 60 dB below the loudest: (band, column), small enough to stand in a page."""
    hop = max(WINDOW // 4, -(-len(wave) // COLUMNS))
    padded = np.pad(wave.astype(np.float64), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::hop] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames))[:, :-1].T ** 2
    bands = power.reshape(BANDS, -1, power.shape[1]).mean(1)
    decibels = 10 * np.log10(bands / max(bands.max(), 1e-12) + 1e-12)
    return np.asarray(np.clip((decibels - QUIET) / -QUIET * 31, 0, 31).round(), np.uint8)
