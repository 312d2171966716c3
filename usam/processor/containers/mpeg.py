"""Frames of MPEG audio, MP3 among them, and the tags between them."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import IO

from usam.processor.containers.checksums import crc16_reflected
from usam.processor.containers.stream import (
    AGAIN,
    PARTS,
    AudioError,
    Stream,
    pieces,
    read_at,
    truncated,
    unpack,
    warn,
)


@dataclass(frozen=True)
class _Mpeg:
    """A frame's header."""

    length: int  # bytes
    samples: int
    rate: int
    kind: tuple[int, int, int, bool]  # version, layer, rate, mono: the same in all frames
    info: int  # where a frame that describes the file says so


BITRATES = {  # kbit/s by (version 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def header(head: bytes) -> _Mpeg | None:
    """The frame that begins with these four bytes (ISO 11172-3, section 2.4.2.3)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    one = version == 3
    hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 384 if layer == 1 else 1152 if one or layer == 2 else 576
    slot = 4 if layer == 1 else 1
    length = (samples // 8 * BITRATES[one, layer][bitrate - 1] * 1000 // hertz // slot + (head[2] >> 1 & 1)) * slot
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if one else (9 if mono else 17)
    return _Mpeg(length, samples, hertz, (version, layer, rate, mono), 4 + side)


def mp3(file: IO[bytes], begin: int, size: int, name: str) -> list[Stream]:
    """An MP3 whose first frame says how many follow."""
    head = read_at(file, begin, 4)
    first = header(head)
    assert first is not None
    ranges, frames = _mp3_frames(file, begin, size, name, first)
    if first.kind[1] != 3:
        return [Stream(file)]
    info = read_at(file, begin, first.length)
    marked = info[first.info : first.info + 4] in (b"Xing", b"Info")
    described = marked or info[36:40] == b"VBRI"
    frames -= described
    if marked and _mp3_notes(info, first, name):
        (declared,) = struct.unpack_from(">I", info, first.info + 8)
        if declared - 1 > frames:
            raise truncated(name, f"its header declares {declared} frames, and {frames} are there")
        if declared >= frames and len(ranges) == 1:
            return [Stream(file)]
        if declared < frames:
            warn(name, f"its header declares {declared} frames, and {frames} are there, which are all read")
        info = info[: first.info + 8] + struct.pack(">I", frames) + info[first.info + 12 :]
    else:
        encoder = info[first.info + 120 : first.info + 124] in (b"LAME", b"Lavf", b"Lavc")
        if not described and (encoder or not any(info[4 : first.info])):
            warn(name, "its first frame is without sound, as if it had once said how long the file is")
        # Of another bitrate, so that there is room, and without a checksum.
        head = bytes((head[0], head[1] | 1, head[2] & 0x0D | 0x80, head[3]))
        note = head.ljust(first.info, b"\0") + b"Xing" + struct.pack(">II", 1, frames)
        info = note.ljust(header(head).length, b"\0")  # type: ignore[union-attr]
    if described:
        ranges[0] = begin + first.length, ranges[0][1]
    return [Stream(pieces(file, info, *ranges))]


def _mp3_notes(info: bytes, first: _Mpeg, name: str) -> bool:
    """Whether the frame that describes the file counts its frames; warns if it is broken."""
    flags = info[first.info + 7]
    table = first.info + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1)
    notes = table + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)  # the encoder's, such as the silence that it added
    places = list(info[table : table + 100]) if flags & 4 else []
    matches = info[notes + 34 : notes + 36] == crc16_reflected(info[: notes + 34])
    rises = not places or (places == sorted(places) and places[-1] > 0)
    if (any(info[notes : notes + 36]) and not matches) or not rises or not flags & 1:
        warn(name, "the frame that says how long it is is broken")
    return bool(flags & 1)


def _mp3_frames(file: IO[bytes], at: int, size: int, name: str, first: _Mpeg) -> tuple[list[tuple[int, int]], int]:
    """The parts of the file that hold frames, without the tags between them, and the number of frames."""
    ranges = []
    begin, frames = at, 0
    window, data = at, b""
    lengths: dict[bytes, int] = {}  # of frames, by their headers: hours of sound pass through this loop
    while at < size:
        if at + 4 > window + len(data):
            window, data = at, read_at(file, at, 1 << 20)
        head = data[at - window : at - window + 4]
        if head not in lengths:
            found = header(head)
            lengths[head] = found.length if found is not None and found.kind == first.kind else 0
        if lengths[head]:
            at += lengths[head]
            frames += 1
            continue
        if at > begin:
            ranges.append((begin, at))
        begin = at = _after_tag(file, at)
        if at != ranges[-1][1] and len(ranges) < PARTS:
            continue
        if not any(any(read_at(file, i, 1 << 16)) for i in range(at, size, 1 << 16)):
            warn(name, f"ends with {size - at} zeros")
            return ranges, frames
        seconds = frames * first.samples / first.rate
        raise AudioError(f"{name}: broken at {seconds:.3f} s: no frame of MPEG audio stands at byte {at}; {AGAIN}")
    if at > size:
        raise truncated(name, "it breaks off inside a frame, or inside a tag")
    return ([*ranges, (begin, at)] if at > begin else ranges), frames


def _after_tag(file: IO[bytes], at: int) -> int:
    """Where a tag that stands at `at` ends, or `at`."""
    data = read_at(file, at, 32)
    if data.startswith(b"TAG"):
        return at + 128
    if data.startswith(b"APETAGEX"):  # the one in front counts what follows it
        length, flags = unpack("<12xI4xI", data)
        return at + 32 + (length if flags >> 29 & 1 else 0)
    if data.startswith(b"LYRICSBEGIN"):
        end = re.search(rb"LYRICS200|LYRICSEND", read_at(file, at, 1 << 20))
        return at + end.end() if end else at
    return after_id3(file, at)


def after_id3(file: IO[bytes], at: int) -> int:
    """Where ID3v2 tags that begin at `at` end, and the zeros after them, or `at`."""
    while (head := read_at(file, at, 10)).startswith(b"ID3") and len(head) == 10:
        a, b, c, d = head[6:]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
        padding = read_at(file, at, 1 << 16)
        at += len(padding) - len(padding.lstrip(b"\0")) if any(padding) else 0
    return at
