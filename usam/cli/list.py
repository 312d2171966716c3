"""`usam list`: every component that is installed."""

from __future__ import annotations

from typing import Annotated

import typer


def list_components(
    check: Annotated[bool, typer.Option("--check", help="Load each component and say which fail.")] = False,
) -> None:
    """List every component that is installed; nothing is imported without --check."""
    from usam.registry import FAMILIES, discover, faults, why_not

    failed = 0
    for group in FAMILIES:
        print(group)
        entries = sorted(discover(group), key=lambda e: (e.name, e.provider))
        names = [entry.name for entry in entries]
        for entry in entries:
            name = str(entry) if names.count(entry.name) > 1 else entry.name
            note = ""
            if check:
                fault = why_not(group, str(entry))
                failed += fault is not None
                note = "  ok" if fault is None else f"  FAILS: {fault}"
            print(f"  {name:24} {entry.provider} {entry.version}{note}".rstrip())
    if misdeclared := faults():
        print("declared wrongly")
        for each in misdeclared:
            print(f"  {each} ({each.cure})")
    if check and (failed or misdeclared):
        raise typer.Exit(1)
