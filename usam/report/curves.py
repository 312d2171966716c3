"""What the logs of runs say over their steps: losses by part and task, listening, metrics, and routers by task."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from usam.evaluation.record import number
from usam.evaluation.writing import NONE
from usam.report.drawing import Line, lines
from usam.report.page import Figure, Panel
from usam.report.reading import Series, Trained

ROUTER = re.compile(r"(router[^/]*)/(.+)/(expert|load)(\d+)")
HOLLOW = {"linestyle": "--", "markerfacecolor": "white"}  # how a line differs that is of held-out data
SHUFFLED = "shuffled_audio"
TIMES = ("runtime", "samples_per_second", "steps_per_second", "audio_gap", "model_preparation_time")
HOW = "The horizontal axis is the step of training."


def losses(runs: Sequence[Trained]) -> Figure:
    """The objective and its parts, while training and held out."""
    parts = list(dict.fromkeys(part for run in runs for part in run.parts))
    panels, says = [], []
    for part in ("", *parts):
        drawn = []
        for place, run in enumerate(runs):
            for prefix, split, other in (("", "training", {}), ("eval_", "held out", HOLLOW)):
                series = run.series(f"{prefix}loss_{part}" if part else f"{prefix}loss")
                name = split if len(runs) == 1 else f"{run.name}, {split}"
                drawn += [Line(name, series, place, {"linestyle": "-", **other})] if series else []
        if drawn:
            title = part or "whole objective"
            panels.append(
                Panel(lines(title, drawn), f"Loss over training: {title}; {', '.join(d.name for d in drawn)}")
            )
    for run in runs:
        trained, held = run.series("loss"), run.series("eval_loss")
        told = [f"the training loss goes {_way(trained)}"] if trained else []
        told += [f"the held-out loss goes {_way(held)}{_turned(held)}"] if held else []
        says += [f"{run.name}: {'; '.join(told)}."] if told else []
        ends = [(part, run.series(f"loss_{part}"), run.series(f"eval_loss_{part}")) for part in run.parts]
        said = [
            f"{part} {_end(own) if own else NONE}" + (f" ({_end(out)} held out)" if out else "")
            for part, own, out in ends
            if own or out
        ]
        says += [f"{run.name}, at the end, each part unweighted: {', '.join(said)}."] if said else []
    how = f"{HOW} Solid with filled marks: training; dashed with hollow marks: held out. Parts are unweighted."
    return Figure("losses", "Losses by part", how, panels, says, (), list(_without_losses(runs)))


def _without_losses(runs: Sequence[Trained]) -> Iterator[str]:
    for run in runs:
        if not run.series("loss"):
            yield (
                f"{run.name}: the log has no line of the training loss: the run of {run.step} steps ended before the "
                "first one (train.logging_steps)."
            )
        if not run.series("eval_loss"):
            yield f"{run.name}: nothing was evaluated while it trained (data.eval, train.eval_strategy)."


def tasks(runs: Sequence[Trained]) -> Figure:
    """Losses of each task."""
    panels, missing = [], []
    for run in runs:
        found = {}
        for part in run.parts:
            own = {key.partition("/")[2]: run.series(key) for key in run.keys if key.startswith(f"loss_{part}/")}
            found[f"training, {part}"] = own
        found["held out, whole objective"] = held_out_tasks(run)
        for what, series in found.items():
            if not series:
                continue
            order = sorted(series)
            other = HOLLOW if what.startswith("held") else {}
            drawn = [
                Line(task, series[task], place, {k: v for k, v in other.items() if k != "linestyle"})
                for place, task in enumerate(order)
            ]
            title = what if len(runs) == 1 else f"{run.name}: {what}"
            said = f"{run.name}, {what}, at the end: {_ranked({task: s.last for task, s in series.items()})}."
            panels.append(Panel(lines(title, drawn), f"Loss by task, {title}: {', '.join(order)}", said))
        if not any(own for what, own in found.items() if what.startswith("training")):
            missing.append(f"{run.name}: the log has no training loss by task: its rows have none, or no loss tells.")
        if not found["held out, whole objective"]:
            missing.append(f"{run.name}: the log has no held-out loss by task.")
    how = f"{HOW} A line is a task; hollow marks are held-out data."
    return Figure("tasks", "Losses by task", how, panels, missing=missing)


def held_out_tasks(run: Trained) -> dict[str, Series]:
    """The held-out loss of each task."""
    keys = [key for key in run.keys if key.startswith("eval_loss_")]
    named = {key.removeprefix("eval_loss_"): key for key in keys}
    return {name: run.series(key) for name, key in named.items() if name not in (*run.parts, SHUFFLED)}


def listening(runs: Sequence[Trained]) -> Figure:
    """The held-out loss with each sample's own audio, and with another's."""
    panels, missing = [], []
    for place, run in enumerate(runs):
        own, other = run.series("eval_loss"), run.series(f"eval_loss_{SHUFFLED}")
        if not other:
            missing.append(f"{run.name}: what the right audio is worth was not measured (eval.canary).")
            continue
        title = "held-out loss" if len(runs) == 1 else f"{run.name}: held-out loss"
        drawn = [
            Line("own audio", own, place, {"linestyle": "-"}),
            Line("another's audio", other, place, HOLLOW),
        ]
        gap = other.last - own.last
        said = (
            f"{run.name}: at step {other.steps[-1]:,} the loss is {number(own.last)} with the right audio and "
            f"{number(other.last)} with another's: the right audio is worth {number(gap)}, "
            f"{gap / abs(own.last) if own.last else math.inf:.1%} of the loss."
        )
        panels.append(Panel(lines(title, drawn), f"{title}, with its own and with another's audio", said))
    how = f"{HOW} A model that listens loses much with another's audio; lines that meet belong to one that does not."
    return Figure("listening", "Does it listen?", how, panels, missing=missing)


def metrics(runs: Sequence[Trained]) -> Figure:
    """What answers to held-out rows scored while it trained (`eval.generate`)."""
    panels, table = [], [["run", "metric", "task", "at the end", "lowest (step)", "highest (step)", "id"]]
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    for name in names:
        values = {run.name: _by_task(run, name) for run in runs if name in run.metrics}
        for task in dict.fromkeys(task for own in values.values() for task in own):
            drawn = [
                Line(run.name, values[run.name][task], place)
                for place, run in enumerate(runs)
                if task in values.get(run.name, {})
            ]
            title = f"{name}, {task or 'all tasks'}"
            label = f"{title} over training: {', '.join(line.name for line in drawn)}"
            said = "; ".join(f"{line.name} goes {_way(line.series)}" for line in drawn)
            panels.append(Panel(lines(title, drawn), label, f"{title}: {said}."))
            for line in drawn:
                id_ = runs[line.place].metrics[name]
                table.append([line.name, name, task or "all", _end(line.series), *_extremes(line.series), id_])
    missing = [
        f"{run.name}: no answers were measured while it trained (eval.generate)." for run in runs if not run.metrics
    ]
    how = f"{HOW} A line is a run. The interval of a value is that of usam eval, further below."
    return Figure("metrics", "Metrics over training", how, panels, (), table if len(table) > 1 else (), missing)


def _by_task(run: Trained, name: str) -> dict[str, Series]:
    """A metric's values, of all rows under the empty name."""
    longer = [other for other in run.metrics if other.startswith(f"{name}_")]
    found = {}
    for key in run.keys:
        bare = key.removeprefix("eval_")
        if key == f"eval_{name}":
            found[""] = run.series(key)
        elif key.startswith(f"eval_{name}_") and not any(bare == o or bare.startswith(f"{o}_") for o in longer):
            found[bare.removeprefix(f"{name}_")] = run.series(key)
    return found


