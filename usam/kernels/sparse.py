"""Sparse experts: each row goes to its few chosen experts alone, and no expert's output outlives the sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from usam.kernels.backends import Backend, runs_triton
from usam.kernels.choice import bucket, fastest
from usam.kernels.dense import ACTIVATIONS, SLOPES
from usam.kernels.ops import Found, Op, trains
from usam.kernels.routing import Placement

if TYPE_CHECKING:
    from usam.kernels import Experts


def sparse_experts(x: Tensor, gates: Tensor, placement: Placement, experts: Experts, backend: Backend) -> Tensor:
    """The gated sum of the chosen experts' outputs, (row, out): x (row, in), gates (row, k).

    Choices without an expert count for nothing, and a row without any gives zeros, whatever stands in it. auto takes
    grouped_mm on a CPU where it can (see `grouped_mm_takes`), and on a GPU what is fastest: it never loops where Triton
    runs.
    """
    p, weights = placement, (experts.down, experts.down_bias, experts.up, experts.up_bias)
    if other := {w.dtype for w in weights if w is not None} - {x.dtype}:
        raise TypeError(f"The experts are {other.pop()} and x is {x.dtype}: cast one to the other's type.")
    if backend == "grouped_mm" and not grouped_mm_takes(x, experts):
        raise ValueError(
            f"backend='grouped_mm' cannot multiply {x.dtype} of widths {_widths(experts)}: it needs float32, float16 "
            "or bfloat16, widths of whole 16 bytes, and weights that stand in memory row by row or column by column. "
            "Write backend='auto'."
        )
    save = trains(x, gates, *weights)
    return SPARSE(Sparse(x, gates, p.src, p.dst, p.offs, *weights, experts.activation, backend, save))[0]


def grouped_mm_takes(x: Tensor, experts: Experts | Sparse) -> bool:
    """Whether `torch.nn.functional.grouped_mm` exists and multiplies this type, these widths and strides."""
    types = (torch.float32, torch.float16, torch.bfloat16)
    whole = all(width * x.element_size() % 16 == 0 for width in _widths(experts))
    weights = [w for w in (experts.up, experts.down) if w is not None]
    return hasattr(F, "grouped_mm") and x.dtype in types and whole and all(map(_plain, weights))


def _plain(w: Tensor) -> bool:
    """Whether each matrix stands row by row or column by column, every one of whole 16 bytes."""
    apart, down, right = w.stride()
    line, width = (down, w.shape[2]) if right == 1 else (right, w.shape[1])
    return 1 in (down, right) and line >= width and all(n * w.element_size() % 16 == 0 for n in (apart, line))


def _widths(experts: Experts | Sparse) -> list[int]:
    shapes = [w.shape[1:] for w in (experts.up, experts.down) if w is not None]
    return sorted({size for shape in shapes for size in shape})


@dataclass(frozen=True)
class Sparse:
    """What the op takes."""

    x: Tensor  # row in
    gates: Tensor  # row k
    src: Tensor
    dst: Tensor
    offs: Tensor
    down: Tensor  # expert hidden out; of linear experts: expert in out
    down_bias: Tensor | None  # expert out
    up: Tensor | None  # expert hidden in
    up_bias: Tensor | None  # expert hidden
    activation: str
    backend: str
    save: bool  # the pre-activations, for the gradients


def _compute(s: Sparse) -> tuple[Tensor, Tensor]:
    """Outputs (row, out), and pre-activations (sorted row, hidden) if they are to be saved."""
    backend = choose(s) if s.backend == "auto" else s.backend
    if backend == "triton":
        from usam.kernels import _sparse

        return _sparse.forward(s)
    groups = GROUPS[backend](s.offs, s.src.shape[0])
    gate, token = _sorted(s)
    rows = s.x.index_select(0, token)
    pre = s.x.new_empty(0)
    if s.up is None:
        hidden = rows.to(gate.dtype)
    else:
        pre = groups.product(rows, s.up.mT)
        if s.up_bias is not None:
            pre += s.up_bias.index_select(0, groups.expert)
        hidden = ACTIVATIONS[s.activation](pre.to(gate.dtype))
    y = groups.product((gate * hidden).to(s.x.dtype), s.down)
    if s.down_bias is not None:
        y = y + gate * s.down_bias.index_select(0, groups.expert)
    return _combine(y, s).to(s.x.dtype), pre if s.save else s.x.new_empty(0)


def _shapes(s: Sparse) -> tuple[Tensor, Tensor]:
    pre = s.x.new_empty(0) if s.up is None or not s.save else s.x.new_empty(s.src.shape[0], s.up.shape[1])
    return s.x.new_empty(s.x.shape[0], s.down.shape[2]), pre


def choose(s: Sparse) -> Backend:
    """The backend for tensors like these; the gradients' is measured together with the output's."""
    able: list[Backend] = ["triton"] if s.x.is_cuda and runs_triton(s.x) and s.x.dtype != torch.float64 else ["torch"]
    aligned = all(w is None or w.data_ptr() % 16 == 0 for w in (s.up, s.down))
    if aligned and grouped_mm_takes(s.x, s) and _waits_for_nothing(s.x):
        able.append("grouped_mm")
    if not s.x.is_cuda:
        return able[-1]

    def step(backend: str) -> None:
        own = replace(s, backend=backend)
        y, pre = _compute(own)
        if s.save:
            tensors = {n: t for n in SPARSE.tensors if (t := getattr(s, n)) is not None and t.is_floating_point()}
            _gradients(own, [pre], [y, None], tensors)

    widths = tuple(s.down.shape), None if s.up is None else tuple(s.up.shape)
    key = s.x.device, s.x.dtype, widths, bucket(s.x.shape[0]), s.gates.shape[1], s.activation, s.save
    return cast(Backend, fastest(key, {name: partial(step, name) for name in able}, s.x.device))


def _waits_for_nothing(x: Tensor) -> bool:
    """Whether torch's grouped product leaves the offsets on the device: on a GPU its fast path alone does."""
    return not x.is_cuda or (x.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x.device)[0] in (9, 10))


