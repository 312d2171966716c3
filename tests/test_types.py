"""What flows between components; above all, sound that changes its rate."""

import math

import numpy as np
import pytest
import soxr
import torch

from usam.types import Audio, Frames, prefix_mask

RATES = [(16000, 24000), (24000, 16000), (44100, 16000), (48000, 44100)]


def resampled(x: np.ndarray, rate: int, target: int) -> np.ndarray:
    clip = torch.from_numpy(x).float().unsqueeze(0)
    return Audio(clip, torch.ones_like(clip, dtype=torch.bool), rate).at(target).x[0].double().numpy()


def below(signal: np.ndarray, error: np.ndarray) -> float:
    """How many decibels the error lies below the signal."""
    return 10 * math.log10(np.square(np.abs(signal)).mean() / np.square(np.abs(error)).mean())


def faded(x: np.ndarray) -> np.ndarray:
    """Fades in and out, for what begins abruptly has content at every frequency."""
    return x * np.hanning(len(x))


def half_a_second(rate: int) -> np.ndarray:
    return np.arange(rate // 2) / rate


# At 0.45 soxr itself is down by 0.006 dB (its pass band falls off by up to 0.01 dB), which is an error of
# -63 dB, so that it can stand for the truth up to 0.35; from there to 0.45 the truth is the tone itself.


@pytest.mark.parametrize(("rate", "target"), RATES)
def test_a_sweep_is_as_soxr_makes_it(rate, target):
    t, top = half_a_second(rate), 0.35 * min(rate, target)
    sweep = faded(np.sin(2 * np.pi * top * t**2))
    theirs = soxr.resample(sweep, rate, target, quality="VHQ")
    assert below(theirs, resampled(sweep, rate, target) - theirs) > 80


@pytest.mark.parametrize(("rate", "target"), RATES)
def test_white_noise_is_as_soxr_makes_it(rate, target):
    noise = faded(np.random.default_rng(0).normal(0, 0.1, rate // 2))
    theirs = np.fft.rfft(soxr.resample(noise, rate, target, quality="VHQ"))
    ours = np.fft.rfft(resampled(noise, rate, target))
    low = np.fft.rfftfreq(target // 2, 1 / target) < 0.35 * min(rate, target)
    assert below(theirs[low], (ours - theirs)[low]) > 80


@pytest.mark.parametrize("share", [0.001, 0.25, 0.45])
@pytest.mark.parametrize(("rate", "target"), RATES)
def test_a_tone_keeps_its_shape(rate, target, share):
    hz = share * min(rate, target)
    y = resampled(np.sin(2 * np.pi * hz * half_a_second(rate)), rate, target)
    truth = np.sin(2 * np.pi * hz * half_a_second(target))
    inner = slice(target // 10, -target // 10)
    assert below(truth[inner], (y - truth)[inner]) > 100


@pytest.mark.parametrize("share", [0.55, 0.6, 0.9])
def test_what_the_lower_rate_cannot_hold_is_gone(share):
    y = resampled(np.sin(2 * np.pi * share * 16000 * half_a_second(48000)), 48000, 16000)
    assert below(np.ones(1), y[1600:-1600]) > 100


@pytest.mark.parametrize(("rate", "target"), RATES)
def test_a_clip_alone_equals_the_clip_in_a_batch(rate, target):
    lengths = torch.tensor([1, 700, 1500])
    x = torch.randn(3, 1500, generator=torch.Generator().manual_seed(0))  # noise where it is masked, too
    batch = Audio(x, prefix_mask(lengths, 1500), rate).at(target)
    for i, n in enumerate(lengths.tolist()):
        alone = Audio(x[i : i + 1, :n], torch.ones(1, n, dtype=torch.bool), rate).at(target)
        torch.testing.assert_close(batch.x[i : i + 1][batch.mask[i : i + 1]], alone.x[0], rtol=0, atol=1e-5)
        assert not batch.x[i, batch.lengths[i] :].any()


@pytest.mark.parametrize(("rate", "target"), RATES)
@pytest.mark.parametrize("n", [1, 2, 3, 441, 999, 16001])
def test_the_length_is_rounded_up(n, rate, target):
    audio = Audio(torch.zeros(1, n), torch.ones(1, n, dtype=torch.bool), rate).at(target)
    assert audio.rate == target
    assert audio.x.shape == audio.mask.shape == (1, math.ceil(n * target / rate))
    assert audio.mask.all()


def test_at_its_own_rate_only_the_mask_is_applied():
    audio = Audio(torch.ones(2, 3), prefix_mask(torch.tensor([3, 1]), 3), 16000).at(16000)
    assert audio.x.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_an_empty_clip_stays_empty():
    audio = Audio(torch.ones(1, 8), torch.zeros(1, 8, dtype=torch.bool), 16000).at(24000)
    assert audio.lengths.tolist() == [0]
    assert not audio.x.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    x = torch.ones(1, 100, dtype=dtype)
    assert Audio(x, torch.ones_like(x, dtype=torch.bool), 16000).at(24000).x.dtype == dtype


def test_lengths_are_read_off_the_mask():
    mask = prefix_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False, False, False], [True, True, False], [True, True, True]]
    assert Audio(torch.zeros(3, 3), mask, 16000).lengths.tolist() == [0, 2, 3]
    assert Frames(torch.zeros(3, 3, 4), mask, 25.0).lengths.tolist() == [0, 2, 3]
