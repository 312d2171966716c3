"""MERT: equal to the original where a clip is alone, and to the clip alone everywhere else."""

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import nudge
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import HubertConfig
from transformers.models.hubert.modeling_hubert import HubertModel

from usam import ComponentError, SpecError, UsamForConditionalGeneration, build_encoder, build_model
from usam.testing import encoder_promises
from usam.types import prefix_mask

ORACLES = Path(__file__).parents[1] / "oracles"
KINDS = ["mert_95m", "mert_330m", "mert_layernorm"]
STATES = {"mert_95m": 4, "mert_330m": 3, "mert_layernorm": 3}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SMALL |= {"conv_dim": [16] * 7}
SECOND = 24000


def build(kind="mert_95m", folder="hf", **options):
    return build_encoder("mert", path=str(ORACLES / kind / folder), **options)


def audio(kind, case):
    return torch.from_numpy(np.load(ORACLES / kind / f"audio_{case}.npy"))


def expected(kind, case):
    return {name: torch.from_numpy(array) for name, array in np.load(ORACLES / kind / f"expected_{case}.npz").items()}


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def encode(encoder, *clips, padding=0.0, size=0):
    """A batch of clips: the Frames, and each clip's own frames."""
    size = max(size, *(len(clip) for clip in clips))
    batch = torch.full((len(clips), size), float(padding))
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    frames = encoder(batch, prefix_mask(torch.tensor([len(clip) for clip in clips]), size))
    return frames, [x[mask] for x, mask in zip(frames.x, frames.mask, strict=True)]


def alone(encoder, clip):
    return encode(encoder, clip)[1][0]


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def mert():
    return build()


@pytest.fixture(scope="module")
def short_windows():
    """Attention over 40 frames at a time."""
    return build(chunk=40 / 75, windows_at_once=2)


# The original


