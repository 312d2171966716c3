"""What every component promises, whatever its family."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from usam.component import adapt, build
from usam.spec.page import SpecError
from usam.spec.spec import Config, component_config
from usam.testing.promises import Broken, Claim, require, require_same
from usam.types import Audio, Frames, LossInputs, LossOutput, Prompt, Vocabulary

TOLERANCE = 1e-4  # what batching and padding may change, as a share of the largest value (or of 1)
BFLOAT16 = 0.1  # a bfloat16 output differs from float32's by at most this share of its norm


@dataclass(frozen=True)
class Named:
    """A component as its user names it."""

    component: str | Mapping[str, Any] | Config
    options: Mapping[str, Any]

    group: ClassVar[str]

    @cached_property
    def _named(self) -> tuple[Any, Any]:
        cls, config = build(self.group, self.component, self.options)
        return cls, config

    @property
    def config(self) -> Any:
        """The component's checked config."""
        return self._named[1]

    def __str__(self) -> str:
        return f"{self.group}:{self.config.type}"


@dataclass(frozen=True)
class Case(Named, ABC):
    """A component with what is needed to build and to call it."""

    @abstractmethod
    def construct(self, cls: Any, config: Any) -> Any:
        """The component's structure, with widths of the case's choice."""

    @abstractmethod
    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Arguments to call the component with: items of different lengths."""

    def at_dtype(self, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
        """The inputs as a model of that dtype passes them."""
        return tuple(at_dtype(item, dtype) for item in inputs)

    def structure(self, **changes: Any) -> Any:
        """The component as `__init__` leaves it."""
        cls, config = self._named
        return self.construct(cls, config.model_copy(update=changes))

    def build(self, *, seed: int = 0, **changes: Any) -> Any:
        """The component with weights and adapters, in eval mode and float32; equal seeds give equal weights.

        Every parameter is moved a little: a gate or a scale that starts as 0 or 1 would hide a fault.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.structure(**changes)
            module.load_weights()
            adapt(module, self.config.model_copy(update=changes)).float()
            shake(module)
        return module.eval()


WORDS = 11  # of the vocabulary


def vocabulary(dim: int, seed: int = 7) -> Vocabulary:
    """Words with random embeddings, and a head of other weights."""
    generator = torch.Generator().manual_seed(seed)
    table, head = (torch.randn(WORDS, dim, generator=generator) for _ in range(2))
    return Vocabulary(
        WORDS,
        dim,
        embed=partial(nn.functional.embedding, weight=table),
        logits=lambda hidden, ids: hidden @ head[ids].to(hidden.dtype).mT,
    )


def require_nothing_kept(module: nn.Module, lent: Vocabulary) -> None:
    """Raise Broken if a component holds what it was lent."""
    table = lent.embed(torch.arange(lent.size))
    look_at = "what forward sets on the component: the vocabulary is lent for one call"
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            require(not isinstance(value, Vocabulary), "a component that keeps no vocabulary", f"{name}.{key}", look_at)
    for name, tensor in module.state_dict().items():
        own = tensor.shape != table.shape or not torch.equal(tensor, table)
        require(own, "a component that keeps no token table", f"one in {name}", look_at)


def shake(module: nn.Module) -> None:
    """Move every parameter by a fiftieth of its spread."""
    with torch.no_grad():
        for parameter in module.parameters():
            spread = parameter.std() if parameter.numel() > 1 else parameter.new_tensor(0.0)
            parameter.add_(torch.randn_like(parameter) * torch.where(spread > 0, spread, 1.0) * 0.02)


def tensors(result: Any) -> list[Tensor]:
    """What a component returns, as tensors: padding set to zero, for it may hold anything."""
    if isinstance(result, Frames):
        return [result.x.masked_fill(~result.mask.unsqueeze(-1), 0), result.mask]
    if isinstance(result, LossOutput):
        return [result.value]
    raise Broken("Frames or a LossOutput", f"a {type(result).__name__}", "what forward returns")


def own_frames(frames: Frames, item: int) -> Tensor:
    """An item's frames without padding: (time, dim)."""
    return frames.x[item][frames.mask[item]]


