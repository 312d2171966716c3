"""A page of YAML, read strictly: plain data, no tags, no duplicate keys, and the line of every key."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

KeyPath: TypeAlias = tuple[str, ...]


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
        for event in yaml.parse(text, Loader=_Loader):
            tag = getattr(event, "tag", None)
            if tag is not None:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise SpecError(f"{origin}:{line}: tags such as '{tag}' are not read; write plain data")
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _construct(loader, node, (), origin, places, ())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise SpecError(f"{origin}:{line}: this is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SpecError(f"{origin}: this is not YAML: {error}") from error


def _construct(
    loader: _Loader, node: yaml.Node, path: KeyPath, origin: str, places: Places, above: tuple[yaml.Node, ...]
) -> Any:
    places.lines.setdefault(path, f"{origin}:{node.start_mark.line + 1}")
    if node in above:
        raise SpecError(f"{origin}:{node.start_mark.line + 1}: this anchor holds itself")
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return [_construct(loader, n, (*path, str(i)), origin, places, (*above, node)) for i, n in items]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"{origin}:{key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise SpecError(f"{line}: a key is a word, not a list or a map")
        key = str(key_node.value)
        if key in tree:
            first = places.lines[(*path, key)]
            raise SpecError(f"{line}: '{key}' is given twice; it was first given at {first}")
        places.lines[(*path, key)] = line
        tree[key] = _construct(loader, value_node, (*path, key), origin, places, (*above, node))
    return tree


def write_yaml(tree: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
