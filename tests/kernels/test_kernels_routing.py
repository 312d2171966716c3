"""Routing: its kernels and their torch twin choose, place and differentiate as a stable sort in float64 does."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from usam.kernels import Placement, place, route
from usam.kernels.backends import INTERPRETED
from usam.kernels.routing import ROUTE

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
KERNELS = {"torch": False, "triton": True}

# Rows, experts, choices: nothing is a multiple of a tile; 300 rows are several tiles of 64 experts, and one of 3.
SIZES = [(0, 3, 2), (1, 3, 1), (88, 3, 2), (300, 3, 1), (9, 5, 5), (7, 1, 1), (300, 64, 2), (40, 130, 3), (700, 5, 3)]


@pytest.fixture(params=KERNELS)
def backend(request):
    return request.param


def sample(rows, count, seed=0):
    """Logits with many ties, and NaN wherever the mask is False."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, count, generator=generator).mul(2).round() / 2
    mask = torch.rand(rows, generator=generator) > 0.3
    return logits.masked_fill(~mask.unsqueeze(-1), torch.nan).to(DEVICE), mask.to(DEVICE)


def choices(logits, mask, top_k):
    """The best few of each row by numpy's stable sort; masked rows choose the number of experts."""
    order = np.argsort(-logits.double().cpu().numpy(), axis=1, kind="stable")[:, :top_k]
    return np.where(mask.cpu().numpy()[:, None], order, logits.shape[1])


def sorted_slots(experts, count):
    """src, dst and offs, one slot after the other."""
    flat = [int(e) for e in np.ravel(experts)]
    src = [slot for e in range(count) for slot in np.flatnonzero(np.array(flat) == e).tolist()]
    dst = [-1] * len(flat)
    for position, slot in enumerate(src):
        dst[slot] = position
    offs = [sum(e < bound for e in flat) for bound in range(count + 1)]
    return src + [-1] * (len(flat) - len(src)), dst, offs


def assert_placed(placement: Placement, experts, count):
    src, dst, offs = sorted_slots(experts, count)
    assert placement.src.tolist() == src
    assert placement.dst.tolist() == dst
    assert placement.offs.tolist() == offs


def reference(logits, mask, top_k, renormalize):
    """What is differentiable, in float64: gates, probs, z."""
    logits = torch.where(mask.unsqueeze(-1), logits.double(), 0.0)
    probs = logits.softmax(-1) * mask.unsqueeze(-1)
    z = logits.logsumexp(-1) * mask
    gates = probs
    if top_k is not None:
        order = torch.from_numpy(choices(logits.detach(), mask, top_k) % logits.shape[1]).to(DEVICE)
        gates = probs.gather(-1, order)
        if renormalize:
            gates = gates / torch.where(mask.unsqueeze(-1), gates.sum(-1, keepdim=True), 1.0)
    return gates, probs, z


def differentiable(routes):
    return routes.gates, routes.probs, routes.z


@pytest.mark.parametrize(("rows", "count", "top_k"), SIZES)
def test_choices_and_their_places_are_those_of_a_stable_sort(backend, rows, count, top_k):
    logits, mask = sample(rows, count)
    routes = route(logits, mask, top_k=top_k, backend=backend)
    expected = choices(logits, mask, top_k)
    assert routes.experts.tolist() == expected.tolist()
    assert_placed(routes.placement, expected, count)


@pytest.mark.parametrize(("rows", "count", "top_k"), [*SIZES, (88, 3, None), (300, 64, None)])
def test_gates_and_probabilities_are_those_of_float64(backend, rows, count, top_k):
    logits, mask = sample(rows, count)
    found = differentiable(route(logits, mask, top_k=top_k, backend=backend))
    for got, expected in zip(found, reference(logits, mask, top_k, True), strict=True):
        assert got.shape == expected.shape
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "count", "top_k", "renormalize"),
    [(60, 3, None, True), (60, 5, 2, True), (60, 5, 2, False), (20, 130, 3, True), (150, 64, 2, True), (7, 5, 5, True)],
)
def test_gradients_of_all_outputs_are_those_of_float64(backend, rows, count, top_k, renormalize):
    logits, mask = sample(rows, count)
    generator = torch.Generator().manual_seed(1)
    logits.requires_grad_()
    found = differentiable(route(logits, mask, top_k=top_k, renormalize=renormalize, backend=backend))
    weights = [torch.randn(t.shape, generator=generator).to(DEVICE) for t in found]
    got = torch.autograd.grad(sum((t * w).sum() for t, w in zip(found, weights, strict=True)), logits)[0]
    expected = reference(logits, mask, top_k, renormalize)
    expected = torch.autograd.grad(sum((t * w).sum() for t, w in zip(expected, weights, strict=True)), logits)[0]
    assert (got - expected).norm() <= 2e-6 * expected.norm()
    assert (got[~mask] == 0).all()


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_gradients_are_the_slopes_of_the_outputs(backend, top_k):
    logits = torch.tensor([[0.3, -1.0, 2.0], [1.5, 0.1, -0.4]], dtype=torch.float64, device=DEVICE, requires_grad=True)

    def outputs(logits):
        return differentiable(route(logits, top_k=top_k, renormalize=top_k != 1, backend=backend))

    assert torch.autograd.gradcheck(outputs, (logits,), fast_mode=True, atol=1e-8)


