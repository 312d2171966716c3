"""`usam data`: manifests checked, shown as the model sees them, written in another format, and made."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from usam.cli._options import PluginOption
from usam.cli._progress import counter, progress

if TYPE_CHECKING:
    from usam.data.check import Part
    from usam.readers import Sample
    from usam.spec.spec import Spec

data = typer.Typer(
    help="Check manifests, show them as the model sees them, convert them, make some.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RUN_FILES = (".yaml", ".yml")
SpecOption = Annotated[
    str | None, typer.Option("--spec", metavar="SPEC", help="A bundled name, a YAML file or a saved folder.")
]
ReaderOption = Annotated[
    str | None, typer.Option(help="The format of the data, where it shall not be recognised; see `usam list`.")
]
RootOption = Annotated[
    str | None, typer.Option(help="What {audio_root} at the beginning of paths in the data stands for.")
]


@data.callback()
def _group() -> None:
    """Check manifests, show them as the model sees them, convert them, make some."""


@data.command()
def check(
    files: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[DATA]...", help="Manifests of any format that is read, to train on."),
    ] = None,
    spec: SpecOption = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run file, whose data and model are looked at.")
    ] = None,
    held_out: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--eval", metavar="DATA", help="A manifest that is held out; repeatable."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read headers only: nothing is decoded.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read beside this one.")] = 0,
    max_seconds: Annotated[float, typer.Option(min=0, help="Clips that are longer are told.")] = 600,
    show: Annotated[int, typer.Option(min=0, help="Rows of each kind of fault that are named.")] = 100,
    rows: Annotated[int, typer.Option(min=0, help="First rows that are shown as the model will see them.")] = 2,
    reader: ReaderOption = None,
    audio_root: RootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that was found.")] = False,
    plugin: PluginOption = None,
) -> None:
    """Read all rows and clips of manifests: what cannot be used, what is suspicious, and how much there is.

    With --spec or --run rows are also rendered, and held against the language model's context. What is held out
    (--eval, or data.eval of the run) and trained on as well is a fault. The status is 1 if there is any fault; what is
    only suspicious (silence, duplicates, answers that repeat) leaves it 0.
    """
    from usam.data.check import check as look
    from usam.data.check import first
    from usam.data.findings import describe

    asked = _asked([*(files or [])], [*(held_out or [])], spec, run, reader, audio_root, plugin)
    parts, checked, how = asked
    if not parts:
        raise ValueError("name a manifest, or a run file with --run")
    report = look(
        parts,
        checked,
        fast=fast,
        workers=workers,
        need_answer=run is not None,
        max_seconds=max_seconds,
        progress=progress,
        **how,
    )
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        print(describe(report, show))
        if rows:
            wrong = {fault.row for fault in report.faults}
            prompts = None if checked is None else checked.prompts
            _show_first(first(parts, prompts, rows, **how, without=wrong), checked)
        count = len(report.faults)
        print("\nsound: no fault was found" if report.sound else f"\n{count:,} fault{'' if count == 1 else 's'}")
    if not report.sound:
        raise typer.Exit(1)


def _show_first(samples: list[Sample], spec: Spec | None) -> None:
    """Rows as the model sees them; without a spec, what they ask and answer."""
    if not samples:
        return
    if spec is None:
        from usam.processor.chat import flatten

        print("\nfirst rows; --spec shows what a model sees of them")
        for sample in samples:
            turns = (f"    {message['role']}: {flatten(message)[0]}" for message in sample.messages)
            print("\n".join([f"--- {sample.origin}", *turns]))
        return
    from usam.data.inspection import describe_batch
    from usam.processor.processor import UsamProcessor

    print(f"\nfirst rows, as the model sees them\n{describe_batch(UsamProcessor.from_spec(spec), samples)}")


@data.command()
def show(
    source: Annotated[str, typer.Argument(metavar="DATA|RUN", help="A manifest, or a run file (.yaml).")],
    spec: SpecOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows that are shown, from the first on.")] = 3,
    batch: Annotated[bool, typer.Option("--batch", help="All rows as one batch, padded to one length.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also the id of every token.")] = False,
    color: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Colours, or marks in the text; auto: colours in a terminal, unless NO_COLOR is set."),
    ] = "auto",
    reader: ReaderOption = None,
    audio_root: RootOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show rows exactly as the model is given them: text, audio, what is supervised, the instruction, and padding.

    Without colours, {instruction} and [[supervised]] are marked so; a clip is `<|audio|> x n`, with its place in the
    row and the seconds of its file below. Of a run, the rows are those of data.train, and the spec is its model.
    """
    from usam.data.check import first
    from usam.data.inspection import describe_batch, legend
    from usam.processor.processor import UsamProcessor

    is_run = source.lower().endswith(RUN_FILES)
    if is_run and spec is not None:
        raise ValueError("a run has its own model; give --spec with a manifest")
    if not is_run and spec is None:
        raise ValueError("what a model sees depends on its spec: name one with --spec, or give a run file")
    parts, checked, how = _asked(
        [] if is_run else [source], [], spec, source if is_run else None, reader, audio_root, plugin
    )
    assert checked is not None
    samples = first([part for part in parts if part.split == "train"], checked.prompts, rows, **how)
    if not samples:
        raise ValueError(f"{source}: no rows; write one JSON map a line")
    processor = UsamProcessor.from_spec(checked)
    painted = color == "always" or (color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    if painted:
        print(legend())
    groups = [samples] if batch else [[sample] for sample in samples]
    print("\n\n".join(describe_batch(processor, group, color=painted, tokens=tokens) for group in groups))


def _asked(
    files: list[str],
    held_out: list[str],
    spec: str | None,
    run: str | None,
    reader: str | None,
    audio_root: str | None,
    plugins: list[Path] | None,
) -> tuple[list[Part], Spec | None, dict[str, str | None]]:
    """The manifests, the spec, and how they are read."""
    from usam.data.check import Part

    if run is None:
        from usam.spec.spec import load_spec

        parts = [*(Part(file) for file in files), *(Part(file, "eval") for file in held_out)]
        return parts, None if spec is None else load_spec(spec), {"reader": reader, "audio_root": audio_root}
    if files or held_out or spec is not None or reader is not None or audio_root is not None:
        raise ValueError("a run file says which data, spec, reader and audio_root: give it alone")
    from usam.training.run import read_run

    read = read_run(run, plugins=plugins or [])
    parts = [Part(file, split) for split in ("train", "eval") for file in _files(read.data.get(split))]
    roots = {key: None if read.data.get(key) is None else str(read.data[key]) for key in ("reader", "audio_root")}
    return parts, read.spec, roots


def _files(named: Any) -> list[str]:
    """The manifests of a split: one, several, or maps that say more of each."""
    listed = [] if named is None else list(named) if isinstance(named, (list, tuple)) else [named]
    return [str(one["file"] if isinstance(one, Mapping) else one) for one in listed]


@data.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FROM", help="A manifest of any format that is read.")],
    out: Annotated[Path, typer.Argument(metavar="TO", help="The file to write; gzipped where it ends in .gz.")],
    to: Annotated[str, typer.Option("--to", help="Format to write, by its reader's name.")] = "usam",
    reader: Annotated[str | None, typer.Option(help="Format to read, where it shall not be recognised.")] = None,
    spec: Annotated[
        str | None, typer.Option(help="A spec whose prompts are written out where a format has none.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write a manifest in another format; a row that would lose something is an error, and nothing is written."""
    from usam.data.convert import convert as write

    prompts = {}
    if spec is not None:
        from usam.spec.spec import load_spec

        prompts = dict(load_spec(spec).prompts)
    print(f"wrote {out}: {write(source, out, to, reader=reader, prompts=prompts)} rows")


@data.command()
def world(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Receives clips and manifests.")],
    train: Annotated[int, typer.Option(min=0, help="Clips of each task to train on.")] = 2000,
    dev: Annotated[int, typer.Option(min=0, help="Clips of each task to choose recipes by.")] = 200,
    test: Annotated[int, typer.Option(min=0, help="Clips of each task to report on, once.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed draws other clips.")] = 0,
    domain: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="speech (asr, s2tt), sounds (aac) or music (mc); repeatable. Default: all."),
    ] = None,
) -> None:
    """Make the miniature world: speech, sound events and music, with splits that share nothing (docs/world.md)."""
    from usam.data.world import DOMAINS, write_world

    with counter("making", "clip") as progress:
        made = write_world(
            folder, train=train, dev=dev, test=test, seed=seed, domains=domain or tuple(DOMAINS), progress=progress
        )
    for manifests in made.values():
        for manifest in manifests.values():
            print(manifest)
