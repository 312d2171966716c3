"""A spec is a page of YAML that says which components make a model.

Reading one means: parse strictly, follow `base`, merge (RFC 7386: `null` removes), apply `a.b=c`
overrides, and check every option against the component that takes it. Nothing in a spec is code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_jsonable_python

from usam.clock import N, rescale
from usam.registry import NAME, ComponentError, did_you_mean, skew
from usam.spec.page import KeyPath, Places, SpecError, check_depth, parse_yaml, write_yaml
from usam.spec.patch import MAPS, SINGLES, merge, parse_override
from usam.spec.sizes import faults

if TYPE_CHECKING:
    from usam.encoders import Encoder
    from usam.fusions import Fusion
    from usam.llm import LLM
    from usam.projectors import Projector

SpecSource = Union[str, Path, Mapping[str, Any], "Spec"]  # a bundled name, a file, a saved folder, a dict, a Spec
Override = str | Mapping[str, Any]  # "projector.0.stack=5", or a patch to merge

VERSION = 1
SPECS = Path(__file__).parents[1] / "specs"


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
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: _plain(v) for name, v in values.items() if v is not None and (name, v) != ("type", "")}


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, Config) else to_jsonable_python(value)


def component_config(group: str, node: Any, path: KeyPath = (), places: Places | None = None) -> Any:
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
    registry = importlib.import_module(group).registry
    if not isinstance(node.get("type"), str):
        raise SpecError(f"{places.at(path)}say which one with 'type:'; known: {', '.join(registry.names())}")
    try:
        cls = registry.get(node["type"]).Config
    except ComponentError as error:
        raise ComponentError(f"{places.at((*path, 'type'), path)}{error}") from error
    try:
        config = cls.model_validate(dict(node))
    except ValidationError as error:
        raise SpecError(f"{_explain(error, cls, path, places)}{skew(registry.find(node['type']))}") from error
    for name, fault in faults(getattr(config, "arch", None) or {}):
        raise SpecError(f"{places.at((*path, 'arch', name))}{fault}")
    return config


class Spec(BaseModel):
    """A whole model, as data. `load_spec` makes one from a name, a file or a dict."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

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
        check_depth(tree, places.at(()))
        unknown = set(tree) - set(cls.model_fields)
        if unknown:
            key = min(unknown)
            raise SpecError(f"{places.at((key,))}no such part of a spec; {did_you_mean(key, cls.model_fields)}")
        _check_version(tree, places)
        for key in ("encoders", "projector", "llm"):
            if not tree.get(key):
                raise SpecError(f"{places.at(())}a spec needs '{key}'")
        parts: dict[str, Any] = {**cls.DEFAULTS, **tree}
        for key, group in MAPS.items():
            if not isinstance(parts[key], Mapping):
                raise SpecError(f"{places.at((key,))}expected a map of names to components, found {parts[key]!r}")
            for name in parts[key]:
                if not NAME.fullmatch(name):
                    raise SpecError(f"{places.at((key, name))}a name is lower case letters, digits and '_'")
            parts[key] = {name: component_config(group, node, (key, name), places) for name, node in parts[key].items()}
        for key, group in SINGLES.items():
            parts[key] = component_config(group, parts[key], (key,), places)
        if not isinstance(parts["projector"], Sequence) or isinstance(parts["projector"], str):
            raise SpecError(f"{places.at(('projector',))}expected a list of stages, found {parts['projector']!r}")
        parts["projector"] = [
            component_config("usam.projectors", node, ("projector", str(i)), places)
            for i, node in enumerate(parts["projector"])
        ]
        try:
            spec = cls.model_validate(parts)
        except ValidationError as error:
            raise SpecError(_explain(error, cls, (), places)) from error
        spec._check_matched(places)
        return spec

    def _check_matched(self, places: Places) -> None:
        last = len(self.projector) - 1
        for i in (i for i, stage in enumerate(self.projector) if cast("Projector.Config", stage).match_embeddings):
            where = places.at(("projector", str(i), "match_embeddings"))
            if i < last:
                raise SpecError(
                    f"{where}only the last stage's frames come to the language model; write it there, as "
                    f"projector.{last}.match_embeddings"
                )
            if self.beside:
                raise SpecError(
                    f"{where}with llm.injection no frame stands among embeddings, and the blocks that hear it norm it; "
                    "leave it out"
                )

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
        return write_yaml(self.to_dict())

    @property
    def sample_rate(self) -> int:
        """Samples per second of the one waveform the model takes: the highest that any encoder wants."""
        return max(cast("Encoder.Config", config).sample_rate for config in self.encoders.values())

    def audio_tokens(self, samples: N) -> N:
        """How many tokens a clip of `samples` samples (at `sample_rate`) becomes: at least 1."""
        return self.audio_length(samples)[0]

    @property
    def beside(self) -> bool:
        """Whether the audio is heard from beside the text (cross-attention), and not read in place of placeholders."""
        return cast("LLM.Config", self.llm).injection is not None

    def placeholders(self, samples: N) -> N:
        """How many placeholders stand for a clip in the text: one a token; one in all when heard from beside."""
        return samples * 0 + 1 if self.beside else self.audio_tokens(samples)

    def audio_length(self, samples: N) -> tuple[N, float]:
        """Tokens of a clip, and tokens per second."""
        return self.projected_length(*self.fused_length(samples))

    def projected_length(self, frames: N, rate: float) -> tuple[N, float]:
        """Tokens of a clip of so many fused frames, and tokens per second."""
        for stage in self.projector:
            frames, rate = cast("Projector.Config", stage).length(frames, rate)
        return frames, rate

    def fused_length(self, samples: N) -> tuple[N, float]:
        """Frames of a clip that the fusion gives, and their rate."""
        streams = {}
        for name in sorted(self.encoders):  # of the names alone: torch 2.11 does not trace a sort of pairs
            encoder = cast("Encoder.Config", self.encoders[name])
            heard = encoder.length(rescale(samples, self.sample_rate, encoder.sample_rate))
            streams[name] = (heard, encoder.rate)
        return cast("Fusion.Config", self.fusion).length(streams, samples, self.sample_rate)


