"""Reads sound from files, bytes and arrays into one mono waveform at one rate."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from usam.processor.containers import AudioError, AudioWarning, streams

__all__ = ["INT16", "AudioError", "AudioWarning", "Room", "Sound", "Waveform", "open_audio", "read_audio"]

BLOCK = 1 << 18  # samples decoded at once, which bounds the memory that a long file takes
LOUDEST = 16.0  # full scale is 1, decoders overshoot it a little; beyond this, integers have lost their dtype
RATES = (1000, 1_000_000)  # samples per second; beyond them a short file takes all memory, or for ever
PLAIN = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF")  # hold 16 bits as they are
INT16 = np.float32(2**-15)  # of full scale; the product is exact
CANCELLED = 3e-3  # of the channels' power: what is left of inverted channels after lossy coding
MP3_SLACK = 0.1  # seconds: an MP3's header may count the frames in which its decoder starts up

SHORTER = 0.1  # seconds by which a file may end before a range does without a word: lists are rounded
Waveform = NDArray[np.float32]

Room = Callable[[int, type[Any]], NDArray[Any]]
"""Gives an array of so many samples of a type to read into."""


def read_audio(
    source: Any,
    rate: int,
    *,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    max_seconds: float | None = None,
    room: Room | None = None,
) -> Waveform:
    """One mono waveform in [-1, 1] with `ceil(n * rate / own rate)` samples; of a file, only the part wanted is read.

    Integers are scaled by the range of their dtype, and what overshoots full scale is clipped.

    Args:
        source: a path or `file://` URL, bytes, a binary file object, an array, tensor or list of (samples) or
            (channels, samples) already at `rate`, a pair of one and its own rate in either order, a torchcodec
            decoder, or a dict that holds one of these as `array` (with `sampling_rate`), `bytes`, `audio`, `path`
            or `url`.
        rate: samples per second of the result.
        start: second at which to begin.
        duration: seconds to read; None, or more than there are, reads to the end.
        channel: the one to read, from 0; None averages all of them.
        max_seconds: refuse, before it is decoded, what would be longer; None sets no limit. A small file can hold
            days of silence: set it for files of strangers.
        room: where the samples of a mono file that needs no resampling are read to. Those of 16 bits, kept as they
            are, then stay so: an array of int16, which `INT16` scales.

    Raises:
        AudioError: missing, not a regular file, not audio, empty, truncated, broken, not finite, too long, no sound
            at `start`, no such channel, or channels that cancel each other when averaged.

    Warns:
        AudioWarning: a file holds more than its header says (all of it is read), contradicts itself, or ends before the
            range that was asked for.
    """
    _check_rate(rate, "rate")
    with open_audio(
        source, rate, start=start, duration=duration, channel=channel, max_seconds=max_seconds, room=room
    ) as sound:
        return _joined(sound, rate)


@dataclass(frozen=True)
class Sound:
    """Sound that is open: what is known of it before it is decoded, and its samples."""

    name: str
    rate: int  # samples per second, its own
    channels: int
    frames: int  # of the part that is meant
    kind: str  # container and codec by libsndfile's names, such as "WAV PCM_16"; "array"
    blocks: Iterator[Waveform]
    """Mono samples at its own rate, a block at a time, checked as they come: memory stays bounded."""
    over: list[float] = field(default_factory=list)  # the loudest samples of the blocks until now that overshoot


@contextmanager
def open_audio(
    source: Any,
    rate: int,
    *,
    start: float = 0.0,
    duration: float | None = None,
    channel: int | None = None,
    max_seconds: float | None = None,
    room: Room | None = None,
) -> Iterator[Sound]:
    """A source after all checks that need no decoding; arguments and errors are those of `read_audio`.

    Of samples at 16 kHz, `ceil(frames * 16000 / rate)` come out of `read_audio`.
    """
    thing, name, own_rate = _unwrap(source, "", None)
    if isinstance(thing, np.ndarray):
        own_rate = own_rate or rate
        first, count = _span(thing.shape[1], own_rate, start, duration, max_seconds, name)
        _check_channel(channel, thing.shape[0], name)
        step = _block(thing.shape[0])
        parts = (_scaled(thing[:, i : min(i + step, first + count)]) for i in range(first, first + count, step))
        over: list[float] = []
        blocks = _checked(_mono(parts, channel, name), first, own_rate, name, over)
        yield Sound(name, own_rate, thing.shape[0], count, "array", blocks, over)
        return
    with _opened(thing, name) as files:
        own_rate = files[0].samplerate
        first, count = _span(sum(file.frames for file in files), own_rate, start, duration, max_seconds, name)
        for file in files:
            _check_channel(channel, file.channels, name)
        kind = f"{files[0].format} {files[0].subtype}"
        over = []
        blocks = _mono(_decoded_all(files, first, count, name, room if own_rate == rate else None), channel, name)
        if not all(map(_is_plain, files)):  # 16 bits cannot say what is checked
            blocks = _checked(blocks, first, own_rate, name, over)
        yield Sound(name, own_rate, files[0].channels, count, kind, blocks, over)


def _unwrap(source: Any, name: str, rate: int | None) -> tuple[Any, str, int | None]:
    """What a source holds in the end (a path, a binary file or an array), its name for errors, an array's rate."""
    if isinstance(source, str):
        path = _path(source)
        return path, str(path), None
    if isinstance(source, Mapping):
        return _unwrap_dict(source)
    if hasattr(source, "get_all_samples"):  # a torchcodec decoder, as `datasets` gives it
        name = name or f"the {type(source).__name__}"
        try:
            samples = source.get_all_samples()
        except Exception as error:
            raise AudioError(f"{name}: its decoder failed: {error}; decode the file again or leave it out") from error
        return _array(samples.data, name), name, _check_rate(samples.sample_rate, f"{name}: sample_rate")
    if isinstance(source, os.PathLike):
        return _unwrap(os.fsdecode(source), name, rate)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), name or f"these {len(source)} bytes", None
    if hasattr(source, "read"):
        return source, name or f"the file object {getattr(source, 'name', type(source).__name__)}", None
    if is_pair(source):
        rate, source = source if isinstance(source[0], Number) else source[::-1]
        name = name or f"the pair of a rate and a {type(source).__name__}"
        rate = _check_rate(rate, f"{name}: the rate")
        shape = np.shape(source)  # of arrays in pairs, soundfile's, SciPy's and Gradio's are (samples, channels)
        source = source.T if len(shape) == 2 and shape[0] > shape[1] and hasattr(source, "T") else source
    name = name or f"the {type(source).__name__}"
    return _array(source, name), name, rate


