"""Sparse experts against a mixture of all experts in float64, by every backend."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.library import opcheck

from usam.kernels import Experts
from usam.kernels.backends import INTERPRETED
from usam.kernels.routing import place
from usam.kernels.sparse import sparse_experts

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
BACKENDS = ["torch", "grouped_mm", "triton"]
WEIGHTS = ("down", "down_bias", "up", "up_bias")
ACTIVATIONS = {"gelu": torch.nn.functional.gelu, "relu": torch.relu, "silu": torch.nn.functional.silu}


@dataclass(frozen=True)
class Mixture:
    """Rows, the experts they chose (-1 for none) with their gates, the experts, and a gradient to send back."""

    x: torch.Tensor
    gates: torch.Tensor
    chosen: torch.Tensor
    experts: Experts
    dy: torch.Tensor

    @property
    def count(self):
        return len(self.experts.down)

    def placement(self):
        return place(self.chosen.masked_fill(self.chosen < 0, self.count).int(), self.count)

    def to(self, dtype):
        """The same numbers in another type, ready to take gradients; gates are never narrower than float32."""
        leaf = lambda t, dtype=dtype: None if t is None else t.detach().to(DEVICE, dtype, copy=True).requires_grad_()  # noqa: E731
        experts = replace(self.experts, **{name: leaf(getattr(self.experts, name)) for name in WEIGHTS})
        wide = torch.promote_types(dtype, torch.float32)
        chosen, dy = self.chosen.to(DEVICE), self.dy.to(DEVICE, dtype)
        return replace(self, x=leaf(self.x), gates=leaf(self.gates, wide), chosen=chosen, experts=experts, dy=dy)

    def leaves(self):
        named = {"x": self.x, "gates": self.gates} | {name: getattr(self.experts, name) for name in WEIGHTS}
        return {name: t for name, t in named.items() if t is not None}

    def run(self, backend):
        """Output and gradients by name."""
        return self._with_gradients(sparse_experts(self.x, self.gates, self.placement(), self.experts, backend))

    def expected(self):
        """The same by asking every expert about every row."""
        e = self.experts
        y = 0
        for i in range(self.count):
            hidden = self.x
            if e.up is not None:
                hidden = ACTIVATIONS[e.activation](hidden @ e.up[i].T + (0 if e.up_bias is None else e.up_bias[i]))
            out = hidden @ e.down[i] + (0 if e.down_bias is None else e.down_bias[i])
            y = y + (self.gates * (self.chosen == i)).sum(-1, keepdim=True) * out
        return self._with_gradients(y)

    def _with_gradients(self, y):
        leaves = self.leaves()
        found = torch.autograd.grad(y, list(leaves.values()), self.dy)
        return {"y": y.detach()} | dict(zip(leaves, found, strict=True))


def mixture(rows=21, k=2, experts=3, dim=24, hidden=40, out=48, linear=False, bias=True, activation="gelu", seed=0):
    """Two rows of a mixture chose nothing, if there are that many."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    width = dim if linear else hidden
    chosen = torch.rand(rows, experts, generator=generator).argsort(-1)[:, :k]
    chosen[3:5] = -1
    weights = Experts(
        down=draw(experts, width, out) / width**0.5,
        down_bias=draw(experts, out) if bias else None,
        up=None if linear else draw(experts, hidden, dim) / dim**0.5,
        up_bias=draw(experts, hidden) if bias and not linear else None,
        activation=activation,
    )
    return Mixture(draw(rows, dim), draw(rows, k).abs(), chosen, weights, draw(rows, out))


def sends(chosen, **options):
    """A mixture whose rows chose this."""
    chosen = torch.tensor(chosen)
    return replace(mixture(len(chosen), chosen.shape[1], **options), chosen=chosen)


