"""FSDP2: weights that lie in parts on the processes while they train, and are whole in every checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from usam.spec.page import SpecError


def asked(args: TrainingArguments) -> bool:
    """Whether a run is to spread its weights over its processes, as its arguments or accelerate's launcher say.

    Raises:
        SpecError: there is one process only.
    """
    if args.fsdp_plugin_args is None and not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return False
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise SpecError("train.fsdp: one process alone has nobody to share weights with; start several with torchrun")
    return True


def spread(accelerator: Any, args: TrainingArguments) -> None:
    """Have an accelerator spread the weights that it prepares; on CPUs it would not, of itself.

    Raises:
        SpecError: checkpoints do not go with how it would.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        if accelerator.distributed_type != DistributedType.MULTI_CPU:
            raise SpecError(f"train.fsdp: accelerate spreads no weights over {accelerator.distributed_type.value}")
        plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    check(plugin)


def check(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse ways to spread weights that checkpoints, or the model, do not go with.

    Raises:
        SpecError: what to write instead.
    """
    if plugin.fsdp_version != 2:
        raise SpecError(
            "train.fsdp_config.version: FSDP1 packs weights that train with those that do not; write 2 (fsdp_version "
            "in a file of accelerate)"
        )
    if "FULL" not in str(plugin.state_dict_type):
        raise SpecError(
            "train.fsdp_config.state_dict_type: checkpoints are whole, so that any number of processes goes on from "
            "them; write FULL_STATE_DICT (fsdp_state_dict_type in a file of accelerate)"
        )
    if plugin.cpu_ram_efficient_loading:
        raise SpecError(
            "train.fsdp_config.cpu_ram_efficient_loading: each process reads the weights itself; write false "
            "(fsdp_cpu_ram_efficient_loading in a file of accelerate)"
        )


def choose_layers(accelerator: Any, model: nn.Module) -> None:
    """Each layer that a part of the model calls one is gathered by itself, unless the run names others."""
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        present = {type(module).__name__ for module in model.modules()}
        declared = cast(Any, model)._no_split_modules or ()  # of all that its parts could have
        plugin.transformer_cls_names_to_wrap = sorted(present.intersection(declared))


def whole(tensor: Any) -> Any:
    """A tensor that lies in parts on the processes, on every one of them; anything else as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Any], names: Iterable[str], *, keep: bool) -> dict[str, Any]:
    """Some of the tensors, whole and on the CPU, one after the other; all processes call it, and one keeps them."""
    found = {}
    for name in sorted(names):
        tensor = whole(tensors[name])
        if keep:
            found[name] = tensor.detach().cpu()
    return found


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Give each process its parts of whole tensors.

    Returns:
        Names that the model does not have.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name in sorted(own.keys() & tensors.keys()):
            own[name].copy_(_like(tensors[name], own[name]))
    return sorted(tensors.keys() - own.keys())


def whole_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """An optimizer's state as one process alone would have it."""
    state = optimizer.state_dict()
    found = {}
    for number, entries in state["state"].items():
        wholes = {name: whole(value) for name, value in entries.items()}
        if keep:
            found[number] = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in wholes.items()}
    return {**state, "state": found}


def in_parts(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `whole_state` gave, each tensor in parts as its weight is."""
    places = optimizer.state_dict()["param_groups"]
    weights = {
        number: weight
        for group, place in zip(optimizer.param_groups, places, strict=True)
        for number, weight in zip(place["params"], group["params"], strict=True)
    }
    parts = {
        number: {
            name: _like(value, weights[number])
            if isinstance(value, Tensor) and value.shape == weights[number].shape
            else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return {**state, "state": parts}


def _like(tensor: Tensor, other: Any) -> Tensor:
    if not isinstance(other, DTensor):
        return tensor.to(other.device)
    place = (other.device_mesh, other.placements)
    return cast(Tensor, distribute_tensor(tensor.to(other.device), *place, src_data_rank=None))  # each has all of it
