"""The window Q-Former: against the original's outputs, transformers' BLIP-2, and every layout of checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from conftest import nudge, randomize
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    GraniteSpeechConfig,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
)
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechEncoderProjector

from usam import ComponentError, SpecError, UsamForConditionalGeneration, build_model, build_projector
from usam.projectors._qformer import CrossAttention, QFormer
from usam.projectors.window_qformer import WAVES, Positions
from usam.testing import projector_promises
from usam.testing.projectors import CLAIMS, ProjectorCase
from usam.testing.promises import promises
from usam.types import Frames, prefix_mask

ORACLES = Path(__file__).parents[1] / "oracles" / "qformer"
SMALL = {"dim": 24, "heads": 2}
PROMISES = {
    "one query": projector_promises("window_qformer", **SMALL),
    "several queries": projector_promises("window_qformer", **SMALL, queries=3, cross_attention_frequency=2),
    "overlapping windows": projector_promises("window_qformer", **SMALL, layers=1, window=0.4, stride=0.12),
    "positions, and another stage follows": promises(
        ProjectorCase("window_qformer", {**SMALL, "layers": 1, "positions": True}, out_dim=None), CLAIMS, None
    ),
}


def small(in_dim=12, out_dim=None, **options):
    """A projector with weights of unit scale."""
    torch.manual_seed(0)
    return randomize(build_projector("window_qformer", in_dim=in_dim, out_dim=out_dim, **SMALL | options))


def frames(*lengths, rate=25.0, width=12, time=None, seed=0):
    """Items of noise; padding holds NaN."""
    x = torch.randn(len(lengths), time or max(lengths), width, generator=torch.Generator().manual_seed(seed))
    mask = prefix_mask(torch.tensor(lengths), x.shape[1])
    return Frames(x.masked_fill(~mask.unsqueeze(-1), torch.nan), mask, rate)


def part(given, *items):
    """Some items, without the padding they do not need."""
    time = max(int(given.lengths[i]) for i in items)
    return Frames(given.x[list(items), :time], given.mask[list(items), :time], given.rate)


def assert_near(ours, expected, tolerance):
    assert ours.shape == expected.shape
    assert float((ours - expected).detach().abs().max()) <= tolerance


def assert_same(ours, expected):
    """Equal but for the order in which a batch of another size is summed."""
    assert_near(ours, expected, 1e-6 * max(1.0, float(expected.abs().max())))


# The original


def oracle(name):
    """(path, settings, tensors) of a recording."""
    path = str(ORACLES / f"{name}.safetensors")
    with safe_open(path, "pt") as handle:
        return path, json.loads(handle.metadata()["config"]), load_file(path)


def from_oracle(name, **options):
    path, sizes, tensors = oracle(name)
    projector = build_projector(
        "window_qformer",
        in_dim=sizes["encoder_width"],
        path=path,
        queries=sizes["num_query"],
        layers=sizes["num_hidden_layers"],
        dim=sizes["hidden_size"],
        heads=sizes["num_attention_heads"],
        intermediate=sizes["intermediate_size"],
        cross_attention_frequency=sizes["cross_attention_freq"],
        **options,
    )
    return projector, tensors


def assert_as_recorded(ours, x, projector, recorded):
    assert_near(ours, recorded["out.last_hidden_state"], 2e-6)
    (ours * recorded["cotangent.last_hidden_state"]).sum().backward()
    assert_near(x.grad, recorded["grad.features"], 1e-5)
    assert_near(projector.qformer.query.grad, recorded["grad.query_tokens"][0], 1e-5)


def test_windows_are_read_as_the_original_reads_them():
    projector, recorded = from_oracle("qformer_window17_h64")
    x = recorded["in.features"].requires_grad_()
    out = projector(Frames(x, torch.ones(x.shape[:2], dtype=torch.bool), 25.0))
    whole = rearrange(out.x[:, : x.shape[1] // 17], "b w d -> (b w) 1 d")  # the original drops the rest
    assert_as_recorded(whole, x, projector, recorded)


def test_masks_and_many_queries_are_as_in_the_original():
    projector, recorded = from_oracle("qformer_masked_q4_freq2")
    x = recorded["in.features"].requires_grad_()
    assert_as_recorded(projector.qformer(x, recorded["in.attention_mask"].bool()), x, projector, recorded)


@pytest.mark.parametrize("name", ["tapm_h32", "tapm_longprompt_h32"])
def test_the_whole_model_of_the_original_is_a_checkpoint(name):
    path, sizes, recorded = oracle(name)
    projector = build_projector("window_qformer", in_dim=36, path=path, dim=32, heads=4, intermediate=64)
    x = recorded["mid.qformer_windows"]
    assert sizes["window"] == x.shape[1] == 17
    assert_near(projector.qformer(x, torch.ones(x.shape[:2], dtype=torch.bool)), recorded["mid.qformer_out"], 2e-6)


# BLIP-2's module


def blip2(queries, width=12, heads=2, **options):
    """(transformers' Q-Former, its queries (1, queries, 24)) with random weights."""
    config = Blip2QFormerConfig(
        hidden_size=24,
        num_attention_heads=heads,
        intermediate_size=40,
        num_hidden_layers=3,
        encoder_hidden_size=width,
        cross_attention_frequency=2,
        **options,
    )
    query = torch.randn(1, queries, 24, generator=torch.Generator().manual_seed(queries))
    return randomize(Blip2QFormerModel(config)), query


def as_blip2(path, queries, out_dim=None, **options):
    options = {"layers": 3, "cross_attention_frequency": 2, "intermediate": 40, **options}
    return build_projector("window_qformer", in_dim=12, out_dim=out_dim, path=path, queries=queries, **SMALL | options)


def save_usam(folder, network, query, prefix="", name="speech_Qformer"):
    """U-SAM's state dict."""
    tensors = {f"{prefix}{name}.bert.{original(n)}": t for n, t in network.items()}
    tensors[f"{prefix}speech_query_tokens"] = query
    tensors |= {f"{prefix}router.weight": torch.ones(3, 4), "decoder.model.lm_head.weight": torch.ones(2)}
    torch.save(tensors, folder / "pytorch_model.bin")
    return str(folder)


def original(name):
    """A name of transformers' Q-Former as BERT and the original have it."""
    name = name.replace("crossattention.attention.", "crossattention.self.")
    name = name.replace(".attention.attention.", ".attention.self.")
    return name.replace("layernorm.", "embeddings.LayerNorm.")


@pytest.mark.parametrize(("queries", "heads", "goes"), [(1, 2, True), (2, 1, True), (2, 2, False), (8, 4, False)])
def test_equal_to_blip2_in_float64(queries, heads, goes, tmp_path):
    reference, query = blip2(queries, heads=heads, attn_implementation="eager")
    projector = as_blip2(save_usam(tmp_path, reference.state_dict(), query), queries, heads=heads).double()
    assert projector.qformer.layers[0].cross_attention._few(queries, 24) is goes  # both ways are tested
    x = torch.randn(5, 24, 12, dtype=torch.float64, requires_grad=True)
    mask = prefix_mask(torch.tensor([24, 1, 9, 23, 17]), 24)
    expected = reference.double()(
        query_embeds=query.double().expand(5, -1, -1), encoder_hidden_states=x, encoder_attention_mask=mask.long()
    ).last_hidden_state
    ours = projector.qformer(x, mask)
    assert_near(ours, expected, 1e-12)
    push = torch.randn_like(ours)
    ((theirs,), (own,)) = (torch.autograd.grad((out * push).sum(), x) for out in (expected, ours))
    assert_near(own, theirs, 1e-12)


@pytest.mark.parametrize("attend", [CrossAttention._attend, CrossAttention._go])
def test_dropout_of_shares_changes_no_mean(attend):
    torch.manual_seed(0)
    attention, h = randomize(CrossAttention(8, 2, 0.5, 6)), torch.randn(1, 1, 8)
    x, mask = torch.randn(1, 5, 6), torch.ones(1, 5, dtype=torch.bool)
    mask = mask[:, None, None] if attend is CrossAttention._attend else mask
    with torch.no_grad():
        still = attend(attention, h, x, mask)
        many = attend(attention.train(), h.expand(40000, -1, -1), x.expand(40000, -1, -1), mask)
    assert_near(many.mean(0), still[0], 0.04)
    assert float(many.std()) > 0.2


def test_a_lone_querys_heads_are_dropped_whole():
    torch.manual_seed(0)
    attention = QFormer(
        in_dim=6, dim=8, queries=1, layers=1, heads=2, intermediate=8, cross_attention_frequency=1, dropout=0.5
    )
    alone = attention.layers[0].self_attention.train()
    alone.out = nn.Identity()
    heads = rearrange(alone(torch.randn(200, 1, 8)) == 0, "n 1 (h d) -> (n h) d", h=2)
    assert torch.equal(heads.any(-1), heads.all(-1))
    assert 0.4 < float(heads.float().mean()) < 0.6


# Gradients, neighbours, padding


@pytest.mark.parametrize(
    "options",
    [{}, {"queries": 3}, {"positions": True}, {"stride": 0.08}, {"layers": 3, "cross_attention_frequency": 2}],
)
def test_gradients_are_those_of_differences(options):
    projector = small(in_dim=3, dim=4, heads=2, window=0.2, intermediate=6, **options).double()
    mask = prefix_mask(torch.tensor([7, 4]), 7)
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    named = dict(projector.named_parameters())

    def out(x, *parameters):
        given = dict(zip(named, parameters, strict=True))
        return torch.func.functional_call(projector, given, (Frames(x, mask, 25.0),)).x

    assert torch.autograd.gradcheck(out, (x, *named.values()), fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"queries": 3, "stride": 0.2}])
