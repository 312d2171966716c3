"""Records the versions of a tested environment in usam/versions/tested.json, and writes docs/versions.md from it.

In an environment where the suite has passed: `python tests/versions/versions.py record NAME`, then
`python tests/versions/versions.py table`.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import tomllib
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import usam

ROOT = Path(__file__).parents[2]
TESTED = Path(usam.__file__).parent / "versions" / "tested.json"
TABLE = ROOT / "docs" / "versions.md"


def packages() -> list[str]:
    """The names in the dependencies and in the extras that change what usam computes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["demo"], *extras["triton"]]
    return sorted({re.match(r"[\w.-]+", need)[0] for need in needs}, key=str.lower)


def running() -> dict[str, Any]:
    """The environment that runs this."""
    versions = {}
    for name in packages():
        try:
            versions[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:  # an extra that is not installed here
            continue
    return {"date": date.today().isoformat(), "python": platform.python_version(), "packages": versions}


def record(name: str) -> None:
    """Put the running environment under `name`, in place of what was there."""
    known = json.loads(TESTED.read_text(encoding="utf-8")) if TESTED.is_file() else {}
    TESTED.write_text(json.dumps({**known, name: running()}, indent=2) + "\n", encoding="utf-8")


def table() -> str:
    """docs/versions.md: one column an environment."""
    known = json.loads(TESTED.read_text(encoding="utf-8"))
    names = sorted({name for env in known.values() for name in env["packages"]}, key=str.lower)
    rows = [
        ["", *known],
        ["---"] * (len(known) + 1),
        ["tested on", *(env["date"] for env in known.values())],
        ["python", *(env["python"] for env in known.values())],
        *([name, *(env["packages"].get(name, "not installed") for env in known.values())] for name in names),
    ]
    heading = (
        "# Tested versions\n"
        "Each column is one environment: these versions were tested together, on that day. `usam doctor` compares\n"
        "what is installed with the lowest and the highest of each row. Written by `tests/versions/versions.py` from\n"
        "`usam/versions/tested.json`, which `make test-newest`, `make test-lowest` and `make tested` write.\n"
    )
    return heading + "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", name]:
            record(name)
        case ["table"]:
            TABLE.write_text(table(), encoding="utf-8")
        case _:
            sys.exit(__doc__)
