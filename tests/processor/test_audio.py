"""Sound from anywhere becomes one mono waveform at one rate, or an error that says what to do."""

import base64
import io
import math
import os
import struct
import tracemalloc
import wave
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from usam.processor.audio import BLOCK, AudioError, AudioWarning, open_audio, read_audio


def tone(seconds: float = 1.0, rate: int = 16000, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(x: np.ndarray, rate: int = 16000, format: str = "WAV", subtype: str | None = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x, rate, format=format, subtype=subtype)
    return file.getvalue()


def wav(frames: bytes, declared: int | None = None, riff: int | None = None, rate: int = 16000) -> bytes:
    """A 16-bit mono WAV written by hand, so that its header can lie."""
    declared = len(frames) if declared is None else declared
    header = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", declared)
    riff = 4 + len(header) + declared if riff is None else riff
    return b"RIFF" + struct.pack("<I", riff & 0xFFFFFFFF) + b"WAVE" + header + frames


# What can be read


def test_a_path_as_text_and_as_path(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav")):
        x = read_audio(source, 16000)
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, tone())


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    assert len(read_audio("~/a.wav", 16000)) == 16000


def test_a_file_url(tmp_path):
    (tmp_path / "a clip.wav").write_bytes(encoded(tone()))
    np.testing.assert_array_equal(read_audio((tmp_path / "a clip.wav").as_uri(), 16000), tone())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes(kind):
    np.testing.assert_array_equal(read_audio(kind(encoded(tone())), 16000), tone())


def test_a_file_object_is_read_from_its_beginning_and_left_open(tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    with (tmp_path / "a.wav").open("rb") as file:
        file.seek(100)
        np.testing.assert_array_equal(read_audio(file, 16000), tone())
        assert not file.closed


def test_a_file_object_that_cannot_seek():
    class Pipe(io.RawIOBase):
        def read(self, size=-1):
            return encoded(tone())

    np.testing.assert_array_equal(read_audio(Pipe(), 16000), tone())


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_an_array_is_already_at_the_rate(make):
    np.testing.assert_array_equal(read_audio(make(tone()), 24000), tone())


@pytest.mark.parametrize("samples", [tone(rate=8000), tone(rate=8000).tolist(), torch.from_numpy(tone(rate=8000))])
def test_a_pair_of_samples_and_their_rate_in_either_order(samples):
    expected = read_audio({"array": samples, "sampling_rate": 8000}, 16000)
    for pair in [(8000, samples), (samples, 8000), [8000, samples]]:
        np.testing.assert_array_equal(read_audio(pair, 16000), expected)


@pytest.mark.parametrize(
    "pair",
    [
        (16000, np.zeros((800, 2), np.int16)),  # as Gradio and SciPy give it
        (np.zeros((800, 2), np.int16), 16000),  # as soundfile does
        (torch.zeros(2, 800), 16000),  # as torchaudio does
    ],
)
def test_a_pair_with_channels(pair):
    assert len(read_audio(pair, 16000)) == 800


def test_a_pair_with_a_rate_that_is_no_int():
    with pytest.raises(AudioError, match=r"the pair .* the rate: expected samples per second as an int"):
        read_audio((16000.0, tone()), 16000)


def test_a_pair_of_samples_is_no_pair():
    np.testing.assert_array_equal(read_audio([0.5, -0.5], 16000), [0.5, -0.5])


def test_a_tensor_in_bfloat16_and_in_training():
    x = torch.tensor([0.5, -0.25], dtype=torch.bfloat16, requires_grad=True)
    np.testing.assert_array_equal(read_audio(x, 16000), [0.5, -0.25])


def test_a_list_of_whole_numbers_is_not_scaled():
    np.testing.assert_array_equal(read_audio([0, 1, -1], 16000), [0, 1, -1])


def test_the_given_array_is_left_as_it_is():
    x = np.array([2.0, -2.0], np.float32)
    read_audio(x, 16000)
    np.testing.assert_array_equal(x, [2.0, -2.0])


def test_a_dataset_row_with_an_array():
    x = read_audio({"path": "a.wav", "array": tone(rate=8000).astype(np.float64), "sampling_rate": 8000}, 16000)
    np.testing.assert_allclose(x[200:-200], tone()[200:-200], atol=1e-4)


def test_a_dataset_row_with_bytes_does_not_open_its_path():
    row = {"path": "not/here.wav", "bytes": encoded(tone())}
    np.testing.assert_array_equal(read_audio(row, 16000), tone())


@pytest.mark.parametrize("key", ["path", "audio", "url"])
def test_a_chat_message(key, tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    message = {"type": "audio", "bytes": None, key: str(tmp_path / "a.wav")}
    np.testing.assert_array_equal(read_audio(message, 16000), tone())


def test_a_chat_message_with_a_dataset_row_inside():
    message = {"type": "audio", "audio": {"array": tone(), "sampling_rate": 16000}}
    np.testing.assert_array_equal(read_audio(message, 16000), tone())


def test_a_torchcodec_decoder():
    samples = SimpleNamespace(data=torch.stack([torch.ones(8), torch.zeros(8)]), sample_rate=16000)
    decoder = SimpleNamespace(get_all_samples=lambda: samples)
    np.testing.assert_array_equal(read_audio(decoder, 16000), np.full(8, 0.5))


# What comes out


def test_channels_are_averaged_in_files_and_in_arrays():
    left_right = np.stack([tone(), 0.5 * tone()])
    np.testing.assert_allclose(read_audio(encoded(left_right.T), 16000), 0.75 * tone(), atol=1e-7)
    np.testing.assert_allclose(read_audio(left_right, 16000), 0.75 * tone(), atol=1e-7)


@pytest.mark.parametrize("make", [lambda x: encoded(x.T), lambda x: x, torch.from_numpy])
def test_one_channel_is_read_where_it_is_chosen(make):
    left_right = np.stack([tone(), tone(hz=880)])
    for i in (0, 1):
        np.testing.assert_array_equal(read_audio(make(left_right), 16000, start=0.5, channel=i), left_right[i, 8000:])


@pytest.mark.parametrize("channel", [2, -1, True, "left", 0.0])
def test_a_channel_that_is_not_there(channel, tmp_path):
    (tmp_path / "a.wav").write_bytes(encoded(np.zeros((8, 2))))
    with pytest.raises(AudioError, match=rf"a\.wav: channel '?{channel}'?; it has 2 channels, 0 to 1"):
        read_audio(tmp_path / "a.wav", 16000, channel=channel)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
def test_signed_integers_are_scaled_by_their_range(dtype):
    x = np.array([np.iinfo(dtype).min, 0, 2 ** (np.iinfo(dtype).bits - 2)], dtype)
    np.testing.assert_array_equal(read_audio(x, 16000), [-1, 0, 0.5])


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_unsigned_integers_are_scaled_about_their_middle(dtype):
    middle = 2 ** (np.iinfo(dtype).bits - 1)
    np.testing.assert_array_equal(read_audio(np.array([0, middle, middle * 3 // 2], dtype), 16000), [-1, 0, 0.5])


def test_an_8_bit_file(tmp_path):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 1, 16000, 0, "NONE", ""))
        file.writeframes(bytes([0, 128, 192]))
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 16000), [-1, 0, 0.5])


def test_44100_hz_stereo_becomes_16000_hz_mono():
    x = read_audio(encoded(np.stack([tone(2, 44100)] * 2, 1), 44100), 16000)
    np.testing.assert_allclose(x[500:-500], tone(2)[500:-500], atol=1e-4)


@pytest.mark.parametrize("own_rate", [8000, 11025, 22050, 44100, 48000])
@pytest.mark.parametrize("n", [1, 2, 3, 160, 12345])
def test_the_length_is_rounded_up(n, own_rate):
    x = read_audio({"array": np.zeros(n), "sampling_rate": own_rate}, 16000)
    assert len(x) == math.ceil(n * 16000 / own_rate)


def test_a_file_of_many_blocks_equals_one_resampled_at_once():
    x = np.random.default_rng(0).normal(0, 0.1, 3 * BLOCK + 5).astype(np.float32)
    whole = soxr.resample(x, 44100, 16000, quality="VHQ")
    np.testing.assert_allclose(read_audio(encoded(x, 44100), 16000)[: len(whole)], whole, atol=1e-4)


def test_one_hour_takes_little_more_memory_than_its_result(tmp_path):
    with wave.open(str(tmp_path / "hour.wav"), "wb") as file:
        file.setparams((2, 1, 8000, 0, "NONE", ""))
        file.writeframes(bytes([128]) * (2 * 8000 * 3600))
    tracemalloc.start()
    x = read_audio(tmp_path / "hour.wav", 4000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(x) == 4000 * 3600
    assert peak < 2.5 * x.nbytes


def test_what_is_known_of_a_file_before_it_is_decoded(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.stack([tone(), tone()], 1), 8000)  # two seconds at its rate
    with open_audio(tmp_path / "a.flac", 16000, start=1, duration=0.5) as sound:
        assert (sound.rate, sound.channels, sound.frames, sound.kind) == (8000, 2, 4000, "FLAC PCM_16")
        assert sum(map(len, sound.blocks)) == sound.frames
    assert len(read_audio(tmp_path / "a.flac", 16000, start=1, duration=0.5)) == 2 * sound.frames


def test_overshoot_is_clipped():
    np.testing.assert_array_equal(read_audio(np.array([1.2, -1.2, 0.5]), 16000), [1, -1, 0.5])


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("FLAC", "PCM_16"),
        ("MP3", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("AIFF", "PCM_16"),
        ("W64", "PCM_24"),
        ("CAF", "ALAC_16"),
        ("AU", "FLOAT"),
        ("NIST", "PCM_16"),
    ],
)
def test_other_formats(format, subtype):
    x = read_audio(encoded(tone(2, 48000), 48000, format, subtype), 16000)
    assert len(x) == 32000
    np.testing.assert_allclose(x[500:-500], tone(2)[500:-500], atol=0.02)


# A part of it


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("MP3", None), ("OGG", "VORBIS")]
)
def test_a_part_of_a_file(format, subtype):
    file = encoded(np.random.default_rng(0).normal(0, 0.1, 48000), 16000, format, subtype)
    part = read_audio(file, 16000, start=1.25, duration=0.5)
    np.testing.assert_allclose(part, read_audio(file, 16000)[20000:28000], atol=1e-6)


def test_a_part_of_an_array():
    np.testing.assert_array_equal(read_audio(tone(), 16000, start=0.5, duration=0.25), tone()[8000:12000])


def test_a_part_that_crosses_blocks():
    x = np.random.default_rng(0).normal(0, 0.1, BLOCK + 100).astype(np.float32)
    np.testing.assert_array_equal(read_audio(encoded(x), 16000, start=1), x[16000:])
    np.testing.assert_array_equal(read_audio(x, 16000, start=1), x[16000:])


def test_a_duration_beyond_the_end_reads_to_the_end():
    assert len(read_audio(tone(), 16000, start=0.75, duration=10)) == 4000


@pytest.mark.parametrize("source", [tone(), encoded(tone())])
def test_a_start_beyond_the_end_says_where_the_end_is(source):
    with pytest.raises(AudioError, match=r"start 2.0 s is beyond the end, which is at 1.000 s"):
        read_audio(source, 16000, start=2.0)


@pytest.mark.parametrize("duration", [-1.0, 0.0, math.nan])
def test_a_duration_that_is_not_positive(duration):
    with pytest.raises(AudioError, match=r"duration .* expected more than 0"):
        read_audio(tone(), 16000, duration=duration)


@pytest.mark.parametrize("start", [-0.1, math.inf])
def test_a_start_that_is_negative_or_endless(start):
    with pytest.raises(AudioError, match=r"start .* expected 0 or more"):
        read_audio(tone(), 16000, start=start)


def test_a_duration_shorter_than_a_sample():
    with pytest.raises(AudioError, match="shorter than one sample at 16000 Hz"):
        read_audio(tone(), 16000, duration=1e-6)


# Faults of files


def test_a_missing_file_is_named_with_the_folder(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav: no such file \(looked in .*" + tmp_path.name):
        read_audio(tmp_path / "gone.wav", 16000)


def test_a_folder(tmp_path):
    with pytest.raises(AudioError, match="is a folder; give one file in it"):
        read_audio(tmp_path, 16000)


@pytest.mark.parametrize("url", ["http://example.org/a.wav", "https://example.org/a.wav", "s3://bucket/a.wav"])
def test_nothing_is_fetched_from_a_network(url):
    with pytest.raises(AudioError, match=rf"{url}: nothing is fetched .* download the file and give its path"):
        read_audio({"type": "audio", "url": url}, 16000)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match=r"empty\.wav: empty file \(0 bytes\)"):
        read_audio(tmp_path / "empty.wav", 16000)
    with pytest.raises(AudioError, match="empty file"):
        read_audio(b"", 16000)


@pytest.mark.parametrize("name", ["page.wav", "page.raw"])
def test_what_is_not_audio(name, tmp_path):
    (tmp_path / name).write_text("<html>404 Not Found</html>")
    with pytest.raises(AudioError, match=rf"{name}: not audio that libsndfile reads .* convert it"):
        read_audio(tmp_path / name, 16000)


@pytest.mark.parametrize("format", ["WAV", "AIFF"])
def test_a_file_without_samples(format, tmp_path):
    (tmp_path / "none.wav").write_bytes(encoded(np.zeros(0), 16000, format, "PCM_16"))
    with pytest.raises(AudioError, match=r"none\.wav: holds no samples"):
        read_audio(tmp_path / "none.wav", 16000)


@pytest.mark.parametrize("format", ["WAV", "WAVEX", "RF64", "AIFF", "FLAC", "MP3", "CAF"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file(format, kept, tmp_path):
    whole = encoded(np.random.default_rng(0).normal(0, 0.1, 64000), 16000, format, None)
    (tmp_path / "cut").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(AudioError, match=r"cut: .*(truncated|malformed)"):
        read_audio(tmp_path / "cut", 16000)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_that_breaks_off_inside_a_page(subtype):
    whole = encoded(np.random.default_rng(0).normal(0, 0.1, 64000), 16000, "OGG", subtype)
    with pytest.raises(AudioError, match="truncated: it breaks off inside a page"):
        read_audio(whole[: len(whole) * 6 // 10], 16000)


def test_a_truncated_wav_says_how_much_is_there():
    with pytest.raises(AudioError, match="declares 32000 bytes of sound, and 20000 are there"):
        read_audio(wav(bytes(20000), declared=32000), 16000)


def test_a_wav_with_other_chunks_before_and_after_the_sound():
    note = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # chunks are padded to even sizes
    whole = wav(struct.pack("<2h", 16384, -16384), riff=40 + 2 * len(note))
    np.testing.assert_array_equal(read_audio(whole[:12] + note + whole[12:] + note, 16000), [0.5, -0.5])


@pytest.mark.parametrize("declared", [0, 0xFFFFFFFF, 0x7FFFF000])
@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF])
def test_a_streamed_wav_does_not_know_its_size(declared, riff):
    x = read_audio(wav(struct.pack("<2h", 16384, -16384), declared, riff), 16000)
    np.testing.assert_array_equal(x, [0.5, -0.5])


def test_a_streamed_flac_is_read_to_its_end():
    file = bytearray(encoded(tone(), format="FLAC", subtype="PCM_16"))
    file[21] &= 0xF0  # the 36 bits of the number of samples
    file[22:26] = bytes(4)
    np.testing.assert_allclose(read_audio(bytes(file), 16000), tone(), atol=1e-4)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_opened(make, tmp_path):
    make(tmp_path / "a.wav")
    with pytest.raises(AudioError, match=r"a\.wav: a device, a pipe or a socket; give a file"):
        read_audio(tmp_path / "a.wav", 16000)


def test_a_name_with_a_zero_in_it():
    with pytest.raises(AudioError, match=r"'a\\x00\.wav' is no path: embedded null"):
        read_audio("a\0.wav", 16000)


# Bounds of memory and time


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_a_rate_that_no_sound_has(rate, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(bytes(2000), rate=rate))
    with pytest.raises(AudioError, match=rf"a\.wav: .*{rate} samples per second; expected 1000 to 1000000"):
        read_audio(tmp_path / "a.wav", 16000)
    with pytest.raises(AudioError, match=f"{rate} samples per second; expected 1000 to 1000000"):
        read_audio({"array": np.zeros(10), "sampling_rate": rate}, 16000)


def test_a_small_flac_that_would_become_gigabytes(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.zeros(200_000, np.int16), 1)
    assert (tmp_path / "a.flac").stat().st_size < 1000
    with pytest.raises(AudioError, match=r"a\.flac: .*1 samples per second"):
        read_audio(tmp_path / "a.flac", 16000)


def test_a_sound_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path):
    with soundfile.SoundFile(tmp_path / "day.flac", "w", 1000, 1, "PCM_16") as file:
        for _ in range(24):
            file.write(np.zeros(3600 * 1000, np.int16))
    tracemalloc.start()
    with pytest.raises(AudioError, match=r"day\.flac: 86400.000 s long, and at most 60 s are taken \(max_seconds\)"):
        read_audio(tmp_path / "day.flac", 16000, max_seconds=60)
    assert len(read_audio(tmp_path / "day.flac", 16000, start=80000, duration=60, max_seconds=60)) == 60 * 16000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_a_limit_holds_for_arrays_too():
    with pytest.raises(AudioError, match=r"1.000 s long, and at most 0.5 s are taken"):
        read_audio(tone(), 16000, max_seconds=0.5)


@pytest.mark.parametrize("limit", [0, -1, math.nan])
def test_a_limit_that_is_not_positive(limit):
    with pytest.raises(AudioError, match="max_seconds: expected more than 0"):
        read_audio(tone(), 16000, max_seconds=limit)


def test_many_channels_are_decoded_in_blocks_of_as_many_samples(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((100_000, 100), np.int16), 48000)
    tracemalloc.start()
    read_audio(tmp_path / "a.wav", 48000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


# Faults of samples


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("MP3", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_channels_that_cancel_each_other(format, subtype):
    inverted = encoded(np.stack([tone(2), -0.99 * tone(2)], 1), format=format, subtype=subtype)
    with pytest.raises(AudioError, match=r"its channels cancel each other: .* choose one with 'channel'"):
        read_audio(inverted, 16000)
    assert np.abs(read_audio(inverted, 16000, channel=1)).max() > 0.4


def test_silent_channels_do_not_cancel_each_other():
    np.testing.assert_array_equal(read_audio(np.zeros((2, 8)), 16000), np.zeros(8))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", [encoded, np.asarray])
def test_the_first_sample_that_is_not_finite_is_named_by_its_second(bad, make):
    x = tone(3)
    x[[20000, 30000]] = bad
    with pytest.raises(AudioError, match=rf"the sample at 1.250 s is {bad}"):
        read_audio(make(x), 16000, start=0.5)


def test_integers_that_lost_their_dtype():
    with pytest.raises(AudioError, match=r"the sample at 0.000 s is 12000, but full scale is 1: .*int16"):
        read_audio([12000, -12000], 16000)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_that_no_sound_has(dtype):
    with pytest.raises(AudioError, match=f"{dtype} is no format of sound"):
        read_audio(np.zeros(8, dtype), 16000)


@pytest.mark.parametrize("shape", [(), (1, 1, 8)])
def test_an_array_of_the_wrong_shape(shape):
    with pytest.raises(AudioError, match=r"shape \(.*\); expected \(samples\) or \(channels, samples\)"):
        read_audio(np.zeros(shape), 16000)


def test_an_array_that_lies_on_its_side():
    with pytest.raises(AudioError, match=r"shape \(16000, 2\) .* transpose to \(channels, samples\)"):
        read_audio(np.zeros((16000, 2)), 16000)


@pytest.mark.parametrize("source", [[], np.zeros(0), np.zeros((2, 0))])
def test_an_array_without_samples(source):
    with pytest.raises(AudioError, match="holds no samples"):
        read_audio(source, 16000)


@pytest.mark.parametrize("source", [None, object(), [None], np.zeros(4, bool), np.zeros(4, complex)])
def test_what_cannot_be_sound(source):
    with pytest.raises(AudioError, match="cannot be read as sound: give a path"):
        read_audio(source, 16000)


def test_a_ragged_list():
    with pytest.raises(AudioError, match="the list: not an array"):
        read_audio([[0.0, 0.1], [0.0]], 16000)


def test_a_file_opened_as_text(tmp_path):
    (tmp_path / "a.txt").write_text("sound")
    with (tmp_path / "a.txt").open() as file, pytest.raises(AudioError, match=r"a\.txt.*mode 'rb'"):
        read_audio(file, 16000)


@pytest.mark.parametrize("rate", [None, 0, -16000, 16000.0, "16000", True])
def test_a_sampling_rate_that_is_missing_or_no_positive_int(rate):
    with pytest.raises(AudioError, match=r"a\.wav: sampling_rate: expected samples per second as an int"):
        read_audio({"path": "a.wav", "array": tone(), "sampling_rate": rate}, 16000)


@pytest.mark.parametrize("rate", [0, 16000.0])
def test_a_wanted_rate_that_is_no_positive_int(rate):
    with pytest.raises(AudioError, match="rate: expected samples per second as an int"):
        read_audio(tone(), rate)


def test_a_dict_without_sound_says_which_keys_are_read():
    with pytest.raises(AudioError, match=r"a dict with 'base64' holds no sound: give 'array' and 'sampling_rate'"):
        read_audio({"base64": base64.b64encode(encoded(tone()))}, 16000)


def test_a_decoder_that_fails():
    def get_all_samples():
        raise RuntimeError("no audio stream")

    with pytest.raises(AudioError, match=r"a\.mp4: its decoder failed: no audio stream"):
        read_audio({"path": "a.mp4", "audio": SimpleNamespace(get_all_samples=get_all_samples)}, 16000)


def test_an_error_of_a_dict_names_its_path(tmp_path):
    row = {"path": str(Path("speech") / "a.wav"), "bytes": b"not sound"}
    with pytest.raises(AudioError, match=r"speech.a\.wav: not audio"):
        read_audio(row, 16000)


def test_a_range_beside_a_source_is_not_passed_over(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    with pytest.raises(AudioError, match=r"a.wav: 'start' stands beside a source.*Clip.of"):
        read_audio({"path": str(tmp_path / "a.wav"), "start": 0.5}, 16000)


def test_a_range_that_goes_past_the_end_is_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.ones(16000) * 0.1, 16000)
    with pytest.warns(AudioWarning, match=r"a.wav: 4 s from 0.5 s on were asked for, and there are 0.500 s"):
        assert len(read_audio(tmp_path / "a.wav", 16000, start=0.5, duration=4)) == 8000


def test_a_range_that_was_rounded_up_is_not(tmp_path, recwarn):
    soundfile.write(tmp_path / "a.wav", np.ones(16000) * 0.1, 16000)
    read_audio(tmp_path / "a.wav", 16000, duration=1.05)
    assert not recwarn
