"""A spec is a page of YAML that says which components make a model.

Reading one means: parse strictly, follow `base`, merge (RFC 7386: `null` removes), apply `a.b=c`
overrides, and check every option against the component that takes it. Nothing in a spec is code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from usam.clock import N, rescale
from usam.registry import ComponentError, did_you_mean

if TYPE_CHECKING:
    from usam.encoders import Encoder
    from usam.fusions import Fusion
    from usam.projectors import Projector

VERSION = 1
SPECS = Path(__file__).parent / "specs"
NAME = re.compile(r"[a-z][a-z0-9_]*")

Path_: TypeAlias = tuple[str, ...]


class SpecError(Exception):
    """A spec is wrong: the message names the file, the line and the key, and says what to write."""


class Config(BaseModel):
    """The options of one component: frozen, and closed to unknown keys.

    A docstring below a field becomes its description in the JSON schema.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    type: str = ""
    """The component's name, or `package:name`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data with the defaults filled in; options that are None are left out, for `null` removes."""
        return {name: _plain(value) for name, value in self if value is not None and (name, value) != ("type", "")}


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Config) else to_jsonable_python(value)


def component_config(group: str, node: Any, path: Path_ = (), places: Places | None = None) -> Any:
    """The checked config of one component: from `{type: name, option: value}`, a bare name, or as it is.

    Raises:
        SpecError: no type, an unknown option, a wrong value.
        ComponentError: the type is unknown, ambiguous or fails to load.
    """
    places = places or Places()
    if isinstance(node, Config):
        if not node.type:
            raise SpecError(f"{places.at(path)}a config inside a spec needs its type; write it as a dict")
        return node
    if isinstance(node, str):
        node = {"type": node}
    if not isinstance(node, Mapping):
        raise SpecError(f"{places.at(path)}expected a component ('name' or {{type: name, ...}}), found {node!r}")
    if not isinstance(node.get("type"), str):
        registry = importlib.import_module(group).registry
        raise SpecError(f"{places.at(path)}say which one with 'type:'; known: {', '.join(registry.names())}")
    try:
        cls = importlib.import_module(group).registry.get(node["type"]).Config
    except ComponentError as error:
        raise ComponentError(f"{places.at((*path, 'type'), path)}{error}") from error
    try:
        return cls.model_validate(dict(node))
    except ValidationError as error:
        raise SpecError(_explain(error, cls, path, places)) from error


