"""Hollow computation: tensors on the meta device, of which only the few that decide about shapes have values.

A model's own code runs as it stands, at any size, without its memory and without its work. Lengths, masks and token ids
keep their values beside their hollow tensors, so that what depends on them (which positions are supervised, how many
frames a clip has) is as it would be. What floats would decide is an error.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

from usam.kernels.ops import COMPUTES
from usam.kernels.sparse import SPARSE, Sparse

LARGEST = {True: 2**20, False: 2**28}  # entries of a tensor whose values are kept, of floats and of others
META = torch.device("meta")
aten = torch.ops.aten


@contextmanager
def hollow(autocast: torch.dtype | None = None) -> Iterator[Values]:
    """What is computed inside on the meta device has shapes, and values where these may decide about shapes.

    Args:
        autocast: as `torch.autocast` on a GPU, which the meta device does not have.
    """
    values, attention, cast = Values(), Attention(), Autocast(autocast)
    original = torch.autocast
    torch.autocast = partial(_autocast, cast, original)  # type: ignore[misc, assignment]
    again = _Again(attention, cast)
    try:
        with values, attention, cast:
            yield values
    finally:
        again.close()
        torch.autocast = original  # type: ignore[misc]


def _autocast(cast: Autocast, original: Any, device_type: str, *args: Any, **kwargs: Any) -> Any:
    if device_type == "meta":
        return cast.switched(kwargs.get("enabled", True))
    return original(device_type, *args, **kwargs)


class _Again:
    """Enters modes of functions where autograd has left them: in modules that run again in the backward pass."""

    def __init__(self, *modes: TorchFunctionMode) -> None:
        self.modes = modes
        self.entered: list[tuple[nn.Module, ExitStack]] = []
        self.hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        if not _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            stack = ExitStack()
            for mode in self.modes:
                stack.enter_context(mode)
            self.entered.append((module, stack))

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if self.entered and self.entered[-1][0] is module:
            self.entered.pop()[1].close()


class Values(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the values of hollow tensors that were computed from others with values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: Any = WeakTensorKeyDictionary()

    def hold(self, value: Tensor) -> Tensor:
        """A hollow tensor that has these values."""
        found = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
        self.known[found] = value
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inside = any(t.is_meta for t in tensors) or torch.device(kwargs.get("device") or "cpu") == META
        if not inside:
            return func(*args, **kwargs)
        if all(not t.is_meta or t in self.known for t in tensors) and self._keeps(func, args, kwargs, tensors):
            return self._with_values(func, args, kwargs, tensors)
        if func is aten.index.Tensor:  # how many a mask chooses is known
            args = (args[0], [self._places(index) for index in args[1]])
            args = (args[0], [i for index in args[1] for i in index])
        for t in self._written(func, args, kwargs):
            self.known.pop(t, None)
        args, kwargs = tree_map(lambda leaf: leaf.to(META) if _loose(leaf) else leaf, (args, kwargs))
        return func(*args, **kwargs)

    def _keeps(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> bool:
        """Whether what comes of it is small enough, and not drawn by chance."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        if not tensors:  # makes a tensor of a size
            shape = next((a for a in args if isinstance(a, (list, tuple))), ())
            count = 1
            for size in shape:
                count *= size
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            return count <= LARGEST[dtype.is_floating_point]
        return max(t.numel() for t in tensors) <= LARGEST[False]

    def _with_values(self, func: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor]) -> Any:
        mine = {id(t): self.known[t] for t in tensors if t.is_meta}
        args_, kwargs_ = tree_map(
            lambda leaf: mine.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        away = "device" in kwargs and torch.device(kwargs["device"] or "cpu") != META  # to where values are read
        if kwargs_.get("device") is not None:
            kwargs_ = {**kwargs_, "device": torch.device("cpu")}
        out = func(*args_, **kwargs_)
        written = {id(mine[id(t)]): t for t in tensors if t.is_meta}

        def hollowed(value: Any) -> Any:
            if not isinstance(value, Tensor) or away:
                return value
            if id(value) in written:  # in place, or the same again
                return written[id(value)]
            if value.numel() > LARGEST[value.is_floating_point()]:
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=META)
            return self.hold(value)

        return tree_map(hollowed, out)

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        if index is None or index.dtype != torch.bool or not index.is_meta:
            return [index]
        if index not in self.known:
            raise NotImplementedError("how many entries a mask chooses depends on floats")
        return [self.hold(place) for place in self.known[index].nonzero(as_tuple=True)]

    def _written(self, func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))


def _loose(leaf: Any) -> bool:
    """A tensor of the CPU among hollow ones; a single number may stand there."""
    return isinstance(leaf, Tensor) and not leaf.is_meta and leaf.ndim > 0


