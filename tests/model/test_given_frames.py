"""Frames instead of waveforms: of every encoder, or of the fusion, by the door that a cache uses."""

import pytest
import torch
import toys  # noqa: F401
from conftest import noise

from usam import UsamProcessor, build_model
from usam.types import Audio

EARS = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
SPEC = {
    "encoders": {"whisper": {"arch": {**EARS, "max_source_positions": 50}}, "toy": {}},
    "fusion": {"type": "concat", "rate": 10},
    "projector": "toy_gate",
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
}


@pytest.fixture(scope="module")
def model():
    return build_model(SPEC, seed=0)


@pytest.fixture(scope="module")
def batch(model):
    processor = UsamProcessor.from_spec(model.config.parsed)
    clips = [noise(0.3, 1, 24000), noise(0.9, 2, 24000)]
    return processor(text=["<|audio|> a", "hear <|audio|>"], audio=clips)


def without_sound(batch, *more):
    return {name: value for name, value in batch.items() if name not in ("input_values", *more)}


@pytest.fixture(scope="module")
def frames(model, batch):
    """What each encoder gives."""
    audio = Audio(batch["input_values"], batch["input_values_mask"].bool(), 24000)
    with torch.no_grad():
        return {name: (found.x, found.mask) for name, found in model.model.streams(audio).items()}


@pytest.fixture(scope="module")
def fused(model, batch):
    """What the fusion gives."""
    with torch.no_grad():
        found = model.model.encode(batch["input_values"], batch["input_values_mask"])
    return found.x, found.mask


@torch.no_grad()
def logits(model, **given):
    return model(**given).logits


def test_the_encoders_frames_stand_for_the_sound(model, batch, frames):
    given = logits(model, **without_sound(batch), audio_frames=frames)
    assert torch.equal(given, logits(model, **batch))


def test_so_do_those_of_the_fusion(model, batch, fused):
    given = logits(model, **without_sound(batch, "input_values_mask"), audio_frames=fused)
    assert torch.equal(given, logits(model, **batch))


def test_no_encoder_is_run_for_them(model, batch, frames, fused):
    calls = []
    hooks = [encoder.register_forward_hook(lambda *_: calls.append(1)) for _, encoder in model.model.encoders.parts()]
    logits(model, **without_sound(batch), audio_frames=frames)
    logits(model, **without_sound(batch, "input_values_mask"), audio_frames=fused)
    for hook in hooks:
        hook.remove()
    assert not calls


def test_they_are_projected_without_text(batch, fused):
    model = build_model({**SPEC, "projector": {"type": "linear", "stack": 2}}, seed=0)
    with torch.no_grad():
        found = model.get_audio_features(audio_frames=fused).pooler_output
        expected = model.get_audio_features(batch["input_values"], batch["input_values_mask"]).pooler_output
    assert torch.equal(found, expected)


def test_a_model_learns_from_them(model, batch, fused):
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.audio_token_id, -100)
    given = without_sound(batch, "input_values_mask")
    loss = model.train()(**given, audio_frames=fused, labels=labels).loss
    assert torch.equal(loss, model(**batch, labels=labels).loss)
    loss.backward()
    model.zero_grad()
    model.eval()


def test_it_compiles_without_a_break(model, batch, fused):
    given = {**without_sound(batch, "input_values_mask"), "audio_frames": fused}
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="eager")(**given).logits
    torch.testing.assert_close(found, logits(model, **given))


def other(frames, change):
    return {**frames, "toy": change(*frames["toy"])}


@pytest.mark.parametrize(
    ("left_out", "change", "message"),
    [
        (["input_values_mask"], lambda f, _: f, "do not say how long the clips are: give input_values_mask"),
        ([], lambda f, _: {"toy": f["toy"]}, "audio_frames: none for whisper, and no input_values"),
        ([], lambda f, _: other(f, lambda x, m: (x[:, 1:], m[:, 1:])), r"audio_frames\['toy'\] is .* goes with"),
        ([], lambda _, g: g, "input_values_mask says which of input_values"),
        (["input_values_mask"], lambda _, g: (g[0][..., 1:], g[1]), r"the fusion gives \(clip, time, 22\)"),
        (["input_values_mask"], lambda _, g: (g[0], g[1][:, 1:]), "the mask of audio_frames is"),
        (["input_values_mask"], lambda _, g: (g[0], g[1].flip(1)), "a clip's own frames come first"),
        (["input_values_mask"], lambda _, g: (g[0][:1], g[1][:1]), "audio placeholders for"),
        (["input_values_mask"], lambda _, g: g[0], "are \\(frames, mask\\) of the fusion, or such a pair"),
    ],
)
def test_what_does_not_stand_for_the_clips_is_refused(left_out, change, message, model, batch, frames, fused):
    with pytest.raises(ValueError, match=message):
        model(**without_sound(batch, *left_out), audio_frames=change(frames, fused))


def test_sound_and_fused_frames_are_two_ways_to_say_the_same(model, batch, fused):
    with pytest.raises(ValueError, match="stand for input_values: leave these out"):
        model(**batch, audio_frames=fused)


def test_embeddings_hold_the_audio_already(model, batch, fused):
    embeds = model.model.embed(batch["input_ids"])
    with pytest.raises(ValueError, match="give input_ids with audio_frames, or leave audio_frames out"):
        model(inputs_embeds=embeds, audio_frames=fused)