def test_where_every_row_is_masked_nothing_is_routed(backend):
    logits = torch.full((20, 3), torch.nan, device=DEVICE)
    routes = route(logits, torch.zeros(20, dtype=torch.bool, device=DEVICE), top_k=2, backend=backend)
    assert (routes.experts == 3).all()
    assert all((t == 0).all() for t in (*differentiable(routes), routes.placement.offs))
    assert (routes.placement.src == -1).all()
    assert (routes.placement.dst == -1).all()


def test_experts_without_rows_have_empty_spans(backend):
    logits = torch.zeros(10, 5, device=DEVICE).index_fill(1, torch.tensor([3], device=DEVICE), 9)
    placement = route(logits, top_k=1, backend=backend).placement
    assert placement.offs.tolist() == [0, 0, 0, 0, 10, 10]
    assert placement.src.tolist() == list(range(10))


@pytest.mark.parametrize("count", [3, 64, 130])
def test_any_choices_can_be_placed(count):
    """Also a row that chooses twice the same, and many tiles of slots."""
    experts = torch.randint(0, count + 1, (700, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    assert_placed(place(experts.to(DEVICE), count), experts, count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_logits_are_routed_in_float32_and_get_short_gradients(backend, dtype):
    short = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype).requires_grad_()
    wide = short.detach().float().requires_grad_()
    found, expected = (route(t, top_k=2, backend=backend) for t in (short, wide))
    assert torch.equal(found.gates, expected.gates)
    for routes in (found, expected):
        (routes.gates[:, 0].sum() + routes.z.square().sum()).backward()
    assert short.grad.dtype == dtype
    torch.testing.assert_close(short.grad.float(), wide.grad, rtol=1e-2, atol=1e-3)


def test_logits_may_stand_anywhere_in_memory(backend):
    base = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    mask = (torch.arange(80, device=DEVICE) % 3 > 0)[::2]
    for logits, real in ((base.T, mask), (base[:1].T.expand(40, 5), mask[:1].expand(40))):
        found, expected = (
            route(x, m, top_k=2, backend=backend) for x, m in ((logits, real), (logits.contiguous(), real.contiguous()))
        )
        # A GPU sums a row that it loads otherwise in another order: to the last digit then, not to the bit.
        torch.testing.assert_close(differentiable(found), differentiable(expected), rtol=1e-6, atol=0)
        assert torch.equal(found.placement.src, expected.placement.src)


def test_nan_gradients_of_masked_rows_do_not_leak(backend):
    logits, mask = sample(20, 3)
    logits.requires_grad_()
    routes = route(logits, mask, top_k=2, backend=backend)
    weight = torch.ones_like(routes.gates).masked_fill(~mask.unsqueeze(-1), torch.nan)
    grad = torch.autograd.grad(routes.gates, logits, weight)[0]
    assert grad.isfinite().all()


def test_two_runs_are_bit_equal(backend):
    logits, mask = sample(300, 64)
    logits.requires_grad_()

    def run():
        routes = route(logits, mask, top_k=2, backend=backend)
        loss = routes.gates[:, 0].sum() + routes.probs.sum(0).square().sum() + routes.z.square().sum()
        return *differentiable(routes), routes.placement.src, torch.autograd.grad(loss, logits)[0]

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize("top_k", [0, 2])
def test_the_op_of_routing_is_sound(backend, top_k):
    logits, mask = sample(5, 3)
    torch.library.opcheck(ROUTE.op, (logits.requires_grad_(), mask, top_k, True, KERNELS[backend]))


def test_the_op_of_its_gradient_is_sound(backend):
    logits, mask = sample(5, 3)
    routes = route(logits, mask, top_k=2, backend=backend)
    given = torch.ones_like(routes.gates), None, None, torch.ones_like(routes.z), None, None, None
    took = logits, mask, 2, True, KERNELS[backend]
    torch.library.opcheck(ROUTE.gradient, (*given, *took, routes.experts, routes.probs, [True, False]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, "top_k must lie between 1 and the 3 experts, not 4"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must be \(2,\) like the rows of logits, not \(3,\)"),
    ],
)
def test_what_does_not_belong_together_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        route(torch.zeros(2, 3), **options)


def test_importing_the_kernels_does_not_import_triton():
    code = "import usam.kernels, sys; print('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
