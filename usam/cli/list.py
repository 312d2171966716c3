"""`usam list`: every component that is installed, and what it is."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from usam.cli._options import PluginOption

WIDTH = 120  # columns of a line


def list_components(
    check: Annotated[bool, typer.Option("--check", help="Load each component and say which fail.")] = False,
    plugin: PluginOption = None,
) -> None:
    """List every component that is installed, with what it is; nothing is imported without --check."""
    from usam.registry import GROUPS, discover, faults, first_sentence, why_not

    rows = []
    for group in GROUPS:
        entries = sorted(discover(group), key=lambda e: (e.name, e.provider))
        names = [entry.name for entry in entries]
        for entry in entries:
            name = str(entry) if names.count(entry.name) > 1 else entry.name
            rows.append((group, name, f"{entry.provider} {entry.version}".strip(), entry))
    wide, wider = max(len(name) for _, name, _, _ in rows), max(len(package) for _, _, package, _ in rows)
    room = max(30, WIDTH - wide - wider - 6)
    failed, before = 0, ""
    for group, name, package, entry in rows:
        if group != before:
            print(group)
        before = group
        if check:
            fault = why_not(group, str(entry))
            failed += fault is not None
            note = "ok" if fault is None else f"FAILS: {fault}"
        else:
            note = textwrap.shorten(first_sentence(entry.describe()), room, placeholder=" ...")
        print(f"  {name:{wide}}  {package:{wider}}  {note}".rstrip())
    if misdeclared := faults():
        print("declared wrongly")
        for each in misdeclared:
            print(f"  {each} ({each.cure})")
    if check and (failed or misdeclared):
        raise typer.Exit(1)
