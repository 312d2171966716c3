"""A registry turns the name of a component into its class, and imports nothing until that name is used.

Three sources feed one table: the modules of the family's package (a file's name is its component's
name), the entry points of installed distributions (the group is the package's name, for example
`usam.encoders`), and the classes registered in this process with the decorator.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

FAMILIES = ("usam.encoders", "usam.fusions", "usam.projectors", "usam.losses", "usam.llm")

T = TypeVar("T")
C = TypeVar("C", bound=type)


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

    def __str__(self) -> str:
        return f"{self.provider}:{self.name}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The phrase that offers the closest of `names`, or lists them when none is close."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known) or 'none'}"


def discover(group: str) -> Iterator[Entry]:
    """Every component of a family that is installed, found without importing any of them."""
    from usam import __version__

    spec = importlib.util.find_spec(group)
    if spec is None or spec.submodule_search_locations is None:
        raise ComponentError(f"'{group}' is no family of components; families: {', '.join(FAMILIES)}")
    for module in pkgutil.iter_modules(spec.submodule_search_locations):
        if not module.name.startswith("_"):
            yield Entry(
                module.name,
                "usam",
                __version__,
                partial(importlib.import_module, f"{group}.{module.name}"),
            )
    for point in _entry_points(group):
        provider = point.dist.name if point.dist else point.value
        yield Entry(point.name, provider, point.dist.version if point.dist else "", point.load, point.value)


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    # importlib.metadata reads every distribution anew at each call: one scan a family is enough.
    # An editable install can be found twice under one path: the same entry counts once.
    found = {}
    for point in entry_points(group=group):
        found[point.dist.name if point.dist else "", point.name, point.value] = point
    return tuple(found[key] for key in sorted(found))


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
        return tuple(discover(self.group))

    def refresh(self) -> None:
        """Look for installed components again, for example after `pip install` in a notebook."""
        importlib.invalidate_caches()
        _entry_points.cache_clear()
        self.__dict__.pop("_discovered", None)
        self._loaded.clear()

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator that offers a component in this process; a re-run cell replaces its own class."""

        def add(cls: C) -> C:
            entry = Entry(name, cls.__module__.split(".")[0], "", partial(_itself, cls))
            self._checked(entry, cls)
            self._registered[entry.provider, name] = cls
            self._loaded.clear()
            return cls

        return add

    def entries(self) -> Iterator[Entry]:
        """All components, loaded or not; importing none."""
        yield from self._discovered
        for (provider, name), cls in self._registered.items():
            yield Entry(name, provider, "", partial(_itself, cls), f"{cls.__module__}:{cls.__qualname__}")

    def names(self) -> list[str]:
        """The names in use, sorted; importing nothing."""
        return sorted({entry.name for entry in self.entries()})

    def find(self, name: str) -> Entry:
        """The one entry called `name`, or `provider:name`.

        Raises:
            ComponentError: nobody provides that name, or several do.
        """
        provider, _, bare = name.rpartition(":")
        found = [e for e in self.entries() if e.name == bare and provider in ("", e.provider)]
        targets = {entry.target or str(entry) for entry in found}
        if len(targets) == 1:  # one class, perhaps declared both by entry point and by decorator
            return found[0]
        if found:
            choices = " or ".join(f"'{entry}'" for entry in found)
            raise ComponentError(f"{self.group}: '{name}' is provided more than once: write {choices}")
        known = [str(e) for e in self.entries()] if provider else self.names()
        raise ComponentError(f"{self.group}: no component '{name}'; {did_you_mean(name, known)}")

    def get(self, name: str) -> type[T]:
        """The class called `name`, imported now if it was not yet.

        Raises:
            ComponentError: unknown, ambiguous, failing to import, or not a subclass of the contract.
        """
        if name not in self._loaded:
            entry = self.find(name)
            try:
                loaded = entry.load()
            except Exception as error:
                raise ComponentError(
                    f"{self.group}: '{entry.name}' of {_package(entry)} failed to load: {type(error).__name__}: {error}"
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


def _itself(cls: Any) -> Any:
    return cls


def _package(entry: Entry) -> str:
    return f"{entry.provider} {entry.version}".strip()


def _describe(thing: Any) -> str:
    return f"the class {thing.__qualname__}" if inspect.isclass(thing) else f"a {type(thing).__name__}"
