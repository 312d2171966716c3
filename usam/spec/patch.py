"""A patch changes a spec: JSON merge patch (RFC 7386), with three rules for components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from usam.spec.page import KeyPath, Places, SpecError, check_depth, parse_yaml

# Parts of a spec that map names to components, and parts that are one component; by family.
MAPS = {"encoders": "usam.encoders", "losses": "usam.losses"}
SINGLES = {"fusion": "usam.fusions", "llm": "usam.llm"}


def parse_override(text: str) -> tuple[dict[str, Any], str]:
    """`a.b=c` as a patch; the value is YAML.

    Raises:
        SpecError: no `=`, an empty key, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SpecError(f"override '{text}': write key.key=value, for example llm.lora.r=16")
    patch: Any = parse_yaml(value, f"override '{text}'", Places()) if value.strip() else ""
    for part in reversed(parts):
        patch = {part: patch}
    return patch, f"override '{text}'"


def merge(base: Any, patch: Any, places: Places | None = None, origin: str = "", lines: Places | None = None) -> Any:
    """`patch` laid over `base` by JSON merge patch (RFC 7386), with three rules for components.

    A new `type` starts its node afresh; a bare string is `{type: it}`; a map of indexes patches a list.
    Removing what is not there is an error. `places` learns where each key of the patch was written.
    """
    check_depth(patch, f"{origin}: " if origin else "")
    return _Merge(places or Places(), lines or Places(), origin)(base, _short(patch), ())


@dataclass
class _Merge:
    places: Places
    lines: Places
    origin: str

    def __call__(self, base: Any, patch: Any, path: KeyPath) -> Any:
        if self.origin:
            self.places.lines[path] = self._line(path)
        if isinstance(patch, list):
            return [self(None, item, (*path, str(i))) for i, item in enumerate(patch)]
        if not isinstance(patch, Mapping):
            return patch
        if isinstance(base, list):
            return self._by_index(base, patch, path)
        if _is_component(path):
            patch = {"type": path[-1], **patch} if base is None and len(path) == 2 and path[0] in MAPS else patch
            if isinstance(base, Mapping) and "type" in patch and patch["type"] != base.get("type"):
                base = None
        merged = dict(base) if isinstance(base, Mapping) else {}
        for key, value in patch.items():
            if value is None and "arch" in path:  # transformers' own config, where null is a value
                merged[key] = None
            elif value is None:  # null removes (RFC 7386)
                if key not in merged:
                    raise SpecError(f"{self._where((*path, key))}null removes, but there is no '{key}' to remove")
                del merged[key]
            else:
                merged[key] = self(merged.get(key), value, (*path, key))
        return merged

    def _by_index(self, base: list[Any], patch: Mapping[str, Any], path: KeyPath) -> list[Any]:
        merged: list[Any] = list(base)
        for key, value in patch.items():
            if not str(key).isdecimal() or int(key) >= len(base):
                raise SpecError(
                    f"{self._where((*path, str(key)))}this is a list of {len(base)}: patch it by index "
                    f"(0 to {len(base) - 1}), or give a whole list"
                )
            merged[int(key)] = None if value is None else self(base[int(key)], value, (*path, str(key)))
        return [item for item in merged if item is not None]

    def _where(self, path: KeyPath) -> str:
        return Places({path: self._line(path)} if self.origin else {}).at(path)

    def _line(self, path: KeyPath) -> str:
        """Where a key was written; for one that was filled in, where its closest parent was."""
        parents = (path[:n] for n in range(len(path), -1, -1))
        return next((self.lines.lines[p] for p in parents if p in self.lines.lines), self.origin)


def _is_component(path: KeyPath) -> bool:
    injection = path == ("llm", "injection")
    return injection or (len(path) == 2 and path[0] in (*MAPS, "projector")) or (len(path) == 1 and path[0] in SINGLES)


def _short(tree: Any) -> Any:
    """Bare names written out: `llm: tiny` is `llm: {type: tiny}`, one stage is a list of one."""
    if not isinstance(tree, Mapping):
        return tree
    tree = dict(tree)
    named = {key: {"type": value} for key, value in tree.items() if key in SINGLES and isinstance(value, str)}
    tree.update(named)
    for key in MAPS:
        if isinstance(tree.get(key), Mapping):
            tree[key] = {n: {"type": v} if isinstance(v, str) else v for n, v in tree[key].items()}
    stages = tree.get("projector")
    if isinstance(stages, str) or (isinstance(stages, Mapping) and "type" in stages):
        stages = [stages]
    if isinstance(stages, list):
        tree["projector"] = [{"type": stage} if isinstance(stage, str) else stage for stage in stages]
    elif isinstance(stages, Mapping):
        tree["projector"] = {str(i): {"type": v} if isinstance(v, str) else v for i, v in stages.items()}
    return tree