@pytest.mark.parametrize("case", ["short", "long"])
@pytest.mark.parametrize("folder", ["hf", "hf_bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_hidden_state_is_the_originals(kind, folder, case):
    original = expected(kind, case)
    states = alone(build(kind, folder, layers=list(range(STATES[kind]))), audio(kind, case))
    for i, state in enumerate(states.chunk(STATES[kind], -1)):
        close(state, original[f"hidden_{i}"][0])


@pytest.mark.parametrize("case", ["short", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_features_are_the_originals(kind, case):
    close(alone(build(kind), audio(kind, case)), expected(kind, case)["features"][0])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_convolutions_are_the_originals(kind):
    original, mert = expected(kind, "long"), build(kind, do_normalize=False)
    clip = original["input_values"] if "input_values" in original else audio(kind, "long")[None]
    features = mert.feature_extractor(clip, torch.ones_like(clip, dtype=torch.bool))
    close(features, original["conv_features"])
    close(mert.feature_projection(features), original["projected"])


def test_clips_are_normalised_as_the_original_does():
    clip = audio("mert_layernorm", "short")
    normal = expected("mert_layernorm", "short")["input_values"][0]
    close(alone(build("mert_layernorm"), clip), alone(build("mert_layernorm", do_normalize=False), normal))


@pytest.mark.parametrize("kind", KINDS)
def test_eager_attention_gives_the_same(kind):
    clips = audio(kind, "long"), audio(kind, "short")
    sdpa, eager = (encode(build(kind, attn_implementation=name), *clips)[0].x for name in ("sdpa", "eager"))
    close(eager, sdpa)


# Padding


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_the_original_gives_for_each_clip_alone(kind):
    clips = audio(kind, "short"), audio(kind, "long")
    batch = encode(build(kind), *clips, padding=3.0)[1]
    for found, case in zip(batch, ["short", "long"], strict=True):
        close(found, expected(kind, case)["features"][0])


def test_without_a_group_norm_the_originals_own_batch_agrees():
    original = expected("mert_layernorm", "padded_batch")
    clips = audio("mert_layernorm", "short"), audio("mert_layernorm", "long")
    for found, row, mask in zip(
        encode(build("mert_layernorm"), *clips)[1], original["features"], original["frame_mask"], strict=True
    ):
        close(found, row[mask])


@settings(max_examples=25, deadline=None, database=None)
@given(lengths=st.lists(st.integers(0, 20000), min_size=1, max_size=4), extra=st.integers(0, 3000))
def test_a_clip_in_a_batch_is_the_clip_alone(mert, short_windows, lengths, extra):
    clips = [noise(n, seed) for seed, n in enumerate(lengths)]
    size = max(1, max(lengths) + extra)
    for encoder in (mert, short_windows):
        batch = encode(encoder, *clips, padding=5.0, size=size)[1]
        for clip, found in zip(clips, batch, strict=True):
            assert len(found) == encoder.config.length(len(clip))
            if len(clip):
                close(found, alone(encoder, clip), atol=1e-4)


def test_padding_holds_zeros(mert):
    frames = encode(mert, noise(8000), noise(4000), padding=9.0)[0]
    assert frames.x[~frames.mask].abs().max() == 0


def test_clips_too_short_for_a_frame_do_no_harm(mert):
    frames, clips = encode(mert, noise(399), noise(8000, 1), noise(0))
    assert frames.lengths.tolist() == [0, 24, 0]
    close(clips[1], alone(mert, noise(8000, 1)))
    nothing = encode(mert, noise(399), noise(9))[0]
    assert nothing.x.shape == (2, 0, mert.dim)


def test_a_clip_too_short_for_a_frame_gives_finite_gradients():
    mert = build(freeze="none")
    frames = mert(noise(8000).repeat(2, 1), prefix_mask(torch.tensor([100, 8000]), 8000))
    frames.x.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mert.parameters())


# Time


def test_length_counts_the_frames_that_lie_within_a_clip():
    config = build_encoder("mert", arch=SMALL).config
    assert [config.length(n) for n in (0, 1, 399, 400, 719, 720, SECOND, 30 * SECOND)] == [0, 0, 0, 1, 1, 2, 74, 2249]
    some = torch.arange(3000)
    assert config.length(some).tolist() == [config.length(n) for n in range(3000)]
    assert (config.sample_rate, config.rate) == (24000, 75.0)


# Long audio


def in_blocks(count, frames):
    """True where two frames are in one window."""
    window = torch.arange(count) // frames
    return (window[:, None] == window)[None, None]


@torch.no_grad()
def test_long_audio_is_the_whole_clip_but_for_attentions_reach(short_windows):
    clip = audio("mert_95m", "long")[None]
    hubert = original("mert_95m")
    x = hubert.feature_projection(hubert.feature_extractor(clip).mT)
    x = hubert.encoder.layer_norm(x + hubert.encoder.pos_conv_embed(x))
    for layer in hubert.encoder.layers:
        x = layer(x, attention_mask=in_blocks(x.shape[1], 40))
    close(alone(short_windows, clip[0]), x[0])


def test_long_audio_with_less_audio_beside_it(short_windows):
    clips = noise(3 * SECOND), noise(SECOND // 2, 1), noise(100, 2), noise(SECOND, 3)
    for clip, found in zip(clips, encode(short_windows, *clips)[1], strict=True):
        close(found, alone(short_windows, clip))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_convolutions_of_windows_are_those_of_the_whole_clip(kind):
    whole, parts = build(kind).feature_extractor, build(kind, chunk=0.2, windows_at_once=3).feature_extractor
    clip = noise(2 * SECOND)[None]
    mask = torch.ones_like(clip, dtype=torch.bool)
    close(parts(clip, mask), whole(clip, mask))


def original(kind):
    """The checkpoint in transformers' own HubertModel."""
    folder = ORACLES / kind / "hf"
    options = json.loads((folder / "config.json").read_text())
    for name in ("model_type", "auto_map", "architectures"):
        del options[name]
    hubert = HubertModel(HubertConfig(**options, attn_implementation="sdpa"))
    old = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}
    tensors = load_file(folder / "model.safetensors")
    for a, b in old.items():
        tensors = {name.replace(a, b): tensor for name, tensor in tensors.items()}
    hubert.load_state_dict(tensors)
    return hubert.eval()


# Layers


def test_layers(mert):
    clip = audio("mert_95m", "short")
    states = torch.stack([alone(build(layers=[i]), clip) for i in range(4)])
    assert torch.equal(alone(mert, clip), states[-1])
    assert torch.equal(alone(build(layers=[2, 0, -1]), clip), torch.cat([states[2], states[0], states[3]], -1))
    weighted = build(layers="weighted")
    close(alone(weighted, clip), states.mean(0))
    with torch.no_grad():
        weighted.mix.weights[2] = 100.0
    close(alone(weighted, clip), states[2])


@pytest.mark.parametrize("kind", ["mert_95m", "mert_330m"])
def test_layers_past_the_last_one_needed_are_not_built(kind):
    assert len(build(kind, layers=[0, 1]).encoder.layers) == 1
    assert len(build(kind, layers=[0]).encoder.layers) == 0


# Checkpoints


def copied(tmp_path, kind="mert_95m", **tensors):
    """A checkpoint with other tensors; None removes."""
    folder = shutil.copytree(ORACLES / kind / "hf", tmp_path / "copy")
    found = load_file(folder / "model.safetensors") | tensors
    save_file({name: t for name, t in found.items() if t is not None}, folder / "model.safetensors")
    return folder


def edited(tmp_path, name, **options):
    folder = shutil.copytree(ORACLES / "mert_95m" / "hf", tmp_path / "copy")
    found = json.loads((folder / name).read_text()) | options
    (folder / name).write_text(json.dumps(found))
    return folder


def test_a_weight_norm_under_torchs_newer_names(mert, tmp_path):
    conv = "encoder.pos_conv_embed.conv."
    found = load_file(ORACLES / "mert_95m" / "hf" / "model.safetensors")
    newer = {f"{conv}parametrizations.weight.original{i}": found[f"{conv}weight_{x}"] for i, x in enumerate("gv")}
    folder = copied(tmp_path, **newer, **{f"{conv}weight_{x}": None for x in "gv"})
    clip = noise(5000)
    assert torch.equal(alone(build_encoder("mert", path=str(folder)), clip), alone(mert, clip))


def test_spec_augments_embedding_may_be_missing(mert, tmp_path):
    folder = copied(tmp_path, masked_spec_embed=None)
    clip = noise(5000)
    assert torch.equal(alone(build_encoder("mert", path=str(folder)), clip), alone(mert, clip))


def test_do_normalize_is_read_from_beside_the_weights(tmp_path):
    assert build("mert_95m").config.do_normalize is False
    assert build("mert_layernorm").config.do_normalize is True
    folder = edited(tmp_path, "preprocessor_config.json", do_normalize=True)
    assert build_encoder("mert", path=str(folder)).config.do_normalize is True
    assert build_encoder("mert", path=str(folder), do_normalize=False).config.do_normalize is False


def test_a_normalised_clip_may_be_louder(mert):
    clip, loud = noise(9000), 5 * noise(9000)
    normal = build("mert_layernorm", do_normalize=True)
    plain = build("mert_layernorm", do_normalize=False)
    close(alone(normal, loud), alone(normal, clip), atol=1e-3)
    assert (alone(plain, loud) - alone(plain, clip)).abs().max() > 0.1


@pytest.mark.parametrize(
    "encoder", [{}, {"layers": "weighted", "freeze": "none"}, {"lora": {"target_modules": ["q_proj"]}}]
)
def test_a_saved_model_hears_the_same(encoder, tmp_path):
    path = shutil.copytree(ORACLES / "mert_layernorm" / "hf_bin", tmp_path / "mert")
    options = {"path": str(path), **encoder}
    spec = {"encoders": {"mert": options}, "projector": "linear", "llm": {"type": "tiny", "dim": 32}}
    model = nudge(build_model(spec))
    model.save_pretrained(tmp_path / "saved")
    (path / "preprocessor_config.json").unlink()
    again = UsamForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    clip = noise(9000)[None]
    with torch.no_grad():
        assert torch.equal(again.model.encode(clip).x, model.model.encode(clip).x)
        assert torch.equal(again.get_audio_features(clip).pooler_output, model.get_audio_features(clip).pooler_output)


def test_copies_and_pickles(mert):
    clip = noise(4000)
    for other in (copy.deepcopy(mert), pickle.loads(pickle.dumps(mert))):
        assert torch.equal(alone(other, clip), alone(mert, clip))


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


@pytest.mark.parametrize(("arch", "count"), [({}, 94_371_712), ({**LARGE, "do_stable_layer_norm": True}, 315_428_992)])
def test_parameter_counts_of_the_published_models(arch, count):
    with torch.device("meta"):
        mert = build_encoder("mert", arch=arch, weights=False)
    spec_augment = mert.dim  # published, and not used here
    assert sum(p.numel() for p in mert.parameters()) + spec_augment == count


# Faults


def faults(folder):
    with pytest.raises(ComponentError) as error:
        build_encoder("mert", path=str(folder))
    return str(error.value)


def test_missing_tensors_are_named(tmp_path):
    found = faults(copied(tmp_path, **{"encoder.layer_norm.bias": None, "feature_projection.projection.bias": None}))
    assert "missing encoder.layer_norm.bias (48,); missing feature_projection.projection.bias (48,)" in found


def test_unexpected_tensors_are_named(tmp_path):
    assert "unexpected lm_head.weight (2, 3)" in faults(copied(tmp_path, **{"lm_head.weight": torch.ones(2, 3)}))


def test_tensors_of_another_shape_are_named(tmp_path):
    found = faults(copied(tmp_path, **{"encoder.layer_norm.bias": torch.ones(3)}))
    assert "encoder.layer_norm.bias is (3,), expected (48,)" in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("deepnorm", True),
        ("feature_extractor_cqt", True),
        ("conv_pos_batch_norm", True),
        ("conv_kernel", [10, 3, 3, 3, 3, 3, 2]),
        ("conv_stride", [5, 2, 2, 2, 2, 2, 1]),
        ("sample_rate", 16000),
    ],
)
def test_what_is_not_supported_says_why(key, value, tmp_path):
    found = faults(edited(tmp_path, "config.json", **{key: value}))
    assert f"'{key}: {value}' is not supported, because" in found
    with pytest.raises(ComponentError, match="is not supported, because"):
        build_encoder("mert", arch={key: value})


def test_a_checkpoint_that_does_not_say_how_to_normalise(tmp_path):
    folder = copied(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    assert "say with 'do_normalize: true' or 'false'" in faults(folder)
    assert build_encoder("mert", path=str(folder), do_normalize=False).config.do_normalize is False
    with pytest.raises(ComponentError, match="needs 'do_normalize: true' or 'false' too"):
        build_encoder("mert", path=str(folder), arch=json.loads((folder / "config.json").read_text()))


def test_neither_path_nor_arch():
    with pytest.raises(SpecError, match="needs 'path'"):
        build_encoder("mert")


@pytest.mark.parametrize(
    "options", [{"layers": [3]}, {"layers": []}, {"attn_implementation": "fast"}, {"chunk": 0}, {"windows_at_once": 0}]
)
def test_wrong_options(options):
    with pytest.raises(SpecError):
        build_encoder("mert", arch=SMALL, **options)


# Precision, training


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    clip = audio(kind, "long")
    half, full = alone(build(kind, dtype="bfloat16"), clip), alone(build(kind), clip)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.02


def test_quiet_sound_survives_bfloat16():
    """A tone 60 dB below a rumble: as bfloat16 the waveform itself would hold it only as noise."""
    t = torch.arange(SECOND) / SECOND
    rumble, tone = 0.5 * torch.sin(2 * torch.pi * 40 * t), 5e-4 * torch.sin(2 * torch.pi * 5000 * t)
    full, half = build().feature_extractor, build(dtype="bfloat16").feature_extractor
    with torch.no_grad():
        for encoder in (full, half):  # a filter that hears the tone and not the rumble
            encoder.conv_layers[0].conv.weight.copy_(torch.tensor([1.0, -2, 1, 0, 0, 0, 0, 0, 0, 0]))
        clip = (rumble + tone)[None]
        mask = torch.ones_like(clip, dtype=torch.bool)
        found, wanted = half(clip, mask).float(), full(clip, mask)
    assert (found - wanted).norm() / wanted.norm() < 0.05


def test_frozen_with_lora_nothing_drops_out_in_training():
    mert = build(lora={"target_modules": ["q_proj", "v_proj"]}).train()
    clip = noise(9000)
    assert torch.equal(alone(mert, clip), alone(mert, clip))


def test_unfrozen_it_drops_out_in_training():
    mert = build(freeze="none").train()
    clip = noise(9000)
    assert not torch.equal(alone(mert, clip), alone(mert, clip))


# Promises

VARIANTS = {
    "group": encoder_promises("mert", arch=SMALL),
    "layer": encoder_promises(
        "mert", arch={**SMALL, "feat_extract_norm": "layer", "conv_bias": True}, do_normalize=True, layers=[0, 1]
    ),
    "stable, weighted, in windows": encoder_promises(
        "mert", arch={**SMALL, "do_stable_layer_norm": True}, layers="weighted", chunk=0.3
    ),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in VARIANTS.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_it_keeps_the_promises_of_an_encoder(promise):
    promise()
