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
    target: Annotated[
        str | None, typer.Option("--for", metavar="vllm", help="For vLLM: the placeholder gets a row in the table.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="With --for: the longest clip; default: 30.", show_default=False)
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Write one merged, self-contained folder: LoRA folded in, no losses, no base checkpoint needed."""
    from usam.model.checkpoint import export as write

    if max_seconds is not None and target is None:
        raise ValueError("--max-seconds does nothing without --for")
    write(model, folder, task, target, max_seconds or 30.0)
    print(f"saved in {folder}")
