"""XARES-LLM's contract for encoders, as its README and its model state it."""

import importlib

import pytest
import torch
from conftest import noise

from usam.encoders import build_encoder
from usam.harnesses.xares_llm import UsamEncoder
from usam.registry import ComponentError
from usam.spec.page import SpecError

WHISPER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
TINY = {"type": "whisper", "arch": {"model_type": "whisper", **WHISPER}}


def batch(*seconds):
    """Clips of these lengths, padded behind, and their mask."""
    clips = [torch.from_numpy(noise(length, seed=i)) for i, length in enumerate(seconds)]
    size = max(map(len, clips))
    audio = torch.stack([torch.nn.functional.pad(clip, (0, size - len(clip))) for clip in clips])
    return audio, torch.tensor([[1] * len(clip) + [0] * (size - len(clip)) for clip in clips])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return UsamEncoder(**TINY)


def test_features_and_mask_as_its_model_joins_them(encoder):
    audio, mask = batch(1.0, 0.4)
    features, own = encoder(audio, mask)
    assert features.shape == (2, 50, encoder.output_dim)
    assert own.shape == features.shape[:2]
    assert own.sum(-1).tolist() == [50, 20]
    torch.cat((own, torch.ones(2, 3, dtype=torch.long)), dim=1)  # beside the text's mask
    torch.nn.Linear(encoder.output_dim, 8)(features)


def test_features_are_the_encoder_s_own(encoder):
    audio, mask = batch(1.0, 0.4)
    frames = encoder.encoder(audio, mask.bool())
    torch.testing.assert_close(encoder(audio, mask)[0], frames.x)


def test_without_a_mask_all_is_heard(encoder):
    audio, _ = batch(1.0)
    features, own = encoder(audio)
    assert own.all()
    torch.testing.assert_close(encoder(audio[0])[0], features)


def test_nothing_of_it_trains(encoder):
    audio, mask = batch(0.5)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(audio, mask)[0].requires_grad


def test_an_encoder_of_another_rate_hears_the_same_sound():
    import toys  # noqa: F401  # 24 kHz, 75 frames a second

    encoder = UsamEncoder("toy")
    features, own = encoder(*batch(1.0, 0.4))
    assert features.shape == (2, 75, 6)
    assert own.sum(-1).tolist() == [75, 30]


@pytest.mark.parametrize(
    ("audio", "mask", "message"),
    [
        (torch.zeros(1, 1, 8), None, r"audio is \(batch, samples\), found \(1, 1, 8\)"),
        (torch.zeros(2, 8), torch.ones(2, 7), r"of the audio's shape \(2, 8\), found \(2, 7\)"),
        (torch.zeros(1, 4), torch.tensor([[0, 1, 1, 1]]), "begins with padding"),
    ],
)
def test_what_cannot_be_heard(encoder, audio, mask, message):
    with pytest.raises(ValueError, match=message):
        encoder(audio, mask)


def test_which_encoder():
    with pytest.raises(SpecError, match=r"which encoder\? --model_args .*known: .*whisper"):
        UsamEncoder()
    with pytest.raises(ComponentError, match="did you mean 'whisper'"):
        UsamEncoder("wisper")


def test_it_is_found_as_xares_llm_looks_for_encoders():
    module = importlib.import_module("usam.harnesses.xares_llm")
    assert [name for name in dir(module) if name.endswith("Encoder")] == ["UsamEncoder"]
    assert build_encoder(TINY).dim == module.UsamEncoder(**TINY).output_dim
