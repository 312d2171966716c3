"""Projectors: against closed forms, against modules of torch and transformers, and by the conformance kit."""

import dataclasses
import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from usam import SpecError, build_projector, load_spec, projectors
from usam.model.summary import table, tokens_line
from usam.testing import BrokenPromises, projector_promises
from usam.types import Frames, prefix_mask

PROMISES = {
    "conv": projector_promises("conv"),
    "conv of one layer": projector_promises("conv", layers=1, kernel=5, stride=5, activation="relu"),
    "conv that overlaps": projector_promises("conv", layers=3, kernel=4, stride=2, dim=6, activation="silu"),
    "conv without a stride": projector_promises("conv", kernel=5, stride=1),
    "pool": projector_promises("pool"),
    "pool max": projector_promises("pool", reduce="max", window=0.2, linear=True),
    "pool with norm": projector_promises("pool", window=0.3, layer_norm=True, dim=7),
    "pool of one frame": projector_promises("pool", window=0.001),
    "mlp": projector_promises("mlp"),
    "mlp deep": projector_promises("mlp", hidden=16, layers=3, activation="relu", layer_norm=True),
    "mlp silu": projector_promises("mlp", hidden=5, activation="silu", dim=9),
    "perceiver": projector_promises("perceiver", latents=5, heads=2, head_dim=4),
    "perceiver of one": projector_promises("perceiver", latents=1, layers=1, heads=3, dim=7, positions=False),
}
TINY = {"linear": {"stack": 2, "hidden": 3}, "conv": {"kernel": 4, "dim": 3}, "pool": {"window": 2.0}}
TINY |= {"mlp": {"layer_norm": True}, "perceiver": {"latents": 2, "heads": 2, "head_dim": 2, "dim": 4}}
TINY["mlp"] |= {"layers": 2, "hidden": 3}