def _extremes(series: Series) -> Iterator[str]:
    for value in (min(series.values), max(series.values)):
        yield f"{number(value)} ({series.steps[series.values.index(value)]:,})"


def experts(runs: Sequence[Trained]) -> Figure:
    """What routers did with each task."""
    panels, missing = [], []
    says: list[str] = []
    for run in runs:
        found: dict[tuple[str, str], dict[str, dict[int, Series]]] = {}
        for key in run.keys:
            if match := ROUTER.fullmatch(key):
                stage, task, kind, expert = match.groups()
                found.setdefault((stage, kind), {}).setdefault(task, {})[int(expert)] = run.series(key)
        if not found:
            missing.append(f"{run.name}: {_no_routing(run)}")
        stages = {stage for stage, _ in found}
        for (stage, kind), by_task in found.items():
            what = {"expert": "gate", "load": "share of choices"}[kind]
            where = f" of stage {stage.removeprefix('router')}" if len(stages) > 1 else ""
            for task, series in by_task.items():
                drawn = [Line(f"expert {e}", own, e) for e, own in sorted(series.items())]
                title = f"{task}: {what}{where}" if len(runs) == 1 else f"{run.name}, {task}: {what}{where}"
                label = f"Mean {what} of each of {len(series)} experts over training, {title}"
                best = max(sorted(series), key=lambda e: series[e].last)
                said = (
                    f"{run.name}: the largest {what} of task {task}{where} is that of expert {best}, with "
                    f"{series[best].last:.2f} at the end, step {series[best].steps[-1]:,}; all alike would be "
                    f"{1 / len(series):.2f}{_entropy(run, stage, task, len(series), kind)}."
                )
                panels.append(Panel(lines(title, drawn, share=True, level=1 / len(series)), label, said))
            says += _apart(
                run.name, what + where, {t: {e: s.last for e, s in own.items()} for t, own in by_task.items()}
            )
    how = f"{HOW} A line is an expert's mean over the clips of a task since the last line; dotted: all alike."
    return Figure("experts", "Experts by task over training", how, panels, says, (), missing)


