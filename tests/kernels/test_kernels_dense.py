"""The mixture as a whole, dense and linear experts: kernels and torch twins agree with a float64 sum over experts."""

import pytest
import torch
from torch.nn.functional import gelu, relu, silu

from usam.kernels import Experts, moe, route
from usam.kernels.backends import INTERPRETED
from usam.kernels.dense import DENSE, Dense, dense_experts, merged_experts

DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
KERNELS = {"torch": False, "triton": True}
# Relative errors of outputs and of gradients; the interpreter rounds bfloat16 towards zero.
BOUNDS = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (4e-3, 4e-3),
    torch.bfloat16: (2e-2, 4e-2),
}


@pytest.fixture(params=KERNELS)
def backend(request):
    return request.param


@pytest.fixture(params=["mlp", "linear"])
def kind(request):
    return request.param


@pytest.fixture(params=["frame", "sample"])
def gating(request):
    return request.param


def draw(*shape, seed, dtype=torch.float32):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise / shape[-1] ** 0.5).to(DEVICE, dtype).requires_grad_()


def make(
    kind, gating, *, batch=2, time=9, dim=12, hidden=20, out=18, count=3, dtype=torch.float32, bias=True, **options
):
    """x, logits, experts and a prefix mask with a sample of each length, padding and an empty one among them."""
    x = draw(batch, time, dim, seed=0, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    logits = draw(*((batch, count) if gating == "sample" else (batch, time, count)), seed=1, dtype=wide)
    inner = hidden if kind == "mlp" else dim
    experts = Experts(
        draw(count, inner, out, seed=2, dtype=dtype),
        draw(count, out, seed=3, dtype=dtype) if bias else None,
        draw(count, hidden, dim, seed=4, dtype=dtype) if kind == "mlp" else None,
        draw(count, hidden, seed=5, dtype=dtype) if kind == "mlp" and bias else None,
        **options,
    )
    lengths = torch.tensor([time - 2, time, 0])[torch.arange(batch) % 3].clamp_min(0)
    return x, logits, experts, (torch.arange(time) < lengths.unsqueeze(-1)).to(DEVICE)


def leaves(x, logits, experts):
    tensors = (x, logits, experts.down, experts.down_bias, experts.up, experts.up_bias)
    return [t for t in tensors if t is not None]


def reference(x, logits, experts, mask=None, top_k=None, renormalize=True):
    """One expert after the other, in float64."""
    if mask is not None:
        x = torch.where(mask.unsqueeze(-1), x, 0)
    if logits.ndim == 2:
        logits = logits.unsqueeze(1).expand(*x.shape[:2], -1)
    gates = logits.softmax(-1)
    if mask is not None:
        gates = torch.where(mask.unsqueeze(-1), gates, 0)
    if top_k is not None:
        chosen = logits.argsort(dim=-1, descending=True, stable=True)[..., :top_k]
        gates = torch.zeros_like(gates).scatter(-1, chosen, gates.gather(-1, chosen))
        if renormalize:
            gates = gates / gates.sum(-1, keepdim=True).clamp_min(1e-300)
    total = x.new_zeros(*x.shape[:2], experts.down.shape[-1])
    for e in range(len(experts.down)):
        hidden = x
        if experts.up is not None:
            hidden = x @ experts.up[e].T + (0 if experts.up_bias is None else experts.up_bias[e])
            hidden = {"gelu": gelu, "relu": relu, "silu": silu}[experts.activation](hidden)
        y = hidden @ experts.down[e] + (0 if experts.down_bias is None else experts.down_bias[e])
        total = total + gates[..., e : e + 1] * y
    return total


def in_float64(x, logits, experts):
    copies = [None if t is None else t.detach().double().requires_grad_() for t in (x, logits)]
    names = ("down", "down_bias", "up", "up_bias")
    weights = {n: getattr(experts, n) for n in names}
    weights = {n: None if t is None else t.detach().double().requires_grad_() for n, t in weights.items()}
    return *copies, Experts(**weights, activation=experts.activation)


def assert_agrees(x, logits, experts, mask=None, **options):
    """Outputs, and gradients of everything, against float64; NaN stands wherever the mask is False."""
    wide = in_float64(x, logits, experts)
    expected = reference(*wide, mask, options.get("top_k"), options.get("renormalize", True))
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9)).to(DEVICE, x.dtype)
    slopes = torch.autograd.grad(expected, leaves(*wide), weight.double(), allow_unused=True)
    if mask is not None:
        assert (expected[~mask] == 0).all()
        with torch.no_grad():
            x[~mask] = torch.nan
            empty = ~mask if logits.ndim == 3 else ~mask.any(-1)
            logits[empty] = torch.nan
        weight[~mask] = torch.nan
    y, _ = moe(x, logits, experts, mask, **options)
    forward, backward = BOUNDS[x.dtype]
    assert y.dtype == x.dtype
    assert_near(y, expected, forward)
    if mask is not None:
        assert (y[~mask] == 0).all()
    for got, slope in zip(torch.autograd.grad(y, leaves(x, logits, experts), weight), slopes, strict=True):
        assert_near(got, slope, backward)
    with torch.no_grad():
        assert_near(moe(x, logits, experts, mask, **options)[0], expected, forward)


