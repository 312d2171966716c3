"""`usam cache`: what frozen encoders give, computed once: fill a cache, see what it holds, and whether it is whole."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption

cache = typer.Typer(
    help="Frames of frozen encoders, computed once: build, stat, verify.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that data.cache names.")]


@cache.command()
def build(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run file with 'data.cache'.")],
    set_: SetOption = None,
    plugin: PluginOption = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Rows of this process, such as 2/8; by default as torchrun, accelerate launch or a Slurm array say.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Clips that are encoded together.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="Where the encoders run; by default a GPU if there is one.")
    ] = None,
) -> None:
    """Store the encoders' frames of all clips of a run; what is stored already is not computed again.

    Stopped at any moment, the next call goes on; several may fill one folder at once. `usam train` fills it as well.
    """
    from usam.training.caching import build as fill
    from usam.training.caching import part_of
    from usam.training.run import read_run

    asked = read_run(run, *(set_ or []), plugins=plugin or [])
    mine = part_of() if part is None else _part(part)
    found, skipped = fill(asked, part=mine, batch=batch, device=device, quiet=not sys.stderr.isatty())
    for row in skipped:
        typer.echo(f"{row.row}: skipped: {row.why}", err=True)
    for name, store in found.stores.items():
        print(f"{name}: {len(store):,} clips in {store.folder}" + ("; the limit is reached" if store.full else ""))


def _part(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise typer.BadParameter(f"expected I/N with I from 1 to N, such as 2/8; found {text!r}", param_hint="--part")
    return int(first), int(count)


@cache.command()
def stat(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that the frames depend on.")] = False,
) -> None:
    """What a cache holds of each encoder: clips, shards, bytes, and what is unfinished."""
    from dataclasses import asdict

    from usam.data.cache import held

    found = held(folder)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    for one in found:
        what = one.about.get("encoder", "nothing finished")
        stored = one.about.get("stored", "as given")
        left = f", {one.unfinished} unfinished files" if one.unfinished else ""
        print(
            f"{one.key} {what}: {one.clips:,} clips, {one.shards:,} shards, {one.size / 2**20:,.1f} MiB, {stored}{left}"
        )
    print(f"in all {sum(one.size for one in found) / 2**20:,.1f} MiB")


@cache.command()
def verify(
    folder: Folder,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove broken shards, and what killed writers left.")
    ] = False,
) -> None:
    """Read all that a cache holds against its checksums; status 1 if something is broken and was not removed."""
    from usam.data.cache import held
    from usam.data.cache import verify as read_all

    found = read_all(folder, remove=remove)
    for why in found:
        typer.echo(why, err=True)
    if found and not remove:
        raise typer.Exit(1)
    whole = "" if found and not remove else f"{sum(one.clips for one in held(folder)):,} clips are whole"
    print(f"{folder}: {whole}" + (f"; {len(found)} broken shards were removed" if found else ""))