def _entropy(run: Trained, stage: str, task: str, count: int, kind: str) -> str:
    series = run.series(f"{stage}/{task}/entropy")
    if not series or kind != "expert" or count < 2:
        return ""
    return f", and the gates' entropy is {series.last:.2f} of at most {math.log(count):.2f} nats"


def _apart(name: str, what: str, ends: dict[str, dict[int, float]]) -> Iterator[str]:
    """In which expert tasks differ most."""
    if len(ends) < 2:
        return
    shared = set.intersection(*(set(own) for own in ends.values()))
    spread = {e: max(own[e] for own in ends.values()) - min(own[e] for own in ends.values()) for e in shared}
    expert = max(sorted(spread), key=lambda e: spread[e])
    low, high = (f(ends, key=lambda task: ends[task][expert]) for f in (min, max))
    yield (
        f"{name}: at the end tasks differ most in the {what} of expert {expert}: from {ends[low][expert]:.2f} ({low}) "
        f"to {ends[high][expert]:.2f} ({high})."
    )


def _no_routing(run: Trained) -> str:
    if run.spec is None:
        return "the log says nothing of routers."
    stages = ", ".join(str(stage.type) for stage in run.spec.projector) or "nothing"
    if "moe" in stages:
        return f"the log says nothing of routers, though its projector ({stages}) has a mixture: it logged no line yet."
    return f"it has no router: its projector is {stages}."


def _way(series: Series) -> str:
    if len(series.steps) == 1:
        return f"nowhere, logged once: {number(series.last)} at step {series.steps[0]:,}"
    first, last = series.steps[0], series.steps[-1]
    return f"from {number(series.values[0])} at step {first:,} to {number(series.last)} at step {last:,}"


def _turned(series: Series) -> str:
    """Where a loss was lowest, if that is not its end."""
    best = min(series.values)
    if series.last <= best:
        return ", which is its lowest" if len(series.steps) > 1 else ""
    return f", and was lowest, {number(best)}, at step {series.steps[series.values.index(best)]:,}"


def _end(series: Series) -> str:
    return number(series.last)


def _ranked(values: dict[str, float]) -> str:
    if len(values) == 1:
        return ", ".join(f"{name} {number(value)}" for name, value in values.items())
    order = sorted(values, key=lambda name: values[name])
    rest = ", ".join(f"{name} {number(values[name])}" for name in order[1:-1])
    low, high = (
        f"{order[0]} is lowest with {number(values[order[0]])}",
        f"{order[-1]} highest with {number(values[order[-1]])}",
    )
    return f"{low}{f', {rest}' if rest else ''}, {high}"
