"""A registry turns the name of a component into its class, and imports nothing until that name is used.

Three sources feed one table: the modules of the family's package (a file's name is its component's
name), the entry points of installed distributions (the group is the package's name, for example
`usam.encoders`), and the classes registered in this process with the decorator.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import tokenize
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from usam.registry.installed import (
    FAMILIES,
    GROUPS,
    NAME,
    Fault,
    did_you_mean,
    faults,
    load,
    scan,
    skip_malformed_files,
    summary,
)
from usam.versions.tested import suspects

__all__ = [
    "FAMILIES",
    "GROUPS",
    "NAME",
    "ComponentError",
    "Entry",
    "Fault",
    "Registry",
    "did_you_mean",
    "discover",
    "faults",
    "first_sentence",
    "skew",
    "skip_malformed_files",
    "why_not",
]

T = TypeVar("T")
C = TypeVar("C", bound=type)
ASK_DOCTOR = "\nusam doctor tries every plugin, and says what to type"


class ComponentError(Exception):
    """A component is unknown, ambiguous, fails to load, or breaks its contract."""


@dataclass(frozen=True)
class Entry:
    """One component that can be asked for by name: who provides it, and how to load it."""

    name: str
    provider: str
    version: str
    load: Callable[[], Any]
    target: str = ""  # module:class, where that is known without importing
    describe: Callable[[], str] = str  # what it is, read without importing; empty where nothing says it

    def __str__(self) -> str:
        return f"{self.provider}:{self.name}"


def discover(group: str) -> Iterator[Entry]:
    """Every component of a family: what is installed, found without importing any, and what this process registered."""
    yield from _installed(group)
    registry = getattr(sys.modules.get(group), "registry", None)
    if registry is not None:
        yield from registry.registered()


def _installed(group: str) -> Iterator[Entry]:
    from usam import __version__

    spec = importlib.util.find_spec(group)
    if spec is None or spec.submodule_search_locations is None:
        raise ComponentError(f"'{group}' is no family of components; families: {', '.join(GROUPS)}")
    for module in pkgutil.iter_modules(spec.submodule_search_locations):
        if not module.name.startswith("_"):
            get = partial(importlib.import_module, f"{group}.{module.name}")
            describe = partial(_docstring, f"{getattr(module.module_finder, 'path', '')}/{module.name}")
            yield Entry(module.name, "usam", __version__, get, describe=describe)
    for offer in scan()[0]:
        if (point := offer.point).group == group:
            describe = partial(summary, offer.package)
            yield Entry(point.name, offer.package, offer.version, partial(load, point), point.value, describe)


def first_sentence(text: str) -> str:
    """How a docstring begins, on one line, without what stands in parentheses."""
    paragraph = re.sub(r"\s*\([^()]*\)", "", " ".join(text.strip().partition("\n\n")[0].split()))
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0]


def _docstring(path: str) -> str:
    """The docstring of the module at a path without its `.py`: read, not imported, and no further than its end."""
    file = next((f for f in (Path(f"{path}.py"), Path(path, "__init__.py")) if f.is_file()), None)
    if file is None:
        return ""
    blank = (tokenize.ENCODING, tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    with file.open("rb") as lines:
        token = next(token for token in tokenize.tokenize(lines.readline) if token.type not in blank)
    return str(ast.literal_eval(token.string)) if token.type == tokenize.STRING else ""


def why_not(group: str, name: str) -> str | None:
    """Why a component does not load; None when it does."""
    try:
        importlib.import_module(group).registry.get(name)
    except ComponentError as error:
        return str(error)
    except Exception as error:  # the family itself cannot be imported
        return f"{group}: {type(error).__name__}: {error}"
    return None


class Registry(Generic[T]):
    """The components of one family, by name.

    Args:
        base: the contract, which every component subclasses.
        group: the family's package, which is also its entry-point group.
    """

    def __init__(self, base: type[T], group: str) -> None:
        self.base = base
        self.group = group
        self._registered: dict[tuple[str, str], type[T]] = {}
        self._loaded: dict[str, type[T]] = {}

    @cached_property
    def _discovered(self) -> tuple[Entry, ...]:
        return tuple(_installed(self.group))

    def refresh(self) -> None:
        """Look for installed components again, for example after `pip install` in a notebook."""
        importlib.invalidate_caches()
        scan.cache_clear()
        self.__dict__.pop("_discovered", None)
        self._loaded.clear()

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator that offers a component in this process; a re-run cell replaces its own class.

        Raises:
            ComponentError: no spec can hold the name, another module of the same package has taken it, or the class
                is no component of this family.
        """

        def add(cls: C) -> C:
            entry = _in_process(name, cls.__module__.split(".")[0], cls)
            self._require_name(entry, cls)
            self._checked(entry, cls)
            self._registered[entry.provider, name] = cls
            self._loaded.clear()
            return cls

        return add

    def _require_name(self, entry: Entry, cls: type[Any]) -> None:
        name = entry.name
        if not NAME.fullmatch(name):
            plain = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
            hint = f", such as '{plain}'" if NAME.fullmatch(plain) else ""
            raise ComponentError(
                f"{self.group}: no spec can hold the name '{name}' of {entry.target}: "
                f"write lower case letters, digits and '_'{hint}"
            )
        before = self._registered.get((entry.provider, name))
        if before is not None and before.__module__ != cls.__module__:
            raise ComponentError(
                f"{self.group}: '{entry}' is registered twice, by {before.__module__}.{before.__qualname__} and by "
                f"{cls.__module__}.{cls.__qualname__}: rename one"
            )
        if entry.provider != "usam" and any(e.provider == "usam" and e.name == name for e in self._discovered):
            warnings.warn(
                f"{self.group}: usam has a '{name}' of its own, which the bare name means: write '{entry}' in specs",
                stacklevel=3,
            )

    def classes(self) -> list[tuple[tuple[str, str], type[T]]]:
        """((provider, name), class) of what this process registered with the decorator."""
        return list(self._registered.items())

    def registered(self) -> Iterator[Entry]:
        """What this process registered with the decorator."""
        for (provider, name), cls in self.classes():
            yield _in_process(name, provider, cls)

    def entries(self) -> Iterator[Entry]:
        """All components, loaded or not; importing none."""
        yield from self._discovered
        yield from self.registered()

    def names(self) -> list[str]:
        """The names in use, sorted; importing nothing."""
        return sorted({entry.name for entry in self.entries()})

    def find(self, name: str) -> Entry:
        """The one entry called `name`, or `provider:name`; a bare name is usam's own where it has one.

        Raises:
            ComponentError: nobody provides that name, or several plugins do.
        """
        provider, _, bare = name.rpartition(":")
        found = [e for e in self.entries() if e.name == bare and provider in ("", e.provider)]
        own = [entry for entry in found if entry.provider == "usam"]
        if own and not provider:
            return own[0]
        targets = {entry.target or str(entry) for entry in found}
        # One class may be declared both by an entry point (by its module alone, perhaps) and by the decorator.
        if len([t for t in targets if not any(t.startswith(f"{other}:") for other in targets)]) == 1:
            return found[0]
        if found:
            choices = " or ".join(f"'{entry}'" for entry in found)
            raise ComponentError(f"{self.group}: '{name}' is provided more than once: write {choices}")
        known = [str(e) for e in self.entries()] if provider else self.names()
        hint = did_you_mean(name, known)
        if provider and all(entry.provider != provider for entry in self.entries()):
            install = f"no package '{provider}' that offers any is installed: pip install {provider}"
            hint = f"{hint} Else {install}" if hint.startswith("did") else install
        hints = [f"\n{fault} ({fault.cure})" for fault in faults() if fault.name in ("", bare)]
        raise ComponentError(f"{self.group}: no component '{name}'; {hint}{''.join(hints)}")

    def get(self, name: str) -> type[T]:
        """The class called `name`, imported now if it was not yet.

        Raises:
            ComponentError: unknown, ambiguous, failing to import, or not a subclass of the contract.
        """
        if name not in self._loaded:
            entry = self.find(name)
            try:
                loaded = entry.load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin may well call sys.exit
                raise ComponentError(
                    f"{self.group}: '{entry.name}' of {_package(entry)} failed to load: "
                    f"{type(error).__name__}: {error}{_versions(entry, error)}"
                ) from error
            self._loaded[name] = self._checked(entry, loaded)
        return self._loaded[name]

    def _checked(self, entry: Entry, loaded: Any) -> type[T]:
        if inspect.ismodule(loaded):
            loaded = self._only_component(loaded)
        if inspect.isclass(loaded) and issubclass(loaded, self.base) and loaded is not self.base:
            return loaded
        raise ComponentError(
            f"{self.group}: '{entry.name}' of {_package(entry)} is {_describe(loaded)}, "
            f"not a subclass of {self.base.__module__}.{self.base.__qualname__}"
        )

    def _only_component(self, module: Any) -> Any:
        own = [
            value
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, self.base)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        ]
        if len(own) != 1:
            raise ComponentError(
                f"{module.__name__} must hold exactly one public {self.base.__name__}; it holds "
                f"{', '.join(cls.__name__ for cls in own) or 'none'}"
            )
        return own[0]


