"""`usam check`: does a spec build, render and train; with data, can every row be read."""

from __future__ import annotations

from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption, SpecArgument
from usam.cli._progress import progress

FAULTS = 20  # rows of which each is told, before they are only counted; `usam data check` names them all


def check(
    spec: SpecArgument,
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="A manifest, all of which is read.")] = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the batch that is shown.")] = 2,
    reader: Annotated[
        str | None, typer.Option(help="The format of DATA, where it shall not be recognised; see `usam list`.")
    ] = None,
    audio_root: Annotated[
        str | None, typer.Option(help="What {audio_root} at the beginning of paths in DATA stands for.")
    ] = None,
    memory: Annotated[float, typer.Option(min=0, help="GiB that the step of training may take.")] = 4.0,
) -> None:
    """Build a spec without memory, render a chat of each task, and take one step of training in small.

    With data, also print one batch's exact text, audio spans and supervised tokens, and read every row, as
    `usam data check` does, which tells more about the data.
    """
    from usam.data.trial import try_spec
    from usam.spec.spec import load_spec

    checked = load_spec(spec, *(set_ or []))
    trial = try_spec(checked, memory)
    verdict = "the spec is sound" if trial.sound else "no fault was found"
    print(f"{spec}: {verdict}" + ("; not tried here:" if trial.not_tried else ""))
    for line in trial.not_tried:
        print(f"  {line}")
    if data is None:
        if reader or audio_root:
            raise ValueError("--reader and --audio-root say how DATA is read: name a manifest too")
        return
    from usam.data import check as of_data
    from usam.data.inspection import describe_batch
    from usam.processor.processor import UsamProcessor
    from usam.readers import ManifestError

    parts = [of_data.Part(data)]
    report = of_data.check(parts, checked, reader=reader, audio_root=audio_root, progress=progress)
    if report.unusable:
        faults = [str(fault) for fault in report.faults if fault.kind in of_data.UNUSABLE]
        more = f"\n... and {len(faults) - FAULTS} more" if len(faults) > FAULTS else ""
        listed = "\n".join(faults[:FAULTS])
        count = report.total.rows
        raise ManifestError(f"{data}: {report.unusable} of {count} rows cannot be used\n{listed}{more}")
    print(f"{data}: {report.total.rows} rows, {report.answers} with an answer to learn from")
    samples = of_data.first(parts, checked.prompts, rows, reader=reader, audio_root=audio_root)
    print(describe_batch(UsamProcessor.from_spec(checked), samples))
