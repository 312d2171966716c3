"""From a config to a model: structure, sources, the dtype of each parameter, and all of it put together."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
)

from usam.component import DTYPES, Component, Parts, building, is_adapter, with_base_layers
from usam.config import UsamConfig
from usam.model.model import UsamForConditionalGeneration
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import Spec, component_config
from usam.weights import Source, dtype_faults

BACKBONE, HEAD = "model.language_model.", "lm_head."
# Patterns of modules that stay as they are when the language model is quantised, and the option that takes them.
OWN = ("encoders", "fusion", "projector", "cross_attention")
NOT_QUANTISED = [*(f"model.{part}" for part in OWN), "lm_head", "losses", r".*\.lora_\w+"]
SKIP_OPTIONS = {
    "bitsandbytes": "llm_int8_skip_modules",
    "hqq": "skip_modules",
    "aqlm": "linear_weights_not_to_quantize",
    "compressed-tensors": "ignore",
}


@dataclass
class Base:
    """What the sources gave: tensors by name, and each part's source."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, Source] = field(default_factory=dict)


def outline(config: UsamConfig) -> UsamForConditionalGeneration:
    """The model's structure without memory."""
    with torch.device("meta"):
        return UsamForConditionalGeneration(config)


def parts(model: UsamForConditionalGeneration) -> Iterator[tuple[str, Any]]:
    """Every component with its prefix; the language model's builder stands for its two halves."""
    for name, encoder in model.model.encoders.parts():
        yield f"model.encoders.{Parts.key(name)}.", encoder
    yield "model.fusion.", model.model.fusion
    for i, stage in enumerate(model.model.projector.stages):
        yield f"model.projector.stages.{i}.", stage
    yield BACKBONE, model.config.llm()
    if model.model.cross_attention is not None:
        yield "model.cross_attention.", model.model.cross_attention
    for name, loss in model.losses.parts():
        yield f"losses.{Parts.key(name)}.", loss


def place_of(prefix: str) -> str:
    """Where a part stands in the spec: `encoders.whisper`, `projector.0`, `llm`."""
    place = prefix.removeprefix("model.").rstrip(".-").replace("projector.stages", "projector")
    return {"language_model": "llm", "cross_attention": "llm.injection"}.get(place, place)


def sources(skeleton: UsamForConditionalGeneration) -> Base:
    """Read every part's source, under the names that the model uses."""
    base = Base()
    for prefix, part in parts(skeleton):
        with building(place_of(prefix), part.config):
            origin = part.source()
            if origin is not None:
                base.origins[prefix.rstrip(".")] = origin
            found = part.stored() if isinstance(part, Component) else part.pretrained()
        if prefix == BACKBONE:
            halves = {"backbone.": (BACKBONE, skeleton.model.language_model), "head.": (HEAD, skeleton.lm_head)}
            for half, (target, module) in halves.items():
                tensors = {n.removeprefix(half): t for n, t in found.items() if n.startswith(half)}
                base.tensors |= {target + n: t for n, t in with_base_layers(module, tensors).items()}
        else:
            base.tensors |= {prefix + n: t for n, t in with_base_layers(part, found).items()}
    return base


def plan_dtypes(
    skeleton: UsamForConditionalGeneration, base: Mapping[str, Tensor], saved: Any, dtype: torch.dtype | None
) -> dict[str, torch.dtype]:
    """The dtype of every parameter.

    A saved tensor keeps its own; adapters are float32; then comes the part's `dtype`; what trains is
    float32; the rest is as its source stores it. A `dtype` given by the caller overrides all of it.
    """
    named = {prefix: part.config.dtype for prefix, part in parts(skeleton)}
    named[HEAD] = named[BACKBONE]
    plan = {}
    for name, parameter in skeleton.named_parameters():
        part = next(named[prefix] for prefix in named if name.startswith(prefix))
        if dtype is not None:
            plan[name] = dtype
        elif name in saved:
            plan[name] = saved[name].dtype
        elif part != "auto" and not is_adapter(name):
            plan[name] = DTYPES[part]
        elif parameter.requires_grad or name not in base:
            plan[name] = torch.float32
        else:
            plan[name] = base[name].dtype
    return plan


