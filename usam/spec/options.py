"""A component's options as text: what each is called, takes, starts at and means."""

from __future__ import annotations

import json
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from usam.spec.spec import Config

BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "multiple_of": "a multiple of"}


@dataclass(frozen=True)
class Option:
    """One option; those inside another are called `lora.r`."""

    name: str
    type: str
    default: str
    description: str

    def __str__(self) -> str:
        head = f"  {f'{self.name}: {self.default}':40}  {self.type}"
        return f"{head}\n{textwrap.fill(self.description, 116, initial_indent=' ' * 6, subsequent_indent=' ' * 6)}"


def options(config: type[Config], prefix: str = "") -> Iterator[Option]:
    """Every option of a config, each followed by those inside it; not the type of what has no name of its own."""
    for name, field in config.model_fields.items():
        if name == "type" and field.annotation is str:
            continue
        inside = list(_configs(field.annotation))
        yield Option(prefix + name, _type(field.annotation, field.metadata), _default(field), field.description or "")
        for each in inside:
            yield from options(each, f"{prefix}{name}.")


def own_and_shared(config: type[Config], base: type[Config]) -> tuple[list[Option], list[Option]]:
    """A component's own options, and those that every component of its family has."""
    found = list(options(config))
    shared = [option for option in found if option.name.partition(".")[0] in base.model_fields]
    return [option for option in found if option not in shared], shared


def _configs(annotation: Any) -> Iterator[type[Config]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for inner in get_args(annotation):
        yield from _configs(inner)


def _type(annotation: Any, bounds: Any = ()) -> str:
    """An annotation as a reader of YAML would write it: `int >= 1 | null`, `sum | mean`, `list[int]`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0], [*inner[1:], *bounds])
    if origin is Literal:
        return " | ".join(_value(value) for value in inner)
    if origin in (Union, types.UnionType):
        return " | ".join(_type(each, bounds) for each in inner)
    if annotation in (None, type(None)):
        return "null"
    if origin is not None:
        kinds = [_type(each) for each in inner if each not in (Any, ...)]
        return f"{origin.__name__}[{', '.join(kinds)}]" if kinds and origin is not dict else str(origin.__name__)
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "map of the options below"
    name = getattr(annotation, "__name__", str(annotation))
    return " ".join([name, *_limits(bounds)]) if annotation in (int, float) else name


def _limits(bounds: Any) -> Iterator[str]:
    for bound in bounds:
        limits = _limits(bound.metadata) if isinstance(bound, FieldInfo) else ()
        yield from limits or (f"{sign} {getattr(bound, key)}" for key, sign in BOUNDS.items() if hasattr(bound, key))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(needed)"
    value = field.get_default(call_default_factory=True, validated_data={})
    return _value(value.to_dict() if isinstance(value, Config) else value)


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(to_jsonable_python(value))
