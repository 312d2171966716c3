"""`usam check`: is a spec sound; with data, one batch as the model sees it."""

from __future__ import annotations

from typing import Annotated

import typer

from usam.cli._options import PluginOption, SetOption, SpecArgument


def check(
    spec: SpecArgument,
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="A manifest to try one batch of.")] = None,
    set_: SetOption = None,
    plugin: PluginOption = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the batch that is shown.")] = 2,
) -> None:
    """Check a spec; with data, print one batch's exact text, audio spans and supervised tokens."""
    from usam.spec.spec import load_spec

    checked = load_spec(spec, *(set_ or []))
    print(f"{spec}: the spec is sound")
    if data is None:
        return
    from usam.data.inspection import describe_batch
    from usam.data.manifest import Manifest
    from usam.processor.processor import UsamProcessor

    manifest = Manifest(data, checked.prompts)
    print(f"{data}: {len(manifest)} rows")
    print(describe_batch(UsamProcessor.from_spec(checked), [manifest[i] for i in range(min(rows, len(manifest)))]))
