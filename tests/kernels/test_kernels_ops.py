"""What holds of every op: it compiles for any number of rows, exports, and refuses what it cannot differentiate."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad

from usam.kernels import Experts, moe, route

MIXTURES = {
    "all experts": {"kind": "mlp", "top_k": None},
    "all linear experts": {"kind": "linear", "top_k": None},
    "best two": {"kind": "mlp", "top_k": 2},
    "best two, linear": {"kind": "linear", "top_k": 2},
}


@pytest.fixture(params=MIXTURES.values(), ids=MIXTURES)
def mixture(request):
    """A function of x and logits, and whether gradients reach them."""
    generator = torch.Generator().manual_seed(0)
    linear = request.param["kind"] == "linear"
    shapes = [(3, 8 if linear else 16, 8), (3, 8), *([] if linear else [(3, 16, 8), (3, 16)])]
    experts = Experts(*(torch.randn(shape, generator=generator) for shape in shapes))

    def run(x, logits):
        return moe(x, logits, experts, top_k=request.param["top_k"], backend="torch")[0]

    return run


def inputs(time, requires_grad=False):
    generator = torch.Generator().manual_seed(time)
    x, logits = torch.randn(2, time, 8, generator=generator), torch.randn(2, time, 3, generator=generator)
    return x.requires_grad_(requires_grad), logits.requires_grad_(requires_grad)


@pytest.mark.parametrize("gradients", [False, True])
def test_other_lengths_do_not_compile_anew(mixture, gradients):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixture, fullgraph=True, backend=counter)
    for time in (5, 9, 14, 23, 31, 40):
        x, logits = inputs(time, gradients)
        y = compiled(x, logits)
        torch.testing.assert_close(y, mixture(x, logits))
        if gradients:
            y.sum().backward()
    assert counter.frame_count <= 2  # one length, then any


def test_a_mixture_exports_for_any_length(mixture):
    class Module(torch.nn.Module):
        def forward(self, x, logits):
            return mixture(x, logits)

    time = torch.export.Dim("time", min=2, max=100)
    with torch.no_grad():
        exported = torch.export.export(Module(), inputs(7), dynamic_shapes={"x": {1: time}, "logits": {1: time}})
        for length in (3, 50):
            torch.testing.assert_close(exported.module()(*inputs(length)), mixture(*inputs(length)))


def test_forward_mode_is_refused_instead_of_zero(mixture):
    x, logits = inputs(4)
    with forward_ad.dual_level():
        for given in ((forward_ad.make_dual(x, x), logits), (x, forward_ad.make_dual(logits, logits))):
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                mixture(*given)
    with pytest.raises(NotImplementedError, match=r"'logits' has a tangent: take torch.func.vjp"):
        torch.func.jvp(lambda t: route(t, backend="torch").probs, (logits[0],), (logits[0],))


def test_where_no_op_is_called_forward_mode_is_right():
    logits = inputs(4)[1][0].double()
    found = torch.func.jvp(lambda t: route(t).probs, (logits,), (logits,))[1]
    expected = torch.func.jvp(lambda t: t.softmax(-1), (logits,), (logits,))[1]
    torch.testing.assert_close(found, expected)


def test_triton_reads_either_of_torchs_settings_of_tf32():
    """Once the newer setting is made, reading the older one raises."""
    from usam.kernels import _triton

    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting, allowed in (("tf32", True), ("ieee", False)):
            torch.backends.cuda.matmul.fp32_precision = setting
            assert _triton._tf32() is allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
