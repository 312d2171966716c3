"""Chunks: WAV and its relatives, W64, AIFF, CAF."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import IO, Any

from usam.processor.containers.stream import (
    AGAIN,
    ANEW,
    PARTS,
    STREAMED,
    AudioError,
    Stream,
    pieces,
    read_at,
    truncated,
    unpack,
    warn,
)


@dataclass(frozen=True)
class _Chunks:
    """A file's chunks: (place, declared size) of the first of each kind."""

    places: dict[bytes, tuple[int, int]]
    place: int  # of the sound
    length: int | None  # of the sound, in bytes; None: to the end of the file, which was written to a pipe

    def read(self, file: IO[bytes], kind: bytes, form: str, skip: int = 0) -> tuple[Any, ...]:
        place, declared = self.places.get(kind, (0, 0))
        return unpack(form, read_at(file, place + skip, max(0, min(declared - skip, 64))))


def _chunks(
    file: IO[bytes], size: int, name: str, sound: bytes, head: str, at: int, align: int, whole: int | None, own: int = 0
) -> _Chunks:
    """The chunks from `at` on.

    Args:
        sound: kind of the chunk that holds it.
        head: kind and size, as `struct` writes them.
        align: chunks begin at multiples of it.
        whole: size of the file, as its header says.
        own: bytes of the head that the size includes.
    """
    places: dict[bytes, tuple[int, int]] = {}
    length = struct.calcsize(head)
    end = at
    for _ in range(PARTS):
        kind, declared = unpack(head, read_at(file, min(at, size), length))
        declared -= own
        if at + length > size or not re.fullmatch(rb"[ -~]{4}", kind) or declared < -1:
            break
        at += length
        if kind in places and kind in (sound, b"fmt ", b"COMM", b"desc"):
            warn(name, f"holds two chunks '{kind.decode()}', of which the first is read")
        if kind == sound and sound not in places:
            if declared == STREAMED[0] and b"ds64" in places:  # RF64 keeps 64-bit sizes: of the file, then of the sound
                declared = unpack("<8xQ", read_at(file, places[b"ds64"][0], 16))[0] or declared
            if declared in STREAMED or (
                declared == 0 and at < size and whole != size and kind == b"data" and head[1:] == "4sI"
            ):
                if whole is not None and at + 8 < whole < min(STREAMED[:4]) and whole != size:
                    warn(name, f"its header declares {whole} bytes in all, and {size} are there")
                return _Chunks({**places, kind: (at, declared)}, at, None)
            if declared > size - at:
                raise truncated(name, f"its header declares {declared} bytes of sound, and {size - at} are there")
        places.setdefault(kind, (at, declared))
        end = at + declared
        at = end + -declared % align
    else:
        raise AudioError(f"{name}: more than {PARTS} chunks, which no sound file has; {ANEW}")
    if sound not in places:
        raise AudioError(f"{name}: not audio, or broken: its header leads to no chunk '{sound.decode()}'; {AGAIN}")
    if end > size:
        warn(name, "breaks off inside its last chunk")
    elif at < size and read_at(file, at, 2) != b"\0":  # libsndfile makes a file's size even
        warn(name, f"the last {size - end} bytes belong to no chunk")
    elif whole is None or whole - 8 in (0, *STREAMED):
        pass  # not known when it was written
    elif abs(whole - size) > size - end + at - end:  # a byte of padding may be counted, or not
        warn(name, f"its header declares {whole} bytes in all, and {size} are there")
    return _Chunks(places, *places[sound])


def riff(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """WAV, RF64."""
    order = ">" if read_at(file, 0, 4) == b"RIFX" else "<"
    (whole,) = unpack(f"{order}4xI", read_at(file, 0, 8))
    if whole == STREAMED[0] and read_at(file, 12, 4) == b"ds64":
        (whole,) = unpack("<Q", read_at(file, 20, 8))
    chunks = _chunks(file, size, name, b"data", f"{order}4sI", 12, 2, whole + 8)
    if chunks.places[b"data"][1] == 0 and chunks.length is None:  # libsndfile takes the 0 at its word
        lie = read_at(file, 0, chunks.place - 4)
        file = pieces(file, lie + struct.pack(f"{order}I", STREAMED[0]), (chunks.place, size))
    return [_wave(file, chunks, order)]


def _wave(file: IO[bytes], chunks: _Chunks, order: str) -> Stream:
    tag, _, per_second, align = chunks.read(file, b"fmt ", f"{order}HHxxxxIH")
    if tag == 0xFFFE:
        (tag,) = chunks.read(file, b"fmt ", f"{order}H", 24)
    if tag not in (1, 3, 6, 7) or not align:  # not plain samples
        return Stream(file)
    frames = None if chunks.length is None else chunks.length // align
    return Stream(file, chunks.length, frames, per_second // align)


def w64(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """Sony Wave64."""
    (whole,) = unpack("<16xq", read_at(file, 0, 24))
    chunks = _chunks(file, size, name, b"data", "<4s12xq", 40, 8, whole, own=24)
    if chunks.length is not None:  # libsndfile takes what follows for sound
        file = pieces(file, (0, chunks.place + chunks.length))
    return [_wave(file, chunks, "<")]


def aiff(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """AIFF, AIFF-C, 8SVX."""
    whole, form = unpack(">4xI4s", read_at(file, 0, 12))
    sound = b"SSND" if form.startswith(b"AIF") else b"BODY"
    chunks = _chunks(file, size, name, sound, ">4sI", 12, 2, whole + 8)
    if chunks.length is None:
        raise truncated(name, f"its header declares {chunks.places[sound][1]} bytes of sound")
    if sound == b"BODY":
        return [Stream(file, chunks.length, bare=True)]
    (offset,) = chunks.read(file, b"SSND", ">I")
    _, frames = chunks.read(file, b"COMM", ">HI")
    (coding,) = chunks.read(file, b"COMM", ">4s", 18)
    plain = form == b"AIFF" or coding.lower() in (b"none", b"sowt", b"twos", b"fl32", b"fl64", b"in24", b"in32")
    return [Stream(file, chunks.length - 8 - offset, frames if plain else None, bare=True)]


def caf(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """Apple's Core Audio."""
    chunks = _chunks(file, size, name, b"data", ">4sq", 8, 1, None)
    coding, align = chunks.read(file, b"desc", ">4sxxxxI", 8)
    length = None if chunks.length is None else chunks.length - 4
    if coding not in (b"lpcm", b"ulaw", b"alaw"):
        (frames,) = chunks.read(file, b"pakt", ">8xq")
        return [Stream(file, None, frames or None, bare=True)]
    return [Stream(file, length, length // align if length is not None and align else None, bare=True)]
