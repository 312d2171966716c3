"""A file of sound that is not whole, or longer than it says, is read whole or named: never shortened without a word."""

import io
import struct
import warnings

import numpy as np
import pytest
import soundfile

from usam.processor.audio import AudioError, AudioWarning, read_audio

RATE = 16000


def sweep(seconds: float = 1.5, loud: float = 0.3) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(0, 0.02, len(t))
    return loud * np.sin(2 * np.pi * (300 + 200 * t) * t) * (1 + np.sin(9 * t)) / 2 + loud * noise


def encoded(x: np.ndarray, format: str, subtype: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, x, RATE, format=format, subtype=subtype, **options)
    return file.getvalue()


def mp3(x: np.ndarray, **options) -> bytes:
    return encoded(x, "MP3", "MPEG_LAYER_III", **options)


def without_header(file: bytes) -> bytes:
    """An MP3 from its second frame on: the first says how long it is."""
    assert b"Xing" in file[:64] or b"Info" in file[:64]
    return file[file.index(file[:2], 4) :]


def flipped(file: bytes, byte: int, bit: int = 0) -> bytes:
    return file[:byte] + bytes([file[byte] ^ 1 << bit]) + file[byte + 1 :]


# MP3


def test_an_mp3_that_does_not_say_how_long_it_is():
    quiet_later = np.concatenate([sweep(4, loud=0.9), sweep(16, loud=0.01)])
    x = read_audio(without_header(mp3(quiet_later, bitrate_mode="VARIABLE", compression_level=0.2)), RATE)
    assert len(x) == pytest.approx(20 * RATE, abs=2000)
    assert np.abs(x[-RATE:]).max() > 0.005


def test_an_mp3_with_a_tag_in_front_that_does_not_say_how_long_it_is():
    size = 2000
    tag = b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 127]) + b"x" * size
    file = tag + without_header(mp3(sweep(20), bitrate_mode="CONSTANT"))
    assert len(read_audio(file, RATE)) == pytest.approx(20 * RATE, abs=2000)


def test_a_part_of_an_mp3_that_does_not_say_how_long_it_is():
    file = without_header(mp3(sweep(20)))
    whole = read_audio(file, RATE)
    np.testing.assert_allclose(read_audio(file, RATE, start=15, duration=2), whole[15 * RATE : 17 * RATE], atol=1e-5)


@pytest.mark.parametrize(
    "tag", [b"", b"TAG".ljust(128, b"\0"), b"APETAGEX" + struct.pack("<4I", 2000, 32, 1, 0) + bytes(8)]
)
def test_two_mp3s_in_one_file_are_both_read(tag):
    with pytest.warns(AudioWarning, match=r"declares \d+ frames, and \d+ are there, which are all read"):
        x = read_audio(mp3(sweep(3)) + tag + mp3(sweep(3)), RATE)
    assert len(x) == pytest.approx(6 * RATE, abs=3000)


def test_an_mp3_that_breaks_off_inside_a_frame():
    with pytest.raises(AudioError, match="truncated: it breaks off inside a frame"):
        read_audio(without_header(mp3(sweep()))[:-10], RATE)


def test_an_mp3_with_fewer_frames_than_it_says():
    file = mp3(sweep(), bitrate_mode="CONSTANT")
    with pytest.raises(AudioError, match=r"truncated: its header declares \d+ frames, and \d+ are there"):
        read_audio(file[: file.rindex(file[:2], 0, -3000)], RATE)


def test_a_changed_bit_in_the_header_of_an_mp3_frame(tmp_path):
    file = mp3(sweep(), bitrate_mode="CONSTANT")
    third = file.index(file[:2], file.index(file[:2], 4) + 4)
    (tmp_path / "a.mp3").write_bytes(flipped(file, third + 2, 4))
    with pytest.raises(AudioError, match=r"a\.mp3: broken at 0\.\d+ s: no frame of MPEG audio stands at byte \d+"):
        read_audio(tmp_path / "a.mp3", RATE)


# FLAC


def flac_that_says(samples: int) -> bytes:
    file = bytearray(encoded(sweep(), "FLAC"))
    file[22:26] = struct.pack(">I", samples)
    return bytes(file)