def _gradients(s: Sparse, kept: Sequence[Tensor], grads: Sequence[Tensor | None], needs: Found) -> Found:
    (pre,), dy = kept, grads[0]
    assert dy is not None
    backend = choose(s) if s.backend == "auto" else s.backend
    if backend == "triton":
        from usam.kernels import _sparse

        return _sparse.backward(s, dy, pre, needs)
    groups = GROUPS[backend](s.offs, s.src.shape[0])
    gate, token = _sorted(s)
    rows, dy = s.x.index_select(0, token), dy.index_select(0, token)
    dhidden = groups.product(dy, s.down.mT).to(gate.dtype)
    if s.up is None:
        hidden = rows.to(gate.dtype)
        dh = gate * dhidden
    else:
        wide = pre.to(gate.dtype)
        hidden = ACTIVATIONS[s.activation](wide)
        dh = SLOPES[s.activation](gate * dhidden, wide)
    dgate = (dhidden * hidden).sum(-1, keepdim=True)
    if s.down_bias is not None:
        dgate = dgate + (dy * s.down_bias.index_select(0, groups.expert)).to(gate.dtype).sum(-1, keepdim=True)
    found = {"gates": _spread(dgate, s.dst).view_as(s.gates).to(s.gates.dtype)}
    narrow = dh.to(s.x.dtype)
    if "x" in needs:
        found["x"] = _combine(narrow if s.up is None else groups.product(narrow, s.up), s).to(s.x.dtype)
    if "down" in needs:
        found["down"] = groups.outer((gate * hidden).to(s.x.dtype), dy)
    if "down_bias" in needs:
        found["down_bias"] = groups.sums(gate * dy).to(s.x.dtype)
    if "up" in needs:
        found["up"] = groups.outer(narrow, rows)
    if "up_bias" in needs:
        found["up_bias"] = groups.sums(narrow.to(gate.dtype)).to(s.x.dtype)
    return found


