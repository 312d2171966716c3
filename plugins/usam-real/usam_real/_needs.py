"""Packages that only some commands need: what is missing is said before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec


def require(packages: Mapping[str, str], what: str) -> None:
    """Look for packages without importing them.

    Args:
        packages: by the module's name, what pip is to be told.
        what: what needs them.

    Raises:
        ImportError: some are not installed; one line names all of them, and the command for it.
    """
    missing = {module: asked for module, asked in packages.items() if find_spec(module) is None}
    if missing:
        commands = [f"pip install {asked}" for asked in dict.fromkeys(missing.values())]
        raise ImportError(f"{what}: not installed: {', '.join(missing)}; {' && '.join(commands)}")
