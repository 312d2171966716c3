"""A JSON schema of specs, for editors to complete names and options from."""

from __future__ import annotations

import importlib
from typing import Any

from usam.spec.patch import MAPS, SINGLES
from usam.spec.spec import VERSION, Spec


def json_schema() -> dict[str, Any]:
    """A JSON schema of specs with every component that is installed, for editors to complete from.

    Raises:
        ComponentError: an installed component fails to load; the message names it.
    """
    properties: dict[str, Any] = {
        "usam": {"const": VERSION, "description": "Version of the spec format."},
        "base": {"type": "string", "description": "The spec this one changes: a path beside this file, or a name."},
        "template": {"type": "string", "description": Spec.model_fields["template"].description},
        "prompts": {
            "type": "object",
            "additionalProperties": {"type": ["string", "null"]},
            "description": Spec.model_fields["prompts"].description,
        },
    }
    definitions: dict[str, Any] = {}
    for key, group in {**MAPS, **SINGLES, "projector": "usam.projectors"}.items():
        shared, named = _component_schemas(group, definitions)
        described = {"description": Spec.model_fields[key].description}
        if key in MAPS:
            properties[key] = {"type": "object", "properties": named, "additionalProperties": shared} | described
        elif key in SINGLES:
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