def require_no_leak(out: Tensor, source: Tensor, look_at: str) -> None:
    """Raise Broken if the gradient of one item's output reaches another item's input."""
    if not out.requires_grad:
        return
    for i in range(len(out)):
        (gradient,) = torch.autograd.grad(out[i].float().square().sum(), source, retain_graph=True, allow_unused=True)
        if gradient is not None:
            reached = [j for j in range(len(out)) if j != i and bool(gradient[j].any())]
            require(not reached, f"no gradient from item {i} to others", f"some in items {reached}", look_at)


def at_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Features at another dtype; audio stays in float32, as the model passes it."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: at_dtype(item, dtype) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(at_dtype(item, dtype) for item in value)
    if isinstance(value, (Frames, Prompt, LossInputs)):
        return type(value)(**{name: at_dtype(item, dtype) for name, item in vars(value).items()})
    return value


def written_elsewhere(module: nn.Module) -> set[str]:
    """Names of the submodules of transformers, which the composite initialises by transformers' own rules."""
    roots = [n for n, m in module.named_modules() if n and type(m).__module__.startswith("transformers.")]
    return {n for n, _ in module.named_modules() if any(n == root or n.startswith(f"{root}.") for root in roots)}


def front_end(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that no checkpoint holds, by name: windows, filters, tables."""
    for name, child in module.named_modules():
        for key in child._non_persistent_buffers_set:
            buffer = child._buffers[key]
            if buffer is not None:
                yield f"{name}.{key}".lstrip("."), buffer


def config_round_trips(case: Case) -> None:
    """A config survives a spec, a JSON file and a pickle.

    Else a saved model, a run in another process or a record comes back with other options.
    """
    for config in (case.config, case.structure().config):
        data = config.to_dict()
        again = component_config(case.group, json.loads(json.dumps(data)))
        require(again == config, f"{config!r}", f"{again!r} after to_dict and JSON", "defaults that are not None")
        require(pickle.loads(pickle.dumps(config)) == config, "an equal config", "another after pickle", "the Config")


def refuses_unknown_options(case: Case) -> None:
    """An option that does not exist is a SpecError.

    Else a misspelt option is ignored, and a run is not what its file says.
    """
    node = {**case.config.to_dict(), "no_such_option": 1}
    try:
        component_config(case.group, node)
    except SpecError:
        return
    raise Broken("a SpecError for 'no_such_option'", "that it was accepted", "model_config of the Config: extra")


def loads_nothing_in_init(case: Case) -> str | None:
    """Building the structure reads no weights: the config is enough.

    Else loading a saved model asks the hub for weights that it already has, and fails without a network.
    """
    config = case.structure().config
    if "path" not in type(config).model_fields:
        return "it has no option 'path'"
    arch = getattr(config, "arch", None)
    if arch is None and "arch" in type(config).model_fields:
        return "give 'arch' or 'path' to test it"
    with tempfile.TemporaryDirectory() as folder:
        if arch is not None:
            (Path(folder) / "config.json").write_text(json.dumps(arch), encoding="utf-8")
        try:
            case.structure(path=folder, **({} if arch is None else {"arch": arch}))
        except Exception as error:
            raise Broken(
                "that it builds from a folder that has a config and no weights",
                f"{type(error).__name__}: {error}",
                "__init__: weights are read in pretrained(), and the config keeps the architecture in 'arch'",
            ) from error
    return None


def survives_meta_device(case: Case) -> None:
    """Built on the meta device and filled by `reset_parameters`, nothing is left uninitialised.

    Else `from_pretrained` leaves memory as it was found in a table, and a model is wrong at random.
    """
    look_at = "__init__, and reset_parameters of the module that owns it"
    with torch.device("meta"):
        module = case.structure()
    stray = [n for n, t in _state(module) if t.device.type != "meta"]
    require(not stray, "that all is on the meta device", f"{', '.join(stray)} elsewhere", "__init__")
    plain = list(_plain_tensors(module))
    require(not plain, "parameters and buffers", f"plain tensors: {', '.join(plain)}", "register_buffer in __init__")
    module.to_empty(device="cpu")
    for _, tensor in _state(module):
        tensor.detach().fill_(float("nan") if tensor.is_floating_point() else 77)
    initialise(module)
    twin = case.structure()
    tables = dict(front_end(twin))
    for name, buffer in front_end(module):
        require_same(buffer, tables[name], f"the buffer {name} as a plain build has it", look_at, 1e-6)
    others = written_elsewhere(module)
    for name, tensor in _state(module):
        if name.rpartition(".")[0] not in others and tensor.is_floating_point():
            require(not tensor.isnan().any(), "that all is filled", f"{name} uninitialised", look_at)
    module.load_state_dict(twin.state_dict())
    inputs = case.inputs()
    for ours, reference in zip(tensors(module.eval()(*inputs)), tensors(twin.eval()(*inputs)), strict=True):
        require_same(ours, reference, "the output of a plain build with the same weights", look_at, 1e-6)


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _plain_tensors(module: nn.Module) -> Iterator[str]:
    """Tensors that a module holds as mere attributes, which no device move and no checkpoint reaches."""
    known = {id(tensor) for _, tensor in _state(module)}
    for name, child in module.named_modules():
        for key, value in vars(child).items():
            held = value if isinstance(value, (list, tuple)) else [value]
            if any(isinstance(item, Tensor) and id(item) not in known for item in held):
                yield f"{name}.{key}".lstrip(".")


def initialise(module: nn.Module) -> None:
    """Fill a module as loading a model does: by reset_parameters, and transformers' models by their own rules."""
    models = [child for child in module.modules() if isinstance(child, PreTrainedModel)]
    for model in models:
        for child in model.modules():
            child.__dict__.pop("_is_hf_initialized", None)
        model.init_weights()
    inside = {id(child) for model in models for child in model.modules()}
    for child in module.modules():
        if id(child) in inside:
            continue
        if isinstance(child, nn.MultiheadAttention):
            child._reset_parameters()
        elif callable(reset := getattr(child, "reset_parameters", None)):
            reset()


def gradient_reaches_every_trainable_parameter(case: Case) -> str | None:
    """Every step gives every trainable parameter a gradient, or distributed training would stall.

    Else such a parameter also decays without ever learning.
    """
    module = case.build(freeze="none").train()
    totals = {name: 0.0 for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not totals:
        return "it has no parameters"
    for seed in range(3):
        module.zero_grad(set_to_none=True)
        result = tensors(module(*case.inputs(seed)))[0]
        require(result.requires_grad, "an output with a gradient", "one without", "no_grad or detach in forward")
        torch.autograd.backward((result * torch.randn_like(result)).sum())
        for name in totals:
            gradient = module.get_parameter(name).grad
            require(gradient is not None, "a gradient", f"none for {name}", "whether forward always uses it")
            totals[name] += float(gradient.abs().sum())
    idle = [name for name, total in totals.items() if total == 0]
    require(not idle, "gradients that are not zero", f"only zeros for {', '.join(idle)}", "what it is multiplied with")
    return None


def stays_frozen(case: Case) -> None:
    """Frozen, nothing trains (but what no source gives), drops out or drifts, even in training mode.

    Else features that a cache keeps, or that were evaluated, are not those that a run learns from.
    """
    module = case.build(freeze="all", lora=None)
    module.train()
    new = getattr(module, "random", ())
    trains = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and not any(fnmatchcase(name, pattern) for pattern in new)
    ]
    require(not trains, "that nothing trains", f"{', '.join(trains)}", "requires_grad_ in __init__ or forward")
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    first, second = tensors(module(*case.inputs())), tensors(module(*case.inputs()))
    look_at = "F.dropout without self.training, or a train() that overrides the component's"
    for a, b in zip(first, second, strict=True):
        require_same(b, a, "two equal calls in training mode", look_at)
    for name, buffer in module.named_buffers():
        require_same(buffer, before[name], f"that {name} stands still", "statistics that a batch norm keeps")


def runs_in_bfloat16(case: Case) -> None:
    """In bfloat16 it gives finite values, within a tenth of float32's norm.

    Else it cannot be used where models run on a GPU.
    """
    inputs = case.inputs()
    with torch.no_grad():
        reference = tensors(case.build()(*inputs))[0].double()
        ours = tensors(case.build().to(torch.bfloat16)(*case.at_dtype(inputs, torch.bfloat16)))[0].double()
    require(bool(ours.isfinite().all()), "finite values", "NaN or infinity", "what overflows or divides")
    error = float((ours - reference).norm() / reference.norm().clamp_min(1e-12))
    require(
        error <= BFLOAT16, f"an error of at most {BFLOAT16:.0%}", f"{error:.0%}", "what must be computed in float32"
    )


def compiles(case: Case) -> None:
    """torch.compile makes one graph of it, with the same result.

    Else the whole model is cut into pieces there, which costs the time that compiling should save.
    """
    import torch._dynamo

    module, inputs = case.build(), case.inputs()
    # As from within a model, where hooks are part of the graph; from outside torch makes a second one of them.
    call: Any = (lambda *given: module(*given)) if module._forward_pre_hooks else module
    compiled: Any = torch.compile(call, backend="eager")
    with torch.no_grad():
        torch._dynamo.reset()
        found = torch._dynamo.explain(call)(*inputs)
        reasons = " | ".join(str(reason.reason).strip().splitlines()[0] for reason in found.break_reasons)
        breaks = f"{found.graph_break_count}: {reasons}"
        require(found.graph_break_count <= 0, "no graph break", breaks, "what depends on a tensor's values")
        torch._dynamo.reset()
        ours, reference = tensors(compiled(*inputs)), tensors(module(*inputs))
        torch._dynamo.reset()
    for a, b in zip(ours, reference, strict=True):
        require_same(a, b, "the result without torch.compile", "what runs only when compiling", 1e-5)


def leaves_its_input_alone(case: Case) -> None:
    """What it is given is as it was after the call: another part reads it too.

    Else the other parts read something else than the encoder gave, depending on the order of calls.
    """
    inputs, copies = case.inputs(), case.inputs()
    with torch.no_grad():
        case.build()(*inputs)
    for ours, reference in zip(_leaves(inputs), _leaves(copies), strict=True):
        require_same(ours, reference, "the input as it was given", "operations in place, such as mul_ and x[...] =")


def _leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in what a component is given."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Frames, Prompt, Audio, LossInputs)):
        yield from _leaves(vars(value))
    elif isinstance(value, (Mapping, tuple)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(item)


def is_deterministic(case: Case) -> None:
    """In eval mode equal calls give the same bits, whatever was called between them.

    Else no evaluation can be repeated, and a resumed run is another one.
    """
    module = case.build()
    with torch.no_grad():
        first = tensors(module(*case.inputs()))
        torch.manual_seed(1)
        module(*case.inputs(seed=5))
        second = tensors(module(*case.inputs()))
    for a, b in zip(first, second, strict=True):
        require_same(b, a, "the same output twice", "randomness in forward, or state that a call leaves behind")


def state_dict_round_trips(case: Case) -> None:
    """Another build with the same state dict gives the same bits.

    Else a checkpoint does not hold all that the component is.
    """
    module, other = case.build(), case.build(seed=1)
    other.load_state_dict(copy.deepcopy(module.state_dict()))
    with torch.no_grad():
        reference, ours = tensors(module(*case.inputs())), tensors(other(*case.inputs()))
    for a, b in zip(ours, reference, strict=True):
        require_same(a, b, "the output of the module that was saved", "tensors that are neither parameter nor buffer")


EVERY: list[Claim] = [
    config_round_trips,
    refuses_unknown_options,
    loads_nothing_in_init,
    survives_meta_device,
    gradient_reaches_every_trainable_parameter,
    stays_frozen,
    runs_in_bfloat16,
    compiles,
    leaves_its_input_alone,
    is_deterministic,
    state_dict_round_trips,
]
