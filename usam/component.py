"""A component is a small module that owns its options; what all families share is here.

One road for weights: `__init__` builds structure and works on the meta device, `pretrained` reads a
source, `reset_parameters` fills what a module itself owns, `adapt` injects LoRA and freezes.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassFieldValidationError
from pydantic import Field, field_validator
from torch import Tensor, nn

from usam.registry import ComponentError, Registry, did_you_mean
from usam.spec.page import SpecError
from usam.spec.sizes import TOKENS
from usam.spec.spec import Config, component_config
from usam.versions.tested import UnsupportedVersion
from usam.weights import Source, dtype_faults, locate

ADAPTER = "usam"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoRA(Config):
    """Low-rank adapters (Hu et al., 2021), by PEFT and with PEFT's names."""

    r: int = Field(8, gt=0, le=TOKENS)
    """Rank."""
    lora_alpha: float = Field(16, gt=0)
    """Scale: the update is multiplied by lora_alpha / r."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    target_modules: list[str] | str | None = None
    """Names of the linear layers that get adapters; null takes PEFT's choice for the model type."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA)."""

    @field_validator("type")
    @classmethod
    def _is_no_component(cls, name: str) -> str:
        if name:
            raise ValueError("lora is one thing and has no type; leave it out")
        return name


class ComponentConfig(Config):
    """Options that every family has."""

    freeze: Literal["all", "none"] | list[str] = "none"
    """What does not train: all, none, or patterns of parameter names such as `encoder.layers.[0-9].*`."""
    lora: LoRA | None = None
    """Low-rank adapters; they train whatever `freeze` says."""
    lr_scale: float = Field(1.0, gt=0, le=1000)
    """Multiplies the learning rate of this component's parameters."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the weights; auto: as the source stores them, and float32 for what trains. Adapters stay float32."""

    component: ClassVar[type[Any]]


class Parts(nn.ModuleDict):
    """Modules by any name that a spec may give them, which a ModuleDict refuses where it has a method of that name.

    Such a module is kept under `key(name)`, which no spec can write; all others under their own names.
    """

    @staticmethod
    def key(name: str) -> str:
        """The name of a part's module, as it stands in the names of its tensors."""
        return f"{name}-" if name in TAKEN else name

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(self.key(name), module)

    def __getitem__(self, name: str) -> nn.Module:
        return super().__getitem__(self.key(name))

    def __contains__(self, name: str) -> bool:
        return super().__contains__(self.key(name))

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Each module with the name it was given."""
        return ((key.removesuffix("-"), module) for key, module in self.items())


TAKEN = frozenset(dir(Parts()))


class Component(nn.Module):
    """A part of the model.

    A subclass has a nested `Config`, takes it as its only positional argument, and infers its widths.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_config(cls)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    random: ClassVar[tuple[str, ...]] = ()
    """Patterns of tensor names that no source gives, such as a mix of layers; they train even under `freeze: all`."""

    def source(self) -> Source | None:
        """Where the weights come from: the config's `path`, if it has one; None when they are random."""
        return source_of(self.config)

    def pretrained(self) -> dict[str, Tensor]:
        """The source's tensors under this component's own names; nothing when there is no source."""
        return {}

    def stored(self) -> dict[str, Tensor]:
        """What is loaded: `pretrained()`, unless a family has a source that is the same for all its components."""
        return self.pretrained()

    def reset_parameters(self) -> None:
        """Fill the parameters and buffers that this very module owns (not those of its children)."""

    def load_weights(self) -> None:
        """Load what is stored.

        Raises:
            ComponentError: a tensor is missing, unexpected or of another shape; all are listed.
        """
        tensors = self.stored()
        if tensors:
            check_keys(self, tensors, repr(self.config.type or type(self).__name__), self.random)
            self.load_state_dict(tensors, assign=True, strict=not self.random)

    def train(self, mode: bool = True) -> Component:
        """Training mode, except for what is frozen: no dropout there, and no drifting statistics."""
        super().train(mode)
        if mode:
            keep_frozen_still(self, self.config.freeze)
        return self


