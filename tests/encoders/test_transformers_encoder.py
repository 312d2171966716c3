"""Encoders of transformers: its own frames for a clip alone, and the same frames beside longer clips."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from conftest import nudge, randomize
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    ClapAudioModel,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapModel,
    HubertForCTC,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
)

from usam import ComponentError, SpecError, UsamForConditionalGeneration, build_encoder, build_model
from usam.encoders._transformers.w2v_bert import per_bin
from usam.encoders.transformers import KINDS, REFUSED, Transformers
from usam.testing import encoder_promises
from usam.types import prefix_mask

pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' WavLM

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
WAVE = {**SMALL, "conv_dim": [16] * 7, "num_conv_pos_embedding_groups": 4}
STABLE = {**WAVE, "do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
AST = {**SMALL, "model_type": "audio-spectrogram-transformer", "max_length": 96}
ARCHS = {
    "wav2vec2": {**WAVE, "model_type": "wav2vec2"},
    "wav2vec2 large": {**STABLE, "model_type": "wav2vec2"},
    "hubert": {**WAVE, "model_type": "hubert"},
    "hubert large": {**STABLE, "model_type": "hubert"},
    "data2vec-audio": {**WAVE, "model_type": "data2vec-audio"},
    "unispeech": {**WAVE, "model_type": "unispeech"},
    "unispeech-sat": {**WAVE, "model_type": "unispeech-sat"},
    "wavlm": {**WAVE, "model_type": "wavlm"},
    "wavlm large": {**STABLE, "model_type": "wavlm"},
    "wav2vec2-bert": {**SMALL, "model_type": "wav2vec2-bert"},
    "ast": AST,
}
CLAP = {
    "model_type": "clap_audio_model",
    "patch_embeds_hidden_size": 8,
    "depths": [1, 2, 1, 2],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratio": 2.0,
    "hidden_size": 64,
    "projection_dim": 16,
}
SMALL_TEXT = {**SMALL, "vocab_size": 50, "projection_dim": 16}
EXTRACTORS = {"wav2vec2-bert": SeamlessM4TFeatureExtractor(), "ast": ASTFeatureExtractor(max_length=96)}
SECOND = 16000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folders as transformers saves them, each made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = str(tmp_path_factory.mktemp("checkpoint"))
            randomize(AutoModel.from_config(AutoConfig.for_model(**ARCHS[name]))).save_pretrained(made[name])
            EXTRACTORS.get(name, Wav2Vec2FeatureExtractor(do_normalize=True)).save_pretrained(made[name])
        return made[name]

    return make


def build(path, **options):
    return build_encoder("transformers", path=str(path), **options)


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


@torch.no_grad()
def theirs(path, clip):
    """The hidden states of transformers' own model on its own features; for AST without its two extra tokens."""
    features = AutoFeatureExtractor.from_pretrained(path)(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    model = AutoModel.from_pretrained(path).eval()
    found = model(**features, output_hidden_states=True)
    states = [*found.hidden_states[:-1], found.last_hidden_state]
    if model.config.model_type == AST["model_type"]:  # from bands of steps to steps of bands
        steps = (model.config.max_length - 16) // 10 + 1
        states = [x[:, 2:].unflatten(1, (-1, steps)).transpose(1, 2).flatten(1, 2) for x in states]
    return [x[0] for x in states]


def close(found, wanted, atol=1e-4):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def test_every_type_is_tested():
    assert {arch["model_type"] for arch in ARCHS.values()} == set(KINDS) - {CLAP["model_type"]}
    assert not set(KINDS) & set(REFUSED)


# transformers


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("samples", [15600, 9007])
def test_the_frames_of_a_clip_are_transformers_own(name, samples, checkpoint):
    path, clip = checkpoint(name), noise(samples)
    found = alone(build(path), clip)
    close(found, theirs(path, clip)[-1][: len(found)])
    assert len(found) > 20


@pytest.mark.parametrize("name", ARCHS)
def test_the_hidden_states_are_transformers_own(name, checkpoint):
    path, clip = checkpoint(name), noise(15600)
    states = theirs(path, clip)
    found = alone(build(path, layers=[0, 1, 2]), clip)
    close(found, torch.cat([x[: len(found)] for x in states], -1))
    close(alone(build(path, layers=[1]), clip), states[1][: len(found)])
    close(alone(build(path, layers="weighted"), clip), torch.stack(states)[:, : len(found)].mean(0))


@pytest.mark.parametrize("name", ["hubert", "wav2vec2-bert", "ast"])
def test_both_attentions_give_the_same(name, checkpoint):
    clips = noise(SECOND), noise(9000, 1)
    sdpa, eager = (encode(build(checkpoint(name), attn_implementation=a), *clips)[0].x for a in ("sdpa", "eager"))
    close(eager, sdpa, atol=1e-5)


def test_the_model_inside_a_model_with_a_head(checkpoint, tmp_path):
    model = randomize(HubertForCTC(AutoConfig.for_model(**ARCHS["hubert"])))
    model.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    clip = noise(9000)
    close(alone(build(tmp_path), clip), theirs(str(tmp_path), clip)[-1])


def test_clips_are_normalised_as_the_feature_extractor_says(checkpoint):
    path = checkpoint("wav2vec2 large")
    plain = build(path, preprocessor={"do_normalize": False})
    clip = noise(9000)
    normal = (clip - clip.mean()) / (clip.var(unbiased=False) + 1e-7).sqrt()
    close(alone(plain, normal), alone(build(path), clip), atol=1e-5)


def test_mel_frames_are_the_feature_extractors():
    clip = noise(9007)
    wanted = SeamlessM4TFeatureExtractor()(clip.numpy(), sampling_rate=16000, return_tensors="pt")["input_features"]
    bert = build_encoder("transformers", arch=ARCHS["wav2vec2-bert"]).network
    found = per_bin(bert.fbank(clip[None]), torch.tensor([54]))
    assert found.shape == (1, 54, 80)
    close(found.reshape(1, 27, 160), wanted)


# Padding


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("chunk", [None, 0.3])
def test_a_clip_in_a_batch_is_the_clip_alone(name, chunk, checkpoint):
    encoder = build(checkpoint(name), **({} if name == "ast" else {"chunk": chunk, "windows_at_once": 2}))
    clips = [noise(n, seed) for seed, n in enumerate((1, 5000, 12345, 20000, 399))]
    frames, found = encode(encoder, *clips, padding=5.0, size=22000)
    for clip, own in zip(clips, found, strict=True):
        assert len(own) == encoder.config.length(len(clip))
        close(own, alone(encoder, clip), atol=3e-5)
    assert frames.x[~frames.mask].abs().max() == 0


@pytest.mark.parametrize("name", ["wavlm", "data2vec-audio", "wav2vec2-bert"])
@settings(max_examples=8, deadline=None, database=None)
@given(lengths=st.lists(st.integers(0, 12000), min_size=1, max_size=3), extra=st.integers(0, 2000))
def test_any_lengths(name, checkpoint, lengths, extra):
    encoder = build(checkpoint(name), chunk=0.2)
    clips = [noise(n, seed) for seed, n in enumerate(lengths)]
    for clip, own in zip(
        clips, encode(encoder, *clips, padding=5.0, size=max(1, max(lengths) + extra))[1], strict=True
    ):
        assert len(own) == encoder.config.length(len(clip))
        if len(own):
            close(own, alone(encoder, clip))


@pytest.mark.parametrize("name", ["hubert", "wavlm", "wav2vec2-bert"])
def test_a_clip_too_short_for_a_frame_gives_finite_gradients(name, checkpoint):
    encoder = build(checkpoint(name), freeze="none")
    encoder(noise(8000).repeat(2, 1), prefix_mask(torch.tensor([100, 8000]), 8000)).x.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


# Time


@pytest.mark.parametrize("name", ["hubert", "wav2vec2-bert", "ast"])
def test_length_counts_ints_and_tensors_alike(name, checkpoint):
    config = build(checkpoint(name)).config
    some = torch.arange(6000)
    assert config.length(some).tolist() == [config.length(n) for n in range(6000)]


def test_rates(checkpoint):
    hubert, bert, ast = (build(checkpoint(name)).config for name in ("hubert", "wav2vec2-bert", "ast"))
    assert [c.rate for c in (hubert, bert, ast)] == [50, 50, 120]
    assert [hubert.length(n) for n in (399, 400, 719, 720, SECOND)] == [0, 1, 1, 2, 49]
    assert [bert.length(n) for n in (559, 560, 879, 880, SECOND)] == [0, 1, 1, 2, 49]
    assert [ast.length(n) for n in (2799, 2800, 4399, 4400, SECOND)] == [0, 12, 12, 24, 9 * 12]


def test_the_rate_of_other_strides_and_sampling_rates():
    arch = {**ARCHS["wav2vec2"], "conv_dim": [16] * 3, "conv_kernel": [8, 4, 4], "conv_stride": [4, 2, 2]}
    config = build_encoder("transformers", arch=arch, preprocessor={"sampling_rate": 8000}).config
    assert (config.sample_rate, config.rate) == (8000, 500)
    assert [config.length(n) for n in (43, 44, 59, 60)] == [0, 1, 1, 2]


def test_a_config_knows_its_time_before_it_is_resolved(checkpoint):
    config = Transformers.Config(type="transformers", path=checkpoint("hubert"))
    assert (config.arch, config.sample_rate, config.length(SECOND)) == (None, 16000, 49)


# Long audio


@torch.no_grad()
def test_long_audio_is_the_whole_clip_but_for_attentions_reach(checkpoint):
    path, clip = checkpoint("hubert"), noise(2 * SECOND)
    hubert = AutoModel.from_pretrained(path).eval()
    values = Wav2Vec2FeatureExtractor(do_normalize=True)(clip.numpy(), sampling_rate=16000, return_tensors="pt")
    x = hubert.feature_projection(hubert.feature_extractor(values["input_values"]).mT)
    x = hubert.encoder.layer_norm(x + hubert.encoder.pos_conv_embed(x))
    window = torch.arange(x.shape[1]) // 20
    for layer in hubert.encoder.layers:
        x = layer(x, attention_mask=(window[:, None] == window)[None, None])
    close(alone(build(path, chunk=0.4), clip), x[0], atol=1e-5)


def test_long_audio_in_asts_own_windows(checkpoint):
    """Nine steps of 100 ms a window; windows overlap, so that each step's patch is whole."""
    path, clip = checkpoint("ast"), noise(3 * SECOND)
    window, span = 9 * 1600, 9 * 1600 + 1200
    parts = [theirs(path, clip[i : i + span])[-1] for i in range(0, 2 * window + 1, window)]
    found = alone(build(path), clip)
    assert len(found) == 29 * 12
    close(found[: 27 * 12], torch.cat(parts))


# CLAP

STEP = 15000  # samples, of which ten seconds at 48 kHz have 32 times as many
CLAP_EXTRACTOR = ClapFeatureExtractor(truncation="rand_trunc", padding="pad")


@pytest.fixture(scope="module")
def clap(tmp_path_factory):
    """A folder with an audio tower, whose batch norm has seen other audio."""
    folder = str(tmp_path_factory.mktemp("clap"))
    model = randomize(ClapAudioModel(AutoConfig.for_model(**CLAP)))
    with torch.no_grad():
        model.audio_encoder.batch_norm.running_mean.fill_(-30)
        model.audio_encoder.batch_norm.running_var.uniform_(50, 200)
    model.save_pretrained(folder)
    CLAP_EXTRACTOR.save_pretrained(folder)
    return folder


@torch.no_grad()
def tower(path, clip):
    """The steps of transformers' own tower on its own features of at most ten seconds."""
    features = CLAP_EXTRACTOR(clip.numpy(), sampling_rate=48000, return_tensors="pt")["input_features"]
    return ClapAudioModel.from_pretrained(path).eval().audio_encoder(features).last_hidden_state[0].mean(1).mT


def test_claps_mel_frames_are_the_feature_extractors():
    clip = noise(32 * STEP)
    wanted = CLAP_EXTRACTOR(clip.numpy(), sampling_rate=48000, return_tensors="pt")["input_features"][0]
    found = build_encoder("transformers", arch=CLAP).network.mel(clip[None])
    assert found.shape == (1, 1001, 64)
    close(found, wanted, atol=1e-3)


@pytest.mark.parametrize("samples", [32 * STEP, 100001])
def test_claps_frames_are_transformers_own(samples, clap):
    clip = noise(samples)
    encoder = build(clap)
    found = alone(encoder, clip)
    close(found, tower(clap, clip)[: encoder.config.length(samples)])
    assert found.std(0).min() > 1e-3


def test_claps_frames_are_in_the_order_of_time(clap):
    """A change in one place of a clip changes the frame there most."""
    encoder, clip = build(clap), noise(32 * STEP)
    for step in (3, 8, 20, 29):
        other = clip.clone()
        other[step * STEP : (step + 1) * STEP] *= 5
        change = (alone(encoder, other) - alone(encoder, clip)).norm(dim=-1)
        assert abs(int(change.argmax()) - step) <= 1


def test_claps_time(clap):
    config = build(clap).config
    assert (config.sample_rate, config.rate) == (48000, 3.2)
    assert [config.length(n) for n in (0, 1, STEP, STEP + 1, 32 * STEP, 33 * STEP)] == [0, 1, 1, 2, 32, 33]
    some = torch.arange(0, 40 * STEP, 499)
    assert config.length(some).tolist() == [config.length(int(n)) for n in some]


def test_a_clip_of_clap_in_a_batch_is_the_clip_alone(clap):
    encoder = build(clap, windows_at_once=2)
    clips = [noise(n, seed) for seed, n in enumerate((1, 5000, STEP, 200001, 33 * STEP))]
    frames, found = encode(encoder, *clips, padding=5.0, size=65 * STEP)
    for clip, own in zip(clips, found, strict=True):
        assert len(own) == encoder.config.length(len(clip))
        close(own, alone(encoder, clip), atol=3e-5)
    assert frames.x[~frames.mask].abs().max() == 0


def test_long_audio_in_claps_own_windows(clap):
    clip = noise(70 * STEP)
    parts = [tower(clap, part) for part in clip.split(32 * STEP)]
    close(alone(build(clap), clip), torch.cat(parts)[:70])


def test_claps_statistics_stay_in_training(clap):
    encoder, clip = build(clap, freeze="none", arch={**CLAP, "hidden_dropout_prob": 0.0}, preprocessor={}), noise(STEP)
    wanted = alone(encoder, clip)
    close(encode(encoder.train(), clip, noise(3 * STEP, 1))[1][0], wanted, atol=1e-5)
    assert (encoder.network.model.audio_encoder.batch_norm.running_mean == -30).all()


def test_claps_tower_out_of_a_larger_model(clap, tmp_path):
    audio = ClapAudioModel.from_pretrained(clap)
    config = AutoConfig.for_model("clap", audio_config=CLAP, text_config=SMALL_TEXT, projection_dim=16)
    for name, model in {
        "both": ClapModel(config),
        "projected": ClapAudioModelWithProjection(AutoConfig.for_model(**CLAP)),
    }.items():
        model.audio_model.load_state_dict(audio.state_dict())
        model.save_pretrained(tmp_path / name)
        CLAP_EXTRACTOR.save_pretrained(tmp_path / name)
        clip = noise(STEP)
        assert torch.equal(alone(build(tmp_path / name), clip), alone(build(clap), clip))


def test_clap_in_bfloat16(clap):
    half, full = (alone(build(clap, dtype=dtype), noise(20 * STEP)) for dtype in ("bfloat16", "float32"))
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.03


def test_what_clap_refuses(clap, tmp_path):
    assert "'enable_fusion: True' is not supported, because its crops" in fault(arch={**CLAP, "enable_fusion": True})
    both = {"model_type": "clap", "audio_config": {**CLAP, "enable_fusion": True}}
    assert "'enable_fusion: True' is not supported, because its crops" in fault(arch=both)
    assert "'truncation: fusion' is not supported" in fault(arch=CLAP, preprocessor={"truncation": "fusion"})
    assert "at 16000 Hz is not supported" in fault(arch=CLAP, preprocessor={"sampling_rate": 16000})
    assert "more than the 1024 mel frames" in fault(arch=CLAP, preprocessor={"max_length_s": 20})
    assert "look at 'feature_size'" in fault(arch=CLAP, preprocessor={"feature_size": 80})
    assert "CLAP has windows of its own" in fault(arch=CLAP, chunk=3)
    assert "only its last makes frames" in fault(arch=CLAP, layers="weighted")
    folder = shutil.copytree(clap, tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    del tensors["audio_encoder.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "missing audio_encoder.norm.weight" in fault(path=str(folder))


# Checkpoints


def edited(checkpoint, name, file, tmp_path, **options):
    """A copy with other options in one of its JSON files."""
    folder = shutil.copytree(checkpoint(name), tmp_path / "copy")
    found = json.loads((folder / file).read_text()) | options
    (folder / file).write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize("name", ["hubert", "ast"])
def test_a_models_encoder_has_the_weights_of_its_source(name, checkpoint):
    options = {"type": "transformers", "path": checkpoint(name), "lora": {"target_modules": ["k_proj"]}}
    model = build_model({"encoders": {"ears": options}, "projector": "linear", "llm": {"type": "tiny", "dim": 32}})
    clip = noise(9000)
    assert torch.equal(alone(model.model.encoders["ears"], clip), alone(build(checkpoint(name)), clip))


def test_names_and_options_of_older_checkpoints(checkpoint, tmp_path):
    older = {"gradient_checkpointing": True, "feat_extract_dropout": 0.0, "tokenizer_class": "Wav2Vec2CTCTokenizer"}
    folder = edited(checkpoint, "hubert", "config.json", tmp_path, **older)
    tensors = load_file(folder / "model.safetensors")
    for new, old in {"original0": "weight_g", "original1": "weight_v"}.items():
        conv = "encoder.pos_conv_embed.conv."
        tensors[conv + old] = tensors.pop(f"{conv}parametrizations.weight.{new}", tensors.get(conv + old))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    clip = noise(5000)
    assert torch.equal(alone(build(folder), clip), alone(build(checkpoint("hubert")), clip))


@pytest.mark.parametrize("name", ["wavlm", "wav2vec2-bert", "ast"])
@pytest.mark.parametrize(
    "options", [{"layers": "weighted", "freeze": "none"}, {"lora": {"target_modules": r".*\.(k_proj|linear_k)"}}]
)
def test_a_saved_model_hears_the_same(name, options, checkpoint, tmp_path):
    options = {"type": "transformers", "path": checkpoint(name), **options}
    spec = {"encoders": {"ears": options}, "projector": "linear", "llm": {"type": "tiny", "dim": 32}}
    model = nudge(build_model(spec))
    model.save_pretrained(tmp_path)
    again = UsamForConditionalGeneration.from_pretrained(tmp_path).eval()
    clip = noise(9000)[None]
    with torch.no_grad():
        assert torch.equal(again.model.encode(clip).x, model.model.encode(clip).x)
        assert torch.equal(again.get_audio_features(clip).pooler_output, model.get_audio_features(clip).pooler_output)


@pytest.mark.parametrize("name", ARCHS)
def test_copies_and_pickles(name, checkpoint):
    encoder, clip = build(checkpoint(name)), noise(9000)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(alone(other, clip), alone(encoder, clip))


@pytest.mark.parametrize("name", ["hubert", "wavlm large", "wav2vec2-bert", "ast"])
def test_bfloat16(name, checkpoint):
    clip = noise(SECOND)
    half, full = (alone(build(checkpoint(name), dtype=dtype), clip) for dtype in ("bfloat16", "float32"))
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).norm() / full.norm() < 0.03


# Faults


def fault(**options):
    with pytest.raises((ComponentError, SpecError)) as error:
        build_encoder("transformers", **options)
    return str(error.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_type_says_why(name):
    assert f"'{name}' is not supported, because {REFUSED[name]}" in fault(arch={"model_type": name})


def test_other_types():
    assert "'bert' is not supported, because nobody has tested" in fault(arch={"model_type": "bert"})
    assert "has none such; did you mean 'hubert'?" in fault(arch={"model_type": "huber"})
    assert "needs the 'model_type'" in fault(arch={})
    assert "needs 'path'" in fault()


@pytest.mark.parametrize("key", ["add_adapter", "conv_pos_batch_norm", "use_intermediate_ffn_before_adapter"])
def test_options_that_are_not_supported(key):
    assert f"'{key}: True' is not supported, because" in fault(arch={**ARCHS["hubert"], key: True})


def test_positions_that_are_not_supported():
    for kind in ("relative", "rotary"):
        assert f"'{kind}' is not supported" in fault(arch={**ARCHS["wav2vec2-bert"], "position_embeddings_type": kind})


def test_options_that_do_not_go_with_a_type():
    assert "does not support an attention" in fault(arch=ARCHS["wavlm"], attn_implementation="sdpa")
    assert "AST has windows of its own" in fault(arch=AST, chunk=3)
    assert "do not make feature_projection_input_dim 160" in fault(
        arch=ARCHS["wav2vec2-bert"], preprocessor={"num_mel_bins": 64}
    )
    assert "names no states" in fault(arch=ARCHS["hubert"], layers=[3])


def test_another_feature_extractor(checkpoint, tmp_path):
    folder = edited(checkpoint, "hubert", "preprocessor_config.json", tmp_path, feature_extractor_type="Other")
    assert "'hubert' with a Other is not supported" in fault(path=str(folder))
    assert "at 24000 Hz is not supported" in fault(arch=AST, preprocessor={"sampling_rate": 24000})


def test_weights_that_are_not_whole_are_named(checkpoint, tmp_path):
    folder = edited(checkpoint, "hubert", "config.json", tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\n")
    with pytest.raises(ComponentError, match=r"model\.safetensors: not the file itself but git-lfs' note of it"):
        build(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * torch.nan, "holds NaN"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is F8_E4M3; expected floats of 16 or 32 bits"),
    ],
)
def test_weights_that_are_no_numbers_are_named(change, message, checkpoint, tmp_path):
    folder = edited(checkpoint, "hubert", "config.json", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layers.0.attention.q_proj.weight"
    save_file({**tensors, name: change(tensors[name])}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ComponentError, match=rf"{name}' {message}"):
        build(folder)


def test_no_feature_extractor(checkpoint, tmp_path):
    folder = edited(checkpoint, "hubert", "config.json", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    assert "no readable preprocessor_config.json" in fault(path=str(folder))
    arch = ARCHS["hubert"]
    assert "needs 'preprocessor' too" in fault(path=str(folder), arch=arch)
    clip = noise(5000)
    found = alone(build(folder, arch=arch, preprocessor={}), clip)
    assert torch.equal(found, alone(build(checkpoint("hubert")), clip))


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        ("encoder.layers.0.attention.q_proj.weight", None, "missing encoder.layers.0.attention.q_proj.weight"),
        ("encoder.layer_norm.bias", 3, "encoder.layer_norm.bias is (3,), expected (32,)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensor, shape, message, checkpoint, tmp_path):
    folder = edited(checkpoint, "hubert", "config.json", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors[tensor]
    if shape:
        tensors[tensor] = torch.ones(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert message in fault(path=str(folder))


# Promises

VARIANTS = {
    "hubert": encoder_promises("transformers", arch=ARCHS["hubert"]),
    "data2vec-audio": encoder_promises("transformers", arch=ARCHS["data2vec-audio"]),
    "wavlm large, in windows": encoder_promises(
        "transformers", arch=ARCHS["wavlm large"], layers="weighted", chunk=0.3
    ),
    "wav2vec2-bert": encoder_promises("transformers", arch=ARCHS["wav2vec2-bert"], layers=[0, 1]),
    "ast": encoder_promises("transformers", arch=AST),
    "clap": encoder_promises("transformers", arch=CLAP, seconds=11),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in VARIANTS.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_it_keeps_the_promises_of_an_encoder(promise):
    promise()