def test_items_keep_to_themselves(options):
    projector, given = small(**options), frames(40, 1, 18, 17)
    with torch.no_grad():
        together = projector(given)
        order = [2, 0, 3, 1]
        permuted = projector(Frames(given.x[order], given.mask[order], 25.0))
        for i in range(4):
            alone = projector(part(given, i))
            assert_same(together.x[i][together.mask[i]], alone.x[0])
            assert_same(permuted.x[order.index(i)], together.x[i])
    assert not together.x[~together.mask].any()
    assert together.x[together.mask].isfinite().all()


def test_frames_behind_a_clip_get_no_gradient():
    projector, given = small(), frames(20, 3)
    x = given.x.nan_to_num().requires_grad_()
    projector(Frames(x, given.mask, 25.0)).x.sum().backward()
    assert not x.grad[~given.mask].any()
    assert x.grad[given.mask].any(-1).all()


# Windows


@pytest.mark.parametrize(
    ("options", "rate", "time", "expected"),
    [
        ({}, 25, 250, (15, 25 / 17)),  # ten seconds, of which the last window holds twelve frames
        ({}, 25, 1, (1, 25 / 17)),
        ({}, 25, 17, (1, 25 / 17)),
        ({}, 25, 18, (2, 25 / 17)),
        ({"queries": 4}, 25, 34, (8, 100 / 17)),
        ({"stride": 0.2}, 25, 17, (4, 5.0)),
        ({"stride": 0.2, "queries": 2}, 25, 21, (10, 10.0)),
        ({"window": 0.01}, 25, 9, (9, 25.0)),
    ],
)
def test_how_long_the_output_is(options, rate, time, expected):
    config = small(**options).config
    assert config.length(time, rate) == expected
    assert config.length(torch.tensor([time]), rate)[0].tolist() == [expected[0]]