class Float32Linear(nn.Linear):
    """A linear map in float32, or wider, whatever its weights are stored in: rounding must not pick an expert."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.linear(x.to(wide), self.weight.to(wide), bias)


@contextmanager
def building(place: str, config: Any, seed: int | None = None) -> Iterator[None]:
    """Build one part of a spec: what goes wrong names its place, and what is drawn comes from the part's own generator.

    Args:
        place: the part's key in the spec, such as `encoders.whisper`.
        config: its config.
        seed: see `drawing`; None draws from the global generator.

    Raises:
        SpecError, ComponentError: for any exception; the message begins with the place and names the options given.
    """
    try:
        with drawing(place, seed):
            yield
    except (SpecError, ComponentError) as error:
        if str(error).startswith((f"{place}:", f"{place}.")):
            raise
        kind = SpecError if isinstance(error, SpecError) else ComponentError
        key = re.match(r"(\w+)[.:]", str(error))  # of one of its own options
        own = key is not None and key[1] in type(config).model_fields
        raise kind(f"{place}{'.' if own else ': '}{error}") from error
    except (UnsupportedVersion, MemoryError, torch.OutOfMemoryError):  # not the spec's fault
        raise
    except StrictDataclassFieldValidationError as error:  # of a config of transformers, which `arch` becomes
        field = re.findall(r"field '(\w+)'", str(error))[0]
        raise SpecError(f"{place}.arch.{field}: {error.__cause__ or error}") from error
    except Exception as error:
        defaults = {name: field.default for name, field in type(config).model_fields.items()}
        given = sorted(name for name in config.model_fields_set if getattr(config, name) != defaults.get(name))
        options = " and ".join(f"{place}.{name}" for name in given if name != "type") or "its defaults"
        said = " ".join(str(error).partition("\nException raised from")[0].split())  # torch appends its C++ frames
        raise ComponentError(
            f"{place}: {config.type!r} cannot be built from {options}: {type(error).__name__}: {said}"
        ) from error


def build_part(place: str, registry: Registry[Any], config: Any, seed: int | None, **widths: Any) -> Any:
    """One component at its place in a model, with its adapters, and frozen where its config says so."""
    with building(place, config, seed):
        module = registry.get(config.type)(config, **widths)
        check_width(module)
        return adapt(module, module.config)


def check_width(module: Any) -> None:
    """Ask a component whose family has a width for its own.

    Raises:
        ComponentError: it has none, or one that is no positive whole number.
    """
    if any("dim" in vars(cls).get("__annotations__", {}) for cls in type(module).__mro__):
        dim = getattr(module, "dim", None)
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            found = "none" if dim is None else repr(dim)
            raise ComponentError(
                f"{type(module).__name__} needs 'dim', the width of the frames that it gives: a whole number, of the "
                f"class or set in __init__; found {found}"
            )


@contextmanager
def drawing(place: str, seed: int | None) -> Iterator[None]:
    """Draw from a generator that the place and the seed name, and leave the global one as it was; None: as ever."""
    if seed is None:
        yield
        return
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    own = int.from_bytes(hashlib.sha256(f"{seed}:{place}".encode()).digest()[:7], "big")
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(own)
        if devices:
            torch.cuda.manual_seed_all(own)
        yield


def source_of(config: Any) -> Source | None:
    """The source that a config's `path` and `revision` name; None without a path."""
    path = getattr(config, "path", None)
    return locate(path, getattr(config, "revision", None)) if path else None


def own_config(cls: Any) -> None:
    """Give a component class a Config of its own, which knows the class it configures."""
    if "Config" not in cls.__dict__:
        space = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config", "__doc__": cls.__doc__}
        # It adds no option, and pydantic would look for its source in every frame of the stack, which takes long.
        cls.Config = type(cls.Config)("Config", (cls.Config,), space, use_attribute_docstrings=False)
        cls.Config.model_config["use_attribute_docstrings"] = True  # for what inherits from it
    cls.Config.component = cls


def check_keys(module: nn.Module, tensors: Mapping[str, Tensor], who: str, random: Iterable[str] = ()) -> None:
    """Compare a source's tensors with what a module holds, but for the names that no source gives.

    Raises:
        ComponentError: names every key that is missing, unexpected, of another shape, or no float.
    """
    own = module.state_dict()
    missing = [key for key in own.keys() - tensors.keys() if not any(fnmatchcase(key, name) for name in random)]
    faults = [f"missing {key} {tuple(own[key].shape)}" for key in missing]
    faults += [f"unexpected {key} {tuple(tensors[key].shape)}" for key in tensors.keys() - own.keys()]
    faults += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own.keys() & tensors.keys()
        if own[key].shape != tensors[key].shape
    ]
    faults += dtype_faults(module, tensors)
    if faults:
        raise ComponentError(f"{who}: the checkpoint does not fit: " + "; ".join(sorted(faults)))


M = TypeVar("M", bound=nn.Module)


def adapt(module: M, config: ComponentConfig) -> M:
    """Inject LoRA, then freeze what the config says; adapters, and what no source gives, train under `freeze: all`.

    Raises:
        SpecError: a pattern that matches no parameter, or target modules that do not exist.
    """
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    if config.lora is not None:
        _inject(module, config.lora)
    patterns = {"all": ["*"], "none": []}.get(config.freeze) if isinstance(config.freeze, str) else config.freeze
    unused = set(patterns or [])
    new = getattr(module, "random", ()) if config.freeze == "all" else ()  # no source gives it: frozen it is useless
    for name, parameter in module.named_parameters():
        plain = base_name(name)
        hits = [pattern for pattern in patterns or [] if fnmatchcase(plain, pattern)]
        unused.difference_update(hits)
        if any(fnmatchcase(plain, pattern) for pattern in new):
            hits = []
        parameter.requires_grad_(is_adapter(name) or (plain in trainable and not hits))
    if unused - {"*"}:
        some = ", ".join(base_name(name) for name, _ in list(module.named_parameters())[:3])
        raise SpecError(f"freeze: no parameter matches {sorted(unused)}; names look like {some}")
    if config.freeze == "all":
        for child in module.modules():
            if isinstance(child, nn.modules.dropout._DropoutNd) and not _in_adapter(child, module):
                child.p = 0.0
    return module


