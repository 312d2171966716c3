"""Which versions usam was tested with (tested.json), and how those that are installed compare."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

# Whose new versions change what others build on: an error beside one that was not tested names its version.
FRAGILE = ("torch", "torchvision", "transformers", "peft")


class UnsupportedVersion(ImportError):
    """An installed package has a version that usam cannot work with."""


@dataclass(frozen=True)
class Standing:
    """A package's installed version beside the lowest and the highest that were tested, compared by minor."""

    name: str
    version: str | None  # None: not installed
    low: tuple[int, ...] = ()  # empty: never tested
    high: tuple[int, ...] = ()

    @property
    def older(self) -> bool:
        return bool(self.version and self.low) and release(self.version or "") < self.low

    @property
    def newer(self) -> bool:
        return bool(self.version and self.high) and release(self.version or "") > self.high

    @property
    def range(self) -> str:
        """As `5.15 to 5.24`."""
        return " to ".join(dict.fromkeys(_dotted(bound) for bound in (self.low, self.high) if bound)) or "none"

    @property
    def command(self) -> str:
        """What to type for a version that was tested."""
        if not self.high:
            return f"pip install '{self.name}'"
        floor = f">={_dotted(self.low)}," if not self.newer else ""
        return f"pip install '{self.name}{floor}<{_above(self.high)}'"

    @property
    def complaint(self) -> str | None:
        """What is outside the tested range, and what to type; None inside it."""
        if self.version is None:
            return f"{self.name} is not installed: {self.command}"
        if self.older:
            return f"{self.name} {self.version} is older than tested ({self.range}): {self.command}"
        if self.newer:
            return f"{self.name} {self.version} is newer than tested ({self.range}): {self.command}"
        return None


def release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version; empty when it does not start with a number."""
    found = re.match(r"\d+(?:\.\d+)?", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _dotted(parts: Iterable[int]) -> str:
    return ".".join(map(str, parts))


def _above(high: tuple[int, ...]) -> str:
    return _dotted((*high[:-1], high[-1] + 1))


def installed(name: str) -> str | None:
    """The version that a distribution's metadata gives; None when there is none."""
    try:
        return metadata.version(name) or None
    except Exception:  # no such distribution, or one whose METADATA is gone or broken
        return None


@cache
def environments() -> dict[str, Any]:
    """The environments that were tested, by name: a date, a Python and the versions of packages."""
    return dict(json.loads((Path(__file__).parent / "tested.json").read_text(encoding="utf-8")))


def standing(name: str, version: str | None = None) -> Standing:
    """How a package (or `python`, with its version given) compares with the tested ones."""
    every = [{"python": env["python"], **env["packages"]} for env in environments().values()]
    known = [release(env[name]) for env in every if name in env]
    return Standing(name, version or installed(name), min(known, default=()), max(known, default=()))


def mismatch(torch: str | None, torchvision: str | None) -> str | None:
    """Why torchvision does not fit torch, and what to type; None when it fits or nothing can be said."""
    ours, theirs = release(torch or ""), release(torchvision or "")
    if len(ours) != 2 or len(theirs) != 2 or (ours[0], theirs[0]) != (2, 0):
        return None
    wanted = ours[1] + 15  # torch 2.14 and torchvision 0.29 are of one release
    if theirs[1] == wanted or 29 <= theirs[1] < wanted:  # from 0.29 on, torchvision takes every later torch
        return None
    fitting = f"==0.{wanted}.*" if wanted <= 29 else f">=0.29,<0.{wanted + 1}"
    return f"torchvision {torchvision} does not match torch {torch}: pip install 'torchvision{fitting}'"


def complaints() -> list[str]:
    """One sentence for each fragile package that is missing, mismatched or outside its tested range."""
    return [said for name in FRAGILE if (said := complaint(name))]


def complaint(name: str) -> str | None:
    """What is wrong with a package's version, and what to type; for torchvision, torch's counts before the range."""
    unfit = mismatch(installed("torch"), installed("torchvision")) if name == "torchvision" else None
    return unfit or standing(name).complaint


@contextmanager
def explained() -> Iterator[None]:
    """Let an error that an untested version may have caused say so.

    Raises:
        UnsupportedVersion: what failed, which version is outside the tested range, and what to type.
    """
    try:
        yield
    except Exception as error:
        if not (said := suspects(error)):
            raise
        ask = "usam doctor compares all that is installed with what was tested"
        raise UnsupportedVersion("\n".join([f"{type(error).__name__}: {error}", *said, ask])) from error


def suspects(error: BaseException) -> list[str]:
    """The complaints that may be behind an error: names and arguments change, and torchvision misses operators."""
    if isinstance(error, UnsupportedVersion):  # has said it
        return []
    changed = isinstance(error, (ImportError, AttributeError, TypeError)) or "torchvision::" in str(error)
    return complaints() if changed else []


def refuse_older(name: str) -> None:
    """Stop where the installed version is lower than the lowest that usam asks for.

    Raises:
        UnsupportedVersion: the version, the tested range, and what to type.
    """
    lowest, version = _lowest(name), installed(name)
    if version and release(version) < lowest:
        found = Standing(name, version, lowest, max(standing(name).high, lowest))
        raise UnsupportedVersion(f"usam needs {name} {_dotted(lowest)} or newer. {found.complaint}")


def _lowest(name: str) -> tuple[int, ...]:
    try:
        needs = metadata.requires("usam") or []
    except metadata.PackageNotFoundError:  # run from a folder: what was tested is all that is known
        return standing(name).low
    for need in needs:
        if found := re.match(rf"{re.escape(name)}\b[^;]*>=\s*([0-9.]+)", need):
            return release(found[1])
    return ()