def asked_dtype(kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype that the caller asks for, under its new or its old name; None for "auto"."""
    asked = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
    dtype = next((d for d in asked if d is not None and d != "auto"), None)
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype is 'auto', or one of torch's such as 'bfloat16'; found {dtype!r}")
    return dtype


def assemble(*args: Any, **kwargs: Any) -> UsamForConditionalGeneration:
    """The model that `assembled` makes."""
    return assembled(*args, **kwargs)[0]


def with_attention(spec: Spec, asked: Any) -> Spec:
    """The spec with encoders that have the attention which a caller asks for; to the language model transformers sees.

    An encoder that does not have it keeps its own, with a warning.
    """
    if not isinstance(asked, str):
        return spec
    encoders: dict[str, Any] = dict(spec.encoders)
    for name, config in encoders.items():
        if "attn_implementation" not in type(config).model_fields:
            continue
        try:
            node = {**config.to_dict(), "attn_implementation": asked}
            encoders[name] = component_config("usam.encoders", node, ("encoders", name))
        except SpecError:
            kept = config.attn_implementation or "its default"
            warnings.warn(
                f"encoders.{name}: '{config.type}' has no attention '{asked}', and keeps {kept}", stacklevel=3
            )
    return spec.model_copy(update={"encoders": encoders})


def assembled(
    skeleton: UsamForConditionalGeneration,
    tensors: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    may_be_missing: Any,
    who: str,
    ignore_mismatched_sizes: bool = False,
    **kwargs: Any,
) -> tuple[UsamForConditionalGeneration, dict[str, Any]]:
    """The model with these tensors, frozen where the skeleton is; and what transformers tells of the loading.

    Raises:
        ComponentError: lists every tensor that is missing, unexpected, of another shape, or no float.
    """
    if faults := dtype_faults(skeleton, tensors):
        raise ComponentError(f"{who} do not fit the model: " + "; ".join(sorted(faults)))
    quantization = skeleton.config.parsed.llm.to_dict().get("quantization_config")
    if quantization is not None and "quantization_config" not in kwargs:
        kwargs["quantization_config"] = with_skip_list(quantization)
    backbone = [dtype for name, dtype in dtypes.items() if name.startswith(BACKBONE) and not is_adapter(name)]
    with _quiet(), _quantising(quantization):
        model, info = PreTrainedModel.from_pretrained.__func__(
            UsamForConditionalGeneration,
            None,
            config=skeleton.config,
            state_dict=dict(tensors),
            dtype=max(set(backbone), key=backbone.count, default=torch.float32),
            dtypes=dtypes,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kwargs,
        )
    faults = [f"missing {key}" for key in info["missing_keys"] if not may_be_missing(key)]
    faults += [f"unexpected {key}" for key in info["unexpected_keys"]]
    if not ignore_mismatched_sizes:
        faults += [f"{key} is {tuple(found)}, expected {tuple(own)}" for key, found, own in info["mismatched_keys"]]
    if faults:
        raise ComponentError(f"{who} do not fit the model: " + "; ".join(sorted(faults)))
    trains = {name for name, parameter in skeleton.named_parameters() if parameter.requires_grad}
    for name, parameter in model.named_parameters():  # loading has replaced them all by new ones
        parameter.requires_grad_(name in trains and parameter.is_floating_point())
    model.is_quantized = False  # only what is frozen is: the Trainer would refuse to train the rest
    return model, info


@contextmanager
def _quantising(asked: Any) -> Iterator[None]:
    """What transformers lacks for a quantisation is said of the option that asks for it."""
    try:
        yield
    except (ImportError, ValueError, RuntimeError) as error:
        if asked is None:
            raise
        raise ComponentError(f"llm.quantization_config: {error}") from error


def with_skip_list(quantization: Mapping[str, Any]) -> dict[str, Any]:
    """A quantisation config that leaves our own parts, the head and the adapters as they are."""
    config = dict(quantization)
    bits = "load_in_4bit" in config or "load_in_8bit" in config  # of bitsandbytes, which then needs no other name
    key = SKIP_OPTIONS.get("bitsandbytes" if bits else config.get("quant_method", ""), "modules_to_not_convert")
    config[key] = sorted({*(config.get(key) or []), *NOT_QUANTISED})
    return config


def is_own(skeleton: UsamForConditionalGeneration, key: str) -> bool:
    """Whether a sourced component says that it fills this tensor itself."""
    for prefix, part in parts(skeleton):
        if key.startswith(prefix) and isinstance(part, Component):
            return any(fnmatchcase(key.removeprefix(prefix), pattern) for pattern in part.random)
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Our own check of the keys is stricter than the report that transformers would log."""
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
