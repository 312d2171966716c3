"""`usam new`: a package with one component of your own, whose test passes from the start."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from string import Template
from typing import Annotated, NamedTuple

import typer

TEMPLATES = Path(__file__).parent / "templates"
NAMES = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


class Family(NamedTuple):
    """One kind of component, as its author and its user speak of it."""

    group: str
    kind: str
    suffix: str  # of the class's name
    use: str


FAMILIES = {
    "encoder": Family("encoders", "an encoder", "Encoder", "encoders:\n  $name: {width: 64}"),
    "fusion": Family("fusions", "a fusion", "Fusion", "fusion: {type: $name, reduce: max}"),
    "projector": Family("projectors", "a projector", "Projector", "projector: {type: $name, stack: 4}"),
    "loss": Family("losses", "a loss", "Loss", "losses:\n  cross_entropy: {}\n  $name: {weight: 0.1}"),
    "llm": Family("llm", "a language model", "LLM", "llm: {type: $name, dim: 128}"),
    "metric": Family("metrics", "a metric", "Metric", "usam eval MODEL test.jsonl --metrics $name"),
    "reader": Family("readers", "a reader", "Reader", "usam data check rows.jsonl"),
    "augmentation": Family(
        "augmentations", "an augmentation", "Augmentation", "data:\n  augment: [{type: $name, db: 6}]"
    ),
    "suite": Family("suites", "a suite", "Suite", "usam eval MODEL $name FOLDER"),
}


def new(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help=f"What to write: {', '.join(FAMILIES)}.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called in specs, such as my_encoder.")],
    into: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the package's folder is made.")] = Path("."),
) -> None:
    """Write a package with one component, its test and its README, to be filled in and published.

    The component works as it stands, and its test runs usam's conformance kit.
    """
    from usam.registry import ComponentError, did_you_mean

    if family not in FAMILIES:
        raise ComponentError(f"there is no family '{family}'; {did_you_mean(family, FAMILIES)}")
    _check_name(FAMILIES[family], name)
    files = _written(family, name)
    folder = into / f"usam-{name.replace('_', '-')}"
    if folder.exists() or folder.is_symlink():
        raise ComponentError(f"{folder} is there already, and nothing was written: take another NAME, or --into FOLDER")
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    print(f"wrote {folder}: {FAMILIES[family].kind} '{name}', with its test")
    place = folder if folder.is_absolute() else f"./{folder}"  # pip takes a bare name for one on its index
    print(f"  pip install --editable '{place}[dev]'\n  pytest {place}")


def _check_name(family: Family, name: str) -> None:
    """Refuse what no spec or no package index can hold, and what is taken.

    Raises:
        ComponentError: says what to write instead, or who has it.
    """
    from usam.registry import ComponentError, discover

    plain = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
    plain = re.sub(r"^usam_+", "", plain)
    if name != plain or not NAMES.fullmatch(name):
        hint = f", such as '{plain}'" if NAMES.fullmatch(plain) else ", such as 'my_encoder'"
        also = ": the package's name begins with usam- by itself" if name.startswith(("usam_", "usam-")) else ""
        raise ComponentError(
            f"'{name}' cannot be a component's name{also}: write lower case letters first, then letters, digits and "
            f"single '_'{hint}"
        )
    for entry in discover(f"usam.{family.group}"):
        if entry.name == name and entry.provider == "usam":
            raise ComponentError(f"usam has {family.kind} '{name}' of its own, which that name means: take another")
        if entry.name == name:
            owner = f"{entry.provider} {entry.version}".strip()
            raise ComponentError(f"{owner}, which is installed, offers {family.kind} '{name}': take another name")
    if importlib.util.find_spec(f"usam_{name}") is not None:
        raise ComponentError(f"a module 'usam_{name}' is installed, which another package brought: take another name")


def _written(family: str, name: str) -> dict[str, str]:
    """The package's files by their places, as text."""
    from usam import __version__

    group, kind, suffix, use = FAMILIES[family]
    capital = "".join(part.capitalize() for part in name.split("_"))
    values = {
        "name": name,
        "family": family,
        "kind": kind,
        "group": f"usam.{group}",
        "package": f"usam-{name.replace('_', '-')}",
        "module": f"usam_{name}",
        "Class": capital if capital.endswith(suffix) and capital != suffix else f"{capital}{suffix}",
        "summary": f"{kind[0].upper()}{kind[1:]} for usam: {name}.",
        "version": __version__,
        "use": Template(use).substitute(name=name),
    }
    test = f"{family}.test.txt" if (TEMPLATES / f"{family}.test.txt").is_file() else "promises.test.txt"
    sources = {
        "pyproject.toml": "pyproject.toml.txt",
        "README.md": "README.md.txt",
        f"{values['module']}/__init__.py": f"{family}.txt",
        f"tests/test_{name}.py": test,
    }
    return {
        place: Template((TEMPLATES / source).read_text(encoding="utf-8")).substitute(values)
        for place, source in sources.items()
    }
