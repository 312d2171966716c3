"""`usam schema`: the JSON schema of specs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from usam.cli._options import PluginOption


def schema(
    out: Annotated[Path | None, typer.Option(help="File to write; default: standard output.")] = None,
    plugin: PluginOption = None,
) -> None:
    """Write the JSON schema of specs, installed plugins included, for editors to complete from."""
    from usam.spec.schema import json_schema

    text = json.dumps(json_schema(), indent=2)
    if out is None:
        print(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {out}")
