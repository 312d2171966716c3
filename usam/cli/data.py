"""`usam data`: manifests of one format written in another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from usam.cli._options import PluginOption

data = typer.Typer(help="Work on manifests.", no_args_is_help=True)


@data.callback()
def _group() -> None:
    """Work on manifests."""


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
