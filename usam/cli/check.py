"""`usam check`: does a spec build, render and train; with data, can every row be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption, SpecArgument


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

    With data, also print one batch's exact text, audio spans and supervised tokens, and read every row.
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
    from usam.data.inspection import describe_batch
    from usam.data.manifest import Manifest, ManifestError
    from usam.data.trial import FAULTS, read_all
    from usam.processor.processor import UsamProcessor

    manifest = Manifest(data, checked.prompts, reader=reader, audio_root=audio_root)
    faults = read_all(checked, manifest, _progress)
    if faults:
        more = f"\n... and {len(faults) - FAULTS} more" if len(faults) > FAULTS else ""
        listed = "\n".join(faults[:FAULTS])
        raise ManifestError(f"{data}: {len(faults)} of {len(manifest)} rows cannot be used\n{listed}{more}")
    answers = sum(sample.answer is not None for sample in manifest.samples)
    print(f"{data}: {len(manifest)} rows, {answers} with an answer to learn from")
    print(describe_batch(UsamProcessor.from_spec(checked), [manifest[i] for i in range(min(rows, len(manifest)))]))


def _progress(rows: Sequence[int]) -> Iterator[int]:
    if not sys.stderr.isatty():
        yield from rows
        return
    with typer.progressbar(rows, label="reading", file=sys.stderr) as bar:
        yield from bar