def _in_process(name: str, provider: str, cls: type[Any]) -> Entry:
    target = f"{cls.__module__}:{cls.__qualname__}"
    return Entry(name, provider, "", partial(_itself, cls), target, partial(_itself, cls.__doc__ or ""))


def _itself(thing: Any) -> Any:
    return thing


def _package(entry: Entry) -> str:
    return f"{entry.provider} {entry.version}".strip()


def skew(entry: Entry) -> str:
    """The versions of a plugin and of usam, as ` (toy-package 2.3, usam 0.1.0; it asks for usam>=0.1)`."""
    from usam import __version__

    if entry.provider == "usam" or not entry.version:  # usam's own, or of this process
        return ""
    try:
        needs = [need for need in metadata.requires(entry.provider) or [] if re.match(r"usam\s*(?![\w.-])", need)]
    except Exception:  # it has no metadata of that name
        needs = []
    asks = f"; it asks for {needs[0]}" if needs else ""
    return f" ({_package(entry)}, usam {__version__}{asks})"


def _versions(entry: Entry, error: BaseException) -> str:
    asked = "" if entry.provider == "usam" else ASK_DOCTOR
    return "".join([skew(entry), *(f"\n{line}" for line in suspects(error)), asked])


def _describe(thing: Any) -> str:
    return f"the class {thing.__qualname__}" if inspect.isclass(thing) else f"a {type(thing).__name__}"