class Attention(TorchFunctionMode):
    """Scaled dot product attention without its scores, as every fast kernel does it; torch's meta device has them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args and args[0].is_meta:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
    fast = q.ndim == 4 and dropout_p == 0 and all(t.stride(-1) == 1 for t in (q, k, v))
    if not fast or q.shape[-1] != v.shape[-1] or (attn_mask is not None and attn_mask.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    found: Tensor = aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return found


NARROW = {  # what autocast computes in its own type, and what in float32 (torch's lists for CUDA)
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.scaled_dot_product_attention),
    *(torch.conv1d, torch.conv2d, torch.matmul, torch.mm, torch.bmm, torch.baddbmm, torch.addmm, torch.addbmm),
    *(torch.einsum, torch._C._nn.linear, torch._C._nn.scaled_dot_product_attention),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.baddbmm, Tensor.addmm),
}
WIDE = {
    *(F.layer_norm, F.group_norm, F.cross_entropy, F.nll_loss, F.softmax, F.log_softmax, F.normalize),
    *(F.cosine_similarity, F.mse_loss, F.l1_loss, F.softplus, torch.layer_norm, torch.group_norm),
    *(torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow, torch.rsqrt, torch.norm, torch.cumsum),
    *(torch.sum, torch.prod, torch.reciprocal, Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log),
    *(Tensor.pow, Tensor.__pow__, Tensor.rsqrt, Tensor.norm, Tensor.cumsum, Tensor.sum, Tensor.prod),
}


class Autocast(TorchFunctionMode):
    """`torch.autocast` for the meta device: products in a narrow type, sums and losses in float32."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self.on = dtype is not None
        self.cast: Any = WeakIdKeyDictionary()  # weights that train are cast once a step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dtype = self.dtype if func in NARROW else torch.float32 if func in WIDE else None
        if not self.on or dtype is None:
            return func(*args, **kwargs)
        args, kwargs = tree_map(lambda leaf: self._as(leaf, dtype), (args, kwargs))
        self.on = False  # what it is made of has its types
        try:
            return func(*args, **kwargs)
        finally:
            self.on = True

    @contextmanager
    def switched(self, on: bool) -> Iterator[None]:
        """On or off, as `torch.autocast(device, enabled=on)` is."""
        before, self.on = self.on, on and self.dtype is not None
        try:
            yield
        finally:
            self.on = before

    def _as(self, leaf: Any, dtype: torch.dtype) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_meta or not leaf.is_floating_point() or leaf.dtype == dtype:
            return leaf
        if leaf.dtype == torch.float64:
            return leaf
        if leaf.is_leaf and leaf.requires_grad and leaf.dtype == torch.float32:
            if leaf not in self.cast:
                self.cast[leaf] = leaf.to(dtype)
            return self.cast[leaf]
        return leaf.to(dtype)


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that were made inside and are alive: `now`, and the most at once, `peak`.

    Args:
        there: tensors that were there before.
    """

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._storages: Any = WeakIdKeyDictionary()
        for tensor in there:
            self._storages[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (
            func.namespace == "usam"
            and func._opname in DENSE_OPS
            and any(t.is_meta for t in tree_leaves(args) if isinstance(t, Tensor))
        ):
            with self:  # what they do inside is seen, too
                return COMPUTES[func._opname](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage()) not in self._storages:
                size = storage.nbytes()
                self._storages[storage] = size
                self.now += size
                weakref.finalize(storage, self._gone, size).atexit = False
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


class Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Floating point operations, by torch's own formulas (`torch.utils.flop_counter`), for each part of a model.

    torch's FlopCounterMode follows modules with hooks that a loss with a gradient of its own (`losses/_chunks.py`)
    breaks. Here the numbers that autograd gives its nodes tell whose backward pass an operation belongs to.

    Args:
        parts: modules by the name of the part that they are.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self._inside: list[tuple[str, int]] = []
        self._made: list[tuple[int, int, str]] = []  # numbers of nodes, from and to, and the part that made them
        self._hooks = [
            hook
            for name, module in parts.items()
            for hook in (
                module.register_forward_pre_hook(partial(self._enter, name)),
                module.register_forward_hook(self._leave),
            )
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _enter(self, name: str, *_: Any) -> None:
        self._inside.append((name, torch._C._autograd._get_sequence_nr()))

    def _leave(self, *_: Any) -> None:
        name, first = self._inside.pop()
        self._made.append((first, torch._C._autograd._get_sequence_nr(), name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None:
            if func is not torch.ops.prim.device.default:
                with self:
                    made = func.decompose(*args, **kwargs)
                    if made is not NotImplemented:
                        return made
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        node = torch._C._current_autograd_node()
        inside = self._inside[-1][0] if self._inside else None
        if node is not None and inside is None:
            number = node._sequence_nr()
            inside = next((name for first, last, name in self._made if first <= number < last), None)
        (self.forward if node is None else self.backward)[inside or ""] += formula(*args, **kwargs, out_val=out)
        return out


def _sparse(x: Tensor, gates: Tensor, down: Tensor, up: Tensor | None) -> tuple[int, int]:
    """Of one pass of all chosen rows through the experts' two layers, the lower and the upper."""
    return (0 if up is None else 2 * gates.numel() * up[0].numel()), 2 * gates.numel() * down[0].numel()


def _sparse_forward(*given: Any, **_: Any) -> int:
    s = Sparse(*given)
    return sum(_sparse(s.x, s.gates, s.down, s.up))


def _sparse_backward(*given: Any, **_: Any) -> int:
    s = Sparse(*given[SPARSE.returns : SPARSE.returns + len(SPARSE.kinds)])
    needs = dict(zip(SPARSE.tensors, given[-1], strict=True))
    lower, upper = _sparse(s.x, s.gates, s.down, s.up)
    return int(upper * (1 + needs["down"]) + lower * (needs["x"] + needs["up"]))


DENSE_OPS = ("dense", "dense_backward")  # whose shapes depend on nothing: they can be computed hollow
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
    torch.ops.usam.sparse_experts: _sparse_forward,
    torch.ops.usam.sparse_experts_backward: _sparse_backward,
}
