"""Mixtures of experts of several sizes, and what computes them: usam, and what one writes with torch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from usam.kernels import Backend, Experts, moe, route

STEPS = ("forward", "forward and backward")


@dataclass(frozen=True)
class Shape:
    """A mixture of a size: all experts with one gate a clip, or the best few of each frame."""

    clips: int
    width: int
    hidden: int  # 0: linear experts
    out: int
    experts: int
    top_k: int | None = None
    frames: int = 88  # 30 s in windows of a third of a second

    @property
    def routed(self) -> int:
        """Rows that the experts see."""
        return self.clips * self.frames * (self.top_k or self.experts)

    @property
    def weights(self) -> int:
        """Of one expert."""
        return (self.width + self.out) * self.hidden if self.hidden else self.width * self.out

    @property
    def renormalize(self) -> bool:
        """Whether the chosen gates sum to 1; a single one would always be 1, and teach the router nothing."""
        return self.top_k != 1

    def flops(self, step: str) -> int:
        """Of the products; those of the two gradients cost as much again each."""
        return 2 * self.routed * self.weights * (1 if step == "forward" else 3)

    def bytes(self, step: str) -> int:
        """What must move in two-byte numbers if everything that can be fused is.

        With gradients, weights and x are read twice and their gradients written, y is written and its gradient read;
        pre-activations, their gradients and the gated activations are written and read, for the weights' gradients
        need all rows.
        """
        rows = self.clips * self.frames
        weights = self.weights * min(self.experts, self.routed)
        if step == "forward":
            return 2 * (weights + rows * (self.width + self.out))
        return 2 * (3 * weights + rows * (3 * self.width + 2 * self.out) + 6 * self.routed * self.hidden)


SHAPES = {
    "A": Shape(1, 768, 4096, 4096, 3),
    "A'": Shape(1, 768, 0, 4096, 3),
    "B": Shape(64, 768, 4096, 4096, 3),
    "B'": Shape(64, 768, 0, 4096, 3),
    "C": Shape(64, 1024, 4096, 4096, 8, top_k=2),
    "D": Shape(512, 1024, 1024, 4096, 64, top_k=1),
    "D2": Shape(512, 1024, 1024, 4096, 64, top_k=2),
    "E": Shape(512, 3072, 2048, 4096, 16, top_k=2),
    "F": Shape(512, 768, 4096, 4096, 3),
    "G": Shape(1, 1024, 1024, 4096, 64, top_k=2),
}
ROUTING = Shape(64, 1024, 4096, 4096, 8, top_k=2)


class Case:
    """Inputs, experts, a gradient of the output, and what takes gradients; each side has its own."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: str) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def random(*size: int, scale: float = 1.0) -> Tensor:
            return torch.randn(size, generator=generator, dtype=dtype, device=device).mul_(scale).requires_grad_()

        count, inner = shape.experts, shape.hidden or shape.width
        self.shape, self.random = shape, random
        self.x = random(shape.clips, shape.frames, shape.width)
        self.logits = random(shape.clips, *([shape.frames] if shape.top_k else []), count)
        up = random(count, inner, shape.width, scale=shape.width**-0.5) if shape.hidden else None
        up_bias = random(count, inner) if shape.hidden else None
        down, down_bias = random(count, inner, shape.out, scale=inner**-0.5), random(count, shape.out)
        self.experts = Experts(down, down_bias, up, up_bias)
        self.dy = random(shape.clips, shape.frames, shape.out).detach()
        self.leaves = [t for t in (self.x, self.logits, down, down_bias, up, up_bias) if t is not None]


Run = Callable[[], Tensor]


def ours(backend: Backend) -> Callable[[Case], Run]:
    """usam."""

    def prepare(case: Case) -> Run:
        options: dict[str, Any] = {"top_k": case.shape.top_k, "renormalize": case.shape.renormalize}
        return lambda: moe(case.x, case.logits, case.experts, backend=backend, **options)[0]

    return prepare


def expert(experts: Experts, e: int, x: Tensor) -> Tensor:
    """One expert's output."""
    assert experts.down_bias is not None
    if experts.up is not None and experts.up_bias is not None:
        x = F.gelu(F.linear(x, experts.up[e], experts.up_bias[e]))
    return x @ experts.down[e] + experts.down_bias[e]


def loop(case: Case) -> Run:
    """All experts' outputs, stacked, weighed and summed."""

    def run() -> Tensor:
        gates = case.logits.softmax(-1, dtype=torch.float32).to(case.x.dtype)
        outputs = [expert(case.experts, e, case.x) for e in range(case.shape.experts)]
        return (torch.stack(outputs, -2) * gates[:, None, :, None]).sum(-2)

    return run


