"""Writes the generated parts of README.md: the table of components and the measured figures."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

from usam.registry import FAMILIES

ROOT = Path(__file__).parents[1]


def components() -> str:
    """One row a built-in component, with the first sentence of its module."""
    rows = ["| family | name | what it is |", "|---|---|---|"]
    for group in FAMILIES:
        registry = importlib.import_module(group).registry
        for entry in registry.entries():
            if entry.provider == "usam":
                module = importlib.import_module(registry.get(entry.name).__module__)
                rows.append(f"| {group.removeprefix('usam.')} | `{entry.name}` | {module.__doc__.splitlines()[0]} |")
    return "\n".join(rows)


def measured() -> str:
    """One line a result of `benchmarks/`."""
    results = [json.loads(file.read_text()) for file in sorted((ROOT / "benchmarks" / "results").glob("*.json"))]
    rows = ["| what | measured | bound | script |", "|---|---|---|---|"]
    for result in results:
        for row in result["rows"]:
            rows.append(f"| {row['what']} | {row['measured']} | {row['bound']} | `benchmarks/{result['script']}` |")
    machines = sorted({result["machine"] for result in results})
    return "\n".join([*rows, "", f"Measured on: {'; '.join(machines)}. `make bench` measures again."])


def written(text: str) -> str:
    """README.md with its generated parts anew."""
    for name, content in (("components", components()), ("measured", measured())):
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