def assert_near(found, expected, bound):
    assert found.shape == expected.shape
    assert (found.double() - expected).norm() <= bound * expected.norm() + 1e-9


@pytest.mark.parametrize("dtype", BOUNDS)
def test_outputs_and_gradients_are_those_of_float64(backend, kind, gating, dtype):
    assert_agrees(*make(kind, gating, dtype=dtype), backend=backend)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_every_activation_has_its_slope(backend, activation):
    assert_agrees(*make("mlp", "frame", activation=activation), backend=backend)


def test_experts_need_no_bias_and_frames_no_mask(backend, kind, gating):
    x, logits, experts, _ = make(kind, gating, bias=False)
    assert_agrees(x, logits, experts, backend=backend)


@pytest.mark.parametrize(
    "size",
    [
        {"batch": 1, "time": 1},
        {"batch": 0},
        {"time": 0},
        {"batch": 3, "time": 7, "dim": 70, "hidden": 300, "out": 130},  # several tiles each way
        {"count": 1},
        {"count": 5},
    ],
    ids=str,
)
def test_no_size_is_special(backend, kind, gating, size):
    x, logits, experts, mask = make(kind, gating, **size)
    assert_agrees(x, logits, experts, mask if mask.any() else None, backend=backend)


@pytest.mark.parametrize(("kind", "gating", "count"), [("mlp", "frame", 64), ("linear", "sample", 130)])
def test_experts_may_be_many(backend, kind, gating, count):
    assert_agrees(*make(kind, gating, count=count, hidden=3, time=3), backend=backend)


def test_where_every_frame_is_masked_all_is_zero(backend, kind, gating):
    x, logits, experts, mask = make(kind, gating)
    y, _ = moe(x * torch.nan, logits * torch.nan, experts, mask & False, backend=backend)
    y.sum().backward()
    assert (y == 0).all()
    assert all((t.grad == 0).all() for t in leaves(x, logits, experts)[2:])


def test_tensors_may_stand_anywhere_in_memory(backend, kind):
    x, logits, experts, _ = make(kind, "frame", batch=1)
    turned = {
        n: getattr(experts, n).detach().mT.contiguous().mT
        for n in ("down", *(["up"] if experts.up is not None else []))
    }
    biases = {"down_bias": experts.down_bias, "up_bias": experts.up_bias}
    assert not turned["down"].is_contiguous()
    x = x.detach().mT.contiguous().mT.expand(3, -1, -1)
    logits = logits.detach()[:, :1].expand(3, x.shape[1], -1)
    found = moe(x, logits, Experts(**turned, **biases), backend=backend)[0]
    assert_near(found, reference(*in_float64(x, logits, experts)), 2e-6)


def test_the_gradients_are_the_slopes_of_the_output(backend, kind, gating):
    x, logits, experts, mask = make(kind, gating, time=3, dim=4, hidden=5, out=3, dtype=torch.float64)

    def outputs(x, logits, *weights):
        down, bias, up, up_bias = (*weights, None, None)[:4]
        return moe(x, logits, Experts(down, bias, up, up_bias), mask, backend=backend)[0]

    assert torch.autograd.gradcheck(outputs, leaves(x, logits, experts), fast_mode=True)


