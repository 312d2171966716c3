"""What transformers needs to know about both models: flags, how weights are filled, and what stays still."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions

from usam.component import ADAPTER, drawing, is_adapter
from usam.config import UsamConfig
from usam.saving import WEIGHTS, SavedWhole
from usam.versions.compat import CACHE


class UsamPreTrainedModel(SavedWhole, PreTrainedModel):
    """What transformers needs to know about both models."""

    config_class = UsamConfig
    config: UsamConfig
    replaces = WEIGHTS
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = [CACHE]
    _no_split_modules: Any = None
    seed: int | None = None  # of the weights that no source gives; None draws from the global generator

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Components initialise themselves; what was already loaded stays as it is."""
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        loaded = {name: t for name, t in own.items() if getattr(t, "_is_hf_initialized", False)}
        if own and len(loaded) == len(own):
            return
        if not hasattr(module, "reset_parameters"):
            super()._init_weights(module)
            return
        kept = {name: tensor.clone() for name, tensor in loaded.items()}
        cast(Any, module).reset_parameters()
        for name, tensor in kept.items():
            getattr(module, name).copy_(tensor)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Also ask modules without a tensor of their own, which transformers would pass over in custom code."""
        super()._initialize_weights(module)

    def initialize_weights(self) -> None:
        """Also restart LoRA as a no-op: nested models would give its matrices their own random values."""
        parts = list(_places(self))
        layers = {f"{place}.{name}": layer for place, part in parts for name, layer in _lora_layers(part).items()}
        fresh = {name: layer for name, layer in layers.items() if not _is_loaded(layer)}
        if self.seed is not None:
            for place, part in parts:
                if self.base_model is self:  # also nested models that filled themselves when they were built
                    for module in part.modules():
                        cast(Any, module)._is_hf_initialized = False
                rules = part if isinstance(part, PreTrainedModel) else self
                with torch.no_grad(), guard_torch_init_functions():
                    _initialize(place, part, rules, self.seed)
        super().initialize_weights()  # what is left
        for name, layer in fresh.items():
            with drawing(f"{name}.lora", self.seed):
                _restart(layer)

    def train(self, mode: bool = True) -> UsamPreTrainedModel:
        """Training mode. A frozen language model keeps the flag, which gradient checkpointing needs:
        its dropouts are 0, and its batch norms stay in eval mode.
        """
        super().train(mode)
        backbone = getattr(getattr(self, "model", self), "language_model", None)
        llm: Any = self.config.parsed.llm
        if mode and backbone is not None and llm.freeze == "all":
            for module in backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


@contextmanager
def in_float32() -> Iterator[None]:
    """Our own parts start in float32, whatever dtype the language model is loaded in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _places(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Each part with its place in the spec, in the order of the model; the head has one of its own."""
    inner = getattr(model, "model", model)
    yield from ((f"encoders.{name}", encoder) for name, encoder in inner.encoders.parts())
    yield "fusion", inner.fusion
    yield from ((f"projector.{i}", stage) for i, stage in enumerate(inner.projector.stages))
    yield "llm", inner.language_model
    if inner.cross_attention is not None:
        yield "llm.injection", inner.cross_attention
    if inner is not model:
        yield "llm.head", model.lm_head
        yield from ((f"losses.{name}", loss) for name, loss in model.losses.parts())


def _initialize(place: str, module: nn.Module, model: PreTrainedModel, seed: int) -> None:
    """As transformers does it, children first and by the rules of the model they are in; each module draws by itself.

    By itself, so that it starts equal where its neighbours in the part have other widths.
    """
    for name, child in module.named_children():
        _initialize(f"{place}.{name}", child, child if isinstance(child, PreTrainedModel) else model, seed)
    with drawing(place, seed):
        model._initialize_weights(module, model.is_custom_code())


def _restart(layer: Any) -> None:
    layer.reset_lora_parameters(ADAPTER, True)
    if ADAPTER in layer.lora_magnitude_vector:  # DoRA starts from the norms of the base weights
        dtype = layer.lora_magnitude_vector[ADAPTER].weight.dtype
        layer.lora_variant[ADAPTER].init(layer, adapter_name=ADAPTER)
        layer.lora_magnitude_vector[ADAPTER].to(dtype)


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer) and ADAPTER in m.lora_A}


def _is_loaded(layer: nn.Module) -> bool:
    return all(
        getattr(p, "_is_hf_initialized", False) or p.device.type == "meta"
        for name, p in layer.named_parameters()
        if is_adapter(name)
    )


def check_adapter(model: Any) -> None:
    if torch.compiler.is_compiling():
        return
    probe = model.__dict__.get("_adapter_probe")
    if probe is None:
        probe = model.__dict__["_adapter_probe"] = list(_lora_layers(model).values())[:1]
    if probe and ADAPTER not in probe[0].active_adapters:
        raise ValueError(
            f"another adapter ({', '.join(probe[0].active_adapters)}) has switched off the model's own LoRA: "
            f"keep both active with set_adapter(['{ADAPTER}', ...]), or take 'lora' out of the spec"
        )


def give_dtypes(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Each parameter in the dtype named for it; adapters in float32 else."""
    for name, parameter in model.named_parameters():
        dtype = dtypes.get(name, torch.float32 if is_adapter(name) else parameter.dtype)
        if parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