def is_pair(source: Any) -> bool:
    """Whether it is (rate, samples), as Gradio gives it, or (samples, rate), as torchaudio does."""
    if not (isinstance(source, (tuple, list)) and len(source) == 2):
        return False
    return sorted(isinstance(part, Number) for part in source) == [False, True] and any(
        hasattr(part, "__array__") or isinstance(part, (list, tuple)) for part in source
    )


def _unwrap_dict(source: Mapping[str, Any]) -> tuple[Any, str, int | None]:
    name = str(source.get("path") or "")
    for key in ("start", "offset", "duration", "end", "channel"):
        if source.get(key) is not None:
            raise AudioError(
                f"{name or 'the dict'}: '{key}' stands beside a source, where it is not read; give read_audio start, "
                "duration and channel, or take usam.processor.clip.Clip.of, which reads such dicts"
            )
    rate = source.get("sampling_rate")
    # In this order: `datasets` gives a path beside the array or the bytes that it has already read.
    for key in ("array", "bytes", "audio", "path", "url"):
        if source.get(key) is None:
            continue
        if key == "array" or rate is not None:
            _check_rate(rate, f"{name or 'the dict'}: sampling_rate")
        return _unwrap(source[key], name, rate)
    raise AudioError(
        f"a dict with {', '.join(map(repr, source)) or 'nothing'} holds no sound: "
        "give 'array' and 'sampling_rate', or 'path', 'bytes', 'audio' or 'url'"
    )


