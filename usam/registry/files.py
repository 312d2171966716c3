"""Components in a file of one's own: `--plugin my_parts.py` imports it, and what is saved names it."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from usam.registry import GROUPS, ComponentError


def load_file(file: str | Path) -> None:
    """Import a file whose classes register themselves, as a module of its name; a second time it does nothing.

    Raises:
        ComponentError: there is no such file, its name cannot be a module's, it fails, or it registers nothing.
    """
    path = Path(file).expanduser()
    if path.is_dir() or path.suffix != ".py":
        raise ComponentError(f"plugin {file}: give one .py file")
    if not path.is_file():
        raise ComponentError(f"plugin {file}: no such file (looked in {path.parent.resolve()})")
    path = path.resolve()
    name = path.stem
    if not name.isidentifier():
        raise ComponentError(f"plugin {file}: it is imported as a module: name it with letters, digits and '_'")
    taken = _origin(name)
    if taken == str(path) and name in sys.modules:
        return
    if taken not in (None, str(path)):
        raise ComponentError(f"plugin {file}: there is another module '{name}' ({taken}): rename the file")
    _run(name, path, str(file))


def _origin(name: str) -> str | None:
    """Where a module of this name is, or would be, imported from; None when there is none."""
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    elif spec := importlib.util.find_spec(name):
        file = spec.origin if spec.has_location else None
    else:
        return None
    return str(Path(file).resolve()) if file else "built in"


def _registered() -> dict[tuple[str, str, str], Any]:
    registries = {group: getattr(sys.modules.get(group), "registry", None) for group in GROUPS}
    return {(group, *key): cls for group, registry in registries.items() if registry for key, cls in registry.classes()}


def _run(name: str, path: Path, given: str) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    before, folders = _registered(), list(sys.path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:  # its neighbours, and the workers of a DataLoader, are imported by name
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
        if _registered() == before:
            families = ", ".join(GROUPS)
            raise _Silent(f"it registers no component: write @register('name') above its class, of one of {families}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # it may well call sys.exit
        del sys.modules[name]
        sys.path[:] = folders
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        what = "" if isinstance(error, _Silent) else f"{type(error).__name__}: "
        raise ComponentError(f"plugin {given}{where}: {what}{error}") from error


class _Silent(Exception):
    """A file that offers nothing."""


def written_in(cls: type[Any]) -> dict[str, str]:
    """What to name of a class that no installed package provides: module, class, and the file with its hash.

    A class of a notebook has no file.
    """
    found = {"module": cls.__module__, "class": cls.__qualname__}
    module: ModuleType | None = sys.modules.get(cls.__module__)
    file = Path(getattr(module, "__file__", None) or "")
    if file.is_file():
        found |= {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    return found


def how_to_get(name: str, written: dict[str, str]) -> str:
    """What to do about a component that was saved from a file or a notebook, and is not registered."""
    what = f"'{name}' is the class {written['class']} of"
    file = written.get("file")
    if file is None:
        return f"{what} a notebook: put it in a file and pass --plugin FILE.py, or run its cell before loading"
    otherwise = "run it" if written["module"] == "__main__" else f"import {written['module']}"
    return f"{what} {file}, which is not saved with the model: pass --plugin {file}, or {otherwise} before loading"