@pytest.mark.parametrize("sparse", ["torch", "triton"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_best_few_of_each_frame_or_sample(sparse, top_k, kind, gating):
    """renormalize is left out: the gate of a single choice would always be 1, and its gradient noise around 0."""
    size = {"dim": 16, "hidden": 16, "out": 16}
    assert_agrees(*make(kind, gating, **size), top_k=top_k, renormalize=False, backend=sparse)


def test_all_experts_chosen_are_the_dense_mixture(backend, kind):
    x, logits, experts, mask = make(kind, "frame")
    dense, chosen = (moe(x, logits, experts, mask, top_k=k, backend=backend)[0] for k in (None, 3))
    torch.testing.assert_close(chosen, dense, rtol=1e-5, atol=1e-6)


def test_merged_linear_experts_are_the_mixture_of_each_sample():
    x, logits, experts, mask = make("linear", "sample")
    gates, flat = logits.softmax(-1), x.masked_fill(~mask.unsqueeze(-1), 0).flatten(0, 1)
    weights = None, None, experts.down, experts.down_bias
    linear = Dense(flat, gates, *weights, mask.flatten(), "gelu", x.shape[1], kernels=False)
    found, expected = merged_experts(linear), dense_experts(linear)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_long_clips_are_merged_in_inference_alone():
    """Enough frames that the merged matrix pays: the same numbers, but other ones in the last bits."""
    x, logits, experts, mask = make("linear", "sample", time=60)
    trained = moe(x, logits, experts, mask)[0].detach()
    with torch.no_grad():
        merged = moe(x, logits, experts, mask)[0]
        flat, gates = x.flatten(0, 1), logits.softmax(-1)
        weights = None, None, experts.down, experts.down_bias
        apart = dense_experts(Dense(flat, gates, *weights, mask.flatten(), "gelu", 60, kernels=False))
    assert torch.equal(trained[mask], apart.view_as(trained)[mask])
    assert not torch.equal(merged, trained)
    torch.testing.assert_close(merged, trained, rtol=1e-5, atol=1e-6)


def test_only_x_gates_and_pre_activations_are_kept_for_the_gradients(backend, kind):
    """Of 40 frames: 12 wide, 3 gates, and 3 times 20 hidden units; never the 3 times 50 of the experts' outputs."""
    x, logits, experts, _ = make(kind, "frame", batch=4, time=10, out=50)
    gates = route(logits.detach().flatten(0, 1)).gates.requires_grad_()
    flat = x.detach().flatten(0, 1)
    parameters = {t.data_ptr() for t in leaves(x, logits, experts)[2:]}
    kept = {}

    def pack(t):
        if t.data_ptr() not in parameters:
            kept[t.data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        weights = experts.up, experts.up_bias, experts.down, experts.down_bias
        dense_experts(Dense(flat, gates, *weights, None, "gelu", 1, KERNELS[backend]))
    assert sum(kept.values()) == 40 * (12 + 3 + (3 * 20 if kind == "mlp" else 0))


@pytest.mark.parametrize("frozen", ["x", "weights"])
def test_what_needs_no_gradient_gets_none(backend, kind, frozen):
    x, logits, experts, mask = make(kind, "sample")
    every = leaves(x, logits, experts)
    for t in [x] if frozen == "x" else every[2:]:
        t.requires_grad_(False)
    moe(x, logits, experts, mask, backend=backend)[0].sum().backward()
    assert all((t.grad is not None) == t.requires_grad for t in every)


def test_two_runs_are_bit_equal(backend, kind, gating):
    x, logits, experts, mask = make(kind, gating, hidden=300)

    def run():
        y, _ = moe(x, logits, experts, mask, backend=backend)
        return y, *torch.autograd.grad(y.square().sum(), leaves(x, logits, experts))

    assert all(map(torch.equal, run(), run()))


@pytest.mark.parametrize(
    ("kind", "gating", "top_k"), [("mlp", "sample", None), ("mlp", "frame", 2), ("linear", "sample", None)]
)
def test_it_compiles_into_one_graph(backend, kind, gating, top_k):
    x, logits, experts, mask = make(kind, gating, dim=16, hidden=16, out=16)

    def run(mixture):
        y, routes = mixture(x, logits, experts, mask)
        loss = y.square().sum() + routes.probs.sum(0).square().sum()
        return y, *torch.autograd.grad(loss, leaves(x, logits, experts))

    def mixture(x, logits, experts, mask):
        return moe(x, logits, experts, mask, top_k=top_k, backend=backend)

    torch.compiler.reset()
    compiled = torch.compile(mixture, fullgraph=True, backend="aot_eager")
    for found, expected in zip(run(compiled), run(mixture), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shared", [1, 2])
def test_the_ops_of_dense_experts_are_sound(backend, shared):
    x, _, experts, _ = make("mlp", "frame", batch=1, time=4, dim=3, hidden=3, out=2)
    x, mask = x.detach().flatten(0, 1).requires_grad_(), torch.tensor([1, 0, 1, 1], dtype=torch.bool, device=DEVICE)
    gates = draw(4 // shared, 3, seed=8)
    weights = experts.up, experts.up_bias, experts.down, experts.down_bias
    options = "gelu", shared, KERNELS[backend]
    torch.library.opcheck(DENSE.op, (x, gates, *weights, mask, *options, True))
    tensors = [t.detach() for t in (x, gates, *weights)]
    grad, pre = draw(4, 2, seed=6).detach(), draw(4, 9, seed=7).detach()
    for needs in ([True] * 6 + [False], [False, True, False, True, False, False, False]):
        torch.library.opcheck(DENSE.gradient, (grad, None, *tensors, mask, *options, True, pre, needs))


@pytest.mark.parametrize("shared", [1, 2])
def test_the_ops_of_linear_experts_are_sound(shared):
    x, gates, mask = draw(4, 3, seed=0), draw(4 // shared, 3, seed=1), torch.ones(4, dtype=torch.bool, device=DEVICE)
    weight, bias = draw(3, 3, 2, seed=2), draw(3, 2, seed=3)
    options = mask, "gelu", shared, False, True
    torch.library.opcheck(DENSE.op, (x, gates, None, None, weight, bias, *options))
    grad, x, gates, weight, bias = (t.detach() for t in (draw(4, 2, seed=4), x, gates, weight, bias))
    took = (x, gates, None, None, weight, bias, *options)
    for needs in ([True, True, False, False, True, True, False], [False] * 4 + [True, True, False]):
        torch.library.opcheck(DENSE.gradient, (grad, None, *took, x.new_empty(0), needs))


def test_autocast_computes_short_and_keeps_the_gates_wide(backend, kind):
    x, logits, experts, mask = make(kind, "sample")
    with torch.autocast(DEVICE, torch.bfloat16):
        y, routes = moe(x, logits, experts, mask, backend=backend)
    assert y.dtype == torch.bfloat16
    assert routes.gates.dtype == torch.float32
    assert_near(y, reference(*in_float64(x, logits, experts), mask), 2e-2)
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves(x, logits, experts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "grouped_mm"}, "without top_k every row goes to all"),
        ({"backend": "cuda"}, "backend='cuda' is none of auto, torch, grouped_mm, triton"),
        ({"logits": torch.zeros(2, 4)}, r"logits must be \(2, 3\), one gate a sample, or \(2, 9, 3\)"),
        ({"mask": torch.ones(2, 9)}, r"mask must be bool \(2, 9\), not torch.float32"),
        ({"x": torch.zeros(2, 9, 5)}, r"first layer is \(3, 20, 12\), and x of width 5 needs \(3, 20, 5\)"),
        ({"x": torch.zeros(2, 9, 12, dtype=torch.float16)}, "experts.down is torch.float32 and x is torch.float16"),
    ],
)
def test_what_cannot_be_computed_is_refused(options, message):
    x, logits, experts, mask = make("mlp", "sample")
    with pytest.raises((ValueError, TypeError), match=message):
        moe(**{"x": x, "logits": logits, "experts": experts, "mask": mask} | options)


def test_auto_needs_no_triton_on_a_cpu():
    x, logits, experts, mask = (t.cpu() if isinstance(t, torch.Tensor) else t for t in make("mlp", "sample"))
    weights = (experts.down, experts.down_bias, experts.up, experts.up_bias)
    experts = Experts(*(t.cpu() for t in weights))
    assert torch.equal(moe(x, logits, experts, mask)[0], moe(x, logits, experts, mask, backend="torch")[0])


def test_triton_on_a_cpu_says_what_to_do_without_the_interpreter(monkeypatch):
    monkeypatch.setattr("usam.kernels.backends.INTERPRETED", False)
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 before Triton is first imported"):
        route(torch.zeros(2, 3), backend="triton")


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_meta_device_knows_the_shapes(kind, gating, top_k):
    x, logits, experts, mask = make(kind, gating)
    weights = (experts.down, experts.down_bias, experts.up, experts.up_bias)
    experts = Experts(*(None if t is None else t.to("meta") for t in weights))
    y, routes = moe(x.to("meta"), logits.to("meta"), experts, mask.to("meta"), top_k=top_k)
    assert y.shape == (2, 9, 18)
    assert routes.gates.shape == (2 if gating == "sample" else 18, top_k or 3)