def choose(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, gates and choices by torch."""
    assert case.shape.top_k is not None
    probs, chosen = case.logits.flatten(0, 1).softmax(-1, dtype=torch.float32).topk(case.shape.top_k)
    gates = probs / probs.sum(-1, keepdim=True) if case.shape.renormalize else probs
    return case.x.flatten(0, 1), gates.to(case.x.dtype), chosen


def loop_of_rows(case: Case) -> Run:
    """Each expert in turn takes its own rows; the host learns how many there are."""

    def run() -> Tensor:
        x, gates, chosen = choose(case)
        y = x.new_zeros(len(x), case.shape.out)
        for e in range(case.shape.experts):
            row, choice = (chosen == e).nonzero(as_tuple=True)
            y = y.index_add(0, row, expert(case.experts, e, x[row]) * gates[row, choice, None])
        return y.view(case.dy.shape)

    return run


def order(chosen: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted choices, their slots, and where each expert's end."""
    ranked, slots = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(ranked, torch.arange(count, device=chosen.device), right=True, out_int32=True)
    return ranked, slots, ends


def grouped(case: Case) -> Run:
    """Sort, gather, torch's grouped products, gather and sum: what one writes with torch alone."""
    e = case.experts
    up, up_bias, down_bias = e.up, e.up_bias, e.down_bias
    assert up is not None

    def run() -> Tensor:
        x, gates, chosen = choose(case)
        ranked, slots, ends = order(chosen, case.shape.experts)
        hidden = F.grouped_mm(x[slots // chosen.shape[1]], up.mT, offs=ends) + F.embedding(ranked, up_bias)
        y = F.grouped_mm(F.gelu(hidden), e.down, offs=ends) + F.embedding(ranked, down_bias)
        y = y * gates.flatten()[slots, None]
        back = torch.empty_like(slots).scatter_(0, slots, torch.arange(len(slots), device=slots.device))
        return y[back].view(*chosen.shape, -1).sum(1).view(case.dy.shape)

    return run


def products(case: Case) -> Run:
    """The library's products of as many rows, weights already in place."""
    shape = case.shape
    stacked = 1 if shape.top_k else shape.experts
    rows = shape.routed // stacked
    widths = [shape.width, stacked * shape.hidden, shape.out] if shape.hidden else [stacked * shape.width, shape.out]
    case.leaves = [case.random(rows, widths[0]), *(case.random(*pair) for pair in pairwise(widths))]
    case.dy = case.random(rows, shape.out).detach()
    return lambda: reduce(torch.matmul, case.leaves)


def all_experts(shape: Shape) -> bool:
    return shape.top_k is None


def best_few(shape: Shape) -> bool:
    return shape.top_k is not None


def table() -> str:
    """The shapes and what they cost, for docs/kernels.md."""
    lines = ["| row | frames | experts | widths | GFLOP | MB | FLOP a byte |", "|---|---|---|---|---|---|---|"]
    for name, shape in SHAPES.items():
        which = f"{shape.top_k} of {shape.experts}" if shape.top_k else f"all {shape.experts}"
        widths = " → ".join(str(width) for width in (shape.width, shape.hidden, shape.out) if width)
        flops, moved = shape.flops("forward"), shape.bytes("forward")
        cells = [name, f"{shape.clips * shape.frames:,}", which, widths]
        lines.append(f"| {' | '.join(cells)} | {flops / 1e9:,.1f} | {moved / 1e6:,.0f} | {flops / moved:,.0f} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Side:
    """Something that computes a mixture."""

    prepare: Callable[[Case], Run]
    takes: Callable[[Shape], bool] = lambda shape: True
    compiled: bool = False
    graph: bool = True
    """Whether a CUDA graph can hold it: the host must not wait for the device."""
    same: bool = True
    """Whether it computes the very mixture that usam does."""


SIDES = {
    "usam, triton": Side(ours("triton")),
    "usam, auto": Side(ours("auto")),
    "loop": Side(loop, all_experts),
    "loop of rows": Side(loop_of_rows, best_few, graph=False),
    "grouped_mm": Side(grouped, best_few),
    "two products": Side(products, same=False),
    "loop, compiled": Side(loop, all_experts, compiled=True),
    "grouped_mm, compiled": Side(grouped, best_few, compiled=True),
}


def sides(shape: Shape) -> dict[str, Side]:
    """Those that take this shape."""
    return {name: side for name, side in SIDES.items() if side.takes(shape)}


def with_gradients(case: Case, run: Run) -> Tensor:
    """The output, once the gradients are computed."""
    y = run()
    torch.autograd.grad(y, case.leaves, case.dy)
    return y


def routes(case: Case) -> dict[str, Run]:
    """Routing alone, by usam and by torch; both give where each expert's rows end."""
    logits, top_k = case.logits.detach().flatten(0, 1), case.shape.top_k

    def ours() -> Tensor:
        placement = route(logits, top_k=top_k).placement
        assert placement is not None
        return placement.offs[1:]

    def chain() -> Tensor:
        _, _, chosen = choose(case)
        return order(chosen, case.shape.experts)[2]

    return {"usam": ours, "torch": chain}


if __name__ == "__main__":
    print(table())
