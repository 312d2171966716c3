"""BEATs gives the original's features, and better: a clip's features depend on that clip alone."""

import copy
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from usam import ComponentError, SpecError, UsamForConditionalGeneration, build_model
from usam.encoders import build_encoder
from usam.encoders._layers import LayerMix
from usam.testing import encoder_promises
from usam.types import prefix_mask
from usam.weights import locate, read_entry

ORACLE = Path(__file__).parents[1] / "oracles" / "beats"
CHECKPOINT = str(ORACLE / "checkpoint.pt")
CFG = json.loads((ORACLE / "config.json").read_text())
STEP = 2560  # samples

RELEASED = {
    **CFG,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "embed_dim": 512,
}
TINY = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "embed_dim": 24,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "relative_position_embedding": True,
    "num_buckets": 32,
    "max_distance": 80,
    "gru_rel_pos": True,
    "deep_norm": True,
    "encoder_layerdrop": 0.05,
}
NORM_FIRST = {**TINY, "deep_norm": False, "layer_norm_first": True}
ARCHS = {
    "released": TINY,
    "norm first": NORM_FIRST,
    "norm last without deep norm": {**TINY, "deep_norm": False},
    "no gate": {**TINY, "gru_rel_pos": False},
    "no relative positions": {**TINY, "gru_rel_pos": False, "relative_position_embedding": False},
    "no projection, odd kernel, biased patches": {**TINY, "embed_dim": 32, "conv_pos": 15, "conv_bias": True},
    "glu": {**NORM_FIRST, "activation_fn": "glu"},
    "gelu_accurate": {**TINY, "activation_fn": "gelu_accurate"},
}
PROMISES = {
    "windows": encoder_promises("beats", arch=TINY, chunk=0.48),
    "norm first, all options": encoder_promises(
        "beats",
        arch={**NORM_FIRST, "encoder_layers": 1},
        bands="concat",
        layers="weighted",
        attn_implementation="eager",
    ),
}


def load(**options):
    return build_encoder("beats", path=CHECKPOINT, **options)


def tiny(arch=TINY, **options):
    """Random weights, the same for the same architecture, with gates and norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder("beats", arch=arch, **options)
        with torch.no_grad():
            for parameter in encoder.beats.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def clips(*seconds):
    """Noise, with louder noise for padding: (audio, mask)."""
    sounds = [torch.from_numpy(noise(s, seed)) for seed, s in enumerate(seconds)]
    audio = torch.randn(len(sounds), max(map(len, sounds)), generator=torch.Generator().manual_seed(9))
    for row, sound in zip(audio, sounds, strict=True):
        row[: len(sound)] = sound
    return audio, prefix_mask(torch.tensor([len(sound) for sound in sounds]), audio.shape[1])


@torch.no_grad()
def encode(encoder, audio, mask=None):
    return encoder(audio, torch.ones_like(audio, dtype=torch.bool) if mask is None else mask)


def own(frames, item):
    return frames.x[item][frames.mask[item]]


def alone(encoder, audio, mask, item):
    return own(encode(encoder, audio[item : item + 1, mask[item]]), 0)


def assert_alone_is_as_in_the_batch(encoder, audio, mask, tolerance=1e-5):
    batch = encode(encoder, audio, mask)
    for i in range(len(audio)):
        torch.testing.assert_close(own(batch, i), alone(encoder, audio, mask, i), rtol=0, atol=tolerance)


# The original


def sound(case):
    """The fixture's waveforms with their masks, and what the original computed from them."""
    expected = {k: torch.from_numpy(v) for k, v in np.load(ORACLE / f"expected_{case}.npz").items()}
    names = ["short", "long"] if case == "padded_batch" else [case]
    waves = [torch.from_numpy(np.load(ORACLE / f"audio_{name}.npy")) for name in names]
    audio = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    return audio, prefix_mask(torch.tensor([len(wave) for wave in waves]), audio.shape[1]), expected


def stages(encoder, run):
    """What the encoder computes on its way, by the names of the fixture."""
    network, found = encoder.beats, {}
    places = {"fbank": encoder.fbank, "patch_tokens_normed": network.layer_norm, "projected": network.post_extract_proj}
    places |= {"pos_conv": network.encoder.pos_conv, "features": network.encoder}
    places |= {f"hidden_{i + 1}": layer for i, layer in enumerate(network.encoder.layers)}
    hooks = [m.register_forward_hook(lambda _m, _i, y, n=n: found.update({n: y})) for n, m in places.items()]
    hooks += [network.encoder.layers[0].register_forward_pre_hook(lambda _m, i: found.update(hidden_0=i[0]))]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


