"""A clip is a source of sound and the part of it that is meant: read here, whoever asks and however it is written."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from usam.processor.audio import Room, Waveform, is_pair, read_audio
from usam.registry import did_you_mean

KINDS = ("audio", "audio_url", "input_audio")  # of blocks in a message
SOURCES = ("audio", "path", "url", "audio_url", "input_audio", "data", "array", "bytes")
RANGE = ("start", "offset", "duration", "end", "channel")
ALIASES = {"offset": "start"}
LONGEST = 1e9  # seconds: what lies beyond them is no time in a recording, nor is NaN
LONGEST_PATH = 4096  # characters; Linux takes no longer one
KEYS = (*SOURCES, *RANGE, "sampling_rate", "format", "type")


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: what `read_audio` takes as its source, and the part of it that is heard."""

    source: Any
    start: float = 0.0  # seconds
    duration: float | None = None  # seconds; None: to the end
    channel: int | None = None  # None: all of them, averaged

    @classmethod
    def of(cls, given: Any, folder: str | os.PathLike[str] | None = None) -> Clip:
        """The clip that is meant by a path, an array, bytes, a map of one of these, or a block of a message.

        A map names one source: `audio`, `path`, `url`, `audio_url`, `input_audio` (each may hold a map again), `data`
        (base64), `array` (with `sampling_rate`) or `bytes`; and the part that is meant: `start` or `offset`,
        `duration` or `end`, in seconds, and `channel`, counted from 0. `meta` and keys that begin with `x_` are the
        user's own. In a path `~` and `$VARIABLE` are expanded; `data:` URIs are decoded.

        Args:
            given: what was written; a Clip is returned as it is.
            folder: what relative paths are relative to; None for the working directory.

        Raises:
            ValueError: no source or several, a key that is unknown or stands twice, a range that is none, an address
                on a network, an environment variable that is not set.
        """
        if isinstance(given, Clip):
            return given
        said: dict[str, Any] = {}
        source = _source(given, folder, said)
        start = said.get("start", 0.0)
        duration = said.get("duration")
        if "end" in said:
            if said["end"] <= start:
                raise ValueError(f"'end' ({said['end']:g} s) lies before 'start' ({start:g} s), or at it")
            duration = said["end"] - start
        return cls(source, start, duration, said.get("channel"))

    def read(self, rate: int, *, max_seconds: float | None = None, room: Room | None = None) -> Waveform:
        """The waveform at `rate` samples a second; AudioError when it cannot be read, or is longer than the limit.

        With `room`, as `read_audio` gives it.
        """
        return read_audio(
            self.source,
            rate,
            start=self.start,
            duration=self.duration,
            channel=self.channel,
            max_seconds=max_seconds,
            room=room,
        )

    def block(self) -> dict[str, Any]:
        """The clip as a block of a message."""
        said = {"start": self.start or None, "duration": self.duration, "channel": self.channel}
        return {"type": "audio", "audio": self.source, **{k: v for k, v in said.items() if v is not None}}


def names_source(block: Mapping[str, Any]) -> bool:
    """Whether a block says where its sound is; if not, its clip is given beside the messages."""
    return any(block.get(key) is not None for key in SOURCES)


def check_without_source(block: Mapping[str, Any]) -> None:
    """Raise ValueError when a block that names no source says more than that a clip stands there."""
    known_keys(block, KEYS, "a clip")
    said = [key for key in KEYS if key != "type" and block.get(key) is not None]
    if said:
        raise ValueError(f"'{said[0]}' stands in a block without a source: {_short(block)}; say it where the clip is")


def is_free(key: str) -> bool:
    """Whether a key is the user's own, and no concern of ours."""
    return key == "meta" or key.startswith("x_")


def known_keys(given: Mapping[str, Any], known: tuple[str, ...], what: str) -> None:
    """Raise ValueError at a key that is neither known nor the user's own."""
    for key in given:
        if key not in known and not (isinstance(key, str) and is_free(key)):
            raise ValueError(
                f"{what} has no key '{key}' (your own begin with 'x_', or stand in 'meta'); "
                f"{did_you_mean(str(key), known)}"
            )


def _source(given: Any, folder: str | os.PathLike[str] | None, said: dict[str, Any]) -> Any:
    """Where the sound is; what is said beside it (range, channel, rate) goes into `said`."""
    if isinstance(given, Clip):
        given = given.block()
    if isinstance(given, Mapping):
        return _named(given, folder, said)
    if isinstance(given, (str, os.PathLike)):
        return _located(os.fsdecode(given), folder)
    if given is None or isinstance(given, (bool, Real)):
        raise ValueError(f"a clip is a path, sound, or a map that names one; found {given!r}")
    if isinstance(given, (list, tuple)) and not _holds_samples(given):
        raise ValueError(f"one clip was expected, found a list: {given!r:.120}")
    return given


