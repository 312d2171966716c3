"""Containers of sound, taken apart far enough to know whether a file is whole and how long it truly is.

libsndfile believes headers, skips what is broken, and reads only the first of several streams, all without a word.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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
            _warn(name, f"{self.length} bytes of sound are no multiple of the {width} of one sample")
        if self.rate not in (None, opened.samplerate):
            _warn(name, f"its header contradicts itself: {opened.samplerate} Hz, or {self.rate} Hz")
        rate = opened.samplerate
        if self.bare and rate not in USUAL_RATES:  # one changed bit makes it another
            _warn(name, f"its header says {rate} Hz, an unusual rate")
        if not self.known:
            _warn(name, f"whether a file of {opened.format} is whole cannot be told")


def streams(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """The streams of a seekable file of `size` bytes, one after another; nearly always one.

    Raises:
        AudioError: truncated or broken.

    Warns:
        AudioWarning: there is more in the file than its header says, or something else.
    """
    magic = _at(file, 0, 4)
    if magic in PARSERS:
        return PARSERS[magic](file, size, name)
    begin = _after_id3(file, 0)
    magic = _at(file, begin, 4)
    if magic == b"fLaC":
        return _flac(file if begin == 0 else _pieces(file, (begin, size)), size - begin, name)
    if _mpeg(magic):
        return _mp3(file, begin, size, name)
    return [Stream(file, known=False)]


def _warn(name: str, what: str) -> None:
    warnings.warn(f"{name}: {what}; if that is not as it should be, {AGAIN}", AudioWarning, stacklevel=2)


def _truncated(name: str, what: str) -> AudioError:
    return AudioError(f"{name}: truncated: {what}; {AGAIN}")


def _at(file: IO[bytes], place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _unpack(form: str, data: bytes) -> tuple[Any, ...]:
    """As `struct.unpack`; what is missing at the end counts as zeros."""
    return struct.unpack(form, data[: struct.calcsize(form)].ljust(struct.calcsize(form), b"\0"))


class _Pieces(io.RawIOBase):
    """A file put together from bytes and from parts (begin, end) of another."""

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
                found = piece[place : place + count] if whole else _at(self._file, int(piece[0]) + place, count)
                buffer[: len(found)] = found
                self._place += len(found)
                return len(found)
            place -= size
        return 0


def _pieces(file: IO[bytes], *pieces: bytes | tuple[int, int]) -> IO[bytes]:
    return io.BufferedReader(_Pieces(file, pieces), 1 << 16)


# Chunks: WAV and its relatives, AIFF, W64, CAF


@dataclass(frozen=True)
class _Chunks:
    """A file's chunks: (place, declared size) of the first of each kind."""

    places: dict[bytes, tuple[int, int]]
    place: int  # of the sound
    length: int | None  # of the sound, in bytes; None: to the end of the file, which was written to a pipe

    def read(self, file: IO[bytes], kind: bytes, form: str, skip: int = 0) -> tuple[Any, ...]:
        place, declared = self.places.get(kind, (0, 0))
        return _unpack(form, _at(file, place + skip, max(0, min(declared - skip, 64))))


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
        kind, declared = _unpack(head, _at(file, min(at, size), length))
        declared -= own
        if at + length > size or not re.fullmatch(rb"[ -~]{4}", kind) or declared < -1:
            break
        at += length
        if kind in places and kind in (sound, b"fmt ", b"COMM", b"desc"):
            _warn(name, f"holds two chunks '{kind.decode()}', of which the first is read")
        if kind == sound and sound not in places:
            if declared == STREAMED[0] and b"ds64" in places:  # RF64 keeps 64-bit sizes: of the file, then of the sound
                declared = _unpack("<8xQ", _at(file, places[b"ds64"][0], 16))[0] or declared
            if declared in STREAMED or (
                declared == 0 and at < size and whole != size and kind == b"data" and head[1:] == "4sI"
            ):
                if whole is not None and at + 8 < whole < min(STREAMED[:4]) and whole != size:
                    _warn(name, f"its header declares {whole} bytes in all, and {size} are there")
                return _Chunks({**places, kind: (at, declared)}, at, None)
            if declared > size - at:
                raise _truncated(name, f"its header declares {declared} bytes of sound, and {size - at} are there")
        places.setdefault(kind, (at, declared))
        end = at + declared
        at = end + -declared % align
    else:
        raise AudioError(f"{name}: more than {PARTS} chunks, which no sound file has; {ANEW}")
    if sound not in places:
        raise AudioError(f"{name}: not audio, or broken: its header leads to no chunk '{sound.decode()}'; {AGAIN}")
    if end > size:
        _warn(name, "breaks off inside its last chunk")
    elif at < size and _at(file, at, 2) != b"\0":  # libsndfile makes a file's size even
        _warn(name, f"the last {size - end} bytes belong to no chunk")
    elif whole is None or whole - 8 in (0, *STREAMED):
        pass  # not known when it was written
    elif abs(whole - size) > size - end + at - end:  # a byte of padding may be counted, or not
        _warn(name, f"its header declares {whole} bytes in all, and {size} are there")
    return _Chunks(places, *places[sound])


