"""Writes docs/kit.md, the promises of every family in the kit's own words: `python docs/write_kit.py`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from usam.registry import GROUPS

PAGE = Path(__file__).with_name("kit.md")
HEAD = """# What components promise
`usam.testing` holds a component to all that its family promises; [plugins.md](plugins.md) says how to run it. The page
is written by `python docs/write_kit.py` from the checks' own words: what each tries, and what goes wrong where it does
not hold. A check takes the component's name and its options, and

- `expected_failures`: promises that a component cannot keep, each with the reason; these must then really fail;
- where it is named below, what the promises are tried with.

`pytest --usam` runs all of them on what is installed, with options from `--usam-options FILE.yaml`, and prints a report
with versions, packages, options and what was broken; `--usam-report FILE.md` writes it to a file for an issue. Readers
have no promises of their own: their rows are checked when they are read (`usam data check`).
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(group) for group in GROUPS if group != "usam.readers")])


def section(group: str) -> str:
    """A family: its check, what that needs, and a row for each promise."""
    family = group.removeprefix("usam.")
    kind = "loss" if family == "losses" else family.removesuffix("s")
    module = importlib.import_module(f"usam.testing.{family}")
    check = getattr(module, f"check_{kind}")
    lines = [
        f"## {'Language models' if family == 'llm' else family.capitalize()}",
        f"`check_{kind}`, `{kind}_promises`",
        "",
    ]
    lines += [f"- `{name}`: {said}" for name, said in arguments(check)]
    lines += ["", "| promise | what it says | where it is broken |", "|---|---|---|"]
    lines += [f"| `{claim.__name__}` | {' '.join(says(claim))} | {why(claim)} |" for claim in module.CLAIMS]
    return "\n".join(lines) + "\n"


def arguments(check: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """What a check takes beside the component, its options and `expected_failures`, with what its docstring says.

    Raises:
        ValueError: the docstring says nothing of it.
    """
    told = dict(
        re.findall(r"^    (\w+(?:, \w+)*): (.*?)(?=\n    \w|\n\n|\Z)", inspect.getdoc(check) or "", re.S | re.M)
    )
    by_name = {name: text for names, text in told.items() for name in names.split(", ")}
    for name, parameter in inspect.signature(check).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and name != "expected_failures":
            if name not in by_name:
                raise ValueError(f"{check.__name__}: its docstring does not say what '{name}' is")
            needed = "" if parameter.default is not parameter.empty else " (it has to be given)"
            yield name, " ".join(by_name[name].split()) + needed


def says(claim: Callable[..., Any]) -> list[str]:
    """The paragraphs of a promise that say what it is, each on one line."""
    return [text for text in _paragraphs(claim) if not text.startswith("Else ")]


def why(claim: Callable[..., Any]) -> str:
    """What goes wrong where it is broken.

    Raises:
        ValueError: its docstring does not say.
    """
    found = [text for text in _paragraphs(claim) if text.startswith("Else ")]
    if len(found) != 1:
        raise ValueError(
            f"{claim.__module__}.{claim.__name__}: a paragraph that begins with 'Else' says why it matters"
        )
    return found[0].removeprefix("Else ")[:1].upper() + found[0].removeprefix("Else ")[1:]


def _paragraphs(claim: Callable[..., Any]) -> list[str]:
    return [" ".join(text.split()).replace("|", "\\|") for text in (inspect.getdoc(claim) or "").split("\n\n")]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
