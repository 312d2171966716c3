"""The bounds of pyproject.toml as requirements: `lowest` stands at the lower ones, `newest` has no upper ones.

Two environments are installed from them, one at each end of what usam says it works with.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

USERS = ("demo", "datasets", "metrics", "triton")  # extras whose lower bounds count; developers' tools need not be old


def requirements(*extras: str) -> Iterator[Requirement]:
    """What usam needs, and its extras, without those that name usam itself."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in extras for line in optional[extra])]:
        if (requirement := Requirement(line)).name != "usam":
            yield requirement


def lowest() -> Iterator[str]:
    """Every package that users need at its lower bound; the tools of developers as they come."""
    for requirement in requirements(*USERS):
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        marker = f"; {requirement.marker}" if requirement.marker else ""
        yield f"{requirement.name}=={bound}{marker}"
    yield from map(str, requirements("dev"))


def newest() -> Iterator[str]:
    """Every package without its upper bound."""
    for requirement in requirements(*USERS, "dev"):
        requirement.specifier = type(requirement.specifier)(
            ",".join(str(part) for part in requirement.specifier if not part.operator.startswith("<"))
        )
        yield str(requirement)


if __name__ == "__main__":
    print("\n".join({"lowest": lowest, "newest": newest}[sys.argv[1]]()))