def load_spec(source: SpecSource, *overrides: Override) -> Spec:
    """Read a spec from a bundled name, a YAML file, a saved model's folder, a dict or another Spec.

    Args:
        source: for example `"paper"`, `"my.yaml"`, `"runs/1"`, `{"encoders": ...}`, or such a dict as text.
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


def read(source: SpecSource) -> tuple[dict[str, Any], Places]:
    """The merged tree of a spec and its bases, not yet checked against the components."""
    if isinstance(source, Spec):
        return source.to_dict(), Places()
    if isinstance(source, Mapping):
        return _with_base(dict(source), Places(), Path.cwd(), "", ())
    if isinstance(source, str) and source.lstrip().startswith("{"):
        return _read_text(source, "the spec given as text", Path.cwd(), ())
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
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: not a page of YAML, which is UTF-8 text: {error}") from error
    return _read_text(text, str(file), file.parent, (*above, file))


def _read_text(text: str, origin: str, folder: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    places = Places()
    tree = parse_yaml(text, origin, places)
    if not isinstance(tree, dict):
        raise SpecError(f"{origin}: a spec is a map of 'encoders', 'projector', 'llm' ...; found {tree!r}")
    return _with_base(tree, places, folder, origin, above)


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


def _explain(error: ValidationError, cls: type[BaseModel], path: KeyPath, places: Places) -> str:
    lines = []
    forms: dict[KeyPath, list[Any]] = {}  # of an option that has several, what each of them says
    for fault in error.errors():
        location = tuple(str(part) for part in fault["loc"])
        branch = next((i for i, part in enumerate(location) if i and FORM.fullmatch(part)), None)
        if branch is not None and fault["type"] not in ("extra_forbidden", "missing"):
            forms.setdefault(location[:branch], []).append(fault)
            continue
        where = places.at((*path, *location))
        if fault["type"] == "extra_forbidden":
            fields = _fields(cls, location[:-1])
            lines.append(f"{where}unknown option '{location[-1]}'; {did_you_mean(location[-1], fields)}")
        elif fault["type"] == "missing":
            lines.append(f"{places.at((*path, *location[:-1]))}option '{location[-1]}' is needed")
        else:
            lines.append(f"{where}{fault['msg']}; found {fault['input']!r}")
    for option, each in forms.items():
        said = ", or: ".join(dict.fromkeys(fault["msg"] for fault in each))
        lines.append(f"{places.at((*path, *option))}{said}; found {each[0]['input']!r}")
    return "\n".join(lines)


# How pydantic names the form of a value that it tried, where an option takes several.
FORM = re.compile(r"constrained-\w+|literal\[.*\]|(list|dict|tuple|set)\[.*\]|function-\w+\[.*\]")


def _fields(cls: Any, location: KeyPath) -> list[str]:
    for part in location:
        options = [cls.model_fields[part].annotation] if part in cls.model_fields else []
        while options and not (isinstance(options[0], type) and issubclass(options[0], BaseModel)):
            options = [*getattr(options[0], "__args__", ()), *options[1:]]
        if not options:
            return []
        cls = options[0]
    return [name for name in cls.model_fields if name != "type"]