class Spec(BaseModel):
    """A whole model, as data. `load_spec` makes one from a name, a file or a dict."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    MAPS: ClassVar[dict[str, str]] = {"encoders": "usam.encoders", "losses": "usam.losses"}
    SINGLES: ClassVar[dict[str, str]] = {"fusion": "usam.fusions", "llm": "usam.llm"}
    # What a spec without `base` starts from, so that an override can also remove it.
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "fusion": {"type": "concat"},
        "losses": {"cross_entropy": {"type": "cross_entropy"}},
    }

    usam: int = VERSION
    """Version of the spec format."""
    encoders: dict[str, Config]
    """Encoders by name; the type defaults to the name."""
    fusion: Config
    """How the encoders' frames become one stream."""
    projector: list[Config]
    """Stages from the fused frames to the language model's width, in order."""
    llm: Config
    """The language model."""
    losses: dict[str, Config]
    """Losses by name, summed with their weights."""
    template: str = "auto"
    """`auto`: the tokenizer's chat template, else a plain one; or text with {prompt}, {audio} and {answer}."""
    prompts: dict[str, str] = {}
    """Task name to instruction."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], places: Places | None = None) -> Spec:
        """Check a complete tree, component by component, with the place of every fault in the message."""
        places = places or Places()
        unknown = set(tree) - set(cls.model_fields)
        if unknown:
            key = min(unknown)
            raise SpecError(f"{places.at((key,))}no such part of a spec; {did_you_mean(key, cls.model_fields)}")
        _check_version(tree, places)
        for key in ("encoders", "projector", "llm"):
            if not tree.get(key):
                raise SpecError(f"{places.at(())}a spec needs '{key}'")
        parts: dict[str, Any] = {**cls.DEFAULTS, **tree}
        for key, group in cls.MAPS.items():
            if not isinstance(parts[key], Mapping):
                raise SpecError(f"{places.at((key,))}expected a map of names to components, found {parts[key]!r}")
            for name in parts[key]:
                if not NAME.fullmatch(name):
                    raise SpecError(f"{places.at((key, name))}a name is lower case letters, digits and '_'")
            parts[key] = {name: component_config(group, node, (key, name), places) for name, node in parts[key].items()}
        for key, group in cls.SINGLES.items():
            parts[key] = component_config(group, parts[key], (key,), places)
        if not isinstance(parts["projector"], Sequence) or isinstance(parts["projector"], str):
            raise SpecError(f"{places.at(('projector',))}expected a list of stages, found {parts['projector']!r}")
        parts["projector"] = [
            component_config("usam.projectors", node, ("projector", str(i)), places)
            for i, node in enumerate(parts["projector"])
        ]
        try:
            return cls.model_validate(parts)
        except ValidationError as error:
            raise SpecError(_explain(error, cls, (), places)) from error

    def to_dict(self) -> dict[str, Any]:
        """The spec as plain data with every default filled in; `None` is left out, for `null` removes."""
        return {
            "usam": self.usam,
            "encoders": {name: config.to_dict() for name, config in self.encoders.items()},
            "fusion": self.fusion.to_dict(),
            "projector": [stage.to_dict() for stage in self.projector],
            "llm": self.llm.to_dict(),
            "losses": {name: config.to_dict() for name, config in self.losses.items()},
            "template": self.template,
            "prompts": dict(self.prompts),
        }

    def to_yaml(self) -> str:
        """The spec as a page of YAML that `load_spec` reads back and other specs can name as `base`."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    @property
    def sample_rate(self) -> int:
        """Samples per second of the one waveform the model takes: the highest that any encoder wants."""
        return max(cast("Encoder.Config", config).sample_rate for config in self.encoders.values())

    def audio_tokens(self, samples: N) -> N:
        """How many tokens a clip of `samples` samples (at `sample_rate`) becomes: at least 1."""
        return self.audio_length(samples)[0]

    def audio_length(self, samples: N) -> tuple[N, float]:
        """Tokens of a clip, and tokens per second."""
        streams = {}
        for name, config in sorted(self.encoders.items()):
            encoder = cast("Encoder.Config", config)
            heard = encoder.length(rescale(samples, self.sample_rate, encoder.sample_rate))
            streams[name] = (heard, encoder.rate)
        frames, rate = cast("Fusion.Config", self.fusion).length(streams, samples, self.sample_rate)
        for stage in self.projector:
            frames, rate = cast("Projector.Config", stage).length(frames, rate)
        return frames, rate


@dataclass
class Places:
    """Where each key of a tree was written, for error messages."""

    lines: dict[Path_, str] = field(default_factory=dict)

    def at(self, *paths: Path_) -> str:
        """`file.yaml:7: encoders.whisper: ` for the first of `paths` that is known, else for its closest parent."""
        key = ".".join(paths[-1])
        for path in (*paths, *(paths[-1][:n] for n in range(len(paths[-1]) - 1, -1, -1))):
            if path in self.lines:
                return f"{self.lines[path]}: {key}: " if key else f"{self.lines[path]}: "
        return f"{key}: " if key else ""


def load_spec(source: str | Path | Mapping[str, Any] | Spec, *overrides: str | Mapping[str, Any]) -> Spec:
    """Read a spec from a bundled name, a YAML file, a saved model's folder, a dict or another Spec.

    Args:
        source: for example `"paper"`, `"my.yaml"`, `"runs/1"` or `{"encoders": ...}`.
        overrides: patches, in order: `"projector.0.stack=5"`, `"llm.lora=null"`, or a dict to merge.

    Raises:
        SpecError: the file, the line, the key and what to write instead.
        ComponentError: a component is unknown, ambiguous or fails to load.
    """
    tree, places = read(source)
    for override in overrides:
        patch, origin = parse_override(override) if isinstance(override, str) else (dict(override), "override")
        tree = merge(tree, patch, places, origin)
    return Spec.from_tree(tree, places)


def read(source: str | Path | Mapping[str, Any] | Spec) -> tuple[dict[str, Any], Places]:
    """The merged tree of a spec and its bases, not yet checked against the components."""
    if isinstance(source, Spec):
        return source.to_dict(), Places()
    if isinstance(source, Mapping):
        return _with_base(dict(source), Places(), Path.cwd(), "", ())
    return _read_file(find(source), ())


