"""The encoder of a model that usam saved, as the source of another: a specialist is trained, then frozen elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from usam.component import Parts
from usam.registry import ComponentError
from usam.spec.spec import Config
from usam.weights import local_path, locate, read, read_json

PREFIX = "model.encoders."
OWN = ("path", "revision", "lora")  # options of the saved encoder that say nothing of its architecture
ADAPTERS = (".lora_A.", ".lora_B.", ".base_layer.", ".lora_magnitude_vector.")


@dataclass(frozen=True)
class Saved:
    """One encoder of a saved model: the folder, its name there, and its options."""

    path: str
    name: str
    options: Mapping[str, Any]

    def tensors(self, wanted: Iterable[str]) -> dict[str, Tensor]:
        """Its weights, under the component's own names.

        Raises:
            ComponentError: the folder does not hold all that is wanted, or holds adapters beside it.
        """
        prefix = f"{PREFIX}{Parts.key(self.name)}."
        stored = read(locate(self.path))
        found = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
        adapted = any(part in f".{key}" for key in found for part in ADAPTERS)
        if adapted or not found.keys() >= set(wanted):
            why = (
                "has adapters there" if adapted else "is not whole there, for what did not train is left to its source"
            )
            raise ComponentError(
                f"{self.path}: encoders.{self.name} {why}; `usam export {self.path} FOLDER` writes all of it: "
                "name that folder as 'path'"
            )
        return found


C = TypeVar("C", bound=Config)


def of_saved(config: C) -> C | None:
    """The config with what it leaves open as the encoder has it that its `path`, a folder that usam saved, holds."""
    found = saved(getattr(config, "path", None), config.type)
    if found is None:
        return None
    left = {key: value for key, value in found.options.items() if getattr(config, key, ...) is None and key not in OWN}
    return type(config).model_validate({**config.to_dict(), **left})


def saved(path: str | None, kind: str) -> Saved | None:
    """The one encoder of a kind in a folder that usam saved; None where `path` is anything else.

    Raises:
        ComponentError: the model has no encoder of this kind, or several.
    """
    if not path or not (file := local_path(path) / "config.json").is_file():
        return None
    config = read_json(file)
    if config.get("model_type") != "usam":
        return None
    spec = config.get("spec") if isinstance(config.get("spec"), dict) else {}
    encoders = {name: one for name, one in spec.get("encoders", {}).items() if isinstance(one, dict)}  # type: ignore[union-attr]
    bare = kind.rpartition(":")[2]
    own = [name for name, one in encoders.items() if str(one.get("type", name)).rpartition(":")[2] == bare]
    if len(own) != 1:
        has = ", ".join(f"{name} ({one.get('type', name)})" for name, one in encoders.items()) or "none"
        raise ComponentError(
            f"{path}: is a model of usam, and must have one encoder of type '{kind}' to take weights from; it has {has}"
        )
    return Saved(path, own[0], encoders[own[0]])
