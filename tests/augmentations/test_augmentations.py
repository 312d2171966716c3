"""Augmentations: their promises, and what they do to a clip."""

import json
import math

import numpy as np
import pytest
import soundfile
from conftest import noise

from usam.augmentations import build_augmentation, registry
from usam.processor.audio import AudioError
from usam.testing import augmentation_promises

RATE = 16000
OPTIONS = {
    "gain": [{}],
    "speed": [{}],
    "spec_augment": [{}],
    "noise": [{"color": "white"}, {"color": "pink", "snr": [-5, 0]}],
}
CASES = {f"{name} {options}": (name, options) for name, each in OPTIONS.items() for options in each}
PROMISES = {
    f"{case}: {promise}": promise
    for case, (name, options) in CASES.items()
    for promise in augmentation_promises(name, **options)
}


def draw(seed=0):
    return np.random.default_rng(seed)


def tone(hertz, seconds=1.0, level=0.2):
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def power(x):
    return float(np.mean(np.square(x, dtype=np.float64)))


def test_every_augmentation_is_put_to_the_test():
    assert set(OPTIONS) == set(registry.names())


@pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES.keys())
def test_promise(promise):
    promise()


# What each does


def test_gain_is_as_many_decibels_as_drawn():
    louder = build_augmentation("gain", db=[6, 6])(tone(440), RATE, draw())
    assert 10 * math.log10(power(louder) / power(tone(440))) == pytest.approx(6, abs=1e-3)


def test_gain_stops_at_full_scale_without_clipping():
    louder = build_augmentation("gain", db=[40, 40])(tone(440), RATE, draw())
    np.testing.assert_allclose(louder, tone(440, level=1.0) / np.abs(tone(440, level=1.0)).max(), atol=1e-5)


def test_speed_moves_length_and_pitch():
    slow = build_augmentation("speed", factors=[0.8])(tone(440), RATE, draw())
    assert len(slow) == RATE / 0.8
    spectrum = np.abs(np.fft.rfft(slow[2000:18000]))
    assert np.fft.rfftfreq(16000, 1 / RATE)[spectrum.argmax()] == pytest.approx(440 * 0.8, abs=1)


def test_noise_has_the_ratio_that_was_drawn():
    clip = tone(440, level=0.1)
    mixed = build_augmentation("noise", color="white", snr=[10, 10])(clip, RATE, draw())
    assert 10 * math.log10(power(clip) / power(mixed - clip)) == pytest.approx(10, abs=1e-3)


def test_pink_noise_falls_by_three_decibels_an_octave():
    clip = tone(440, seconds=8, level=0.1)
    spectrum = (
        np.abs(np.fft.rfft(build_augmentation("noise", color="pink", snr=[0, 0])(clip, RATE, draw()) - clip)) ** 2
    )
    at = np.fft.rfftfreq(len(clip), 1 / RATE)
    octaves = [spectrum[(at >= low) & (at < 2 * low)].mean() for low in (500, 1000, 2000)]
    assert octaves[0] / octaves[1] == pytest.approx(2, rel=0.15)
    assert octaves[1] / octaves[2] == pytest.approx(2, rel=0.15)


def test_noise_is_a_part_of_a_recording_or_repeats_it(tmp_path):
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "long.wav", tone(1000, seconds=5), RATE)
    (tmp_path / "noise.jsonl").write_text(json.dumps({"audio": "deep/long.wav", "start": 0}) + "\n")
    soundfile.write(tmp_path / "short.wav", tone(1000, seconds=0.25), RATE)
    for files in (tmp_path / "deep", tmp_path / "noise.jsonl", tmp_path / "short.wav"):
        clip = tone(440)
        mixed = build_augmentation("noise", files=str(files), snr=[0, 0])(clip, RATE, draw())
        spectrum = np.abs(np.fft.rfft(mixed - clip))
        assert spectrum.argmax() == 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "noise.files: .*gone: no such file or folder"),
        ("", "noise.files: there is no audio in"),
        ('{"text": 1}\n', r"noise.files: .*:1: expected a map with 'audio'"),
    ],
)
def test_noise_that_is_not_there_is_told_at_once(tmp_path, content, message):
    file = tmp_path / ("gone" if content is None else "noise.jsonl")
    if content is not None:
        file.write_text(content)
    with pytest.raises(AudioError, match=message):
        build_augmentation("noise", files=str(file))


def test_a_band_is_cut_out_and_the_rest_stays():
    clip = tone(440) + tone(3000)
    one = {"frequency_masks": 1, "time_masks": 0, "bins": 2, "frequency_width": 1}  # below or above 1.8 kHz, or none
    found = [build_augmentation("spec_augment", **one)(clip, RATE, draw(seed)) for seed in range(20)]
    kept = {tuple(bool(power(x) and abs(np.fft.rfft(x)[at]) > 100) for at in (440, 3000)) for x in found}
    assert kept == {(True, True), (True, False), (False, True)}
    without = next(x for x in found if abs(np.fft.rfft(x)[3000]) <= 100)
    assert power(without[1000:-1000] - tone(440)[1000:-1000]) < 1e-3 * power(tone(440))


def test_a_stretch_of_time_is_silent_and_the_rest_stays():
    clip = noise(2.0)
    x = build_augmentation("spec_augment", frequency_masks=0, time_masks=1, time_width=0.5)(clip, RATE, draw(3))
    silent = np.flatnonzero((x == 0) & (clip != 0))
    assert 0 < len(silent) <= 0.2 * len(clip)
    assert silent[-1] - silent[0] == len(silent) - 1
    np.testing.assert_array_equal(np.delete(x, silent), np.delete(clip, silent))