def difference(ours, expected):
    size = min(ours.shape[1], expected.shape[1])  # the front-end ends with the last whole patch
    return float((ours[:, :size] - expected[:, :size]).abs().max())


STAGES = ["fbank", "patch_tokens_normed", "projected", "pos_conv", "hidden_0", "hidden_1", "hidden_2", "features"]


@pytest.mark.parametrize("case", ["short", "long"])
def test_every_stage_is_the_originals_from_the_waveform(case):
    encoder = load()
    audio, mask, expected = sound(case)
    found = stages(encoder, lambda: encoder(audio, mask))
    assert {name: d for name in STAGES if (d := difference(found[name], expected[name])) > 1e-4} == {}
    assert found["features"].shape == expected["features"].shape


@pytest.mark.parametrize("case", ["short", "long"])
def test_every_stage_is_the_originals_from_the_filter_bank(case):
    encoder = load()
    _, _, expected = sound(case)
    tokens = expected["features"].shape[1]
    fbank, mask = expected["fbank"][:, : tokens * 2], torch.ones(1, tokens, dtype=torch.bool)
    found = stages(encoder, lambda: encoder.beats(fbank, mask, encoder.mix))
    assert {name: d for name in STAGES[1:] if (d := difference(found[name], expected[name])) > 1e-5} == {}


def test_hidden_states_are_the_originals():
    audio, mask, expected = sound("long")
    frames = encode(load(layers=[0, 1, 2]), audio, mask)
    states = torch.cat([expected[f"hidden_{i}"] for i in range(3)], -1)
    torch.testing.assert_close(frames.x, states, rtol=0, atol=1e-4)


def test_relative_positions_are_the_originals():
    bias = load().beats.encoder.relative_position(64)
    assert torch.equal(bias, sound("short")[2]["position_bias_layer0"])


def test_a_clip_that_fills_its_row_of_a_batch_is_the_originals():
    encoder = load()
    audio, mask, expected = sound("padded_batch")
    found = stages(encoder, lambda: encoder(audio, mask))
    assert {name: d for name in STAGES if (d := difference(found[name][1:], expected[name][1:])) > 1e-4} == {}
    for name in STAGES[:3]:  # before any token sees another, padding is as the original has it too
        assert difference(found[name], expected[name]) < 1e-4


def test_a_padded_clip_is_as_it_is_alone_where_the_original_lets_it_keep_padding():
    encoder = load()
    audio, mask, expected = sound("padded_batch")
    padded = own(encode(encoder, audio, mask), 0)
    assert len(padded) == 64 < (~expected["token_padding_mask"][0]).sum()
    torch.testing.assert_close(padded, alone(encoder, audio, mask, 0), rtol=0, atol=1e-5)
    torch.testing.assert_close(padded, sound("short")[2]["features"][0], rtol=0, atol=1e-4)


def test_silence_is_the_floor():
    floor = (np.log(np.finfo(np.float32).eps) - 15.41663) / (2 * 6.55582)
    torch.testing.assert_close(load().fbank(torch.zeros(1, 800)), torch.full((1, 3, 128), float(floor)))


def test_the_released_size():
    with torch.device("meta"):
        encoder = build_encoder("beats", arch=RELEASED)
    assert encoder.dim == 768
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == 90.3
    assert len(encoder.state_dict()) == 250 - 11  # the table of positions is in the file once a layer


# Padding, and time


@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
def test_a_clip_alone_is_as_in_a_batch(arch):
    assert_alone_is_as_in_the_batch(tiny(arch), *clips(0.5, 1.3, 0.1, 0.75, 2.1))


@pytest.mark.parametrize("bands", ["flatten", "mean", "concat"])
@given(lengths=st.lists(st.integers(1, 24000), min_size=1, max_size=4))
@settings(max_examples=8, deadline=None)
def test_any_clips_in_any_batch(bands, lengths):
    assert_alone_is_as_in_the_batch(tiny(bands=bands, chunk=0.64), *clips(*(n / 16000 for n in lengths)), 1e-4)


