"""A stream of sound: what its container says of it, held against what libsndfile believes."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import IO, Any

AGAIN = "copy or download it again"
ANEW = "write it again, for example with `ffmpeg -i in out.flac`"
PARTS = 10_000  # chunks, or tags between frames: more than any sound file has

# What stands for the size of the sound when it goes to a pipe: ffmpeg, sox, arecord; AU; CAF.
STREAMED = (0xFFFFFFFF, 0x7FFFF000, 0x7FFFFF00, 0x80000000, -1)
USUAL_RATES = {
    *(8000, 10000, 11025, 12000, 16000, 20000, 22050, 24000, 32000),
    *(44100, 48000, 88200, 96000, 176400, 192000),
}
# Bytes of a sample, by libsndfile's name.
WIDTHS = {
    "PCM_S8": 1,
    "PCM_U8": 1,
    "PCM_16": 2,
    "PCM_24": 3,
    "PCM_32": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "ULAW": 1,
    "ALAW": 1,
}


class AudioError(ValueError):
    """Sound cannot be read: the message names the file or the sample, and says what to do."""


class AudioWarning(UserWarning):
    """Sound is read, but its file is not as it should be: the message names the file, and says what to do."""


@dataclass(frozen=True)
class Stream:
    """A file that libsndfile can believe, and what else its container says of the sound (None: nothing)."""

    file: IO[bytes]
    length: int | None = None  # of plain samples, in bytes
    frames: int | None = None  # counted apart from `length`
    rate: int | None = None  # said apart from the header's rate
    bare: bool = False  # nothing else in the file confirms the header's rate
    known: bool = True  # the container was taken apart

    def check(self, opened: Any, name: str) -> None:
        """Hold the soundfile.SoundFile of it against what the container says.

        Raises:
            AudioError: they differ.
        """
        if opened.frames > 1 << 48:  # libsndfile's "unknown"
            raise AudioError(f"{name}: its header does not say how long it is; {ANEW}")
        width = opened.channels * WIDTHS.get(opened.subtype, 0)
        plain = self.length // width if self.length is not None and width else None
        for frames in (plain, self.frames):
            if frames is not None and frames != opened.frames:
                raise AudioError(
                    f"{name}: its header contradicts itself: {opened.frames} samples, or {frames}; {AGAIN}, or {ANEW}"
                )
        if plain is not None and self.length - plain * width > 1:  # 1: padding that is counted
            warn(name, f"{self.length} bytes of sound are no multiple of the {width} of one sample")
        if self.rate not in (None, opened.samplerate):
            warn(name, f"its header contradicts itself: {opened.samplerate} Hz, or {self.rate} Hz")
        rate = opened.samplerate
        if self.bare and rate not in USUAL_RATES:  # one changed bit makes it another
            warn(name, f"its header says {rate} Hz, an unusual rate")
        if not self.known:
            warn(name, f"whether a file of {opened.format} is whole cannot be told")


def warn(name: str, what: str) -> None:
    """Tell what of a file is not as it should be."""
    warnings.warn(f"{name}: {what}; if that is not as it should be, {AGAIN}", AudioWarning, stacklevel=2)


def truncated(name: str, what: str) -> AudioError:
    """The error of a file that lacks its end."""
    return AudioError(f"{name}: truncated: {what}; {AGAIN}")


def read_at(file: IO[bytes], place: int, count: int) -> bytes:
    """So many bytes from there, or fewer where the file ends."""
    file.seek(place)
    return file.read(count)


def unpack(form: str, data: bytes) -> tuple[Any, ...]:
    """As `struct.unpack`; what is missing at the end counts as zeros."""
    return struct.unpack(form, data[: struct.calcsize(form)].ljust(struct.calcsize(form), b"\0"))


class _Pieces(io.RawIOBase):
    """What `pieces` gives, unbuffered."""

    def __init__(self, file: IO[bytes], pieces: tuple[bytes | tuple[int, int], ...]) -> None:
        self._file = file
        self._pieces = pieces
        self._sizes = [len(p) if isinstance(p, bytes) else p[1] - p[0] for p in pieces]
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + (0, self._place, sum(self._sizes))[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        place = self._place
        for piece, size in zip(self._pieces, self._sizes, strict=True):
            if place < size:
                count = min(len(buffer), size - place)
                whole = isinstance(piece, bytes)
                found = piece[place : place + count] if whole else read_at(self._file, int(piece[0]) + place, count)
                buffer[: len(found)] = found
                self._place += len(found)
                return len(found)
            place -= size
        return 0


def pieces(file: IO[bytes], *pieces: bytes | tuple[int, int]) -> IO[bytes]:
    """A file put together from bytes and from parts (begin, end) of another."""
    return io.BufferedReader(_Pieces(file, pieces), 1 << 16)
