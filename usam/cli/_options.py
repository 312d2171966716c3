"""Arguments that several commands take."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads this form)
    typer.Option("--set", metavar="KEY=VALUE", help="Override one option, e.g. --set llm.lora.r=16; repeatable."),
]
SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A bundled name, a YAML file or a saved folder.")]