@given(st.lists(st.integers(0, 10**7), min_size=1))
def test_time_in_ints_and_tensors(samples):
    for bands, tokens in {"flatten": 8, "mean": 1, "concat": 1}.items():
        config = tiny_config(bands=bands)
        wanted = [tokens * ((1 + (n - 400) // 160) // 16) if n >= 400 else 0 for n in samples]
        assert [config.length(n) for n in samples] == config.length(torch.tensor(samples)).tolist() == wanted
        assert config.rate == 6.25 * tokens


def tiny_config(**options):
    from usam.encoders.beats import Beats

    return Beats.Config(type="beats", arch=TINY, **options)


@pytest.mark.parametrize(("samples", "steps"), [(0, 0), (1, 0), (399, 0), (2799, 0), (2800, 1), (5359, 1), (5360, 2)])
def test_short_clips_have_no_frames(samples, steps):
    frames = encode(tiny(bands="mean"), torch.zeros(2, samples))
    assert frames.x.shape == (2, steps, 32)
    assert frames.mask.all()


def test_a_clip_without_a_frame_gives_finite_gradients():
    encoder = tiny(freeze="none")
    audio, mask = clips(1.0, 0.1)
    encoder(audio, mask).x.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


# Options


def test_bands_are_one_computation_seen_three_ways():
    audio, mask = clips(1.0, 0.6)
    flat, mean, side = (encode(tiny(bands=bands), audio, mask) for bands in ("flatten", "mean", "concat"))
    tokens = flat.x.reshape(2, -1, 8, 32)
    torch.testing.assert_close(mean.x, tokens.mean(2))
    assert torch.equal(side.x, tokens.flatten(2))
    assert (flat.rate, mean.rate, side.rate) == (50, 6.25, 6.25)
    assert [tiny(bands=bands).dim for bands in ("flatten", "mean", "concat")] == [32, 32, 256]


@pytest.mark.parametrize("arch", [TINY, NORM_FIRST])
def test_an_even_mix_is_the_mean_of_the_states(arch):
    audio, mask = clips(0.7)
    states = encode(tiny(arch, layers=[0, 1, 2]), audio, mask).x
    weighted = encode(tiny(arch, layers="weighted"), audio, mask).x
    torch.testing.assert_close(weighted, states.unflatten(-1, (3, 32)).mean(-2))
    assert torch.equal(encode(tiny(arch, layers=[-1]), audio, mask).x, encode(tiny(arch), audio, mask).x)


def test_the_mix_trains_over_a_frozen_network():
    encoder = load(layers="weighted")  # freeze: all
    encoder(*clips(0.5)).x.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.requires_grad] == ["mix.weights"]
    assert encoder.mix.weights.grad.abs().min() > 0


def test_states_past_the_last_needed_are_not_asked_for():
    def states():
        yield from (torch.full((1, 1, 2), float(i)) for i in range(2))
        raise AssertionError("asked for a third")

    assert LayerMix([1, 0, 1], count=5, dim=2)(states()).flatten().tolist() == [1, 1, 0, 0, 1, 1]


@pytest.mark.parametrize("layers", [[3], [-4], [], "first"])
def test_states_that_do_not_exist(layers):
    with pytest.raises(SpecError, match="layers"):
        tiny(layers=layers)


def test_attention_written_out_is_the_same():
    audio, mask = clips(1.3, 0.6)
    ours, reference = encode(tiny(attn_implementation="eager"), audio, mask), encode(tiny(), audio, mask)
    torch.testing.assert_close(ours.x, reference.x, rtol=0, atol=1e-5)


def test_bfloat16_is_close():
    audio, mask, expected = sound("long")
    ours = encode(load(dtype="bfloat16"), audio, mask).x
    assert ours.dtype == torch.bfloat16
    reference = expected["features"]
    assert (ours - reference).norm() / reference.norm() < 0.02


def test_autocast_leaves_the_front_end_alone():
    encoder, (audio, mask) = load(), clips(0.5)
    reference = stages(encoder, lambda: encoder(audio, mask))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = stages(encoder, lambda: encoder(audio, mask))
    assert torch.equal(ours["fbank"], reference["fbank"])
    assert (ours["features"] - reference["features"]).norm() / reference["features"].norm() < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 30}, "30 is no multiple of 0.16; write 30.08"),
        ({"chunk": 0.01}, "write 0.16"),
        ({"arch": {**TINY, "encoder_layer": 3}}, "encoder_layer Extra inputs"),
        ({"arch": {**TINY, "encoder_attention_heads": 5}}, "encoder_attention_heads 5 does not divide 32"),
        ({"arch": {**TINY, "conv_pos_groups": 0}}, "conv_pos_groups .*greater than or equal to 1"),
        ({"arch": {**TINY, "layer_norm_first": True}}, "deep_norm"),
        ({"arch": {**TINY, "input_patch_size": 8}}, "input_patch_size .*16"),
        ({"arch": None}, "beats needs 'path' .* or 'arch'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(SpecError, match=message):
        build_encoder("beats", **{"arch": TINY, **options})


# Long audio


def test_frames_of_the_front_end_are_those_of_the_whole_clip():
    encoder, (audio, mask) = tiny(chunk=0.64, windows_at_once=16), clips(3.3)
    windows = stages(encoder, lambda: encoder(audio, mask))["fbank"]
    whole = encoder.fbank(audio)[0]
    torch.testing.assert_close(windows.flatten(0, 1)[: len(whole)], whole[: len(whole) // 16 * 16], rtol=0, atol=1e-5)


def test_the_first_window_is_as_if_nothing_followed():
    encoder, (audio, _) = tiny(chunk=0.64), clips(3.3)
    first = encode(encoder, audio[:, : 4 * STEP + 240]).x
    assert first.shape[1] == 4 * 8
    torch.testing.assert_close(encode(encoder, audio).x[:, : 4 * 8], first, rtol=0, atol=1e-5)


def fbanks(encoder, *seconds):
    """The shapes of what the network is given."""
    sizes = []
    encoder.beats.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    encode(encoder, *clips(*seconds))
    return sizes


def test_few_windows_are_in_memory_at_once():
    # 31 whole steps are 8 windows of 4, and 6 steps are 2
    assert fbanks(tiny(chunk=0.64, windows_at_once=2), 5.0, 1.0) == 5 * [(2, 64, 128)]


def test_a_short_clip_is_no_longer_than_it_is():
    assert fbanks(tiny(), 1.3, 0.5) == [(2, 128, 128)]


# Copies and checkpoints


def test_copies_give_the_same_features():
    encoder, (audio, mask) = load(layers="weighted"), clips(0.8)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(encode(other, audio, mask).x, encode(encoder, audio, mask).x)


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_a_saved_model_gives_the_same_features(freeze, tmp_path):
    options = {"path": CHECKPOINT, "layers": "weighted", "bands": "mean", "freeze": freeze}
    model = build_model({"encoders": {"beats": options}, "projector": "linear", "llm": "tiny"})
    with torch.no_grad():
        model.model.encoders["beats"].mix.weights += torch.tensor([0.3, -0.2, 0.5])
    model.save_pretrained(tmp_path)
    again = UsamForConditionalGeneration.from_pretrained(tmp_path)
    audio, mask = clips(1.1, 0.7)
    with torch.no_grad():
        assert torch.equal(again.model.encode(audio, mask).x, model.model.encode(audio, mask).x)
    assert again.config.spec["encoders"]["beats"]["arch"]["max_distance"] == CFG["max_distance"]


@pytest.fixture
def checkpoint(tmp_path):
    """A function that changes the fixture's checkpoint and loads the result."""

    def change(edit, name="checkpoint.pt", **options):
        found = torch.load(CHECKPOINT, weights_only=True)
        found = edit(found) or found
        torch.save(found, tmp_path / name)
        return build_encoder("beats", path=str(tmp_path / name), **options)

    return change


def features(encoder):
    return encode(encoder, *clips(0.7)).x


def test_a_fine_tuned_checkpoint_loses_its_classifier(checkpoint):
    def tune(found):
        found["cfg"] |= {"finetuned_model": True, "predictor_class": 5, "predictor_dropout": 0.1}
        found["model"] |= {"predictor.weight": torch.ones(5, 48), "predictor.bias": torch.ones(5)}
        found["label_dict"] = {0: "/m/dog", 1: "/m/cat"}

    assert torch.equal(features(checkpoint(tune)), features(load()))


def test_weight_norm_of_newer_pytorch(checkpoint):
    def rename(found):
        model = found["model"]
        for old, new in {"weight_g": "original0", "weight_v": "original1"}.items():
            model[f"encoder.pos_conv.0.parametrizations.weight.{new}"] = model.pop(f"encoder.pos_conv.0.{old}")

    assert torch.equal(features(checkpoint(rename)), features(load()))


def test_a_folder_with_the_file(checkpoint, tmp_path):
    checkpoint(lambda found: None, "BEATs_iter3.pt")
    assert torch.equal(features(build_encoder("beats", path=str(tmp_path))), features(load()))


def test_safetensors_with_a_config_beside(tmp_path):
    found = torch.load(CHECKPOINT, weights_only=True)
    once = {n: t for n, t in found["model"].items() if "1.self_attn.relative_attention" not in n}
    save_file(once, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(found["cfg"]))
    assert torch.equal(features(build_encoder("beats", path=str(tmp_path))), features(load()))


def test_a_flat_file_needs_the_architecture(checkpoint):
    with pytest.raises(ComponentError, match=r"checkpoint\.pt: has no entry 'cfg' but .*weight"):
        checkpoint(lambda found: found["model"])
    assert torch.equal(features(checkpoint(lambda found: found["model"], arch=CFG)), features(load()))


def test_half_precision_weights_stay_as_stored(checkpoint):
    encoder = checkpoint(lambda found: found["model"].update({n: t.half() for n, t in found["model"].items()}))
    assert {p.dtype for p in encoder.parameters()} == {torch.float16}
    assert encoder.fbank.filters.dtype == torch.float32


def drop(name):
    return lambda found: found["model"].pop(name) is None


def put(name, tensor):
    return lambda found: found["model"].update({name: tensor})


TABLE = "encoder.layers.1.self_attn.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop("encoder.layers.1.fc1.bias"), r"missing beats\.encoder\.layers\.1\.fc1\.bias \(96,\)"),
        (put("encoder.layers.2.fc1.bias", torch.ones(3)), r"unexpected beats\.encoder\.layers\.2\.fc1\.bias \(3,\)"),
        (put("layer_norm.bias", torch.ones(3)), r"beats\.layer_norm\.bias is \(3,\), expected \(32,\)"),
        (put(TABLE, torch.zeros(320, 4)), rf"{TABLE} is not the table"),
        (lambda found: found["cfg"].update(encoder_layers=3), r"missing beats\.encoder\.layers\.2\."),
        (lambda found: found["cfg"].update(deep_norm=True, layer_norm_first=True), r"cfg: .*deep_norm"),
        (lambda found: found["cfg"].update(activation_fn="mish"), r"cfg: activation_fn .*'gelu'"),
        (lambda found: {"cfg": {"d_model": 3}, "model": found["model"]}, r"its cfg is not one of BEATs"),
        (lambda found: {"cfg": 3, "model": found["model"]}, r"its cfg is not one of BEATs"),
        (lambda found: {**found, "model": {"decoder.weight": torch.ones(1)}}, r"unexpected beats\.decoder\.weight"),
        (lambda found: {**found, "model": {}}, r"is this another architecture\?"),
    ],
)
def test_a_checkpoint_that_does_not_fit(edit, message, checkpoint):
    with pytest.raises(ComponentError, match=message):
        checkpoint(edit)


def test_all_faults_are_listed_at_once(checkpoint):
    def edit(found):
        del found["model"]["layer_norm.bias"]
        found["model"]["more"] = torch.ones(2)

    with pytest.raises(ComponentError, match=r"missing beats\.layer_norm\.bias .*; unexpected beats\.more"):
        checkpoint(edit)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("arch", [None, CFG])
def test_a_truncated_checkpoint(kept, arch, tmp_path):
    data = Path(CHECKPOINT).read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ComponentError, match=r"cut\.pt: not a whole PyTorch checkpoint"):
        build_encoder("beats", path=str(tmp_path / "cut.pt"), arch=arch)


def test_a_checkpoint_that_would_execute_code(checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    with pytest.raises(ComponentError, match=r"evil\.pt: refused, .* would execute code"):
        checkpoint(lambda found: {**found, "label_dict": Evil()}, "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_what_a_file_holds_beside_its_tensors():
    assert read_entry(locate(CHECKPOINT), "cfg") == CFG
    with pytest.raises(ComponentError, match="has no entry 'epoch' but cfg, model"):
        read_entry(locate(CHECKPOINT), "epoch")


# Promises


CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, kept in PROMISES.items() for promise in kept]


@pytest.mark.parametrize("promise", CASES)
def test_beats_keeps_its_promises(promise):
    promise()