def _inject(module: nn.Module, lora: LoRA) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    names = [name for name, _ in module.named_modules()]
    layers = [name for name, child in module.named_modules() if isinstance(child, (nn.Linear, Conv1D))]
    if isinstance(lora.target_modules, list):
        if not lora.target_modules:
            raise SpecError("lora.target_modules: an empty list names no layer; leave lora out")
        unknown = [t for t in lora.target_modules if not any(n == t or n.endswith(f".{t}") for n in names)]
        if unknown:
            known = {name.rpartition(".")[2] for name in layers} | set(layers)
            hints = "; ".join(f"no module is called '{name}', {_closest(name, known)}" for name in unknown)
            raise SpecError(f"lora.target_modules: {hints}")
    if not layers:
        raise SpecError("lora: this component has no linear layer that could be adapted; leave lora out")
    try:
        inject_adapter_in_model(LoraConfig(**lora.to_dict()), module, adapter_name=ADAPTER)
    except (ValueError, re.error) as error:
        said = str(error).partition(". Please check")[0]
        if isinstance(lora.target_modules, str):
            said += "; a text is a regular expression of whole names, and a list holds their ends: [q_proj, v_proj]"
        raise SpecError(f"lora.target_modules: {said}") from error
    except (KeyError, AttributeError) as error:
        if lora.target_modules is not None:
            raise
        raise SpecError(
            "lora: PEFT chooses layers for transformers' models only; write target_modules, names such as "
            + ", ".join(layers[:4])
        ) from error


def _closest(name: str, known: Iterable[str]) -> str:
    hint = did_you_mean(name, known)
    return (
        hint if hint.startswith("did") else f"names look like {', '.join(sorted(known, key=lambda n: (len(n), n))[:4])}"
    )


def _in_adapter(dropout: nn.Module, module: nn.Module) -> bool:
    return any(dropout in layer.modules() for layer in adapter_parts(module))


def adapter_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The dropouts and matrices that LoRA added."""
    for name, child in module.named_modules():
        if name.rpartition(".")[2].startswith("lora_"):
            yield child


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is one that LoRA added."""
    return any(part.startswith("lora_") for part in name.split("."))


def base_name(name: str) -> str:
    """A parameter's name as it is without LoRA."""
    return name.replace(".base_layer.", ".")


def with_base_layers(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A source's tensors under the names they have after LoRA has wrapped some layers."""
    wrapped = {base_name(name): name for name in module.state_dict() if ".base_layer." in name}
    return {wrapped.get(name, name): tensor for name, tensor in tensors.items()}


def own_dtype(module: nn.Module) -> torch.dtype | None:
    """What a component computes in: the dtype of its first weights that are no adapter's; None without any."""
    own = (p.dtype for name, p in module.named_parameters() if not is_adapter(name) and p.is_floating_point())
    return next(own, None)


def is_frozen(module: nn.Module) -> bool:
    """Whether nothing in the module trains."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def keep_frozen_still(module: nn.Module, freeze: str | list[str]) -> None:
    """Put what is frozen in eval mode inside a module that is in training mode."""
    if is_frozen(module) and freeze != "none":
        nn.Module.train(module, False)
    elif freeze == "all":  # adapters train, nothing else does
        nn.Module.train(module, False)
        for part in adapter_parts(module):
            part.train(True)
    elif freeze != "none":
        for child in module.modules():
            if child is not module and any(True for _ in child.parameters()) and is_frozen(child):
                nn.Module.train(child, False)


def build(group: str, component: str | Mapping[str, Any] | Config, options: Mapping[str, Any]) -> Any:
    """(class, config) of one component given by name or dict, with options laid over."""
    if isinstance(component, Config):
        node: Any = {**component.to_dict(), **options} if options else component
    else:
        node = {**({"type": component} if isinstance(component, str) else component), **options}
    config = component_config(group, node)
    return importlib.import_module(group).registry.get(config.type), config


def finish(module: M, config: ComponentConfig, weights: bool) -> M:
    """Load and adapt a component that stands alone."""
    check_width(module)
    if weights and isinstance(module, Component):
        module.load_weights()
    adapt(module, config)
    if config.dtype != "auto":
        module.to(DTYPES[config.dtype])
    return module.eval()