SPARSE = Op("sparse_experts", Sparse, _compute, _shapes, returns=2)
SPARSE.differentiate(_gradients, keeps=[1])


def gathered(s: Sparse) -> tuple[Tensor, Tensor]:
    """x in the order of the sorted rows, gated, and as it is."""
    gate, token = _sorted(s)
    rows = s.x.index_select(0, token)
    return (gate * rows).to(s.x.dtype), rows


def _sorted(s: Sparse) -> tuple[Tensor, Tensor]:
    """Gate, wide enough to compute in, and token of each sorted row; of the first slot past the last."""
    slot = s.src.clamp(min=0).long()
    gate = s.gates.to(torch.promote_types(s.gates.dtype, s.x.dtype)).flatten()[slot]
    return gate.unsqueeze(-1), slot // s.gates.shape[1]


def _spread(y: Tensor, dst: Tensor) -> Tensor:
    """Sorted rows back at their slots; zeros in slots without a row."""
    nowhere = dst < 0
    spread = y.index_select(0, dst.clamp(min=0))
    if not y.is_cuda and not nowhere.any():  # the host knows at once, and a pass less is felt
        return spread
    return spread.masked_fill_(nowhere.unsqueeze(-1), 0)


def _combine(y: Tensor, s: Sparse) -> Tensor:
    """The sum of a token's sorted rows in the order of its choices."""
    first, *others = s.dst.view(s.gates.shape).unbind(1)
    total = _spread(y, first).to(s.gates.dtype)
    for choice in others:
        total += _spread(y, choice)
    return total


class Loop:
    """Sums over the rows of each expert, `offs[e]` to `offs[e + 1]`, one expert after the other.

    What follows the last row may be anything.
    """

    def __init__(self, offs: Tensor, rows: int) -> None:
        self.expert = _places(offs, rows).clamp(max=len(offs) - 2)  # of each row
        self.parts = [slice(*pair) for pair in pairwise(offs.tolist())]

    def product(self, a: Tensor, w: Tensor) -> Tensor:
        """(row, k) times its expert's (k, n)."""
        y = a.new_zeros(len(a), w.shape[2])
        for part, weight in zip(self.parts, w, strict=True):
            torch.mm(a[part], weight, out=y[part])
        return y

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        """(expert, m, n), the sums of a[r]^T b[r]."""
        y = a.new_empty(len(self.parts), a.shape[1], b.shape[1])
        for part, out in zip(self.parts, y, strict=True):
            torch.mm(a[part].mT, b[part], out=out)
        return y

    def sums(self, a: Tensor) -> Tensor:
        """(expert, n), the sums of a[r]."""
        return torch.stack([a[part].sum(0) for part in self.parts])


class Library(Loop):
    """All experts at once, by torch's own product."""

    def __init__(self, offs: Tensor, rows: int) -> None:
        self.ends = offs[1:]
        self.count = len(offs) - 1
        self.place = _places(offs, rows)
        self.expert = self.place.clamp(max=self.count - 1)

    def product(self, a: Tensor, w: Tensor) -> Tensor:
        return F.grouped_mm(a, w, offs=self.ends)

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return F.grouped_mm(a.mT, b, offs=self.ends)

    def sums(self, a: Tensor) -> Tensor:
        if not a.is_cuda:
            return a.new_zeros(self.count + 1, a.shape[1]).index_add_(0, self.place, a)[: self.count]
        # A product with ones and zeros: index_add would sum in another order each time.
        chosen = F.one_hot(self.expert, self.count).to(a.dtype)
        return chosen.mT @ a.masked_fill(self.place.unsqueeze(-1) == self.count, 0)


GROUPS: dict[str, Callable[[Tensor, int], Loop]] = {"torch": Loop, "grouped_mm": Library}


def _places(offs: Tensor, rows: int) -> Tensor:
    """The expert of each row; the number of experts past the last."""
    positions = torch.arange(rows, dtype=offs.dtype, device=offs.device)
    return torch.searchsorted(offs[1:], positions, right=True)
