"""Adapters that transformers' `add_adapter` put into a built model: saved beside it as PEFT does, and loaded again.

The folder is a whole model with an adapter in it, as transformers knows it: config and weights, without the adapter,
and `adapter_config.json` with `adapter_model.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from usam.component import ADAPTER, base_name
from usam.model.assembly import outline
from usam.registry import ComponentError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def added_adapter(model: Any) -> str | None:
    """The name of the adapter that was added; None for none.

    Raises:
        ComponentError: there are several, and a folder holds one.
    """
    if not getattr(model, "_hf_peft_config_loaded", False):
        return None
    names = [name for name in model.peft_config if name != ADAPTER]
    if len(names) > 1:
        raise ComponentError(
            f"{len(names)} adapters were added ({', '.join(names)}), and a folder holds one: keep one with "
            "model.delete_adapter(...), and save the others by their own"
        )
    return names[0] if names else None


def without_added(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors without the adapter's, under the names that they had before it came."""
    plain = {base_name(name): tensor for name, tensor in state.items()}
    names = outline(deepcopy(model.config)).state_dict()
    return {name: state[name] if name in state else plain[base_name(name)] for name in names}


def save_added(model: Any, name: str, folder: Path) -> None:
    """Write the adapter as PEFT does."""
    tensors = {f"base_model.model.{n}": t.contiguous() for n, t in model.get_adapter_state_dict(name).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = deepcopy(model.peft_config[name])
    config.inference_mode, config.base_model_name_or_path = True, None  # the model beside it
    config.save_pretrained(folder)


def load_added(model: Any, folder: Path, name: str) -> None:
    """Put the adapter of a folder into its model, beside the model's own LoRA."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    model.load_adapter(str(folder), adapter_name=name)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            there = {part for names in module.adapter_layer_names for part in getattr(module, names)}
            module.set_adapter([known for known in (ADAPTER, name) if known in there])