@pytest.mark.parametrize("tag", [b"", b"TAG".ljust(128, b"\0")])
def test_a_flac_that_holds_more_than_it_says(tag):
    with pytest.warns(AudioWarning, match="declares 12000 samples, and 24000 are there, which are all read"):
        x = read_audio(flac_that_says(12000) + tag, RATE)
    np.testing.assert_allclose(x, sweep(), atol=1e-4)


def test_a_flac_that_holds_less_than_it_says():
    with pytest.raises(AudioError, match="truncated: its header declares 48000 samples"):
        read_audio(flac_that_says(48000), RATE)


def test_a_flac_whose_frames_have_another_rate():
    file = bytearray(encoded(sweep(), "FLAC"))
    file[18:20] = struct.pack(">H", 24000 >> 4)
    with pytest.warns(AudioWarning, match="contradicts itself: 24000 Hz, or 16000 Hz"):
        read_audio(bytes(file), RATE)


def test_a_flac_behind_a_tag():
    tag = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    np.testing.assert_allclose(read_audio(tag + encoded(sweep(), "FLAC"), RATE), sweep(), atol=1e-4)


# Ogg


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_ogg_streams_one_after_another_are_all_read(codec):
    a, b = encoded(sweep(1), "OGG", codec), encoded(sweep(0.7), "OGG", codec)
    both = np.concatenate([read_audio(a, RATE), read_audio(b, RATE)])
    np.testing.assert_array_equal(read_audio(a + b, RATE), both)
    part = read_audio(a + b, RATE, start=0.9, duration=0.3)
    np.testing.assert_allclose(part, both[14400:19200], atol=1e-6)
    assert len(read_audio(a + b + a, RATE, start=1.2)) == 24000


