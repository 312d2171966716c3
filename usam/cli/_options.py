"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def _load(files: list[Path] | None) -> list[Path] | None:
    from usam.registry.files import load_file

    for file in files or []:
        load_file(file)
    return files


SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this form)
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option, e.g. --set llm.lora.r=16; repeatable."),
]
SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A bundled name, a YAML file or a saved folder.")]
PluginOption = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(
        "--plugin", metavar="FILE.py", callback=_load, help="Import a file that registers components; repeatable."
    ),
]
