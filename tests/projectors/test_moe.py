"""The mixture of experts: its algebra, its routing, what it tells, and what is left of it for one task."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
import toys  # noqa: F401
import yaml
from conftest import noise, nudge
from safetensors.torch import load_file
from torch import nn

from usam import ComponentError, SpecError, UsamProcessor, build_model, build_projector, load_spec
from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.generate import Answerer
from usam.model.checkpoint import export, load
from usam.projectors.moe import Said, even, fixed_gates, largest
from usam.testing import projector_promises
from usam.training.routing import Routing
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer
from usam.types import Frames, Prompt, prefix_mask

ORACLE = Path(__file__).parents[1] / "oracles" / "qformer"
IN, OUT, WORDS = 12, 8, 10
DOUBLE = {"rtol": 0, "atol": 1e-12}
SMALL = {"hidden": 6, "router_hidden": 5}

PROMISES = {
    "prompt": projector_promises("moe", **SMALL),
    "audio": projector_promises("moe", router="audio", **SMALL),
    "prompt and audio": projector_promises("moe", router="prompt_audio", **SMALL),
    "linear experts, linear router": projector_promises("moe", hidden=0, router_hidden=0),
    "linear experts, two by two": projector_promises("moe", hidden=0, top_k=2, router="audio", shared=True),
    "best of four": projector_promises("moe", experts=4, top_k=1, router="audio", **SMALL),
    "best two of four": projector_promises("moe", experts=4, top_k=2, router="prompt_audio", **SMALL),
    "best two for a prompt": projector_promises("moe", experts=5, top_k=2, renormalize=False, **SMALL),
    "shared": projector_promises("moe", shared=True, activation="silu", **SMALL),
    "temperature and jitter": projector_promises("moe", temperature=0.3, jitter=0.1, activation="relu", **SMALL),
    "one expert": projector_promises("moe", experts=1, hidden=6),
    "fixed gates": projector_promises("moe", gates=[0.2, 0.0, 0.7], **SMALL),
    "fixed gates, linear": projector_promises("moe", gates=[0.2, 0.1, 0.7], hidden=0),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_a_mixture_keeps_its_promises(promise):
    promise()


def moe(seed=0, dtype=torch.float64, in_dim=IN, out_dim=OUT, **options):
    torch.manual_seed(seed)
    options = {"backend": "torch"} | options
    return build_projector("moe", in_dim=in_dim, prompt_dim=WORDS, out_dim=out_dim, **SMALL | options).to(dtype)


def clips(lengths=(9, 4, 1), seed=0, dtype=torch.float64, words=(5, 2, 3)):
    """Random frames and prompts; what is not real is not a number."""
    generator = torch.Generator().manual_seed(seed)
    mask, said = prefix_mask(torch.tensor(lengths), max(lengths)), prefix_mask(torch.tensor(words), max(words))
    x = torch.randn(*mask.shape, IN, generator=generator, dtype=dtype)
    e = torch.randn(*said.shape, WORDS, generator=generator, dtype=dtype)
    x, e = (t.masked_fill(~m.unsqueeze(-1), float("nan")) for t, m in ((x, mask), (e, said)))
    return Frames(x, mask, 25.0), Prompt(e, said)


def by_hand(module, frames, prompt):
    """Equations 3 and 4 frame by frame, with a torch.nn.Linear for each matrix of each expert."""
    config, router = module.config, module.router

    def linear(weight, bias):  # weight: in out
        layer = nn.Linear(*weight.shape, dtype=weight.dtype)
        layer.weight, layer.bias = nn.Parameter(weight.T), nn.Parameter(bias)
        return layer

    activation = {"gelu": nn.GELU(), "relu": nn.ReLU(), "silu": nn.SiLU()}[config.activation]
    experts = []
    for e in range(config.experts):
        down = linear(module.w_down[e], module.b_down[e])
        up = [linear(module.w_up[e].T, module.b_up[e]), activation] if config.hidden else []
        experts.append(nn.Sequential(*up, down))
    y = torch.zeros(*frames.mask.shape, module.dim, dtype=frames.x.dtype)
    for b, t in frames.mask.nonzero().tolist():
        z = frames.x[b, t]
        mean = prompt.x[b][prompt.mask[b]].mean(0) if prompt is not None else None
        if mean is not None and config.normalize_prompt:
            mean = (mean - mean.mean()) / mean.std(correction=0)
        read = {"prompt": [mean], "audio": [z], "prompt_audio": [mean, z]}[config.router]
        weight = torch.cat([layer.weight for layer in router.reads.values()], 1)
        hidden = weight @ torch.cat(read) + next(iter(router.reads.values())).bias
        logits = router.out(hidden) if router.out is not None else hidden
        gates = (logits / config.temperature).softmax(-1)
        chosen = gates.argsort(descending=True)[: config.top_k or config.experts]
        total = gates[chosen].sum() if config.top_k and module.renormalize else 1.0
        y[b, t] = sum(gates[e] / total * experts[e](z) for e in chosen.tolist())
        if module.shared is not None:
            y[b, t] += module.shared(z)
    return y


VARIANTS = {
    "dense": {},
    "folded": {"hidden": 0},
    "by frame": {"router": "audio"},
    "by frame and prompt": {"router": "prompt_audio", "router_hidden": 0, "activation": "silu"},
    "folded by frame": {"router": "audio", "hidden": 0},
    "best": {"router": "audio", "top_k": 1, "experts": 5},
    "best two": {"router": "prompt_audio", "top_k": 2, "experts": 5, "temperature": 0.5},
    "best two, as they are": {"top_k": 2, "renormalize": False, "activation": "relu"},
    "best two, folded": {"top_k": 2, "hidden": 0},
    "shared": {"shared": True},
    "many": {"experts": 64, "top_k": 3, "router": "audio"},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_it_is_the_sum_of_its_experts(options):
    module, (frames, prompt) = moe(**options), clips()
    out = module(frames, prompt)
    torch.testing.assert_close(out.x, by_hand(module, frames, prompt), **DOUBLE)
    assert torch.equal(out.mask, frames.mask)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"top_k": 1}])
def test_linear_experts_give_the_same_merged_for_each_clip(options):
    """As they are in inference, when clips are long beside their number."""
    module, (frames, prompt) = moe(hidden=0, backend="auto", **options), clips((80, 0, 1))
    expected = by_hand(module, frames, prompt)
    folded = module(frames, prompt)
    with torch.no_grad():
        merged = module(frames, prompt)
    torch.testing.assert_close(folded.x, expected, **DOUBLE)
    torch.testing.assert_close(merged.x, expected, **DOUBLE)
    for name, value in folded.aux.items():
        assert torch.equal(merged.aux[name], value)


@pytest.mark.parametrize("options", [{}, {"hidden": 0}, {"router": "audio"}])
def test_all_of_the_best_is_the_dense_mixture(options):
    frames, prompt = clips()
    dense, best = moe(**options), moe(top_k=3, renormalize=False, **options)
    torch.testing.assert_close(best(frames, prompt).x, dense(frames, prompt).x, **DOUBLE)


def test_every_expert_is_its_own():
    module = moe(router="audio", top_k=1)
    assert all(not torch.equal(module.w_up[0], module.w_up[e]) for e in (1, 2))
    before = module.w_down.detach().clone()
    frames, _ = clips()
    module(frames).x.square().sum().backward()
    with torch.no_grad():
        module.w_down[1] += 1
    assert torch.equal(module.w_down[[0, 2]], before[[0, 2]])
    assert sum(p.numel() for p in module.parameters()) == 3 * (IN * 6 + 6 + 6 * OUT + OUT) + 5 * (IN + 1) + 3 * 6


def test_an_expert_that_is_not_chosen_learns_nothing():
    module, (frames, _) = moe(router="audio", top_k=1), clips()
    with torch.no_grad():
        module.router.out[-1].bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    out = module(frames)
    out.x.square().sum().backward()
    assert out.aux["router_load"].tolist() == [[0, 1, 0]] * 3
    assert not module.w_up.grad[[0, 2]].any()
    assert module.w_up.grad[1].abs().sum() > 0


@pytest.mark.parametrize("hidden", [0, 7])
def test_experts_start_as_linear_layers_do(hidden):
    module = build_projector("moe", in_dim=100, prompt_dim=4, out_dim=300, experts=3, hidden=hidden)
    layers = [(module.w_down, module.b_down, hidden or 100)]
    layers += [(module.w_up, module.b_up, 100)] if hidden else []
    for weight, bias, inputs in layers:
        bound = nn.Linear(inputs, 300).weight.abs().max().item()
        for e in range(3):
            assert weight[e].abs().max().item() == pytest.approx(bound, rel=0.1)
            assert bias[e].abs().max().item() <= inputs**-0.5


# Batches and padding


def test_a_permuted_batch_gives_the_same_permuted():
    module, (frames, prompt) = moe(router="prompt_audio"), clips()
    order = torch.tensor([2, 0, 1])
    out = module(frames, prompt)
    other = module(Frames(frames.x[order], frames.mask[order], 25.0), Prompt(prompt.x[order], prompt.mask[order]))
    torch.testing.assert_close(other.x, out.x[order], rtol=0, atol=1e-6)
    for name, value in out.aux.items():
        torch.testing.assert_close(other.aux[name], value[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("router", ["prompt", "audio", "prompt_audio"])
def test_neither_text_padding_nor_neighbours_change_a_clip(router):
    module, (frames, prompt) = moe(dtype=torch.float32, router=router), clips(dtype=torch.float32)
    batch = module(frames, prompt)
    for i, (n, words) in enumerate(((9, 5), (4, 2), (1, 3))):
        own = Prompt(prompt.x[i : i + 1, :words], prompt.mask[i : i + 1, :words])
        alone = module(Frames(frames.x[i : i + 1, :n], frames.mask[i : i + 1, :n], 25.0), own)
        torch.testing.assert_close(alone.x[0], batch.x[i, :n], rtol=0, atol=1e-6)
        for name, value in alone.aux.items():
            torch.testing.assert_close(value[0], batch.aux[name][i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"router": "audio", "top_k": 1}, {"router": "prompt_audio", "hidden": 0}])
def test_what_stands_in_padding_reaches_neither_output_nor_gradient(options):
    module, (frames, prompt) = moe(shared=True, **options), clips()
    x, words = frames.x.requires_grad_(), prompt.x.requires_grad_()
    out = module(Frames(x, frames.mask, 25.0), Prompt(words, prompt.mask))
    assert not out.x[~frames.mask].any()
    sum(value.sum() for value in (out.x, *out.aux.values())).backward()
    assert not x.grad[~frames.mask].any()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    assert options.get("router") == "audio" or not words.grad[~prompt.mask].any()


@pytest.mark.parametrize("router", ["prompt", "audio", "prompt_audio"])
@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("lengths", [(0, 0, 0), (0, 1, 0), (3, 0, 2)])
def test_clips_without_a_frame_are_routed_nowhere(router, top_k, lengths):
    module, (frames, prompt) = moe(router=router, top_k=top_k), clips(lengths)
    out = module(frames, prompt)
    rows = [min(n, 1) if router == "prompt" else n for n in lengths]
    assert out.aux["router_rows"].tolist() == rows
    for name, value in out.aux.items():
        assert not value[torch.tensor(rows) == 0].any(), name
    torch.testing.assert_close(out.x, by_hand(module, frames, prompt), **DOUBLE)


def test_no_clip_at_all_gives_none():
    frames = Frames(torch.zeros(0, 5, IN), torch.zeros(0, 5, dtype=torch.bool), 25.0)
    out = moe(dtype=torch.float32)(frames, Prompt(torch.zeros(0, 3, WORDS), torch.zeros(0, 3, dtype=torch.bool)))
    assert out.x.shape == (0, 5, OUT)
    assert out.aux["router_probs"].shape == (0, 3)


def test_frames_need_not_be_contiguous():
    module, (frames, prompt) = moe(), clips()
    strided = Frames(frames.x.transpose(0, 1).contiguous().transpose(0, 1), frames.mask, 25.0)
    torch.testing.assert_close(module(strided, prompt).x, module(frames, prompt).x, **DOUBLE)


def test_an_empty_prompt_counts_as_zeros():
    module, (frames, prompt) = moe(), clips()
    silent = module(frames, Prompt(prompt.x, torch.zeros_like(prompt.mask)))
    zeros = module(frames, Prompt(torch.zeros_like(prompt.x), torch.ones_like(prompt.mask)))
    assert torch.equal(silent.x, zeros.x)


@pytest.mark.parametrize("router", ["prompt", "prompt_audio"])
@pytest.mark.parametrize(("normalize", "same"), [(True, True), (False, False)])
def test_the_router_does_not_depend_on_the_scale_of_a_language_models_embeddings(router, normalize, same):
    module, (frames, prompt) = moe(router=router, normalize_prompt=normalize, dtype=torch.float32), clips()
    logits = []
    module.router.register_forward_hook(
        lambda _, __, found: logits.append(found[frames.mask if found.ndim > 2 else ...])
    )
    for scale in (0.01, 1.0, 100.0):
        module(frames, Prompt(prompt.x * scale, prompt.mask))
    assert all(torch.allclose(found, logits[1], atol=1e-5) for found in logits) == same


def test_small_embeddings_still_tell_prompts_apart():
    """As language models start: an rms of 0.02, and less once words are averaged. Random routers then differ."""
    frames, prompt = clips()
    small = Prompt(prompt.x * 0.02, prompt.mask)
    spread = {n: moe(normalize_prompt=n)(frames, small).aux["router_probs"].std(0).max().item() for n in (True, False)}
    assert spread[True] > 10 * spread[False]


def test_a_missing_prompt_is_named():
    frames, _ = clips()
    with pytest.raises(ValueError, match="router 'prompt' reads the prompt"):
        moe()(frames)


# Gradients


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden": 0},
        {"router": "audio"},
        {"router": "prompt_audio", "top_k": 2, "experts": 4},
        {"top_k": 1},
        {"shared": True, "gates": [0.3, 0.0, 0.7]},
    ],
    ids=str,
)
def test_gradients_are_those_of_the_numbers(options):
    module = moe(**options)
    frames, prompt = clips((3, 1), words=(2, 1))
    names = [name for name, _ in module.named_parameters()]

    def run(x, words, *values):
        inputs = (Frames(x, frames.mask, 25.0), Prompt(words, prompt.mask))
        out = torch.func.functional_call(module, dict(zip(names, values, strict=True)), inputs)
        kept = [out.aux[name] for name in ("router_probs", "router_z") if name in out.aux]
        return out.x, *kept

    inputs = [t.detach().nan_to_num().requires_grad_() for t in (frames.x, prompt.x, *module.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-6)


# What the router tells


@pytest.mark.parametrize("router", ["prompt", "audio", "prompt_audio"])
def test_the_router_tells_its_means_over_real_rows(router):
    module, (frames, prompt) = moe(router=router, experts=4, top_k=2), clips()
    seen = []
    module.router.register_forward_hook(lambda _, __, logits: seen.append(logits))
    aux = module(frames, prompt).aux
    for i, n in enumerate((9, 4, 1)):
        rows = seen[0][i : i + 1] if router == "prompt" else seen[0][i, :n]
        probs = rows.softmax(-1)
        torch.testing.assert_close(aux["router_probs"][i], probs.mean(0), **DOUBLE)
        torch.testing.assert_close(aux["router_z"][i], rows.exp().sum(-1).log().square().mean(), **DOUBLE)
        torch.testing.assert_close(aux["router_entropy"][i], -(probs * probs.log()).sum(-1).mean(), **DOUBLE)
        counts = torch.bincount(probs.topk(2).indices.flatten(), minlength=4).double()
        torch.testing.assert_close(aux["router_load"][i], counts / (2 * len(rows)), **DOUBLE)
        assert aux["router_rows"][i] == len(rows)
    assert {name for name, value in aux.items() if value.requires_grad} == {"router_probs", "router_z"}


@pytest.mark.parametrize("options", [{}, {"router": "audio", "top_k": 2}])
def test_without_gradients_by_products_are_computed_when_they_are_read(options):
    module, (frames, prompt) = moe(**options), clips()
    with torch.profiler.profile() as watched, torch.no_grad():
        aux = module(frames, prompt).aux
    assert aux.found == {}
    assert not {"aten::xlogy", "aten::one_hot"} & {event.key for event in watched.key_averages()}
    expected = module(frames, prompt).aux
    assert list(aux) == list(expected)
    assert aux["router_probs"] is aux["router_probs"]
    assert all(torch.equal(aux[name], value) for name, value in expected.items())
    assert not aux["router_z"].requires_grad
    with pytest.raises(KeyError):
        aux["router_logits"]


def test_a_model_without_labels_computes_none_and_evaluation_those_its_losses_read(monkeypatch):
    model = build_model(SPEC)
    batch = UsamProcessor.from_spec(load_spec(SPEC)).apply_chat_template(
        [chat("What?", "ab")], tokenize=True, return_labels=True
    )
    computed = []
    compute = Said._compute
    monkeypatch.setattr(Said, "_compute", lambda self, name: computed.append(name) or compute(self, name))
    labels = batch.pop("labels")
    with torch.no_grad():
        aux = model(**batch).aux
        assert computed == []
        assert set(aux) == {f"1.{name}" for name in Said.NAMES} | {"sample"}
        assert aux["1.router_probs"].shape == (1, 3)
        computed.clear()
        out = model(**batch, labels=labels)
    assert out.losses["load_balance"] > 0
    assert set(computed) == {"router_rows", "router_probs", "router_load"}


def test_a_dense_mixture_loads_experts_as_it_weighs_them():
    frames, prompt = clips()
    aux = moe(router="audio")(frames, prompt).aux
    assert torch.equal(aux["router_load"], aux["router_probs"])


def test_one_expert_needs_no_router_and_tells_so():
    module, (frames, _) = moe(experts=1), clips()
    assert not module.reads_prompt
    assert module.router is None
    aux = module(frames).aux
    assert aux["router_probs"].tolist() == [[1.0]] * 3
    assert aux["router_z"].tolist() == aux["router_entropy"].tolist() == [0.0] * 3


@pytest.mark.parametrize(("temperature", "entropy"), [(1e-4, 0.0), (1e4, torch.tensor(3.0).log().item())])
def test_temperature_sharpens_or_evens_the_gates(temperature, entropy):
    aux = moe(temperature=temperature)(*clips()).aux
    assert aux["router_entropy"].tolist() == pytest.approx([entropy] * 3, abs=1e-3)


def test_jitter_shakes_the_router_in_training_alone():
    module, (frames, prompt) = moe(jitter=0.2), clips()
    still = module(frames, prompt).aux["router_probs"]
    assert torch.equal(module(frames, prompt).aux["router_probs"], still)
    module.train()
    first, second = (module(frames, prompt).aux["router_probs"] for _ in range(2))
    assert not torch.equal(first, second)
    assert (first - still).abs().max() < 0.1


def test_the_router_decides_in_float32():
    frames, _ = clips(dtype=torch.bfloat16)
    module = moe(dtype=torch.bfloat16, router="audio", top_k=1)
    logits = module.router({"audio": frames.x.nan_to_num()})
    assert logits.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.router({"audio": frames.x.nan_to_num()}), logits)


@pytest.mark.parametrize("options", [{}, {"hidden": 0}, {"gates": [0.5, 0.5, 0.0]}, {"shared": True}])
def test_autocast_computes_the_experts_in_its_dtype(options):
    module, (frames, prompt) = moe(dtype=torch.float32, **options), clips(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(frames, prompt)
    assert out.x.dtype == torch.bfloat16
    reference = module(frames, prompt).x
    assert (out.x.float() - reference).norm() < 0.02 * reference.norm()


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, "top_k=4 of 3 experts: write at most 3"),
        ({"top_k": 1, "renormalize": True}, "makes every gate 1, and no router learns"),
        ({"gates": [1.0]}, "1 gates for 3 experts"),
        ({"gates": [1.0, 0.0, 0.0], "top_k": 1}, "leave top_k out"),
        ({"router": "audo"}, "router"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        moe(**options)


def test_which_stages_read_the_prompt():
    reads = {router: moe(router=router).reads_prompt for router in ("prompt", "audio", "prompt_audio")}
    assert reads == {"prompt": True, "audio": False, "prompt_audio": True}
    assert not moe(gates=[1.0, 0.0, 0.0]).reads_prompt


# Gates from outside


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_learned_gates_given_back_change_nothing(options):
    module, (frames, prompt) = moe(**options), clips()
    learned = module(frames, prompt)
    with fixed_gates(module, lambda gates: gates):
        found = module(frames, prompt)
    torch.testing.assert_close(found.x, learned.x, **DOUBLE)
    assert module(frames, prompt).x.equal(learned.x)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_fixed_gates_are_those_of_a_mixture_that_has_them_in_its_spec(options):
    module, (frames, prompt) = moe(**options), clips()
    gates = torch.rand(module.config.experts, dtype=torch.float64).tolist()
    plain = {name: value for name, value in options.items() if name not in ("top_k", "renormalize")}
    fixed = moe(**plain, gates=gates)
    fixed.load_state_dict({n: t for n, t in module.state_dict().items() if not n.startswith("router.")})
    with fixed_gates(module, gates):
        torch.testing.assert_close(module(frames, prompt).x, fixed(frames).x, **DOUBLE)


@pytest.mark.parametrize("router", ["prompt", "audio"])
def test_a_change_sees_the_gates_of_each_row(router):
    module, (frames, prompt) = moe(router=router, experts=4, top_k=2), clips()
    seen = []
    with fixed_gates(module, lambda gates: seen.append(gates) or largest(gates)):
        aux = module(frames, prompt).aux
    assert seen[0].shape == ((3, 4) if router == "prompt" else (3, 9, 4))
    assert (seen[0] > 0).sum(-1).eq(2).all()
    assert torch.allclose(aux["router_probs"].sum(-1), torch.ones(3, dtype=torch.float64))
    assert aux["router_entropy"].tolist() == [0, 0, 0]


def test_even_and_largest_gates():
    gates = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.5, 0.5, 0.0]])
    assert torch.equal(even(gates), torch.full((3, 3), 1 / 3))
    assert largest(gates).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_a_constant_gate_is_told_as_the_router_would():
    module, (frames, prompt) = moe(router="audio"), clips()
    with fixed_gates(module, [0.2, 0.3, 0.5]):
        aux = module(frames, prompt).aux
    assert aux.keys() == module(frames, prompt).aux.keys()
    assert aux["router_load"].tolist() == [pytest.approx([0.2, 0.3, 0.5])] * 3


def entropies(module):
    return module(*clips()).aux["router_entropy"].tolist()


def test_gates_from_outside_may_be_changed_within():
    module = moe()
    with fixed_gates(module, even):
        with fixed_gates(module, largest):
            assert entropies(module) == [0, 0, 0]
        assert entropies(module) == pytest.approx([torch.tensor(3.0).log().item()] * 3)
    assert module.change is None


def test_gates_from_outside_end_with_an_error_too():
    module = moe()
    before = entropies(module)
    with pytest.raises(ValueError, match="gates of"), fixed_gates(module, [1.0]):
        entropies(module)
    assert entropies(module) == before


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ([0.5, 0.5], r"gates of \(2,\) for 3 experts: give \(3,\), or those of each row, \(3, 3\)"),
        ([1.5, -0.5, 0.0], "gates are numbers from 0 on; found -0.5 to 1.5"),
        ([float("nan"), 0.0, 0.0], "gates are numbers"),
    ],
)
def test_gates_that_do_not_fit_are_refused(gates, message):
    module, inputs = moe(), clips()
    with fixed_gates(module, gates), pytest.raises(ValueError, match=message):
        module(*inputs)


def test_a_model_without_a_mixture_has_no_gates():
    with pytest.raises(ComponentError, match="Linear has no mixture"), fixed_gates(nn.Linear(2, 2), even):
        pass


# The original mixture


@pytest.fixture(params=["tapm_h32", "tapm_longprompt_h32"])
def oracle(request):
    tensors = load_file(ORACLE / f"{request.param}.safetensors")
    experts = range(sum(name.startswith("w.enc_to_dec_proj") for name in tensors) // 2)
    options = {"experts": len(experts), "hidden": 0, "router": "prompt_audio", "router_hidden": 0}
    options["normalize_prompt"] = False  # the original reads the language model's embeddings as they are
    module = build_projector("moe", in_dim=32, prompt_dim=24, out_dim=24, **options)
    layers = [(tensors[f"w.enc_to_dec_proj.{e}.0.weight"], tensors[f"w.enc_to_dec_proj.{e}.0.bias"]) for e in experts]
    # The original router reads [frame, fc(word)] linearly: fc and the router's second half are one map of the word.
    of_frame, of_word = tensors["w.router.weight"].split(32, dim=1)
    state = {
        "w_down": torch.stack([weight.T for weight, _ in layers]),
        "b_down": torch.stack([bias for _, bias in layers]),
        "router.reads.prompt.weight": of_word @ tensors["w.fc.weight"],
        "router.reads.prompt.bias": of_word @ tensors["w.fc.bias"],
        "router.reads.audio.weight": of_frame,
    }
    module.load_state_dict(state)
    return module, tensors


def test_the_original_mixture_is_reproduced(oracle):
    """There every window hears one word of the prompt: a window is a clip of one frame here."""
    module, tensors = oracle
    expected = tensors["out.sum_over_experts"]
    clips, windows, _ = expected.shape
    x = tensors["mid.qformer_out"]  # (clip window) 1 dim
    words = tensors["in.prompt_embeds"][:, :windows].reshape(clips * windows, 1, -1)
    all_real = torch.ones(clips * windows, 1, dtype=torch.bool)
    out = module(Frames(x, all_real, 1.0), Prompt(words, all_real))
    gates = tensors["mid.router_weights"].flatten(0, 1)
    torch.testing.assert_close(out.aux["router_probs"], gates, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.x.view_as(expected), expected, rtol=0, atol=1e-5)


def test_the_original_experts_under_the_original_gates(oracle):
    module, tensors = oracle
    x = tensors["mid.qformer_out"]
    gates = tensors["mid.router_weights"].flatten(0, 1)
    mixed = [build_projector("moe", in_dim=32, out_dim=24, experts=3, hidden=0, gates=row.tolist()) for row in gates]
    for stage in mixed:
        stage.load_state_dict({name: getattr(module, name) for name in ("w_down", "b_down")})
    own = torch.ones(1, 1, dtype=torch.bool)
    y = torch.cat([stage(Frames(row[None], own, 1.0)).x for stage, row in zip(mixed, x, strict=True)])
    expected = tensors["out.sum_over_experts"]
    torch.testing.assert_close(y.view_as(expected), expected, rtol=0, atol=1e-5)


def test_the_oracle_has_experts_of_its_own():
    """Were they one expert, as the released code has it, any gates would give the expected output."""
    for file in ORACLE.glob("tapm_*.safetensors"):
        out = load_file(file)["mid.expert_out"]
        assert (out[..., 0, :] - out[..., 1, :]).abs().max() > 0.1, json.dumps(file.name)


# In a model


SPEC = {
    "encoders": {"toy": {}},
    "projector": [{"type": "linear", "stack": 5, "dim": 10}, {"type": "moe", "hidden": 6, "router_hidden": 5}],
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
    "losses": {"cross_entropy": {}, "load_balance": {"weight": 0.1}},
    "prompts": {"asr": "Transcribe this audio.", "aac": "What do you hear?"},
}


def chat(prompt, answer=None, seconds=(0.4,)):
    content = [{"type": "audio", "audio": noise(s, seed=i)} for i, s in enumerate(seconds)]
    asked = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def saved(folder, *overrides):
    torch.manual_seed(0)
    model = nudge(build_model(SPEC, *overrides), seed=3)
    with torch.no_grad():  # the gates of the two prompts shall be far apart
        for stage in model.model.projector.stages[1:]:
            for layer in stage.router.reads.values() if stage.router is not None else ():
                layer.weight.mul_(30)
    model.save_pretrained(folder)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(folder)
    return model


def heard(model, prompt, seconds=(0.4, 1.0), **options):
    processor = UsamProcessor.from_spec(model.config.parsed)
    batch = processor.apply_chat_template([chat(prompt, "ab", (s,)) for s in seconds], tokenize=True)
    for name in options.get("without", ()):
        batch.pop(name)
    with torch.no_grad():
        return model(**batch).logits


EXPORTS = {
    "experts of two layers": [],
    "linear experts": ["projector.1.hidden=0"],
    "linear experts and a shared one": ["projector.1.hidden=0", "projector.1.shared=true"],
    "the best two": ["projector.1.top_k=2", "projector.1.experts=5"],
    "the best two as they are": ["projector.1.top_k=2", "projector.1.renormalize=false", "projector.1.shared=true"],
    "adapted": ["projector.1.lora={r: 2, target_modules: [prompt, 'shared.0']}", "projector.1.shared=true"],
    "frozen in part": ["projector.1.freeze=[router.*]", "projector.1.hidden=0"],
    "matched": ["projector.1.match_embeddings=true"],
    "linear experts, matched": ["projector.1.match_embeddings=true", "projector.1.hidden=0"],
    "two of them": ["projector.0={type: moe, hidden: 0, dim: 10}"],
}


@pytest.mark.parametrize("overrides", EXPORTS.values(), ids=EXPORTS)
def test_an_export_for_a_task_answers_its_prompt_alike_without_reading_it(overrides, tmp_path):
    model = saved(tmp_path / "model", *overrides)
    export(tmp_path / "model", tmp_path / "whole", task="asr")
    whole = load(tmp_path / "whole")
    asr, aac = (heard(model, SPEC["prompts"][task]) for task in ("asr", "aac"))
    assert (asr[:, -3:] - aac[:, -3:]).abs().max() > 1e-3
    found = heard(whole, SPEC["prompts"]["asr"], without=["prompt_mask"])
    torch.testing.assert_close(found, asr, rtol=0, atol=1e-5)


def test_linear_experts_are_one_matrix_in_the_export(tmp_path):
    saved(tmp_path / "model", "projector.1.hidden=0", "projector.1.shared=true")
    whole = export(tmp_path / "model", tmp_path / "whole", task="asr")
    assert [stage.type for stage in whole.config.parsed.projector] == ["linear", "linear"]
    assert {n: tuple(p.shape) for n, p in whole.model.projector.stages[1].named_parameters()} == {
        "map.0.weight": (16, 10),
        "map.0.bias": (16,),
    }


def test_an_export_keeps_only_the_experts_of_its_task(tmp_path):
    saved(tmp_path / "model", "projector.1.top_k=2", "projector.1.experts=5")
    stage = export(tmp_path / "model", tmp_path / "whole", task="asr").model.projector.stages[1]
    assert stage.config.experts == len(stage.config.gates) == 2
    assert sum(stage.config.gates) == pytest.approx(1)
    assert set(stage.state_dict()) == {"w_up", "b_up", "w_down", "b_down"}
    assert stage.w_up.shape == (2, 6, 10)


def test_an_export_for_a_task_knows_no_other(tmp_path):
    saved(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "whole", task="asr")
    assert Answerer.load(tmp_path / "whole").processor.prompts == {"asr": SPEC["prompts"]["asr"]}
    assert load_spec(tmp_path / "whole").prompts == {"asr": SPEC["prompts"]["asr"]}


def test_an_export_without_a_task_still_reads_the_prompt(tmp_path):
    model = saved(tmp_path / "model")
    whole = export(tmp_path / "model", tmp_path / "whole")
    assert torch.equal(heard(whole, "What?"), heard(model, "What?"))
    with pytest.raises(ValueError, match=r"MoE reads the prompt: .*usam export --task"):
        heard(whole, "What?", without=["prompt_mask"])


@pytest.mark.parametrize(
    ("overrides", "task", "message"),
    [
        ([], "acc", "no such task; did you mean 'aac'"),
        (["projector.1.router=prompt_audio"], "asr", "router 'prompt_audio' weighs every frame anew"),
        (["projector.1.router=audio"], "asr", r"no stage of this projector \(linear, moe\) reads the prompt"),
        (["projector.1={type: linear}", "losses.load_balance=null"], "asr", "export without --task"),
        (["projector.1={type: toy_gate}", "losses.load_balance=null"], "asr", "'toy_gate' reads the prompt in a way"),
    ],
    ids=["unknown", "both", "frames", "none", "other"],
)
def test_an_export_that_cannot_be_says_why(overrides, task, message, tmp_path):
    model = build_model(SPEC, *overrides)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises((SpecError, ComponentError), match=message):
        export(tmp_path / "model", tmp_path / "whole", task=task)


def test_by_products_tell_the_sample_of_each_clip():
    model = build_model(SPEC, "projector.1.router=audio")
    chats = [chat("What?", "a", (0.3, 0.5)), [{"role": "user", "content": "hm"}], chat("And?", "b", (0.8,))]
    batch = UsamProcessor.from_spec(load_spec(SPEC)).apply_chat_template(chats, tokenize=True)
    assert model(**batch).aux["sample"].tolist() == [0, 0, 2]


# What training logs


def aux_of(probs, rows, sample, stage="1"):
    probs = torch.tensor(probs)
    entropy = -torch.xlogy(probs, probs).sum(-1)
    said = {"router_probs": probs, "router_load": probs.round(), "router_entropy": entropy}
    said["router_rows"] = torch.tensor(rows)
    return {f"{stage}.{name}": value for name, value in said.items()} | {"sample": torch.tensor(sample)}


def test_routing_is_a_mean_over_rows_by_task():
    routing = Routing()
    routing.add(["asr", "aac"], aux_of([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], [1, 3, 2], [0, 0, 1]))
    routing.add([None, "aac"], aux_of([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]], [4, 6, 0], [0, 1, 1]))
    logs = routing.means()
    assert logs["router/asr/expert0"] == pytest.approx((0.9 + 3 * 0.6) / 4)
    assert logs["router/aac/expert1"] == pytest.approx((2 * 0.8 + 6 * 1.0) / 8)
    assert logs["router/aac/load1"] == pytest.approx(1)
    assert logs["router/other/entropy"] == pytest.approx(torch.tensor(2.0).log().item())
    assert len(logs) == 3 * 5
    assert routing.means() == {}


def test_several_mixtures_are_told_apart():
    routing = Routing()
    routing.add(["asr"], aux_of([[1.0, 0.0]], [1], [0], "0") | aux_of([[0.0, 1.0]], [1], [0], "2"))
    logs = routing.means()
    assert logs["router0/asr/expert0"] == logs["router2/asr/expert1"] == 1


def test_a_model_without_a_mixture_logs_no_routing():
    routing = Routing()
    routing.add(["asr"], {"0.gate": torch.ones(1, 3)})
    assert routing.means() == {}


def test_a_model_answers_and_loses_under_gates_from_outside():
    model = build_model(SPEC)
    batch = UsamProcessor.from_spec(load_spec(SPEC)).apply_chat_template(
        [chat("What?", "ab"), chat("And?", "b")], tokenize=True, return_labels=True
    )
    learned = model(**batch)
    with fixed_gates(model, [1.0, 0.0, 0.0]):
        fixed = model(**batch)
    assert fixed.aux["1.router_probs"].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert fixed.losses["load_balance"] > learned.losses["load_balance"]
    assert fixed.losses["cross_entropy"] != learned.losses["cross_entropy"]
    assert model(**batch).loss == learned.loss


@pytest.fixture
def run(tmp_path):
    """Eight clips of two tasks, read two at a time; a step is two such readings."""
    rows = []
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", noise(0.2 + 0.1 * i, seed=i), 16000)
        rows.append({"audio": f"{i}.wav", "task": ["asr", "aac"][i % 2], "answer": "ab"})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"output_dir": f"{tmp_path}/out", "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}
    options |= {"gradient_accumulation_steps": 2, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    data = {"train": "train.jsonl", "eval": "train.jsonl"}
    page = {"model": SPEC, "data": data, "train": {**options, "save_strategy": "no", "disable_tqdm": True}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(page))
    return read_run(tmp_path / "run.yaml")


def history(run, monkeypatch):
    lines = []
    monkeypatch.setattr(
        UsamTrainer, "log", lambda self, logs, *a, _log=UsamTrainer.log: (_log(self, logs), lines.append(logs))
    )
    train(run)
    return lines


def test_training_logs_what_the_router_does_with_each_task(run, monkeypatch):
    lines = history(run, monkeypatch)
    (line,) = [line for line in lines if "loss" in line]
    assert {name for name in line if name.startswith("router")} == {
        f"router/{task}/{what}" for task in ("asr", "aac") for what in ("expert0", "expert1", "expert2", "entropy")
    }
    assert sum(line[f"router/asr/expert{e}"] for e in range(3)) == pytest.approx(1, abs=1e-5)
    assert any("eval_loss" in line for line in lines)


def test_the_model_is_called_without_the_tasks(run):
    batch = Collator(UsamProcessor.from_spec(run.spec), tasks=True)([Manifest(run.data["train"], run.spec.prompts)[1]])
    assert batch["tasks"] == ["aac"]
    assert "tasks" not in Collator(UsamProcessor.from_spec(run.spec))(
        [Manifest(run.data["train"], run.spec.prompts)[1]]
    )
