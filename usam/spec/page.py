"""A page of YAML, read strictly: plain data, no tags, no duplicate keys, and the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

KeyPath: TypeAlias = tuple[str, ...]

DEEPEST = 64  # levels of a page: specs have some ten, and what reads them calls itself for each
REPEATS = 10_000  # nodes that aliases may write out again: a few bytes could ask for billions


class SpecError(Exception):
    """A spec is wrong: the message names the file, the line and the key, and says what to write."""


@dataclass
class Places:
    """Where each key of a tree was written, for error messages."""

    lines: dict[KeyPath, str] = field(default_factory=dict)

    def at(self, *paths: KeyPath) -> str:
        """`file.yaml:7: encoders.whisper: ` for the first of `paths` that is known, else for its closest parent."""
        key = ".".join(paths[-1])
        for path in (*paths, *(paths[-1][:n] for n in range(len(paths[-1]) - 1, -1, -1))):
            if path in self.lines:
                return f"{self.lines[path]}: {key}: " if key else f"{self.lines[path]}: "
        return f"{key}: " if key else ""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: `1e-4` is a number, `no` and `on` are words, dates are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or our own reading would take for something other than text."""


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)  # 010 is ten, not YAML 1.1's eight


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def parse_yaml(text: str, origin: str, places: Places) -> Any:
    """Plain data from YAML: no tags, no duplicate keys; `places` learns the line of every key.

    Raises:
        SpecError: with the line of the fault.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            line = event.start_mark.line + 1 if event.start_mark else 0
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise SpecError(f"{origin}:{line}: tags such as '{tag}' are not read; write plain data")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise SpecError(f"{origin}:{line}: nested more than {DEEPEST} levels deep")
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Tree(loader, origin, places)(node, (), ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SpecError(f"{origin}:{line}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{origin}: this is not YAML: {error}") from error


class _Tree:
    """Plain data from nodes, with the line of every key, and a bound on what aliases write out again."""

    def __init__(self, loader: _Loader, origin: str, places: Places) -> None:
        self.loader, self.origin, self.places = loader, origin, places
        self.seen: set[int] = set()
        self.repeats = 0

    def __call__(self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
        line = f"{self.origin}:{node.start_mark.line + 1}"
        self.places.lines.setdefault(path, line)
        if node in above:
            raise SpecError(f"{line}: this anchor holds itself")
        self.repeats += id(node) in self.seen
        self.seen.add(id(node))
        if self.repeats > REPEATS:
            raise SpecError(f"{line}: aliases (*) write this anchor out into more than {REPEATS:,} nodes")
        if len(path) > DEEPEST:
            raise SpecError(f"{line}: nested more than {DEEPEST} levels deep")
        if isinstance(node, yaml.SequenceNode):
            return [self(n, (*path, str(i)), (*above, node)) for i, n in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            try:
                return self.loader.construct_object(node)
            except ValueError as error:  # thousands of digits
                raise SpecError(f"{line}: not a number that can be read: {error}") from error
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{self.origin}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"{line}: a key is a word, not a list or a map")
            key = str(key_node.value)
            if key in tree:
                first = self.places.lines[(*path, key)]
                raise SpecError(f"{line}: '{key}' is given twice; it was first given at {first}")
            self.places.lines[(*path, key)] = line
            tree[key] = self(value_node, (*path, key), (*above, node))
        return tree


def check_depth(tree: Any, where: str) -> None:
    """Refuse data that is nested so deep, or in itself, that what reads it would run out of stack.

    Raises:
        SpecError: names the first key on the way down.
    """
    level = {id(tree): (tree, "")}
    for _ in range(DEEPEST + 1):
        level = {id(item): (item, first or key) for node, first in level.values() for key, item in _inside(node)}
        if not level:
            return
    ((_, key), *_) = level.values()
    raise SpecError(f"{where}{key}: nested more than {DEEPEST} levels deep")


def _inside(node: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(node, Mapping):
        return ((str(key), value) for key, value in node.items())
    return ((str(i), value) for i, value in enumerate(node)) if isinstance(node, (list, tuple)) else ()


def write_yaml(tree: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