def _named(given: Mapping[str, Any], folder: str | os.PathLike[str] | None, said: dict[str, Any]) -> Any:
    """The source that a map names."""
    known_keys(given, KEYS, "a clip")
    given = {key: value for key, value in given.items() if value is not None}
    if given.get("type", "audio") not in KINDS:
        raise ValueError(f"a clip's type is one of {', '.join(KINDS)}; found {given['type']!r:.80}")
    for key in (*RANGE, "sampling_rate"):
        if key in given:
            _say(said, key, given[key])
    if "duration" in said and "end" in said:
        raise ValueError("'duration' and 'end' say the same: write one of them")
    named = [key for key in SOURCES if key in given]
    path = given["path"] if set(named) in ({"path", "array"}, {"path", "bytes"}) else None
    if path is not None:  # `datasets` gives the path beside what it has already read
        named.remove("path")
    if len(named) != 1:
        raise ValueError(
            f"an audio clip names one source ('audio', 'path' or 'url'), found {' and '.join(named) or 'none'} "
            f"in {_short(given)}"
        )
    (key,) = named
    _check_kind(key, given[key])
    if "format" in given and (key != "data" or not isinstance(given["format"], str)):
        raise ValueError("'format' is text and goes with 'data'; a file or an array says its format itself")
    source = _decoded(given[key]) if key == "data" else _source(given[key], folder, said)
    rate = said.pop("sampling_rate", None)
    if rate is not None and (is_pair(source) or not _holds_samples(source)):
        raise ValueError("'sampling_rate' goes with an array of samples; everything else says its rate itself")
    name = {} if path is None else {"path": path}
    if key == "bytes":
        return {"bytes": source, **name} if name else source
    # A bare array has the model's rate; one under 'array', as `datasets` writes it, says its own.
    bare = rate is None and not name and (key != "array" or "type" in given)
    return source if bare else {"array": source, "sampling_rate": rate, **name}


def _check_kind(key: str, value: Any) -> None:
    if key == "bytes" and not isinstance(value, (bytes, bytearray, memoryview)):
        raise ValueError(f"'bytes' holds bytes, found {type(value).__name__}; base64 text goes under 'data'")
    if key in ("path", "url") and not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"'{key}' is text, found {value!r:.80}")
    if key == "array" and isinstance(value, (str, os.PathLike, Mapping)):
        raise ValueError(f"'array' holds samples, found {value!r:.80}; a file goes under 'path'")


def _holds_samples(given: Any, depth: int = 2) -> bool:
    """Whether a list holds numbers, or lists of numbers, or arrays; and not clips."""
    if isinstance(given, (list, tuple)):
        return depth > 0 and len(given) > 0 and all(_holds_samples(item, depth - 1) for item in given)
    return hasattr(given, "__array__") or (isinstance(given, Real) and not isinstance(given, bool))


def _say(said: dict[str, Any], key: str, value: Any) -> None:
    name = ALIASES.get(key, key)
    if name in said:
        raise ValueError(f"'{key}' says a clip's '{name}' a second time: write it once")
    if key in ("channel", "sampling_rate"):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
            raise ValueError(f"'{key}' is a whole number from 0 on, found {value!r:.80}")
        said[name] = int(value)
        return
    least = "0 or more" if name == "start" else "more than 0"
    seconds = _seconds(value)
    if not abs(seconds) < LONGEST:
        raise ValueError(f"'{key}' is in seconds, {least}; found {value!r:.80}")
    if seconds < 0 or (seconds == 0 and name != "start"):
        raise ValueError(f"'{key}' is {seconds:g} s; expected {least}")
    said[name] = seconds


def _seconds(value: Any) -> float:
    """NaN for what is no number, infinity for one that is too large."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def _located(text: str, folder: str | os.PathLike[str] | None) -> Any:
    """A path as it can be opened, a `file://` URL as it is, the bytes of a `data:` URI."""
    if len(text) > LONGEST_PATH and not text.startswith("data:"):
        raise ValueError(f"{text[:40]!r}... of {len(text):,} characters is no path; base64 text goes under 'data'")
    if not text.strip() or "\0" in text or _encoded(text) is None:
        raise ValueError(f"a path to a file was expected, found {text!r:.80}")
    if text.startswith("data:"):
        head, comma, data = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ValueError(f"a data: URI begins like 'data:audio/wav;base64,', found {text[:40]!r}")
        return _decoded(data)
    if (scheme := _SCHEME.match(text)) is not None:
        if scheme[1].lower() != "file":
            raise ValueError(f"{text:.200}: nothing is fetched from a network; download the file and give its path")
        return text
    if "$" in text and not os.path.exists(os.path.join(folder or "", text)):
        text = os.path.expandvars(text)
        if (missing := _VARIABLE.search(text)) is not None:
            raise ValueError(f"{text}: no such file, and the environment variable {missing[0]} is not set")
    if text.startswith("~"):
        text = os.path.expanduser(text)
    return text if folder is None else os.path.join(folder, text)


def _encoded(text: str) -> bytes | None:
    """A path as the file system has it; None for one that no file can have, such as half a character."""
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return None


def _decoded(data: Any) -> bytes:
    if not isinstance(data, str):
        raise ValueError(f"'data' is base64 text, found {type(data).__name__}; bytes go under 'bytes'")
    try:
        sound = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64 ({error}): {data[:20]!r}... of {len(data)} characters") from error
    if not sound:
        raise ValueError("no sound: the base64 text is empty")
    return sound


def _short(given: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key!r}: {value!r:.40}" for key, value in given.items()) + "}"
