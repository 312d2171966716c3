"""The Whisper encoder against reference outputs, transformers' extractor, and itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor

from usam import ComponentError, build_encoder, build_model
from usam.encoders.whisper import LogMel

ORACLE = Path(__file__).parents[1] / "oracles" / "whisper"
LARGE = {
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "num_mel_bins": 80,
    "max_source_positions": 1500,
}


def audio(case):
    x = torch.from_numpy(np.load(ORACLE / f"audio_{case}.npy")).unsqueeze(0)
    return x, torch.ones_like(x, dtype=torch.bool)


def expected(case, name):
    return torch.from_numpy(np.load(ORACLE / f"expected_{case}.npz")[name])


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("whisper", path=str(ORACLE / "hf"))


@pytest.mark.parametrize("case", ["short", "long"])
def test_features_are_the_references_on_the_clips_own_frames(case, encoder):
    frames = encoder(*audio(case))
    assert frames.x.shape[1] == -(-audio(case)[0].shape[1] // 320)
    assert torch.allclose(frames.x, expected(case, "features")[:, : frames.x.shape[1]], atol=1e-4)


@pytest.mark.parametrize("case", ["short", "long"])
def test_the_front_end_is_the_references(case):
    assert torch.allclose(LogMel(80)(audio(case)[0], 3000), expected(case, "input_features"), atol=1e-4)


def test_layers_are_the_references_hidden_states():
    states = build_encoder("whisper", path=str(ORACLE / "hf"), layers=[0, 1, -1])(*audio("short")).x
    names = ("hidden_0", "hidden_1", "features")
    wanted = torch.cat([expected("short", name)[:, : states.shape[1]] for name in names], -1)
    assert torch.allclose(states, wanted, atol=1e-4)


def test_a_learned_mix_is_even_at_the_start_and_trains_over_a_frozen_network():
    encoder = build_encoder("whisper", path=str(ORACLE / "hf"), layers="weighted")
    count = encoder.mix.weights.numel()
    states = build_encoder("whisper", path=str(ORACLE / "hf"), layers=list(range(count)))(*audio("short")).x
    assert torch.allclose(encoder(*audio("short")).x, states.unflatten(-1, (count, -1)).mean(-2), atol=1e-5)
    assert [name for name, p in encoder.named_parameters() if p.requires_grad] == ["mix.weights"]


def test_eager_attention_agrees(encoder):
    eager = build_encoder("whisper", path=str(ORACLE / "hf"), attn_implementation="eager")
    assert torch.allclose(eager(*audio("short")).x, encoder(*audio("short")).x, atol=1e-5)


def test_bfloat16_stays_within_five_percent(encoder):
    exact = encoder(*audio("short")).x
    coarse = build_encoder("whisper", path=str(ORACLE / "hf"), dtype="bfloat16")(*audio("short")).x.float()
    assert (coarse - exact).norm() / exact.norm() < 0.05


def test_a_saved_model_has_the_same_features(encoder, tmp_path):
    spec = {"encoders": {"whisper": {"path": str(ORACLE / "hf")}}, "projector": "linear", "llm": "tiny"}
    build_model(spec).save_pretrained(tmp_path / "m")
    again = build_model(spec).from_pretrained(tmp_path / "m").model.encoders["whisper"]
    assert torch.equal(again(*audio("long")).x, encoder(*audio("long")).x)


@pytest.mark.parametrize("samples", [1, 159, 160, 200, 201, 16001, 479799, 479960, 480000])
@pytest.mark.parametrize("bins", [80, 128])
def test_the_front_end_is_transformers_own_at_every_edge_of_the_window(samples, bins):
    clip = noise(samples / 16000, seed=samples)
    theirs = WhisperFeatureExtractor(feature_size=bins)([clip], sampling_rate=16000, return_tensors="pt")
    assert torch.allclose(LogMel(bins)(torch.from_numpy(clip)[None], 3000), theirs.input_features, atol=1e-4)


def test_long_audio_is_its_windows_one_by_one(encoder):
    x = torch.from_numpy(noise(70.0)).unsqueeze(0)
    whole = encoder(x, torch.ones_like(x, dtype=torch.bool))
    assert whole.x.shape[1] == 70 * 50
    for i in range(3):
        part = x[:, i * 480000 : (i + 1) * 480000]
        alone = encoder(part, torch.ones_like(part, dtype=torch.bool)).x
        assert torch.allclose(whole.x[:, i * 1500 : i * 1500 + alone.shape[1]], alone, atol=1e-5)


def test_large_v2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        large = build_encoder("whisper", arch=LARGE, weights=False)
    assert sum(p.numel() for p in large.parameters()) == 636_784_640


def test_only_the_encoders_tensors_are_read(encoder):
    assert not [name for name in encoder.pretrained() if "decoder" in name]


def test_a_missing_tensor_is_named(tmp_path):
    shutil.copytree(ORACLE / "hf", tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    del tensors["model.encoder.layer_norm.weight"]
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(ComponentError, match=r"missing encoder.layer_norm.weight \(32,\)"):
        build_encoder("whisper", path=str(tmp_path / "hf"))


def test_a_truncated_file_is_named(tmp_path):
    shutil.copytree(ORACLE / "hf", tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ComponentError, match=r"model.safetensors: not a whole safetensors file"):
        build_encoder("whisper", path=str(tmp_path / "hf"))


@pytest.fixture(scope="module")
def on_the_clip():
    return build_encoder("whisper", path=str(ORACLE / "hf"), context="clip")


def of_noise(encoder, *seconds):
    """Frames of clips in one batch, each without its padding."""
    clips = [torch.from_numpy(noise(s, seed=i)) for i, s in enumerate(seconds)]
    x = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(clip), dtype=torch.bool) for clip in clips], True)
    frames = encoder(x, mask)
    return [row[own] for row, own in zip(frames.x, frames.mask, strict=True)]


def test_on_the_clip_alone_a_full_window_has_the_same_frames(encoder, on_the_clip):
    assert torch.allclose(of_noise(on_the_clip, 30.0)[0], of_noise(encoder, 30.0)[0], atol=1e-5)


def test_on_the_clip_alone_silence_behind_it_is_not_heard(encoder, on_the_clip):
    (alone,), (usual,) = of_noise(on_the_clip, 2.0), of_noise(encoder, 2.0)
    assert alone.shape == usual.shape == (100, 32)
    assert (alone - usual).abs().max() > 1e-3


@pytest.mark.parametrize("seconds", [(0.001, 2.0, 0.7), (31.0, 0.5, 61.3)])
def test_on_the_clip_alone_other_clips_of_the_batch_change_nothing(on_the_clip, seconds):
    together = of_noise(on_the_clip, *seconds)
    for i, s in enumerate(seconds):
        clip = torch.from_numpy(noise(s, seed=i))[None]
        alone = on_the_clip(clip, torch.ones_like(clip, dtype=torch.bool)).x[0]
        assert torch.allclose(together[i], alone, atol=1e-5)


def test_on_the_clip_alone_frames_are_what_whispers_layers_make_of_them(on_the_clip):
    """The same by transformers' encoder, whose positions are cut to the clip's."""
    clip = torch.from_numpy(noise(1.28))[None]
    own = 64
    theirs = on_the_clip.encoder
    mel = LogMel(80)(clip, 3000)[..., : 2 * own]
    x = torch.nn.functional.gelu(theirs.conv2(torch.nn.functional.gelu(theirs.conv1(mel)))).mT
    x = x + theirs.embed_positions.weight[:own]
    for layer in theirs.layers:
        x = layer(x, None)
    assert torch.allclose(of_noise(on_the_clip, 1.28)[0], theirs.layer_norm(x)[0], atol=1e-5)
