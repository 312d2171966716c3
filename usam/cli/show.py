"""`usam show`: what a spec builds."""

from __future__ import annotations

from typing import Annotated

import typer

from usam.cli._options import SetOption, SpecArgument


def show(
    spec: SpecArgument,
    second: Annotated[str | None, typer.Argument(metavar="[SPEC2]", help="Show what differs in this one.")] = None,
    set_: SetOption = None,
) -> None:
    """Show what a spec file says of itself, the merged spec, every width, rate and count, and tokens per second."""
    from usam.model.summary import difference, heading, table, text_table, tokens_line
    from usam.spec.spec import load_spec

    first = load_spec(spec, *(set_ or []))
    if second is not None:
        print("\n".join(difference(first, load_spec(second, *(set_ or [])))) or "the specs are the same")
        return
    if said := heading(spec):
        print(f"{said}\n")
    print(first.to_yaml())
    print(text_table(table(first)))
    print()
    print(tokens_line(first))