@pytest.fixture(autouse=True)
def one_thread():
    """Such small tensors run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_a_projector_keeps_its_promises(promise):
    promise()


def clips(*lengths, dim=3, rate=1.0, seed=0, dtype=torch.float64):
    x = torch.randn(len(lengths), max(lengths), dim, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    mask = prefix_mask(torch.tensor(lengths), max(lengths))
    return Frames(x.masked_fill(~mask.unsqueeze(-1), math.nan), mask, rate)  # what is padding must not be read


def project(name, frames, *, out_dim=None, **options):
    projector = build_projector(name, in_dim=frames.x.shape[-1], out_dim=out_dim, **options).double()
    return projector, projector(frames)


@pytest.mark.parametrize("name", TINY)
def test_the_gradient_is_the_derivative(name):
    frames = clips(5, 2)
    projector = build_projector(name, in_dim=3, out_dim=2, **TINY[name]).double()
    names, parameters = zip(*projector.named_parameters(), strict=True)

    def run(x, *values):
        given = Frames(x, frames.mask, frames.rate)
        return torch.func.functional_call(projector, dict(zip(names, values, strict=True)), (given,)).x

    x = frames.x.nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", TINY)
def test_what_is_padding_reaches_neither_values_nor_gradients(name):
    frames = clips(5, 2)
    frames.x.requires_grad_()
    projector, out = project(name, frames, **TINY[name])
    out.x.sum().backward()
    assert not out.x[~out.mask].any()
    assert not frames.x.grad[~frames.mask].any()
    assert all(p.grad.isfinite().all() for p in projector.parameters())


# conv


def test_conv_is_torchs_convolution_of_the_clip_between_zeros():
    frames = clips(7)
    projector, out = project("conv", frames, kernel=4, layers=1, activation="relu")
    conv = projector.convs[0]
    padded = nn.functional.pad(frames.x.mT, (1, 2))  # 4 outputs of stride 2 end at 10
    expected = projector.map(torch.relu(nn.functional.conv1d(padded, conv.weight, conv.bias, stride=2)).mT)
    torch.testing.assert_close(out.x, expected)


def test_a_convolution_does_not_shift_time():
    projector = build_projector("conv", in_dim=1, layers=1, kernel=5, stride=1, activation="relu")
    for part in (projector.convs[0], projector.map):
        nn.init.zeros_(part.bias)
        nn.init.ones_(part.weight)
    frames = Frames(torch.eye(9)[4].view(1, 9, 1), torch.ones(1, 9, dtype=torch.bool), 1.0)
    assert projector(frames).x.flatten().tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_conv_loses_no_frame_and_reads_no_neighbour(lengths, layers, stride, more):
    frames = clips(*lengths, seed=1)
    options = {"layers": layers, "stride": stride, "kernel": stride + more}
    projector, out = project("conv", frames, **options)
    expected = lengths
    for _ in range(layers):
        expected = [math.ceil(n / stride) for n in expected]
    assert out.lengths.tolist() == expected
    for i, n in enumerate(lengths):
        x = frames.x[i : i + 1, :n].clone().requires_grad_()
        alone = projector(Frames(x, torch.ones(1, n, dtype=torch.bool), 1.0))
        torch.testing.assert_close(alone.x[0], out.x[i, : expected[i]])
        alone.x.square().sum().backward()
        assert x.grad.abs().sum(-1).min() > 0  # every frame is heard


def test_a_kernel_shorter_than_its_stride_is_an_error():
    with pytest.raises(SpecError, match=r"kernel of 3 with a stride of 5 would skip frames.*at least 5"):
        build_projector("conv", in_dim=3, stride=5)


# pool


def test_the_last_window_averages_its_own_frames():
    frames = Frames(torch.tensor([[1.0, 3.0, 8.0, 99.0]]).unsqueeze(-1), prefix_mask(torch.tensor([3]), 4), 50.0)
    out = build_projector("pool", in_dim=1, window=0.04)(frames)
    assert out.x.flatten().tolist() == [2.0, 8.0]
    assert out.rate == 25.0


def test_the_maximum_may_be_negative():
    frames = Frames(torch.tensor([[-5.0, -3.0, -8.0, 99.0]]).unsqueeze(-1), prefix_mask(torch.tensor([3]), 4), 50.0)
    out = build_projector("pool", in_dim=1, window=0.04, reduce="max")(frames)
    assert out.x.flatten().tolist() == [-3.0, -8.0]


def test_pool_is_what_follows_qwen2_audios_encoder():
    frames = clips(8, dim=6, rate=50.0)
    projector, out = project("pool", frames, out_dim=5, window=0.04, layer_norm=True, linear=True)
    norm, linear = projector.map
    pooled = nn.AvgPool1d(2, stride=2)(frames.x.mT).mT
    torch.testing.assert_close(out.x, linear(norm(pooled)))


def test_pool_without_a_change_of_width_has_no_parameters():
    assert not list(build_projector("pool", in_dim=4, out_dim=4).parameters())
    assert len(list(build_projector("pool", in_dim=4, out_dim=4, linear=True).parameters())) == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 2000), st.sampled_from([6.25, 25, 50, 75]))
def test_pool_takes_each_frame_once(lengths, milliseconds, rate):
    frames = clips(*lengths, dim=1, rate=rate)
    _, out = project("pool", frames, window=milliseconds / 1000)
    whole = max(1, math.floor(Fraction(milliseconds, 1000) * Fraction(rate) + Fraction(1, 2)))
    assert out.lengths.tolist() == [math.ceil(n / whole) for n in lengths]
    for i, n in enumerate(lengths):
        shares = torch.tensor([min(whole, n - start) for start in range(0, n, whole)])
        torch.testing.assert_close((out.x[i, : len(shares), 0] * shares).sum(), frames.x[i, :n].sum())


# mlp


def test_mlp_is_a_stack_of_layers():
    frames = clips(4)
    projector, out = project("mlp", frames, out_dim=2, hidden=5, layers=2, layer_norm=True, activation="silu")
    norm, first, _, second, _, last = projector.map
    x = nn.functional.layer_norm(frames.x, (3,)) * norm.weight + norm.bias
    silu = lambda y: y * torch.sigmoid(y)  # noqa: E731
    torch.testing.assert_close(out.x, last(silu(second(silu(first(x))))))


def test_the_hidden_width_is_the_outputs_unless_it_is_given():
    assert build_projector("mlp", in_dim=3, out_dim=7).map[0].out_features == 7


# perceiver


def test_perceiver_is_the_resampler_of_idefics():
    perceiver = SimpleNamespace(qk_layer_norms_perceiver=False)
    config = SimpleNamespace(perceiver_config=perceiver, vision_config=SimpleNamespace(embed_dim=8))
    original = IdeficsPerceiverResampler(config, embed_dim=8, depth=2, n_heads=2, head_dim=3, n_latents=5).double()
    options = {"latents": 5, "layers": 2, "heads": 2, "head_dim": 3, "activation": "relu", "positions": False}
    projector = build_projector("perceiver", in_dim=8, **options).double()
    for parameter in original.parameters():
        nn.init.normal_(parameter)
    for part in (projector.input, projector.output):
        nn.init.eye_(part.weight)
        nn.init.zeros_(part.bias)
    projector.latents.data = original.latents.data
    projector.norm.load_state_dict(original.layer_norm.state_dict())
    for ours, (attention, perceptron) in zip(projector.blocks, original.blocks, strict=True):
        ours.frame_norm.load_state_dict(attention.context_layer_norm.state_dict())
        ours.latent_norm.load_state_dict(attention.latents_layer_norm.state_dict())
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(ours, name).load_state_dict(getattr(attention, name).state_dict())
        ours.o_proj.load_state_dict(attention.output_proj.state_dict())
        parts = perceptron.ln, perceptron.fc, nn.ReLU(), perceptron.c_proj
        for mine, theirs in zip(ours.feed_forward, parts, strict=True):
            mine.load_state_dict(theirs.state_dict())
    frames = clips(7, 4, dim=8)
    out = projector(frames)
    for i, n in enumerate((7, 4)):
        torch.testing.assert_close(out.x[i], original(frames.x[i : i + 1, :n])[0])


def test_positions_are_of_seconds_and_not_of_frames():
    periods = torch.tensor([0.1 * 36000 ** (k / 3) for k in range(4)])  # from 0.1 s to an hour
    angle = 2 * math.pi * (torch.arange(10).unsqueeze(-1) + 0.5) / periods
    expected = torch.cat([angle.sin(), angle.cos()], -1)
    found = projectors.perceiver._sinusoids(30, 3.0, 8, torch.device("cpu"))[1::3]  # at 3 per second, 0.5 s is frame 1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_without_positions_the_order_of_frames_is_not_heard():
    frames = clips(6, dim=8)
    turned = dataclasses.replace(frames, x=frames.x.flip(1))
    for positions in (True, False):
        options = {"latents": 3, "heads": 2, "head_dim": 4, "positions": positions}
        projector = build_projector("perceiver", in_dim=8, **options).double()
        for block in projector.blocks:  # at the start all frames are heard alike
            nn.init.normal_(block.q_proj.weight)
        assert torch.allclose(projector(frames).x, projector(turned).x) is not positions


def test_every_clip_costs_as_many_tokens():
    spec = load_spec("tiny", {"projector": [{"type": "perceiver", "latents": 6}]})
    assert [spec.audio_tokens(n) for n in (1, 1600, 16000 * 60)] == [6, 6, 6]
    assert "as many tokens for any clip; 1 s = 6" in tokens_line(spec)
    (rate,) = [row.rate for row in table(spec) if row.type == "perceiver"]
    assert rate == "6 a clip"


def test_latents_stand_nowhere_in_time():
    spec = load_spec("tiny", {"projector": [{"type": "perceiver", "latents": 6}, {"type": "pool", "window": 10}]})
    assert spec.audio_length(16000) == (6, 0.0)  # no window of seconds can join them
    resampled = projectors.Chain(spec.projector, in_dim=8, prompt_dim=4, out_dim=4)(clips(5, 3, dim=8, dtype=None))
    assert resampled.x.shape == (2, 6, 4)


@projectors.register("toy_rate_of_zero")
class RateOfZero(projectors.Projector):
    """Says that its frames do not follow time, and they do."""

    class Config(projectors.Projector.Config):
        def length(self, frames, rate):
            return frames, 0.0

    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or in_dim
        self.map = nn.Linear(in_dim, self.dim)

    def forward(self, frames, prompt=None):
        return Frames(self.map(frames.x), frames.mask, 0.0)


def test_a_rate_of_zero_promises_as_many_frames_for_any_clip():
    (promise,) = [p for p in projector_promises("toy_rate_of_zero") if p.name == "true_rate"]
    with pytest.raises(BrokenPromises, match="as many frames for any clip, as a rate of 0 says; found 1 to 10000"):
        promise()
