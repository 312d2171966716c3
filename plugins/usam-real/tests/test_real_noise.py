"""Noise is for real frames in training alone."""

import pytest
import torch

from usam import ComponentError, Frames, build_projector
from usam.testing import projector_promises
from usam.types import prefix_mask


def cases():
    for promise in projector_promises("noise", std=0.5):
        marks = [pytest.mark.slow] if str(promise) == "compiles" else []
        yield pytest.param(promise, id=str(promise), marks=marks)


@pytest.mark.parametrize("promise", cases())
def test_it_keeps_its_promises(promise):
    promise()


@pytest.fixture
def frames():
    torch.manual_seed(0)
    return Frames(torch.randn(2, 200, 12), prefix_mask(torch.tensor([200, 50]), 200), 25.0)


def heard(frames, training, **options):
    return build_projector("noise", in_dim=12, **options).train(training)(frames).x - frames.x


def test_evaluation_is_without_it(frames):
    assert not heard(frames, False).any()


def test_in_training_real_frames_get_noise_of_its_deviation(frames):
    noise = heard(frames, True, std=0.3)[frames.mask]
    assert noise.std().item() == pytest.approx(0.3, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)


def test_padding_gets_none(frames):
    assert not heard(frames, True)[~frames.mask].any()


def test_of_no_deviation_it_is_nothing(frames):
    assert not heard(frames, True, std=0).any()


def test_it_cannot_be_all_of_a_projector():
    with pytest.raises(ComponentError, match="noise keeps the width of 12, and 64 is asked for: it cannot be the last"):
        build_projector("noise", in_dim=12, out_dim=64)
