"""A registry turns the name of a component into its class, and imports nothing until that name is used.

Three sources feed one table: the modules of the family's package (a file's name is its component's
name), the entry points of installed distributions (the group is the package's name, for example
`usam.encoders`), and the classes registered in this process with the decorator.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from usam.versions.tested import suspects

FAMILIES = ("usam.encoders", "usam.fusions", "usam.projectors", "usam.losses", "usam.llm")
NAME = re.compile(r"[a-z][a-z0-9_]*")
TARGET = re.compile(r"[\w.]+(\s*:\s*[\w.]+)?(\s*\[.*\])?")

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
    describe: Callable[[], str] = str  # what it is, read without importing; empty where nothing says it

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
            load = partial(importlib.import_module, f"{group}.{module.name}")
            describe = partial(_docstring, f"{getattr(module.module_finder, 'path', '')}/{module.name}")
            yield Entry(module.name, "usam", __version__, load, describe=describe)
    for offer in _scan()[0]:
        if (point := offer.point).group == group:
            describe = partial(_summary, offer.package)
            yield Entry(point.name, offer.package, offer.version, partial(_load, point), point.value, describe)


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


def _summary(package: str) -> str:
    """What a package's metadata says it is."""
    try:
        return metadata.metadata(package)["Summary"] or ""
    except Exception:  # METADATA is gone or broken
        return ""


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
    offers, unread = _scan()
    return [*unread, *(fault for offer in offers for fault in _misdeclared(offer))]


@dataclass(frozen=True)
class _Offer:
    package: str
    version: str
    point: metadata.EntryPoint


@cache
def _scan() -> tuple[list[_Offer], list[Fault]]:
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
                    offers[package, point.group, point.name, point.value] = _Offer(package, version, point)
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


def _misdeclared(offer: _Offer) -> Iterator[Fault]:
    point = offer.point
    if point.group not in FAMILIES:
        close = [*difflib.get_close_matches(point.group.lower(), FAMILIES, n=1), "usam.<family>"][0]
        cure = f'write [project.entry-points."{close}"] in its pyproject.toml and reinstall it'
        hint = did_you_mean(point.group.lower(), FAMILIES)
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


def _load(point: metadata.EntryPoint) -> Any:
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
        return tuple(discover(self.group))

    def refresh(self) -> None:
        """Look for installed components again, for example after `pip install` in a notebook."""
        importlib.invalidate_caches()
        _scan.cache_clear()
        self.__dict__.pop("_discovered", None)
        self._loaded.clear()

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator that offers a component in this process; a re-run cell replaces its own class."""

        def add(cls: C) -> C:
            entry = _in_process(name, cls.__module__.split(".")[0], cls)
            self._checked(entry, cls)
            self._registered[entry.provider, name] = cls
            self._loaded.clear()
            return cls

        return add

    def entries(self) -> Iterator[Entry]:
        """All components, loaded or not; importing none."""
        yield from self._discovered
        for (provider, name), cls in self._registered.items():
            yield _in_process(name, provider, cls)

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
        hints = [f"\n{fault} ({fault.cure})" for fault in faults() if fault.name in ("", bare)]
        raise ComponentError(f"{self.group}: no component '{name}'; {did_you_mean(name, known)}{''.join(hints)}")

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
    return "".join([skew(entry), *(f"\n{line}" for line in suspects(error))])


def _describe(thing: Any) -> str:
    return f"the class {thing.__qualname__}" if inspect.isclass(thing) else f"a {type(thing).__name__}"
