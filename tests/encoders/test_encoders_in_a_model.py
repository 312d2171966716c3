"""Every encoder inside a model: alone and in company, however short the clip, in every freeze mode."""

import functools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usam import build_encoder, build_model
from usam.component import is_adapter

HUBERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "conv_bias": False,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 80,
    "max_source_positions": 50,
}
BEATS = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 16,
    "encoder_attention_heads": 2,
    "embed_dim": 8,
    "conv_pos": 8,
    "conv_pos_groups": 2,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 32,
    "max_distance": 80,
}
TIMM = {"architecture": "vit_tiny_patch16_224", "embed_dim": 16, "depth": 2, "num_heads": 2}

# Options, a pattern of parameters to freeze, and the layers that adapters go to.
ENCODERS = {
    "whisper": ({"arch": WHISPER, "layers": "weighted"}, "encoder.layers.0.*", "q_proj"),
    "beats": ({"arch": BEATS, "layers": "weighted"}, "beats.encoder.layers.0.*", "q_proj"),
    "ced": ({"arch": {"embed_dim": 16, "depth": 2, "num_heads": 2}}, "blocks.0.*", "qkv"),
    "mert": ({"arch": HUBERT, "do_normalize": False}, "encoder.layers.0.*", "q_proj"),
    "transformers": ({"arch": {"model_type": "hubert", **HUBERT}}, "network.model.encoder.layers.0.*", "q_proj"),
    "timm": ({"arch": TIMM, "frames": 64, "mels": 32}, "network.blocks.0.*", "qkv"),
}


def make(name, **options):
    torch.manual_seed(0)
    encoders = {name: {**ENCODERS[name][0], **options}}
    return build_model({"encoders": encoders, "projector": "linear", "llm": {"type": "tiny", "dim": 16, "heads": 2}})


def step(model):
    """One step; returns the names of the encoder's parameters that moved."""
    rate = model.config.parsed.sample_rate
    audio = torch.randn(2, 2 * rate, generator=torch.Generator().manual_seed(1)) * 0.1
    tokens = model.config.parsed.audio_tokens(2 * rate)
    ids = torch.tensor([[model.config.audio_token_id] * tokens + [65, 66, 67]] * 2)
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < tokens, -100)
    before = {key: p.detach().clone() for key, p in model.model.encoders.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    loss = model.train()(input_ids=ids, input_values=audio, labels=labels).loss
    assert loss.isfinite()
    loss.backward()
    optimizer.step()
    return {key for key, p in model.model.encoders.named_parameters() if not torch.equal(p, before[key])}


@functools.cache
def alone(name):
    return build_encoder(name, **ENCODERS[name][0])


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(lengths=st.lists(st.integers(1, 40000), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_company_and_place_change_no_clips_features(name, lengths, seed):
    encoder = alone(name)
    generator = torch.Generator().manual_seed(seed)
    clips = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    audio = torch.randn(len(clips), max(lengths) + 777, generator=generator)  # noise where masked
    mask = torch.arange(audio.shape[1]) < torch.tensor(lengths).unsqueeze(-1)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    with torch.no_grad():
        together = encoder(audio, mask)
        for i, clip in enumerate(clips):
            apart = encoder(clip.unsqueeze(0), torch.ones(1, len(clip), dtype=torch.bool))
            own = apart.x.shape[1]
            assert int(together.lengths[i]) == int(apart.lengths[0]) == own
            assert torch.allclose(together.x[i, :own], apart.x[0], atol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_clip_shorter_than_the_encoders_smallest_input_is_one_token(name):
    model = make(name)
    spec, token = model.config.parsed, model.config.audio_token_id
    rate = spec.sample_rate
    long = spec.audio_tokens(rate)
    assert spec.audio_tokens(1) == 1
    audio = torch.randn(2, rate)
    mask = torch.arange(rate) < torch.tensor([[1], [rate]])
    ids = torch.tensor([[66] * (long - 1) + [token, 65], [token] * long + [65]])
    logits = model(input_ids=ids, input_values=audio, input_values_mask=mask).logits
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("mode", ["all", "none", "pattern", "lora"])
def test_it_trains_what_is_not_frozen(name, mode):
    _, pattern, target = ENCODERS[name]
    options = {
        "all": {},
        "none": {"freeze": "none"},
        "pattern": {"freeze": [pattern]},
        "lora": {"lora": {"r": 2, "target_modules": [target]}},
    }[mode]
    model = make(name, **options)
    moved = step(model)
    prefix = pattern.removesuffix("*")
    if mode == "all":
        assert moved <= {f"{name}.mix.weights"}  # no source gives it
    elif mode == "none":
        assert any(prefix in key for key in moved)
    elif mode == "pattern":
        assert moved
        assert not any(prefix in key for key in moved)
    else:
        assert any("lora_B" in key for key in moved)
        assert all(is_adapter(key) or "mix" in key for key in moved)


@pytest.mark.parametrize("name", ENCODERS)
def test_checkpointing_saves_memory_and_gives_the_same_gradients(name):
    saved, gradients = [], []
    for checkpointing in (False, True):
        model = make(name, freeze="none")
        model.model.language_model.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable()
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(model)
        saved.append(count)
        gradients.append({key: p.grad for key, p in model.model.encoders.named_parameters() if p.grad is not None})
    assert saved[1] < saved[0]
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], atol=1e-6), key