def test_ogg_streams_of_different_rates_are_not_joined():
    a, b = io.BytesIO(), io.BytesIO()
    soundfile.write(a, sweep(1), 16000, format="OGG", subtype="VORBIS")
    soundfile.write(b, sweep(1), 8000, format="OGG", subtype="VORBIS")
    with pytest.raises(AudioError, match=r"its 2 streams have different rates \[8000, 16000\]; split the file"):
        read_audio(a.getvalue() + b.getvalue(), RATE)


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_a_changed_bit_in_a_page(codec):
    file = encoded(sweep(), "OGG", codec)
    with pytest.raises(AudioError, match=r"broken: the page at byte \d+ does not match its checksum"):
        read_audio(flipped(file, len(file) // 2), RATE)


def test_a_page_that_is_missing():
    file = encoded(sweep(4), "OGG", "VORBIS")
    pages = [b"OggS" + page for page in file.split(b"OggS")[1:]]
    assert b"".join(pages) == file
    with pytest.raises(AudioError, match="broken: pages are missing before byte"):
        read_audio(b"".join(pages[:3] + pages[4:]), RATE)
    with pytest.warns(AudioWarning, match="its last page is not marked as the last"):
        read_audio(b"".join(pages[:-1]), RATE)


def test_bytes_between_pages():
    file = encoded(sweep(), "OGG", "VORBIS")
    with pytest.raises(AudioError, match=rf"broken: no page of Ogg stands at byte {len(file)} of"):
        read_audio(file + bytes(100), RATE)


# Headers in front of plain samples


@pytest.mark.parametrize("format", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
def test_a_file_that_breaks_off(format, tmp_path):
    (tmp_path / "cut").write_bytes(encoded(sweep(), format, "PCM_16")[:-1000])
    with pytest.raises(AudioError, match=r"cut: truncated: its header declares \d+ bytes of sound, and \d+ are there"):
        read_audio(tmp_path / "cut", RATE, duration=0.1)


@pytest.mark.parametrize("format", ["WAV", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
def test_bytes_that_no_header_speaks_of(format, tmp_path):
    (tmp_path / "more").write_bytes(encoded(sweep(), format, "PCM_16") + bytes(1000))
    with pytest.warns(AudioWarning, match=r"more: .*(belong to no chunk|after the end that its header declares)"):
        assert len(read_audio(tmp_path / "more", RATE)) == 24000


@pytest.mark.parametrize(("size", "what"), [(24000, "belong to no chunk"), (47990, "belong to no chunk")])
def test_a_wav_whose_sound_is_longer_than_it_says(size, what):
    file = bytearray(encoded(sweep(), "WAV", "PCM_16"))
    file[40:44] = struct.pack("<I", size)
    with pytest.warns(AudioWarning, match=what):
        read_audio(bytes(file), RATE)


def test_a_wav_whose_rates_differ():
    file = bytearray(encoded(sweep(), "WAV", "PCM_16"))
    file[24:28] = struct.pack("<I", 32000)
    with pytest.warns(AudioWarning, match="contradicts itself: 32000 Hz, or 16000 Hz"):
        read_audio(bytes(file), RATE)


@pytest.mark.parametrize("outer", [0, 0xFFFFFFFF])
def test_a_wav_that_knows_the_size_of_its_sound_alone(outer):
    file = bytearray(encoded(sweep(), "WAV", "PCM_16"))
    file[4:8] = struct.pack("<I", outer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_audio(bytes(file), RATE)) == 24000


@pytest.mark.parametrize("format", ["AIFF", "AU", "CAF"])
def test_an_unusual_rate_where_nothing_confirms_it(format):
    file = io.BytesIO()
    soundfile.write(file, sweep(), 16256, format=format, subtype="PCM_16")
    with pytest.warns(AudioWarning, match="its header says 16256 Hz, an unusual rate"):
        read_audio(file.getvalue(), RATE)


def test_an_aiff_with_other_channels_than_its_samples_say():
    file = bytearray(encoded(sweep(), "AIFF", "PCM_16"))
    file[21] = 3
    with pytest.raises(AudioError, match="its header contradicts itself: 8000 samples, or 24000"):
        read_audio(bytes(file), RATE)


def test_a_container_that_is_not_taken_apart_is_named():
    with pytest.warns(AudioWarning, match="whether a file of IRCAM is whole cannot be told"):
        assert len(read_audio(encoded(sweep(), "IRCAM", "PCM_16"), RATE)) == 24000


def test_a_file_of_too_many_chunks():
    chunks = (b"note" + bytes(4)) * 20_000
    with pytest.raises(AudioError, match="more than 10000 chunks"):
        read_audio(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks, RATE)


def test_a_part_of_a_file_that_libsndfile_cannot_seek_in():
    file = encoded(sweep(), "WAV", "GSM610")
    np.testing.assert_array_equal(read_audio(file, RATE, start=0.5), read_audio(file, RATE)[8000:])


# Whatever happens to a file

SOUNDS = [
    ("WAV", "PCM_16"),
    ("RF64", "PCM_24"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("MP3", "MPEG_LAYER_III"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
]


def mutated(file: bytes, rng: np.random.Generator) -> bytes:
    """A file that something happened to, half of the time in its first 128 bytes."""
    at = int(rng.integers(len(file) if rng.random() < 0.5 else 128))
    end = at + int(rng.integers(1, 1 + 2 ** rng.integers(12)))
    before, hit, after = file[:at], file[at:end], file[end:]
    return {
        "a bit": flipped(file, at, int(rng.integers(8))),
        "a byte": before + rng.bytes(1) + file[at + 1 :],
        "noise": before + rng.bytes(len(hit)) + after,
        "zeros": before + bytes(len(hit)) + after,
        "cut": file[: max(at, 1)],
        "lost": before + after,
        "more": before + rng.bytes(end - at) + hit + after,
        "twice": before + hit + hit + after,
    }[rng.choice(["a bit", "a byte", "noise", "zeros", "cut", "lost", "more", "twice"])]


@pytest.mark.parametrize(("format", "subtype"), SOUNDS)
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_no_mutation_gives_another_length_without_a_word(format, subtype, times, tmp_path):
    """Error and warning name the file.

    What makes one sound header of another, such as an AIFF's rate doubled, nothing could tell: these seeds hold none.
    """
    whole = encoded(sweep(), format, subtype)
    length = len(read_audio(whole, RATE))
    rng = np.random.default_rng(times)
    for _ in range(times):
        (tmp_path / "changed").write_bytes(mutated(whole, rng))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            try:
                same, said = len(read_audio(tmp_path / "changed", RATE)) == length, []
            except AudioError as error:
                same, said = False, [str(error)]
        said += [str(warning.message) for warning in found]
        assert same or any("changed: " in words for words in said)
