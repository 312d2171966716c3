"""An op as torch wants it, from one dataclass of what it takes: the schemas of the op and of its gradient follow.

`torch.compile` and `torch.export` see each as one node. What an op keeps for its gradient are the tensors it takes,
and those of its outputs that are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

KINDS = {Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", bool: "bool", int: "SymInt"}

Takes = TypeVar("Takes")
Outputs = tuple[Tensor, ...]
Found = dict[str, Tensor]  # gradients, by the name of what they belong to

COMPUTES: dict[str, Callable[..., Outputs]] = {}  # what each op computes, by its name under `torch.ops.usam`


class Op(Generic[Takes]):
    """`op(arguments)` gives its outputs, whose gradients flow where `differentiate` was told how.

    Args:
        name: under `torch.ops.usam`.
        takes: a dataclass of tensors and options, annotated as in `KINDS`.
        compute: the outputs, none of them an input.
        shapes: empty outputs, on any device.
        returns: how many there are, at least two.
    """

    def __init__(
        self,
        name: str,
        takes: type[Takes],
        compute: Callable[[Takes], Outputs],
        shapes: Callable[[Takes], Outputs],
        returns: int,
    ) -> None:
        self.name, self.takes, self.returns = name, takes, returns
        self.kinds = {field: KINDS[hint] for field, hint in get_type_hints(takes).items()}
        self.tensors = [field for field, kind in self.kinds.items() if kind.startswith("Tensor")]
        self.op = self._defined(
            name,
            [f"{kind} {field}" for field, kind in self.kinds.items()],
            lambda *given: compute(takes(*given)),
            lambda *given: shapes(takes(*given)),
            returns,
        )

    def __call__(self, arguments: Takes) -> Outputs:
        """The outputs.

        Raises:
            NotImplementedError: in forward-mode differentiation, of which torch would make zeros in silence.
        """
        given = [getattr(arguments, field) for field in self.kinds]
        if not torch.compiler.is_compiling():
            for field, t in zip(self.kinds, given, strict=True):
                if isinstance(t, Tensor) and unpack_dual(t).tangent is not None:  # type: ignore[no-untyped-call]
                    raise NotImplementedError(
                        f"usam::{self.name} has no forward-mode derivative, and '{field}' has a tangent: take "
                        "torch.func.vjp or torch.autograd.grad (reverse mode) instead of jvp or dual tensors"
                    )
        made: Outputs = self.op(*given)
        return made

    def differentiate(
        self, gradients: Callable[[Takes, Outputs, Sequence[Tensor | None], Found], Found], keeps: Sequence[int] = ()
    ) -> None:
        """Tell the gradient.

        Args:
            gradients: of the arguments, the outputs that are kept, the gradients of all outputs (None where there is
                none), and the tensors that need one, by name; gives theirs, and may give more.
            keeps: which outputs.
        """
        takes, count, whole = self.takes, len(self.kinds), self.returns + len(self.kinds)

        def parts(given: Sequence[Any]) -> tuple[Takes, Found]:
            arguments = takes(*given[self.returns : whole])
            needs = {n: getattr(arguments, n) for n, need in zip(self.tensors, given[-1], strict=True) if need}
            return arguments, needs

        def compute(*given: Any) -> Outputs:
            arguments, needs = parts(given)
            found = gradients(arguments, given[whole:-1], given[: self.returns], needs)
            empty = given[self.returns].new_empty
            return tuple(found[n].contiguous() if n in needs else empty(0) for n in self.tensors)

        def shapes(*given: Any) -> Outputs:
            _, needs = parts(given)
            empty = given[self.returns].new_empty
            return tuple(needs[n].new_empty(needs[n].shape) if n in needs else empty(0) for n in self.tensors)

        schema = [f"Tensor? d_{i}" for i in range(self.returns)]
        schema += [f"{kind} {field}" for field, kind in self.kinds.items()]
        schema += [f"Tensor kept_{i}" for i in keeps]
        self.gradient = self._defined(
            f"{self.name}_backward", [*schema, "bool[] needs"], compute, shapes, len(self.tensors)
        )

        def save(ctx: Any, inputs: Sequence[Any], output: Any) -> None:
            held = [t for t, kind in zip(inputs, self.kinds.values(), strict=True) if kind.startswith("Tensor")]
            ctx.save_for_backward(*held, *(output[i] for i in keeps))
            ctx.options = [t for t, kind in zip(inputs, self.kinds.values(), strict=True) if kind[:6] != "Tensor"]
            ctx.set_materialize_grads(False)

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            if all(grad is None for grad in grads):
                return (None,) * count
            saved, options = iter(ctx.saved_tensors), iter(ctx.options)
            given = [next(saved if kind.startswith("Tensor") else options) for kind in self.kinds.values()]
            wanted = dict(zip(self.kinds, ctx.needs_input_grad, strict=True))
            needs = [wanted[n] for n in self.tensors]
            found = dict(zip(self.tensors, self.gradient(*grads, *given, *saved, needs), strict=True))
            return tuple(found[n] if wanted[n] else None for n in self.kinds)

        self.op.register_autograd(backward, setup_context=save)

    @staticmethod
    def _defined(
        name: str, takes: list[str], compute: Callable[..., Any], shapes: Callable[..., Any], returns: int
    ) -> Any:
        """An op that returns so many tensors, at least two."""
        schema = f"({', '.join(takes)}) -> ({', '.join(['Tensor'] * returns)})"
        op = torch.library.custom_op(f"usam::{name}", compute, mutates_args=(), schema=schema)
        op.register_fake(shapes)
        COMPUTES[name] = compute
        return op


def trains(*tensors: Tensor | None) -> bool:
    """Whether a gradient will be asked of any."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
