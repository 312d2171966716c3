"""`usam doctor` compares what is installed with what was tested, tries it, and says what to type where it is wrong.

It runs where torch or transformers cannot be imported: nothing of theirs is imported but to see whether it can be.
"""

from __future__ import annotations

import importlib
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

import typer

from usam import __version__
from usam.registry import ASK_DOCTOR, GROUPS, ComponentError, Entry, Registry, discover, faults, why_not
from usam.versions.tested import complaint, complaints, environments, installed, mismatch, standing

# What is imported to see whether it works, in this order: each builds on those before it.
TRIED = ("torch", "torchvision", "transformers", "peft", "accelerate", "timm", "usam.model.checkpoint")
FIRST = ("torch", "torchvision", "triton", "transformers", "peft", "accelerate", "timm", "pydantic")


def doctor() -> None:
    """Compare what is installed with what was tested, load every plugin, and say what to type where it is wrong."""
    found = examine()
    print(found)
    if found.wrong:
        raise typer.Exit(1)


@dataclass
class Findings:
    """What was seen, what may matter later (notes), and what is wrong, each with what to type."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*(row[:2] for row in self.rows), strict=True)]
        lines = ["  ".join([*map(str.ljust, row, widths), *row[2:]]).rstrip() for row in self.rows]
        lines += [f"note: {line}" for line in self.notes]
        lines += [f"wrong: {line}" for line in self.wrong]
        return "\n".join(lines if self.wrong else [*lines, "nothing is wrong"])


def examine() -> Findings:
    """Look at everything; never raises for what it finds."""
    found = Findings()
    found.rows.append(("usam", __version__, ""))
    _versions(found)
    works = _imports(found)
    _machine(found)
    _extras(found)
    _plugins(found, works)
    return found


def _versions(found: Findings) -> None:
    python = standing("python", platform.python_version())
    found.rows.append(("python", platform.python_version(), f"tested {python.range}"))
    if python.older or python.newer:
        found.notes.append(f"Python {python.version} was not tested: if something breaks, use Python {python.range}")
    tested = {name for env in environments().values() for name in env["packages"]}
    needed = _needed()
    for name in [*FIRST, *sorted(tested.difference(FIRST))]:
        package = standing(name)
        fit = _fit() if name == "torchvision" else ""
        absent = "missing" if name in needed else "not installed"
        found.rows.append((name, package.version or absent, f"tested {package.range}{fit}"))
        said = complaint(name)
        if package.newer and said == package.complaint:
            found.notes.append(str(said).replace(": pip", ": if something breaks, pip"))
        elif said and (package.version or name in needed):
            found.wrong.append(said)


def _fit() -> str:
    torch, torchvision = installed("torch"), installed("torchvision")
    if not torch or not torchvision:
        return ""
    return f"; {'does not match' if mismatch(torch, torchvision) else 'matches'} torch {torch}"


def _imports(found: Findings) -> bool:
    """Whether everything that models are built of can be imported; each new cause is told once."""
    if any(installed(name) is None for name in TRIED[:-1]):
        return False  # told as missing; the others fail for want of it
    causes: set[str] = set()
    for name in TRIED:
        try:
            importlib.import_module(name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a broken library raises OSError, a broken package anything
            cause = _cause(error)
            if cause not in causes:
                said = [complaint(name), *complaints()] if name in FIRST else complaints()
                reinstall = f"pip install --force-reinstall {name.partition('.')[0]}"
                command = next((line.rpartition(": ")[2] for line in said if line), reinstall)
                found.wrong.append(f"{name} cannot be imported: {cause}: {command}")
            causes.add(cause)
            if name == "torch":
                break
    return not causes


def _cause(error: BaseException) -> str:
    """The innermost error, on one line."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _machine(found: Findings) -> None:
    gpu = "none: runs on the CPU"
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            gpu = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        elif torch is None:
            gpu = "unknown: torch cannot be imported"
    except Exception as error:
        found.wrong.append(f"torch finds a GPU and cannot use it: {_cause(error)}: nvidia-smi")
    found.rows.append(("GPU", gpu, ""))
    found.rows.append(("Java", "found" if shutil.which("java") else "not found", "METEOR needs it, nothing else"))


def _needed() -> set[str]:
    """The packages that usam cannot do without."""
    return {name for name, extra in _requirements() if not extra} or {*FIRST} - {"triton"}


def _requirements() -> Iterator[tuple[str, str]]:
    """(package, extra or '') for each requirement that usam's metadata states."""
    try:
        needs = metadata.requires("usam") or []
    except metadata.PackageNotFoundError:
        return
    for need in needs:
        name, extra = re.match(r"[\w.-]+", need), re.search(r"extra\s*==\s*['\"]([\w.-]+)", need)
        if name and name[0] != "usam":
            yield name[0], extra[1] if extra else ""


def _extras(found: Findings) -> None:
    extras: dict[str, list[str]] = {}
    for package, extra in _requirements():
        if extra:
            extras.setdefault(extra, []).append(package)
    if not extras:
        found.notes.append("usam runs from a folder, so its extras are unknown: pip install --editable .")
    for extra, packages in sorted(extras.items()):
        missing = [name for name in packages if installed(name) is None]
        here = ", ".join(name for name in packages if name not in missing)
        lacks = f"; without {', '.join(missing)}: pip install 'usam[{extra}]'" if missing else ""
        state = "incomplete" if missing else "complete"
        found.rows.append((f"extra {extra}", state, f"{here or 'none of it'}{lacks}"))


def _plugins(found: Findings, works: bool) -> None:
    found.wrong += [f"{fault}: {fault.cure}" for fault in faults()]
    for group in GROUPS:
        entries = list(discover(group))
        for entry in entries:
            if entry.provider != "usam":
                _plugin(found, group, entry, works)
        for name in sorted({entry.name for entry in entries}):
            _clash(found, group, name, [entry for entry in entries if entry.name == name])


def _plugin(found: Findings, group: str, entry: Entry, works: bool) -> None:
    row = (group, f"{entry.name}", f"{entry.provider} {entry.version}".strip())
    if not works:
        found.rows.append((*row, "not tried: see what is wrong"))
    elif fault := why_not(group, str(entry)):
        found.rows.append((*row, "fails"))
        said = " ".join(fault.removesuffix(ASK_DOCTOR).split())
        found.wrong.append(f"{said}: pip install --upgrade {entry.provider}, or pip uninstall {entry.provider}")
    else:
        found.rows.append((*row, "loads"))


def _clash(found: Findings, group: str, name: str, entries: list[Entry]) -> None:
    providers = sorted({entry.provider for entry in entries})
    if len(providers) < 2:
        return
    try:
        used = Registry(object, group).find(name)
        found.notes.append(f"{group}: '{name}' of {' and '.join(providers)}: the bare name means '{used}'")
    except ComponentError as error:
        rival = next(provider for provider in providers if provider != "usam")
        found.wrong.append(f"{error} in specs, or pip uninstall {rival}")