def _path(text: str) -> Path:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return Path(text).expanduser()
    url = urlsplit(text)
    if url.scheme != "file":
        raise AudioError(f"{text}: nothing is fetched from a network; download the file and give its path")
    if url.netloc not in ("", "localhost"):
        raise AudioError(f"{text}: names the host '{url.netloc}'; write file:///path/to/file")
    return Path(unquote(url.path))


def _array(source: Any, name: str) -> NDArray[Any]:
    """Samples as (channels, samples), of whatever dtype they had."""
    if hasattr(source, "detach"):  # a tensor: perhaps on a device, in training, in bfloat16
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
    try:
        x = np.asarray(source)
    except ValueError as error:
        raise AudioError(f"{name}: not an array: {error}") from error
    if isinstance(source, (list, tuple)) and x.dtype == np.int64:  # Python's ints have no range
        x = x.astype(np.float32)
    if x.dtype.kind not in "iuf":
        raise AudioError(
            f"{name}: cannot be read as sound: give a path, bytes, a file object, an array of numbers, or a dict of one"
        )
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8:
        raise AudioError(f"{name}: {x.dtype} is no format of sound; convert to the integers it came from, or to float")
    if x.ndim not in (1, 2):
        raise AudioError(f"{name}: shape {x.shape}; expected (samples) or (channels, samples)")
    x = np.atleast_2d(x)
    if x.shape[0] > x.shape[1] > 0:
        raise AudioError(f"{name}: shape {x.shape} has more channels than samples; transpose to (channels, samples)")
    return x


def _scaled(x: NDArray[Any]) -> NDArray[Any]:
    """(channels, samples) of any dtype to (samples, channels) of full scale 1; never the array itself if it is mono."""
    if x.dtype.kind not in "iu":
        with np.errstate(over="ignore"):  # what is not finite is reported with its second
            return x.T.astype(np.float32) if x.shape[0] == 1 else x.T
    half = 2.0 ** (8 * x.dtype.itemsize - 1)
    return (x.T.astype(np.float64) - (half if x.dtype.kind == "u" else 0)) / half


def _check_channel(channel: int | None, channels: int, name: str) -> None:
    if channel is None:
        return
    if isinstance(channel, bool) or not isinstance(channel, (int, np.integer)) or not 0 <= channel < channels:
        there = "1 channel, 0" if channels == 1 else f"{channels} channels, 0 to {channels - 1}"
        raise AudioError(f"{name}: channel {channel!r}; it has {there}; None averages all")


def _block(channels: int) -> int:
    """Frames that are read at once."""
    return max(1, BLOCK // channels)


def _mono(blocks: Iterable[NDArray[Any]], channel: int | None, name: str) -> Iterator[Waveform]:
    """One channel of blocks (samples, channels), or their mean, if that is not silence made of sound."""
    apart = mixed = 0.0
    n = 0
    for block in blocks:
        if block.shape[1] == 1:  # as it is
            n += len(block)
            yield block[:, 0] if block.dtype == np.int16 else np.asarray(block[:, 0], np.float32)
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported with its second
            x = block[:, channel] if channel is not None else block.mean(1, dtype=np.float64)
            if channel is None and block.shape[1] > 1:
                apart += float(np.square(block, dtype=np.float64).mean(1).sum())
                mixed += float(np.square(x).sum())
            mono = np.asarray(x, np.float32)
        n += len(mono)
        yield mono
    if n >= 256 and mixed < CANCELLED * apart:  # a few samples may do so by chance
        raise AudioError(
            f"{name}: its channels cancel each other: their mean has {mixed / apart:.2g} of their power; "
            "choose one with 'channel', for example channel 0"
        )


def _check_rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise AudioError(f"{name}: expected samples per second as an int above 0, found {rate!r}")
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"{name}: {rate} samples per second; expected {RATES[0]} to {RATES[1]}")
    return int(rate)


