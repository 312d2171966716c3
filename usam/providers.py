"""Who provides each component of a spec: recorded when a model is saved, and kept to when it is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from usam.registry import ComponentError, Registry
from usam.registry.files import written_in
from usam.spec.patch import MAPS, SINGLES
from usam.spec.spec import Spec


def registry_of(group: str) -> Registry[Any]:
    """A family's registry, which is imported with it."""
    return cast(Registry[Any], importlib.import_module(group).registry)


def named(spec: Spec) -> Iterator[tuple[str, Any]]:
    """(family, config) of every component of a spec."""
    yield from (("usam.encoders", config) for config in spec.encoders.values())
    yield "usam.fusions", spec.fusion
    yield from (("usam.projectors", config) for config in spec.projector)
    yield "usam.llm", spec.llm
    yield from (("usam.losses", config) for config in spec.losses.values())


def providers(spec: Spec) -> dict[str, Any]:
    """Who provides each component: `components`, packages by `family:type`; `plugins`, what came from a mere file."""
    found: dict[str, Any] = {"components": {}}
    for group, config in named(spec):
        entry = registry_of(group).find(config.type)
        found["components"][f"{group}:{config.type}"] = f"{entry.provider} {entry.version}".strip()
        if not entry.version:  # no package: it was registered in this process
            found.setdefault("plugins", {})[f"{group}:{config.type}"] = written_in(config.component)
    return found


def as_saved(spec: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with each type from the provider it was saved with: another may have taken its name since.

    Args:
        spec: a whole spec as plain data.
        provenance: what `providers` gave when it was saved.

    Raises:
        ComponentError: that provider is not here, and another has the name.
    """
    recorded = provenance.get("components") or {}
    if all(str(package).startswith("usam ") for package in recorded.values()):
        return dict(spec)

    def own(group: str, node: Any) -> Any:
        kind = node.get("type") if isinstance(node, Mapping) else None
        package = recorded.get(f"{group}:{kind}")
        return node if package is None else {**node, "type": _own_type(group, str(kind), package)}

    parts = dict(spec)
    for key, group in {**MAPS, **SINGLES, "projector": "usam.projectors"}.items():
        part = parts.get(key)
        if key in SINGLES:
            parts[key] = own(group, part)
        elif isinstance(part, Mapping):
            parts[key] = {name: own(group, node) for name, node in part.items()}
        elif isinstance(part, list):
            parts[key] = [own(group, node) for node in part]
    return parts


def _own_type(group: str, kind: str, package: str) -> str:
    """A type as its own provider gives it; as it is when nobody has that name."""
    registry, bare = registry_of(group), kind.rpartition(":")[2]
    provider, _, version = package.partition(" ")
    entries = [entry for entry in registry.entries() if entry.name == bare]
    here = [entry for entry in entries if entry.provider == provider]
    if not here and not version:  # a notebook's class may be in a file by now, or the other way round
        here = [entry for entry in entries if not entry.version]
    if len(here) == 1:
        try:
            return kind if str(registry.find(kind)) == str(here[0]) else str(here[0])
        except ComponentError:  # several have it
            return str(here[0])
    if entries and ":" not in kind:
        others = " and ".join(map(str, entries))
        remedy = f"pip install {provider}" if version else "pass its file with --plugin FILE.py, or import it"
        raise ComponentError(f"{group}: '{kind}' was saved with {package}, and here it is {others}: {remedy}")
    return kind


def in_full(spec: Spec) -> Spec:
    """The same spec with the types of plugins as `package:name`, which stay right whatever is installed later."""

    def full(group: str, config: Any, place: str) -> Any:
        entry = registry_of(group).find(config.type)
        plugin = entry.version and entry.provider != "usam"
        return config.model_copy(update={"type": str(entry)}) if plugin else config

    return with_each(spec, full)


def with_each(spec: Spec, change: Callable[[str, Any, str], Any]) -> Spec:
    """A spec with each component's config changed by `change(family, config, place)`."""

    def each(group: str, part: str, configs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: change(group, config, f"{part}.{name}") for name, config in configs.items()}

    stages = {str(i): stage for i, stage in enumerate(spec.projector)}
    return spec.model_copy(
        update={
            "encoders": each("usam.encoders", "encoders", spec.encoders),
            "fusion": change("usam.fusions", spec.fusion, "fusion"),
            "projector": list(each("usam.projectors", "projector", stages).values()),
            "llm": change("usam.llm", spec.llm, "llm"),
            "losses": each("usam.losses", "losses", spec.losses),
        }
    )
