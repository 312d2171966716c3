"""What installed packages offer to usam, and what they declare wrongly: read from their metadata, importing none."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

FAMILIES = ("usam.encoders", "usam.fusions", "usam.projectors", "usam.losses", "usam.llm")  # what specs are made of
GROUPS = (*FAMILIES, "usam.readers", "usam.augmentations", "usam.metrics", "usam.suites")  # all that packages may offer
NAME = re.compile(r"[a-z][a-z0-9_]*")
TARGET = re.compile(r"[\w.]+(\s*:\s*[\w.]+)?(\s*\[.*\])?")


@dataclass(frozen=True)
class Fault:
    """An entry point, or a whole file of them, that can serve no spec: whose it is, what is wrong, how to mend it."""

    package: str
    version: str
    what: str
    cure: str
    name: str = ""  # the component that cannot be had because of it; empty: all that the package offers

    def __str__(self) -> str:
        return f"{self.package} {self.version}".strip() + f": {self.what}"


def faults() -> list[Fault]:
    """What installed packages declare wrongly, found without importing any of them."""
    offers, unread = scan()
    return [*unread, *(fault for offer in offers for fault in _misdeclared(offer))]


@dataclass(frozen=True)
class Offer:
    package: str
    version: str
    point: metadata.EntryPoint


@cache
def scan() -> tuple[list[Offer], list[Fault]]:
    """Every entry point in a group of usam's, or nearly, and every file of entry points that cannot be read.

    One scan serves all families. importlib.metadata.entry_points() would raise for all packages where one
    file is malformed, so each distribution is read for itself.
    """
    offers, unread = {}, {}
    for distribution in metadata.distributions():
        text = ""
        try:
            text = distribution.read_text("entry_points.txt") or ""
            malformed = _malformed(text)
        except Exception as error:  # most often not UTF-8
            malformed = f"entry_points.txt cannot be read: {type(error).__name__}: {error}"
        if malformed and not _shadowed(distribution, text):
            package, version = _identity(distribution)
            cure = f"pip install --force-reinstall {package}, or pip uninstall {package}"
            unread[package] = Fault(package, version, malformed, cure)
        elif not malformed and "usam" in text.lower() and not _shadowed(distribution, text):
            package, version = _identity(distribution)
            for point in distribution.entry_points:
                if point.group.lower().startswith("usam"):
                    # An editable install can be found twice under one path: the same entry counts once.
                    offers[package, point.group, point.name, point.value] = Offer(package, version, point)
    return [offers[key] for key in sorted(offers)], [unread[key] for key in sorted(unread)]


def _malformed(text: str) -> str | None:
    group = ""
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            group = line.strip("[]")
        elif not group or line.startswith("[") or "=" not in line:
            return f"entry_points.txt, line {number}: {line!r} is neither '[group]' nor 'name = module:Class' below one"
    return None


def _identity(distribution: metadata.Distribution) -> tuple[str, str]:
    """A package's name and version; by its folder's name where METADATA is gone or broken."""
    folder = Path(str(getattr(distribution, "_path", "a package without a name")))  # name-version.dist-info
    name, _, version = folder.stem.partition("-")
    try:
        found = distribution.metadata
        return found["Name"] or name.replace("_", "-"), found["Version"] or version
    except Exception:
        return name.replace("_", "-"), version


def _shadowed(distribution: metadata.Distribution, text: str) -> bool:
    """Whether another distribution of its name stands before it on the path: that one is imported, so it counts."""
    try:
        return metadata.distribution(distribution.metadata["Name"]).read_text("entry_points.txt") != text
    except Exception:
        return False


def _misdeclared(offer: Offer) -> Iterator[Fault]:
    point = offer.point
    if point.group not in GROUPS:
        close = [*difflib.get_close_matches(point.group.lower(), GROUPS, n=1), "usam.<family>"][0]
        cure = f'write [project.entry-points."{close}"] in its pyproject.toml and reinstall it'
        hint = did_you_mean(point.group.lower(), GROUPS)
        what = f"'{point.name}' is in the group '{point.group}', which is no family of components; {hint}"
        yield Fault(offer.package, offer.version, what, cure, point.name)
    elif not NAME.fullmatch(point.name):
        cure = "rename it in its pyproject.toml and reinstall it"
        what = f"{point.group}: no spec can hold the name '{point.name}': lower case letters, digits and '_'"
        yield Fault(offer.package, offer.version, what, cure, point.name)
    elif not TARGET.fullmatch(point.value):
        cure = "mend it in its pyproject.toml and reinstall it"
        what = f"{point.group}: '{point.name} = {point.value}' is not 'name = module:Class'"
        yield Fault(offer.package, offer.version, what, cure, point.name)


def load(point: metadata.EntryPoint) -> Any:
    if not TARGET.fullmatch(point.value):
        raise ImportError(f"its entry point '{point.value}' is not 'module:Class'")
    return point.load()


def skip_malformed_files() -> None:
    """Let importlib.metadata, too, take a malformed entry_points.txt for an empty one, in this process.

    For a program, not for a library: torch, Triton and pydantic read the entry points of all packages when they
    are imported, and one malformed file, whoever's it is, makes `import torch` fail.
    """
    metadata.Distribution.entry_points = property(_entry_points_or_none)  # type: ignore[assignment, method-assign]


_strict_entry_points: Any = metadata.Distribution.entry_points


def _entry_points_or_none(distribution: metadata.Distribution) -> metadata.EntryPoints:
    try:
        return cast("metadata.EntryPoints", _strict_entry_points.fget(distribution))
    except Exception:
        return metadata.EntryPoints(())


def summary(package: str) -> str:
    """What a package's metadata says it is."""
    try:
        return metadata.metadata(package)["Summary"] or ""
    except Exception:  # METADATA is gone or broken
        return ""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The phrase that offers the closest of `names`, or lists them when none is close."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"