def _span(
    frames: int, rate: int, start: float, duration: float | None, max_seconds: float | None, name: str
) -> tuple[int, int]:
    """(first frame, number of frames) of the part that is wanted."""
    if not (math.isfinite(start) and start >= 0):
        raise AudioError(f"{name}: start {start} s; expected 0 or more")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise AudioError(f"{name}: duration {duration} s; expected more than 0, or None for all")
    if frames == 0:
        raise AudioError(f"{name}: holds no samples; leave it out, or write it again")
    first = round(start * rate)
    if first >= frames:
        raise AudioError(f"{name}: start {start} s is beyond the end, which is at {frames / rate:.3f} s")
    count = frames - first if duration is None else min(frames - first, round(duration * rate))
    if duration is not None and duration - count / rate > SHORTER:
        warnings.warn(
            f"{name}: {duration:g} s from {start:g} s on were asked for, and there are {count / rate:.3f} s",
            AudioWarning,
            stacklevel=3,
        )
    if count == 0:
        raise AudioError(f"{name}: duration {duration} s is shorter than one sample at {rate} Hz")
    if max_seconds is not None and not max_seconds > 0:
        raise AudioError(f"max_seconds: expected more than 0, or None for no limit, found {max_seconds!r}")
    if max_seconds is not None and count > max_seconds * rate + 1:  # 1: resampling rounds up
        raise AudioError(
            f"{name}: {count / rate:.3f} s long, and at most {max_seconds:g} s are taken (max_seconds); cut it, or "
            "give a shorter 'duration'"
        )
    return first, count


