"""`usam export`: one merged, self-contained folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from usam.cli._options import PluginOption


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A saved folder or hub id.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the merged model goes.")],
    task: Annotated[
        str | None, typer.Option(help="Fix routers for a task of the model's 'prompts'; no prompt_mask then.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write one merged, self-contained folder: LoRA folded in, no losses, no base checkpoint needed."""
    from usam.model.checkpoint import export as write

    write(model, folder, task)
    print(f"saved in {folder}")