@settings(max_examples=60, deadline=None)
@given(
    window=st.floats(0.02, 1.0),
    share=st.floats(0.05, 1.0),
    queries=st.integers(1, 3),
    rate=st.sampled_from([6.25, 12.5, 25.0, 50.0, 75.0, 25 / 3]),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    more=st.integers(0, 9),
)
def test_the_config_knows_every_length(window, share, queries, rate, lengths, more):
    options = {"window": window, "stride": window * share, "queries": queries, "dim": 4, "heads": 1, "layers": 1}
    projector = build_projector("window_qformer", in_dim=2, **options)
    with torch.no_grad():
        out = projector(frames(*lengths, rate=rate, width=2, time=max(lengths) + more))
    size, out_rate = projector.config.length(max(lengths) + more, rate)
    assert out.x.shape == (len(lengths), size, 4)
    assert out.rate == out_rate
    assert out.lengths.tolist() == [projector.config.length(n, rate)[0] for n in lengths]


def test_windows_begin_every_stride_and_are_read_one_by_one():
    projector, given = small(queries=2, stride=0.2), frames(21)
    with torch.no_grad():
        out = projector(given).x[0]
        for i, start in enumerate(range(0, 21, 5)):
            window = given.x[:, start : start + 17]
            alone = projector.qformer(window, torch.ones(window.shape[:2], dtype=torch.bool))[0]
            assert_same(out[2 * i : 2 * i + 2], alone)
    assert len(out) == 2 * 5