CASES = {
    "two of three": mixture(),
    "one of three": mixture(k=1),
    "three of three": mixture(rows=9, k=3),
    "the one expert": mixture(k=1, experts=1),
    "two of five": mixture(rows=40, experts=5, dim=40, hidden=72, out=40),
    "one of 64": mixture(rows=7, k=1, experts=64, dim=16, hidden=16, out=16),
    "two of 130": mixture(rows=6, k=2, experts=130, dim=16, hidden=16, out=16),
    "linear, two of three": mixture(linear=True),
    "linear, one of three": mixture(k=1, linear=True),
    "without biases": mixture(bias=False),
    "linear without biases": mixture(linear=True, bias=False),
    "relu": mixture(activation="relu"),
    "silu": mixture(activation="silu"),
    "an expert without rows": sends([[0, 2], [2, 0], [2, 0]] * 3),
    "all rows to one expert": sends([[1]] * 20),
    "an expert twice": sends([[1, 1], [0, 1]]),
    "a row with one of its two": sends([[0, -1], [-1, 2], [1, 0]]),
    "one row": mixture(rows=1),
    "no row": mixture(rows=0),
    "no row, one of three": mixture(rows=0, k=1),
    "nothing chosen": sends([[-1, -1]] * 3),
    "nothing chosen, one of three": sends([[-1]] * 3),
}