def find(source: str | Path) -> Path:
    """The file of a bundled name, a path to a file, or a saved model's folder.

    Raises:
        SpecError: there is no such file, folder or bundled spec.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "usam.yaml").is_file():
            return path / "usam.yaml"
        raise SpecError(f"{path}: this folder has no usam.yaml; name a spec file or a folder that usam saved")
    if path.is_file():
        return path
    bundled = {file.relative_to(SPECS).with_suffix("").as_posix(): file for file in sorted(SPECS.rglob("*.yaml"))}
    bundled = {file.stem: file for file in bundled.values()} | bundled
    if str(source) in bundled:
        return bundled[str(source)]
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise SpecError(f"{path}: no such file (looked in {path.parent.resolve()})")
    raise SpecError(f"'{source}' is neither a file nor a bundled spec; {did_you_mean(str(source), bundled)}")


def _read_file(file: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    file = file.resolve()
    if file in above:
        chain = " -> ".join(str(f) for f in (*above[above.index(file) :], file))
        raise SpecError(f"{file}: 'base' leads back to itself: {chain}")
    places = Places()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: not a page of YAML, which is UTF-8 text: {error}") from error
    tree = parse_yaml(text, str(file), places)
    if not isinstance(tree, dict):
        raise SpecError(f"{file}: a spec is a map of 'encoders', 'projector', 'llm' ...; found {tree!r}")
    return _with_base(tree, places, file.parent, str(file), (*above, file))


def _with_base(
    tree: dict[str, Any], places: Places, folder: Path, origin: str, above: tuple[Path, ...]
) -> tuple[dict[str, Any], Places]:
    base = tree.pop("base", None)
    _check_version(tree, places)
    if base is None:
        known = Places()
        defaults = {key: value for key, value in Spec.DEFAULTS.items() if tree.get(key) is None}
        return {**defaults, **merge({}, tree, known, origin, places)}, known
    if not isinstance(base, str):
        raise SpecError(f"{places.at(('base',))}expected the name or path of a spec, found {base!r}")
    beside = folder / base
    try:
        file = beside if beside.is_file() else find(_or_beside(base, beside))
    except SpecError as error:
        raise SpecError(f"{places.at(('base',))}{error}") from error
    under, known = _read_file(file, above)
    return merge(under, tree, known, origin, places), known


def _or_beside(base: str, beside: Path) -> str | Path:
    return beside if beside.exists() or beside.suffix in (".yaml", ".yml") else base


def _check_version(tree: Mapping[str, Any], places: Places) -> None:
    version = tree.get("usam", VERSION)
    if not isinstance(version, int) or version < 1:
        raise SpecError(f"{places.at(('usam',))}expected the spec version, {VERSION}; found {version!r}")
    if version > VERSION:
        raise SpecError(
            f"{places.at(('usam',))}this spec has version {version}; this usam reads up to {VERSION}: "
            "pip install --upgrade usam"
        )


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
    return _Merge(places or Places(), lines or Places(), origin)(base, _short(patch), ())


@dataclass
class _Merge:
    places: Places
    lines: Places
    origin: str

    def __call__(self, base: Any, patch: Any, path: Path_) -> Any:
        if self.origin:
            self.places.lines[path] = self._line(path)
        if isinstance(patch, list):
            return [self(None, item, (*path, str(i))) for i, item in enumerate(patch)]
        if not isinstance(patch, Mapping):
            return patch
        if isinstance(base, list):
            return self._by_index(base, patch, path)
        if _is_component(path):
            patch = {"type": path[-1], **patch} if base is None and len(path) == 2 and path[0] in Spec.MAPS else patch
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

    def _by_index(self, base: list[Any], patch: Mapping[str, Any], path: Path_) -> list[Any]:
        merged: list[Any] = list(base)
        for key, value in patch.items():
            if not str(key).isdecimal() or int(key) >= len(base):
                raise SpecError(
                    f"{self._where((*path, str(key)))}this is a list of {len(base)}: patch it by index "
                    f"(0 to {len(base) - 1}), or give a whole list"
                )
            merged[int(key)] = None if value is None else self(base[int(key)], value, (*path, str(key)))
        return [item for item in merged if item is not None]

    def _where(self, path: Path_) -> str:
        return Places({path: self._line(path)} if self.origin else {}).at(path)

    def _line(self, path: Path_) -> str:
        """Where a key was written; for one that was filled in, where its closest parent was."""
        parents = (path[:n] for n in range(len(path), -1, -1))
        return next((self.lines.lines[p] for p in parents if p in self.lines.lines), self.origin)


def _is_component(path: Path_) -> bool:
    return (len(path) == 2 and path[0] in (*Spec.MAPS, "projector")) or (len(path) == 1 and path[0] in Spec.SINGLES)


def _short(tree: Any) -> Any:
    """Bare names written out: `llm: tiny` is `llm: {type: tiny}`, one stage is a list of one."""
    if not isinstance(tree, Mapping):
        return tree
    tree = dict(tree)
    named = {key: {"type": value} for key, value in tree.items() if key in Spec.SINGLES and isinstance(value, str)}
    tree.update(named)
    for key in Spec.MAPS:
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


def _explain(error: ValidationError, cls: type[BaseModel], path: Path_, places: Places) -> str:
    lines = []
    for fault in error.errors():
        location = tuple(str(part) for part in fault["loc"])
        where = places.at((*path, *location))
        if fault["type"] == "extra_forbidden":
            fields = _fields(cls, location[:-1])
            lines.append(f"{where}unknown option '{location[-1]}'; {did_you_mean(location[-1], fields)}")
        elif fault["type"] == "missing":
            lines.append(f"{places.at((*path, *location[:-1]))}option '{location[-1]}' is needed")
        else:
            lines.append(f"{where}{fault['msg']}; found {fault['input']!r}")
    return "\n".join(lines)


def _fields(cls: Any, location: Path_) -> list[str]:
    for part in location:
        options = [cls.model_fields[part].annotation] if part in cls.model_fields else []
        while options and not (isinstance(options[0], type) and issubclass(options[0], BaseModel)):
            options = [*getattr(options[0], "__args__", ()), *options[1:]]
        if not options:
            return []
        cls = options[0]
    return [name for name in cls.model_fields if name != "type"]


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
    loader: _Loader, node: yaml.Node, path: Path_, origin: str, places: Places, above: tuple[yaml.Node, ...]
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


def json_schema() -> dict[str, Any]:
    """A JSON schema of specs with every component that is installed, for editors to complete from.

    Raises:
        ComponentError: an installed component fails to load; the message names it.
    """
    properties: dict[str, Any] = {
        "usam": {"const": VERSION, "description": "Version of the spec format."},
        "base": {"type": "string", "description": "The spec this one changes: a path beside this file, or a name."},
        "template": {"type": "string", "description": Spec.model_fields["template"].description},
        "prompts": {"type": "object", "additionalProperties": {"type": "string"}},
    }
    definitions: dict[str, Any] = {}
    for key, group in {**Spec.MAPS, **Spec.SINGLES, "projector": "usam.projectors"}.items():
        shared, named = _component_schemas(group, definitions)
        described = {"description": Spec.model_fields[key].description}
        if key in Spec.MAPS:
            properties[key] = {"type": "object", "properties": named, "additionalProperties": shared} | described
        elif key in Spec.SINGLES:
            properties[key] = shared | described
        else:
            patch = {"type": "object", "patternProperties": {"^[0-9]+$": shared}, "additionalProperties": False}
            properties[key] = {"anyOf": [{"type": "array", "items": shared}, shared, patch]} | described
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "usam spec",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _component_schemas(group: str, definitions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what any component of the family may be, what each name of it may be when the key gives the type)."""
    registry = importlib.import_module(group).registry
    any_of: list[dict[str, Any]] = [{"enum": registry.names()}, {"type": "null"}]
    named = {}
    for name in registry.names():
        config = registry.get(name).Config
        schema = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        schema["properties"]["type"] = {"const": name}
        schema.pop("required", None)  # a patch over `base` gives only what it changes
        for option in schema["properties"].values():
            option.pop("default", None)
        definitions[f"{group}.{name}"] = schema
        reference = {"$ref": f"#/$defs/{group}.{name}"}
        any_of.append({"allOf": [reference, {"required": ["type"]}]})
        named[name] = {"anyOf": [reference, {"enum": registry.names()}, {"type": "null"}]}
    # Without a type the node changes one of `base`, whose options cannot be known from this file.
    any_of.append({"type": "object", "not": {"required": ["type"]}})
    return {"anyOf": any_of}, named