@pytest.mark.parametrize("positions", [False, True])
def test_the_order_within_a_window_is_seen_by_positions_only(positions):
    projector, given = small(positions=positions), frames(17)
    with torch.no_grad():
        forwards = projector(given).x
        backwards = projector(Frames(given.x.flip(1), given.mask, 25.0)).x
    assert bool((forwards - backwards).abs().max() > 1e-3) is positions


@pytest.mark.parametrize("size", [1, 2, 17, WAVES + 1])
def test_positions_can_be_any_but_for_their_mean(size):
    positions = Positions(WAVES)
    nn.init.eye_(positions.weight)
    with torch.no_grad():
        waves = positions(size).double()
    assert torch.linalg.matrix_rank(torch.cat([waves, torch.ones(size, 1)], 1), rtol=1e-4) == size


def test_positions_start_at_nothing():
    with torch.no_grad():
        torch.manual_seed(1)
        plain = build_projector("window_qformer", in_dim=12, **SMALL)
        placed = build_projector("window_qformer", in_dim=12, **SMALL, positions=True)
        placed.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(placed(frames(30)).x, plain(frames(30)).x)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0.7}, r"a stride of 0\.7 s with a window of 0\.68 s would skip frames: write .* at most 0\.68"),
        ({"heads": 5}, r"5 heads do not divide a dim of 24"),
        ({"window": 0}, r"window"),
        ({"stride": 0}, r"stride"),
        ({"queries": 0}, r"queries"),
        ({"dropout": 1.0}, r"dropout"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(SpecError, match=message):
        build_projector("window_qformer", in_dim=12, **SMALL | options)


@pytest.mark.parametrize(("width", "whole"), [(2304, 23_624_448), (3072, 25_983_744)])
def test_parameters_are_the_originals_without_those_that_cannot_train(width, whole):
    """One query: its own scores', and the biases of keys. Two: the biases of keys."""
    with torch.device("meta"):
        one, two = (build_projector("window_qformer", in_dim=width, queries=n, weights=False) for n in (1, 2))
    scores = 2 * 2 * (768 * 768 + 768)
    assert count(one) == whole - scores - 2 * 768
    assert count(two) == whole - 4 * 768 + 768  # the second query


def test_parameters_at_the_papers_width():
    with torch.device("meta"):
        projectors = [build_projector("window_qformer", in_dim=3072, queries=n, weights=False) for n in (1, 2)]
    assert [count(projector) for projector in projectors] == [23_619_840, 25_981_440]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_last_stage_maps_to_the_models_width():
    last, between = small(out_dim=7), small()
    assert (last.dim, last.map.weight.shape) == (7, (7, 24))
    assert between.dim == 24
    assert not list(between.map.parameters())


def test_adapters_on_keys_and_values_are_used():
    lora = {"r": 2, "target_modules": ["key", "value"]}
    projector, given = nudge(small(freeze="all", lora=lora)), frames(20)
    projector(given).x.square().sum().backward()
    adapters = {n: p for n, p in projector.named_parameters() if "cross_attention" in n and "lora_" in n}
    assert len(adapters) == 8
    assert all(bool(p.grad.any()) for p in adapters.values())


# Checkpoints


def save_salmonn(folder, network, query):
    model = {f"speech_Qformer.bert.{original(n)}": t for n, t in network.items()}
    model |= {"speech_query_tokens": query, "speech_llama_proj.weight": MAP.weight, "speech_llama_proj.bias": MAP.bias}
    model |= {"ln_speech.weight": torch.ones(3), "ln_audio.bias": torch.ones(2)}
    model["llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(2, 3)
    torch.save({"model": model, "optimizer": {"state": {}}, "config": {"run": {}}, "epoch": 3}, folder / "salmonn.pth")
    return str(folder / "salmonn.pth")


def save_lavis(folder, network, query, maps="llm_proj"):
    """BLIP-2 and InstructBLIP as LAVIS has them, with the branch for text."""
    model = {f"Qformer.bert.{original(n)}": t for n, t in network.items()}
    for i in range(3):
        layer = f"Qformer.bert.encoder.layer.{i}."
        model |= {f"{layer}intermediate.dense.weight": torch.ones(40, 24), f"{layer}output.dense.bias": torch.ones(24)}
        model |= {f"{layer}output.LayerNorm.weight": torch.ones(24)}
    model |= {"Qformer.bert.embeddings.word_embeddings.weight": torch.ones(9, 24)}
    model |= {"Qformer.bert.embeddings.position_ids": torch.ones(1, 9), "Qformer.cls.predictions.bias": torch.ones(9)}
    model |= {"query_tokens": query, f"{maps}.weight": MAP.weight, f"{maps}.bias": MAP.bias, "ln_vision.bias": query}
    torch.save({"model": model, "scaler": {}}, folder / "lavis.pth")
    return str(folder / "lavis.pth")


QFORMER = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "encoder_hidden_size": 12,
    "cross_attention_frequency": 2,
    "vocab_size": 9,
}
VISION = {"hidden_size": 12, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 8, "patch_size": 4}
TEXT = {"model_type": "opt", "hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"vocab_size": 9, "max_position_embeddings": 9, "word_embed_proj_dim": 8}
MAP = randomize(nn.Linear(24, 8)).requires_grad_(False)


def save_transformers(folder, network, query, config, model):
    """A whole model as transformers saves it."""
    whole = model(config(vision_config=VISION, qformer_config=QFORMER, text_config=TEXT, num_query_tokens=2))
    inner = whole.model if hasattr(whole, "model") else whole
    instruct = "embeddings.layernorm.weight" in inner.qformer.state_dict()
    renamed = {n.replace("layernorm.", "embeddings.layernorm.") if instruct else n: t for n, t in network.items()}
    missing, unexpected = inner.qformer.load_state_dict(renamed, strict=False)
    assert not unexpected
    assert all("embeddings" in n or ".intermediate." in n or ".output." in n for n in missing)
    inner.query_tokens.data = query
    inner.language_projection.load_state_dict(MAP.state_dict())
    whole.save_pretrained(folder)
    return str(folder)


def save_granite(folder, network, query):
    config = GraniteSpeechConfig(
        projector_config={"model_type": "blip_2_qformer", **QFORMER},
        text_config={"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2},
        window_size=6,
        downsample_rate=3,
    )
    projector = GraniteSpeechEncoderProjector(config)
    projector.load_state_dict({f"qformer.{n}": t for n, t in network.items()} | {"query": query}, strict=False)
    projector.linear.load_state_dict(MAP.state_dict())
    tensors = {f"projector.{n}": t.contiguous() for n, t in projector.state_dict().items()}
    save_file(tensors | {"language_model.x": torch.ones(1)}, folder / "model.safetensors")
    return str(folder)


LAYOUTS = {
    "U-SAM": (save_usam, {}, False),
    "U-SAM in a model": (save_usam, {"prefix": "model."}, False),
    "U-SAM, its other name": (save_usam, {"prefix": "module.model.", "name": "speech_former"}, False),
    "SALMONN": (save_salmonn, {}, True),
    "BLIP-2 of LAVIS": (save_lavis, {"maps": "opt_proj"}, True),
    "InstructBLIP of LAVIS": (save_lavis, {}, True),
    "BLIP-2": (save_transformers, {"config": Blip2Config, "model": Blip2ForConditionalGeneration}, True),
    "InstructBLIP": (
        save_transformers,
        {"config": InstructBlipConfig, "model": InstructBlipForConditionalGeneration},
        True,
    ),
    "Granite Speech": (save_granite, {}, True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same(layout, tmp_path):
    save, options, with_map = LAYOUTS[layout]
    reference, query = blip2(2)
    path = save(tmp_path, reference.state_dict(), query, **options)
    last, between = as_blip2(path, 2, out_dim=8), as_blip2(path, 2)
    given = frames(17, 10)
    with torch.no_grad():
        expected = reference(
            query_embeds=query.expand(2, -1, -1),
            encoder_hidden_states=given.x.nan_to_num(),
            encoder_attention_mask=given.mask.long(),
        ).last_hidden_state
        assert_near(between(given).x, expected, 2e-6)
        assert_near(last(given).x, (MAP if with_map else last.map)(expected), 2e-6)
    assert torch.equal(last.map.weight, MAP.weight) is with_map


def test_one_query_leaves_its_own_attentions_scores_aside(tmp_path):
    reference, query = blip2(1)
    projector = as_blip2(save_salmonn(tmp_path, reference.state_dict(), query), 1)
    assert not [n for n in projector.state_dict() if "self_attention.query" in n or "self_attention.key" in n]


def test_weights_stay_as_stored(tmp_path):
    reference, query = blip2(2)
    network = {n: t.half() for n, t in reference.state_dict().items()}
    projector = as_blip2(save_usam(tmp_path, network, query.half()), 2)
    assert {p.dtype for p in projector.parameters()} == {torch.float16}


def test_what_no_source_gives_trains_while_the_rest_is_frozen(tmp_path):
    reference, query = blip2(2)
    path = save_usam(tmp_path, reference.state_dict(), query)
    projector = as_blip2(path, 2, out_dim=8, positions=True, freeze="all")
    trains = {name for name, parameter in projector.named_parameters() if parameter.requires_grad}
    assert trains == {"map.weight", "map.bias", "positions.weight"}


NORM, KEY = "encoder.layer.1.output_query.LayerNorm.bias", "encoder.layer.0.crossattention.attention.key.weight"


def test_all_that_does_not_fit_is_listed(tmp_path):
    reference, query = blip2(2)
    network = reference.state_dict()
    del network[NORM]
    network[KEY] = torch.ones(24, 13)
    network["encoder.layer.0.adapter.weight"] = torch.ones(2)
    with pytest.raises(ComponentError) as error:
        as_blip2(save_usam(tmp_path, network, query), 2)
    assert str(error.value).partition("fit: ")[2].split("; ") == [
        "missing qformer.layers.1.norm.bias (24,)",
        "qformer.layers.0.cross_attention.key.weight is (24, 13), expected (24, 12)",
        "unexpected qformer.encoder.layer.0.adapter.weight (2,)",
    ]


def test_a_map_to_another_model_does_not_fit(tmp_path):
    reference, query = blip2(2)
    path = save_salmonn(tmp_path, reference.state_dict(), query)
    with pytest.raises(ComponentError, match=r"map\.weight is \(8, 24\), expected \(9, 24\)"):
        as_blip2(path, 2, out_dim=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 1}, r"write `queries: 2`"),
        ({"layers": 2}, r"write `layers: 3`"),
        ({"dim": 48, "intermediate": 40}, r"write `dim: 24`"),
        ({"intermediate": None}, r"write `intermediate: 40`"),
        ({"cross_attention_frequency": 1}, r"write `cross_attention_frequency: 2`"),
        ({"queries": 4, "layers": 12}, r"write `layers: 3, queries: 2`"),
    ],
)
def test_a_checkpoint_of_other_options_says_which(options, message, tmp_path):
    reference, query = blip2(2)
    path = save_usam(tmp_path, reference.state_dict(), query)
    with pytest.raises(ComponentError, match=message):
        as_blip2(path, **{"queries": 2, **options})


def test_a_checkpoint_without_queries(tmp_path):
    reference, _ = blip2(2)
    reference.save_pretrained(tmp_path)
    with pytest.raises(ComponentError, match=r"fit: missing qformer\.query \(2, 24\)$"):
        as_blip2(str(tmp_path), 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bert.encoder.layer.0.attention.self.query.weight"], r"expected, found 0; names look like bert\.encoder"),
        (
            ["a.encoder.layer.0.output_query.dense.bias", "b.encoder.layer.0.output_query.dense.bias"],
            r"one Q-Former was expected, found 2; names look like a\., b\.",
        ),
    ],
)
def test_a_checkpoint_with_no_or_two_qformers(names, message, tmp_path):
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ComponentError, match=message):
        as_blip2(str(tmp_path), 2)


