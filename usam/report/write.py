"""The report of runs: everything that their folders hold, drawn on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from usam import __version__
from usam.evaluation.ablate import duration
from usam.evaluation.record import number
from usam.evaluation.writing import NONE
from usam.report import clips, curves, lengths, scores
from usam.report.drawing import matplotlib
from usam.report.page import Figure, page
from usam.report.reading import Found, Trained, find
from usam.saving import write_whole


def write_report(
    folders: Iterable[str | Path] | Mapping[str, str | Path],
    output: str | Path = "report.html",
    *,
    title: str = "Report",
    files: Sequence[str | Path] = (),
    rows: int = 2,
    model: bool = True,
    device: str | None = None,
) -> Path:
    """Draw what runs, records and ablations hold, as one page of HTML that needs nothing else; returns its file.

    Args:
        folders: runs, records of `usam eval`, outputs of `usam ablate`, folders of these, or patterns; a map gives them
            names. A run's own records are those in its folder, and in `eval/` there.
        output: the page.
        title: its heading.
        files: clips that routers and scores are drawn of, under each task; none takes held-out rows.
        rows: how many of these, of each task.
        model: whether models are loaded, without which there are neither routers within clips nor scores.
        device: where they run.

    Raises:
        ReportError, RecordError: a folder holds nothing to draw, or a file in it is broken.
        ComponentError: matplotlib is not installed.
    """
    matplotlib()
    found = find(folders)
    drawn = [
        _overview(found),
        *([] if not found.runs else _of_runs(found.runs, files, rows, model, device)),
        scores.evaluations(found.records),
        *scores.ablations(found.tables),
    ]
    counts = ((len(found.runs), "run"), (len(found.records), "evaluation"), (len(found.tables), "ablation"))
    said = ", ".join(f"{count} {what}{'s' * (count != 1)}" for count, what in counts if count)
    intro = [
        f"{said}, drawn by usam {__version__}. Lines differ in their dashes and marks, and bars in their hatches, so "
        "that the page can be printed in black and white. On grey stands what a section has not, and why."
    ]
    write_whole(output, page(title, intro, drawn))
    return Path(output)


def _of_runs(
    runs: Sequence[Trained], files: Sequence[str | Path], rows: int, model: bool, device: str | None
) -> list[Figure]:
    data = {run.name: lengths.read_data(run) for run in runs}
    looked = {
        run.name: clips.look(run, files=files, rows=rows, device=device)
        if model
        else clips.Looked(notes=["its model was not loaded (--no-model)"])
        for run in runs
    }
    return [
        curves.losses(runs),
        curves.tasks(runs),
        curves.listening(runs),
        curves.metrics(runs),
        curves.experts(runs),
        clips.routers(looked),
        clips.selection(looked),
        lengths.durations(data),
        lengths.padding(data),
    ]


def _overview(found: Found) -> Figure:
    """Which runs these are."""
    table = [["run", "steps", "epochs", "time", "loss", "held-out loss", "losses", "projector", "folder"]]
    missing = []
    for run in found.runs:
        spec, time = run.spec, run.series("train_runtime")
        epochs, took = run.series("epoch"), duration(time.last) if time else NONE
        steps = f"{run.step:,}" + (f" of {run.planned:,}" if run.planned and run.planned != run.step else "")
        ends = [number(series.last) if series else NONE for series in (run.series("loss"), run.series("eval_loss"))]
        projector = ", ".join(str(stage.type) for stage in spec.projector) if spec is not None else NONE
        losses = ", ".join(run.parts) or NONE
        ran = f"{epochs.last:.3g}" if epochs else NONE
        table.append([run.name, steps, ran, took, *ends, losses, projector, str(run.folder)])
        if not run.done:
            missing.append(f"{run.name}: it is not done; what is drawn is its newest checkpoint, {run.folder.name}.")
        if run.spec is None:
            missing.append(f"{run.name}: its folder holds no model's config.json that can be read.")
        if run.odd:
            missing.append(
                f"{run.name}: some values of its log are no finite numbers and are not drawn: {', '.join(run.odd)}."
            )
    if not found.runs:
        missing.append("No run is among the folders.")
    how = "Each run's end, by its log."
    return Figure("runs", "Runs", how, (), (), table if found.runs else (), missing)