def _joined(sound: Sound, rate: int) -> Waveform:
    """Mono blocks brought to `rate` as a stream."""
    own_rate = sound.rate
    stream = soxr.ResampleStream(own_rate, rate, 1, quality="VHQ") if own_rate != rate else None
    parts = []
    n = 0
    for block in sound.blocks:
        n += len(block)
        parts.append(block if stream is None else stream.resample_chunk(block))
    if stream is not None:  # a little silence, so that the last, begun sample comes out too
        parts.append(stream.resample_chunk(np.zeros(-(-own_rate // rate) + 1, np.float32), last=True))
    x: Waveform = (parts[0] if len(parts) == 1 else np.concatenate(parts))[: -(-n * rate // own_rate)]
    loud = bool(sound.over) if stream is None else len(x) and (x.max() > 1 or x.min() < -1)
    return np.clip(x, -1, 1, out=x) if loud else x


def _checked(blocks: Iterable[Waveform], first: int, rate: int, name: str, over: list[float]) -> Iterator[Waveform]:
    """The blocks, which begin at frame `first`, each checked before it is given; what overshoots goes into `over`."""
    for block in blocks:
        loudest = max(block.max(), -block.min()) if len(block) else 0.0  # or NaN
        if not loudest <= 1:
            _check_values(block, first, rate, name)
            over.append(float(loudest))
        first += len(block)
        yield block


def _check_values(x: Waveform, first: int, rate: int, name: str) -> None:
    if x.max() <= LOUDEST and x.min() >= -LOUDEST:  # NaN is neither
        return
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(x) <= LOUDEST)
    i = int(bad.argmax())
    where = f"{name}: the sample at {(first + i) / rate:.3f} s is"
    if not np.isfinite(x[i]):
        raise AudioError(f"{where} {x[i]}; leave the clip out, or write it again without NaN and infinity")
    raise AudioError(f"{where} {x[i]:g}, but full scale is 1: give integers in their own dtype (int16 ...), or divide")


@contextmanager
def _opened(source: Path | IO[bytes], name: str) -> Iterator[list[Any]]:
    """A soundfile.SoundFile of each of its streams, after the checks that libsndfile does not make."""
    with ExitStack() as stack:
        if isinstance(source, Path):
            source = stack.enter_context(_open_path(source))
        files = []
        for stream in streams(*_seekable(source, name), name):
            stream.file.seek(0)
            try:
                file = stack.enter_context(soundfile.SoundFile(_handed(stream.file, source)))
            except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: named .raw, so the rate is unknown
                raise AudioError(
                    f"{name}: not audio that libsndfile reads ({getattr(error, 'error_string', error)}); "
                    "convert it to WAV or FLAC, for example with `ffmpeg -i in out.flac`"
                ) from error
            _check_rate(file.samplerate, f"{name}: its header's rate")
            stream.check(file, name)
            files.append(file)
        rates = {file.samplerate for file in files}
        if len(rates) > 1:
            raise AudioError(f"{name}: its {len(files)} streams have different rates {sorted(rates)}; split the file")
        yield files


class _Own(io.FileIO):
    """A file that nobody else reads, so that libsndfile may move its place."""


def _handed(file: IO[bytes], source: IO[bytes]) -> Any:
    """What libsndfile reads: a file that we have opened by itself, any other one piece by piece through Python."""
    if file is source and isinstance(getattr(file, "raw", None), _Own) and not str(file.name).endswith(".raw"):
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return os.dup(file.fileno())
    return file


def _open_path(path: Path) -> IO[bytes]:
    try:
        kind = os.stat(path).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # a pipe would wait for ever
            raise AudioError(f"{path}: a device, a pipe or a socket; give a file, or an open file object")
        return io.BufferedReader(_Own(path))
    except FileNotFoundError as error:
        raise AudioError(f"{path}: no such file (looked in {path.parent.resolve()})") from error
    except IsADirectoryError as error:
        raise AudioError(f"{path}: is a folder; give one file in it") from error
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a zero in it
        raise AudioError(f"{str(path)!r} is no path: {error}") from error


def _seekable(handle: IO[bytes], name: str) -> tuple[IO[bytes], int]:
    """A binary file object that can seek, and its size."""
    if not (hasattr(handle, "seekable") and handle.seekable()):
        data = handle.read()
        if not isinstance(data, bytes):
            raise AudioError(f"{name}: gives {type(data).__name__}, not bytes; open the file with mode 'rb'")
        handle = io.BytesIO(data)
    size = handle.seek(0, io.SEEK_END)
    if size == 0:
        raise AudioError(f"{name}: empty file (0 bytes); write or download it again")
    handle.seek(0)
    if not isinstance(handle.read(1), bytes):
        raise AudioError(f"{name}: a text file; open it with mode 'rb'")
    return handle, size


def _is_plain(file: Any) -> bool:
    """Whether its samples are integers of 16 bits, kept as they are."""
    return file.subtype == "PCM_16" and file.format in PLAIN


def _decoded_all(files: list[Any], first: int, count: int, name: str, room: Room | None) -> Iterator[NDArray[Any]]:
    """`count` frames from `first` on of files that follow one another."""
    for file in files:
        own = min(file.frames - first, count)
        if own > 0:
            yield from _decoded(file, first, own, name, room)
            count -= own
        first = max(0, first - file.frames)


def _decoded(file: Any, first: int, count: int, name: str, room: Room | None) -> Iterator[NDArray[Any]]:
    """`count` frames from `first` on, in blocks (samples, channels); of several channels, each good until the next."""
    rate, channels = file.samplerate, file.channels
    # Plain samples come as they are much faster than as floats, which are they over full scale.
    plain = _is_plain(file)
    size = min(_block(channels), count)
    buffer = np.empty((size, channels), np.int16 if plain else np.float32)
    done = 0
    try:
        if file.seekable():  # also to the beginning, for an MP3's decoder begins otherwise after it
            file.seek(first)
        else:  # GSM, G.721
            skipped = 0
            while skipped < first and (n := len(file.read(out=buffer[: first - skipped]))):
                skipped += n
        while done < count:
            own = room(min(size, count - done), buffer.dtype.type)[:, None] if room and channels == 1 else None
            block = file.read(out=buffer[: count - done] if own is None else own)
            if not len(block):
                break
            done += len(block)
            if own is None:  # the buffer is used again
                block = block * INT16 if plain else block.copy() if channels == 1 else block
            yield block
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{name}: broken or truncated at {(first + done) / rate:.3f} s of {file.frames / rate:.3f} s "
            f"({error.error_string}); copy or download it again"
        ) from error
    if done == count:
        return
    short = (
        f"its header declares {file.frames / rate:.3f} s, and it breaks off at {(first + done) / rate:.3f} s; "
        "copy or download it again"
    )
    if done == 0 or file.format != "MP3" or count - done > MP3_SLACK * rate:
        raise AudioError(f"{name}: truncated: {short}")
    warnings.warn(f"{name}: {short}, if that matters", AudioWarning, stacklevel=2)