# In a model


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_a_saved_model_gives_the_same(freeze, whisper, tmp_path):
    reference, query = blip2(2, width=16)
    (tmp_path / "source").mkdir()
    stage = {
        "type": "window_qformer",
        "path": save_usam(tmp_path / "source", reference.state_dict(), query),
        "queries": 2,
        "layers": 3,
    }
    stage |= {"cross_attention_frequency": 2, "intermediate": 40, "freeze": freeze, "window": 0.3, **SMALL}
    spec = {"encoders": {"whisper": {"path": whisper}}, "projector": [stage], "llm": {"type": "tiny", "dim": 32}}
    model = nudge(build_model(spec)).eval()
    model.save_pretrained(tmp_path / "saved")
    again = UsamForConditionalGeneration.from_pretrained(tmp_path / "saved")
    given = frames(40, 25, rate=50.0, width=16)
    with torch.no_grad():
        ours, before = (m.model.projector(Frames(given.x, given.mask, 50.0)) for m in (again, model))
    assert torch.equal(ours.x, before.x)
    assert ours.lengths.tolist() == [2 * 3, 2 * 2]


# Promises


CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, kept in PROMISES.items() for promise in kept]


@pytest.mark.parametrize("promise", CASES)
def test_the_window_qformer_keeps_its_promises(promise):
    promise()