@pytest.fixture(autouse=True)
def fresh_memory_is_nan():
    """What a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def far(found, expected):
    """How far each is from what it should be, as a share of its size."""
    error = {}
    for name, right in expected.items():
        size = right.norm().item()
        error[name] = (found[name].double() - right).norm().item() / (size or 1)
    return error


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_those_of_the_whole_mixture(case, backend):
    error = far(case.to(torch.float32).run(backend), case.to(torch.float64).expected())
    assert max(error.values()) < 2e-6, error


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("options", [{"out": 33, "dim": 17, "hidden": 35}, {"linear": True, "k": 1, "out": 5}])
def test_widths_need_no_common_divisor(options, backend):
    case = mixture(**options).to(torch.float64)
    error = far(case.run(backend), case.expected())
    assert max(error.values()) < 1e-14, error


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(
    ("dtype", "forward", "backward"), [(torch.float16, 4e-3, 4e-3), (torch.bfloat16, 2e-2, 4e-2)], ids=str
)
def test_narrow_types_lose_no_more_than_their_digits(dtype, forward, backward, linear, backend):
    case = mixture(linear=linear)
    found = case.to(dtype).run(backend)
    error = far(found, case.to(torch.float64).expected())
    assert error.pop("y") < forward
    assert max(error.values()) < backward, error
    assert found["y"].dtype == found["down"].dtype == dtype
    assert found["gates"].dtype == torch.float32


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("options", [{"linear": True}, {}], ids=str)
def test_gradients_are_those_of_finite_differences(options, backend):
    case = mixture(rows=5, dim=4, hidden=6, out=5, **options).to(torch.float64)
    placement, names = case.placement(), list(case.leaves())

    def run(*tensors):
        given = dict(zip(names, tensors, strict=True))
        x, gates = given.pop("x"), given.pop("gates")
        return sparse_experts(x, gates, placement, replace(case.experts, **given), backend)

    assert torch.autograd.gradcheck(run, tuple(case.leaves().values()), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("linear", [False, True])
def test_what_stands_in_rows_without_an_expert_is_never_looked_at(linear, k, backend):
    clean = mixture(rows=9, k=k, hidden=24, out=32, linear=linear)
    dirty = replace(clean, x=clean.x.clone(), gates=clean.gates.clone(), dy=clean.dy.clone())
    rows = [0, 3, 4]  # the first, too: a place where none is must not mean it
    for case in (clean, dirty):
        case.chosen[rows] = -1
    for t in (dirty.x, dirty.gates, dirty.dy):
        t[rows] = torch.nan
    found, expected = dirty.to(torch.float32).run(backend), clean.to(torch.float32).run(backend)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    assert all((found[name][rows] == 0).all() for name in ("y", "x", "gates"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_stand_anywhere_in_memory(backend):
    case = mixture(rows=6, k=1, experts=2, dim=16, hidden=16, out=16).to(torch.float32)
    expected = case.run(backend)
    wide = torch.full((6, 40), torch.nan, device=DEVICE)
    wide[:, 8:24] = case.x.detach()
    for x in (wide[:, 8:24], case.x.detach().T.contiguous().T):
        moved = replace(case, x=x.requires_grad_(), dy=case.dy.T.contiguous().T)
        found = moved.run(backend)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    one = replace(case, x=case.x.detach()[:1].expand(6, -1).requires_grad_(), dy=case.dy[:1].expand(6, -1))
    same = replace(one, x=one.x.detach().contiguous().requires_grad_(), dy=one.dy.contiguous())
    found, expected = one.run(backend), same.run(backend)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_are_equal_to_the_bit(backend):
    case = mixture(rows=12, hidden=32).to(torch.float32)
    first, second = case.run(backend), case.run(backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_pre_activation_is_saved_beside_what_came_in(backend):
    case = mixture(hidden=56, out=64).to(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        sparse_experts(case.x, case.gates, case.placement(), case.experts, backend)
    inputs = {t.untyped_storage().data_ptr() for t in (*case.leaves().values(), *vars(case.placement()).values())}
    made = [tuple(t.shape) for t in saved if t.is_floating_point() and t.untyped_storage().data_ptr() not in inputs]
    assert made == [(42, 56)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_experts_still_pass_gradients_on(backend):
    case = mixture(rows=6).to(torch.float32)
    expected = case.run(backend)
    for name in WEIGHTS:
        getattr(case.experts, name).requires_grad_(False)
    y = sparse_experts(case.x, case.gates, case.placement(), case.experts, backend)
    dx, dgates = torch.autograd.grad(y, [case.x, case.gates], case.dy)
    assert torch.equal(dx, expected["x"])
    assert torch.equal(dgates, expected["gates"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_inputs_still_train_the_experts(backend):
    case = mixture(rows=6, linear=True).to(torch.float32)
    y = sparse_experts(case.x.detach(), case.gates.detach(), case.placement(), case.experts, backend)
    (down,) = torch.autograd.grad(y, [case.experts.down], case.dy)
    assert torch.equal(down, case.run(backend)["down"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("linear", [False, True])
def test_the_ops_keep_torchs_rules(linear, backend):
    case = mixture(rows=3, k=1 if linear else 2, dim=8, hidden=8, out=16, linear=linear, bias=not linear)
    case = case.to(torch.float32)
    placed = case.placement()
    where = (placed.src, placed.dst, placed.offs)
    weights = [getattr(case.experts, name) for name in WEIGHTS]
    args = (case.x, case.gates, *where, *weights, "gelu", backend, True)
    opcheck(torch.ops.usam.sparse_experts.default, args)
    pre = torch.ops.usam.sparse_experts(*args)[1].detach()
    dy, *frozen = [None if t is None else t.detach() for t in (case.dy, case.x, case.gates, *where, *weights)]
    needs = [True, True, False, False, False, *(t is not None and not linear for t in weights)]
    gradient = torch.ops.usam.sparse_experts_backward.default
    opcheck(gradient, (dy, None, *frozen, "gelu", backend, True, pre, needs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_compiles_without_a_break(backend):
    case = mixture(rows=6).to(torch.float32)
    compiled = torch.compile(sparse_experts, backend="aot_eager", fullgraph=True)
    y = compiled(case.x, case.gates, case.placement(), case.experts, backend)
    y.backward(case.dy)
    expected = case.run(backend)
    assert torch.equal(y, expected.pop("y"))
    for name, t in case.leaves().items():
        assert torch.equal(t.grad, expected[name]), name


def test_grouped_mm_refuses_widths_it_cannot_multiply():
    case = mixture(out=33).to(torch.float32)
    with pytest.raises(ValueError, match=r"float32 of widths \[24, 33, 40\].*16 bytes.*backend='auto'"):
        case.run("grouped_mm")


def test_experts_of_another_type_are_refused():
    case = mixture()
    with pytest.raises(TypeError, match=r"experts are torch\.float32 and x is torch\.float64"):
        replace(case, experts=case.to(torch.float32).experts).run("torch")


@pytest.mark.parametrize("loads", [[0, 0, 0], [5], [16], [17], [1, 1, 1], [0, 33, 0], [16, 16, 1], [15, 1, 0, 31]])
def test_row_tiles_suffice_for_any_loads(loads):
    from usam.kernels._sparse import row_tiles

    assert sum(-(-load // 16) for load in loads) <= row_tiles(sum(loads), len(loads), 16)