def _riff(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """WAV, RF64."""
    order = ">" if _at(file, 0, 4) == b"RIFX" else "<"
    (whole,) = _unpack(f"{order}4xI", _at(file, 0, 8))
    if whole == STREAMED[0] and _at(file, 12, 4) == b"ds64":
        (whole,) = _unpack("<Q", _at(file, 20, 8))
    chunks = _chunks(file, size, name, b"data", f"{order}4sI", 12, 2, whole + 8)
    if chunks.places[b"data"][1] == 0 and chunks.length is None:  # libsndfile takes the 0 at its word
        lie = _at(file, 0, chunks.place - 4)
        file = _pieces(file, lie + struct.pack(f"{order}I", STREAMED[0]), (chunks.place, size))
    return [_wave(file, chunks, order)]


def _wave(file: IO[bytes], chunks: _Chunks, order: str) -> Stream:
    tag, _, per_second, align = chunks.read(file, b"fmt ", f"{order}HHxxxxIH")
    if tag == 0xFFFE:
        (tag,) = chunks.read(file, b"fmt ", f"{order}H", 24)
    if tag not in (1, 3, 6, 7) or not align:  # not plain samples
        return Stream(file)
    frames = None if chunks.length is None else chunks.length // align
    return Stream(file, chunks.length, frames, per_second // align)


def _w64(file: IO[bytes], size: int, name: str) -> list[Stream]:
    (whole,) = _unpack("<16xq", _at(file, 0, 24))
    chunks = _chunks(file, size, name, b"data", "<4s12xq", 40, 8, whole, own=24)
    if chunks.length is not None:  # libsndfile takes what follows for sound
        file = _pieces(file, (0, chunks.place + chunks.length))
    return [_wave(file, chunks, "<")]


def _aiff(file: IO[bytes], size: int, name: str) -> list[Stream]:
    whole, form = _unpack(">4xI4s", _at(file, 0, 12))
    sound = b"SSND" if form.startswith(b"AIF") else b"BODY"
    chunks = _chunks(file, size, name, sound, ">4sI", 12, 2, whole + 8)
    if chunks.length is None:
        raise _truncated(name, f"its header declares {chunks.places[sound][1]} bytes of sound")
    if sound == b"BODY":
        return [Stream(file, chunks.length, bare=True)]
    (offset,) = chunks.read(file, b"SSND", ">I")
    _, frames = chunks.read(file, b"COMM", ">HI")
    (coding,) = chunks.read(file, b"COMM", ">4s", 18)
    plain = form == b"AIFF" or coding.lower() in (b"none", b"sowt", b"twos", b"fl32", b"fl64", b"in24", b"in32")
    return [Stream(file, chunks.length - 8 - offset, frames if plain else None, bare=True)]


def _caf(file: IO[bytes], size: int, name: str) -> list[Stream]:
    chunks = _chunks(file, size, name, b"data", ">4sq", 8, 1, None)
    coding, align = chunks.read(file, b"desc", ">4sxxxxI", 8)
    length = None if chunks.length is None else chunks.length - 4
    if coding not in (b"lpcm", b"ulaw", b"alaw"):
        (frames,) = chunks.read(file, b"pakt", ">8xq")
        return [Stream(file, None, frames or None, bare=True)]
    return [Stream(file, length, length // align if length is not None and align else None, bare=True)]


# Headers in front of plain samples: AU, NIST Sphere


def _au(file: IO[bytes], size: int, name: str) -> list[Stream]:
    order = "<" if _at(file, 0, 4) == b"dns." else ">"
    begin, declared, channels = _unpack(f"{order}4xII8xI", _at(file, 0, 24))
    if channels not in (1, 2, 4, 6, 8):
        _warn(name, f"its header says {channels} channels, an unusual number")
    return [Stream(file, _between(begin, declared, size, name), bare=True)]


def _nist(file: IO[bytes], size: int, name: str) -> list[Stream]:
    found = re.match(rb"NIST_1A\s+(\d+)\s", _at(file, 0, 16))
    begin = int(found[1]) if found else 1024
    header = _at(file, 0, min(begin, 1 << 16)).decode("latin-1")
    fields = dict(re.findall(r"^(\w+) -\S+ (\S+)", header, re.M))
    try:
        frames, channels, width = (int(fields[key]) for key in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError) as error:
        raise AudioError(f"{name}: its header lacks sample_count, channel_count or sample_n_bytes; {AGAIN}") from error
    length = frames * channels * width
    _between(begin, length, size, name)
    return [Stream(_pieces(file, (0, begin + length)), length, frames, bare=True)]


def _between(begin: int, declared: int, size: int, name: str) -> int | None:
    """Bytes of sound from `begin` on; None for a file that was written to a pipe."""
    if declared in STREAMED:
        return None
    if begin + declared > size:
        raise _truncated(name, f"its header declares {declared} bytes of sound, and {max(0, size - begin)} are there")
    if begin + declared < size:
        _warn(name, f"{size - begin - declared} bytes stand after the end that its header declares")
    return declared


# Frames: FLAC


def _flac(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """A FLAC whose header says where its last frame ends."""
    info = _at(file, 8, 34)
    begin = 4
    for _ in range(PARTS):
        kind, *length = _unpack("4B", _at(file, begin, 4))
        begin += 4 + int.from_bytes(bytes(length), "big")
        if kind & 0x80 or begin >= size:
            break
    if _at(file, max(0, size - 128), 3) == b"TAG":  # an ID3v1 tag
        size -= 128
    counts = int.from_bytes(info[13:18], "big")  # of which the last 36 bits are the number of samples
    total = counts & 0xFFFFFFFFF
    first = _flac_frame(_at(file, begin, 16), 0)
    if first is None:
        raise AudioError(f"{name}: broken: no frame of FLAC stands where its header ends; {AGAIN}")
    end = _flac_end(file, begin, size, total, first.block)
    if end is None or end < total:
        raise _truncated(name, f"its header declares {total} samples, and its last frame is not there")
    if end == total:
        return [Stream(file, rate=first.rate)]
    if total:  # 0 stands in what was written to a pipe
        _warn(name, f"its header declares {total} samples, and {end} are there, which are all read")
    mended = _pieces(file, (0, 21), (counts - total + end).to_bytes(5, "big"), (26, size))
    return [Stream(mended, frames=end, rate=first.rate)]


@dataclass(frozen=True)
class _FlacFrame:
    number: int  # of the frame, or of its first sample
    counts_samples: bool
    block: int  # samples in it
    rate: int | None


def _flac_frame(data: bytes, at: int) -> _FlacFrame | None:
    """The frame whose header stands at `at` (RFC 9639, section 9.1)."""
    if len(data) < at + 6 or data[at] != 0xFF or data[at + 1] not in (0xF8, 0xF9) or data[at + 3] & 1:
        return None
    block, rate = data[at + 2] >> 4, data[at + 2] & 15
    lead = f"{data[at + 4]:08b}".find("0")  # the number is written as UTF-8 writes a character
    place = at + 4 + max(lead, 1)
    extra = {6: 1, 7: 2}.get(block, 0)
    more = {12: 1, 13: 2, 14: 2}.get(rate, 0)
    end = place + extra + more
    if lead in (-1, 1) or block == 0 or rate == 15 or len(data) <= end or data[end] != _crc8(data[at:end]):
        return None
    number = data[at + 4] & 0x7F >> lead if lead else data[at + 4]
    for byte in data[at + 5 : place]:
        number = number << 6 | byte & 63
    if extra:
        samples = int.from_bytes(data[place : place + extra], "big") + 1
    else:
        samples = 192 if block == 1 else 576 << block - 2 if block < 6 else 256 << block - 8
    said = int.from_bytes(data[place + extra : end], "big") * {12: 1000, 14: 10}.get(rate, 1)
    return _FlacFrame(number, data[at + 1] == 0xF9, samples, said if more else FLAC_RATES[rate])


FLAC_RATES = (None, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000)


def _flac_end(file: IO[bytes], begin: int, size: int, total: int, block: int) -> int | None:
    """Samples up to the end of the last frame; one that ends elsewhere than at `total` must reach the file's end."""
    for window in (1 << 16, 1 << 22):
        start = max(begin, size - window)
        data = _at(file, start, size - start)
        at = len(data)
        while (at := data.rfind(b"\xff", 0, at)) >= 0:
            frame = _flac_frame(data, at)
            if frame is None:
                continue
            end = frame.number * (1 if frame.counts_samples else block) + frame.block
            if end == total or _crc16(data[at:]) == 0:
                return end
        if start == begin:
            break
    return None


@cache
def _crc_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for crc in range(256):
        crc <<= bits - 8
        for _ in range(8):
            crc = crc << 1 ^ (polynomial if crc >> bits - 1 else 0)
            crc &= (1 << bits) - 1
        table.append(crc)
    return table


def _crc8(data: bytes) -> int:
    crc, table = 0, _crc_table(0x07, 8)
    for byte in data:
        crc = table[crc ^ byte]
    return crc


def _crc16(data: bytes) -> int:
    crc, table = 0, _crc_table(0x8005, 16)
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
    return crc


# Frames: MP3


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


def _mpeg(head: bytes) -> _Mpeg | None:
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


def _mp3(file: IO[bytes], begin: int, size: int, name: str) -> list[Stream]:
    """An MP3 whose first frame says how many follow."""
    head = _at(file, begin, 4)
    first = _mpeg(head)
    assert first is not None
    ranges, frames = _mp3_frames(file, begin, size, name, first)
    if first.kind[1] != 3:
        return [Stream(file)]
    info = _at(file, begin, first.length)
    marked = info[first.info : first.info + 4] in (b"Xing", b"Info")
    described = marked or info[36:40] == b"VBRI"
    frames -= described
    if marked and _mp3_notes(info, first, name):
        (declared,) = struct.unpack_from(">I", info, first.info + 8)
        if declared - 1 > frames:
            raise _truncated(name, f"its header declares {declared} frames, and {frames} are there")
        if declared >= frames and len(ranges) == 1:
            return [Stream(file)]
        if declared < frames:
            _warn(name, f"its header declares {declared} frames, and {frames} are there, which are all read")
        info = info[: first.info + 8] + struct.pack(">I", frames) + info[first.info + 12 :]
    else:
        encoder = info[first.info + 120 : first.info + 124] in (b"LAME", b"Lavf", b"Lavc")
        if not described and (encoder or not any(info[4 : first.info])):
            _warn(name, "its first frame is without sound, as if it had once said how long the file is")
        # Of another bitrate, so that there is room, and without a checksum.
        head = bytes((head[0], head[1] | 1, head[2] & 0x0D | 0x80, head[3]))
        note = head.ljust(first.info, b"\0") + b"Xing" + struct.pack(">II", 1, frames)
        info = note.ljust(_mpeg(head).length, b"\0")  # type: ignore[union-attr]
    if described:
        ranges[0] = begin + first.length, ranges[0][1]
    return [Stream(_pieces(file, info, *ranges))]


def _mp3_notes(info: bytes, first: _Mpeg, name: str) -> bool:
    """Whether the frame that describes the file counts its frames; warns if it is broken."""
    flags = info[first.info + 7]
    table = first.info + 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1)
    notes = table + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)  # the encoder's, such as the silence that it added
    places = list(info[table : table + 100]) if flags & 4 else []
    matches = info[notes + 34 : notes + 36] == _crc16_reflected(info[: notes + 34])
    rises = not places or (places == sorted(places) and places[-1] > 0)
    if (any(info[notes : notes + 36]) and not matches) or not rises or not flags & 1:
        _warn(name, "the frame that says how long it is is broken")
    return bool(flags & 1)


def _mp3_frames(file: IO[bytes], at: int, size: int, name: str, first: _Mpeg) -> tuple[list[tuple[int, int]], int]:
    """The parts of the file that hold frames, without the tags between them, and the number of frames."""
    ranges = []
    begin, frames = at, 0
    window, data = at, b""
    lengths: dict[bytes, int] = {}  # of frames, by their headers: hours of sound pass through this loop
    while at < size:
        if at + 4 > window + len(data):
            window, data = at, _at(file, at, 1 << 20)
        head = data[at - window : at - window + 4]
        if head not in lengths:
            found = _mpeg(head)
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
        if not any(any(_at(file, i, 1 << 16)) for i in range(at, size, 1 << 16)):
            _warn(name, f"ends with {size - at} zeros")
            return ranges, frames
        seconds = frames * first.samples / first.rate
        raise AudioError(f"{name}: broken at {seconds:.3f} s: no frame of MPEG audio stands at byte {at}; {AGAIN}")
    if at > size:
        raise _truncated(name, "it breaks off inside a frame, or inside a tag")
    return ([*ranges, (begin, at)] if at > begin else ranges), frames


def _after_tag(file: IO[bytes], at: int) -> int:
    """Where a tag that stands at `at` ends, or `at`."""
    data = _at(file, at, 32)
    if data.startswith(b"TAG"):
        return at + 128
    if data.startswith(b"APETAGEX"):  # the one in front counts what follows it
        length, flags = _unpack("<12xI4xI", data)
        return at + 32 + (length if flags >> 29 & 1 else 0)
    if data.startswith(b"LYRICSBEGIN"):
        end = re.search(rb"LYRICS200|LYRICSEND", _at(file, at, 1 << 20))
        return at + end.end() if end else at
    return _after_id3(file, at)


def _after_id3(file: IO[bytes], at: int) -> int:
    """Where ID3v2 tags that begin at `at` end, and the zeros after them, or `at`."""
    while (head := _at(file, at, 10)).startswith(b"ID3") and len(head) == 10:
        a, b, c, d = head[6:]
        at += 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
        padding = _at(file, at, 1 << 16)
        at += len(padding) - len(padding.lstrip(b"\0")) if any(padding) else 0
    return at


REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def _crc16_reflected(data: bytes) -> bytes:
    """The checksum of LAME's tag."""
    return _crc16(data.translate(REVERSED)).to_bytes(2, "little").translate(REVERSED)


# Pages: Ogg


def _ogg(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """Each of the streams that follow one another, after a look at every page (RFC 3533, section 6)."""
    links: list[tuple[int, int]] = []
    begin = at = 0
    due: dict[int, int] = {}  # the number of each logical stream's next page
    ended = opening = True
    while at < size:
        head = _at(file, at, 27)
        if not b"OggS\0".startswith(head[:5]):
            raise AudioError(f"{name}: broken: no page of Ogg stands at byte {at} of {size}; {AGAIN}")
        flags, _, serial, number, checksum, segments = _unpack("<5xBqIIIB", head)
        lacing = file.read(segments)
        body = file.read(sum(lacing))
        if len(head) < 27 or len(lacing) < segments or len(body) < sum(lacing):
            raise _truncated(name, "it breaks off inside a page")
        if _crc32(head[:22] + b"\0\0\0\0" + head[26:] + lacing + body) != checksum:
            raise AudioError(f"{name}: broken: the page at byte {at} does not match its checksum; {AGAIN}")
        if flags & 2 and not opening:  # the first page of another link of the chain
            if not ended:
                _warn(name, f"the stream before byte {at} does not end, as if something were missing")
            links.append((begin, at))
            begin, due = at, {}
        opening = bool(flags & 2)
        if number != due.get(serial, number):
            raise AudioError(f"{name}: broken: pages are missing before byte {at}; {AGAIN}")
        due[serial] = number + 1
        ended = bool(flags & 4)
        at += len(head) + len(lacing) + len(body)
    if not ended:
        _warn(name, "its last page is not marked as the last, as if more had followed")
    if not links:
        return [Stream(file)]
    return [Stream(_pieces(file, link)) for link in [*links, (begin, size)]]


def _crc32(data: bytes) -> int:
    """Ogg's checksum: zlib's of the reversed bits, without its inversions."""
    crc = zlib.crc32(data.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(REVERSED), "big")


PARSERS: dict[bytes, Callable[[IO[bytes], int, str], list[Stream]]] = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64", b"RIFX"), _riff),
    b"FORM": _aiff,
    b"riff": _w64,
    b"caff": _caf,
    b".snd": _au,
    b"dns.": _au,
    b"NIST": _nist,
    b"OggS": _ogg,
}
