"""Frames of FLAC (RFC 9639)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from usam.processor.containers.checksums import crc8, crc16
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


def flac(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """A FLAC whose header says where its last frame ends."""
    info = read_at(file, 8, 34)
    begin = 4
    for _ in range(PARTS):
        kind, *length = unpack("4B", read_at(file, begin, 4))
        begin += 4 + int.from_bytes(bytes(length), "big")
        if kind & 0x80 or begin >= size:
            break
    if read_at(file, max(0, size - 128), 3) == b"TAG":  # an ID3v1 tag
        size -= 128
    counts = int.from_bytes(info[13:18], "big")  # of which the last 36 bits are the number of samples
    total = counts & 0xFFFFFFFFF
    first = _flac_frame(read_at(file, begin, 16), 0)
    if first is None:
        raise AudioError(f"{name}: broken: no frame of FLAC stands where its header ends; {AGAIN}")
    end = _flac_end(file, begin, size, total, first.block)
    if end is None or end < total:
        raise truncated(name, f"its header declares {total} samples, and its last frame is not there")
    if end == total:
        return [Stream(file, rate=first.rate)]
    if total:  # 0 stands in what was written to a pipe
        warn(name, f"its header declares {total} samples, and {end} are there, which are all read")
    mended = pieces(file, (0, 21), (counts - total + end).to_bytes(5, "big"), (26, size))
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
    if lead in (-1, 1) or block == 0 or rate == 15 or len(data) <= end or data[end] != crc8(data[at:end]):
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
        data = read_at(file, start, size - start)
        at = len(data)
        while (at := data.rfind(b"\xff", 0, at)) >= 0:
            frame = _flac_frame(data, at)
            if frame is None:
                continue
            end = frame.number * (1 if frame.counts_samples else block) + frame.block
            if end == total or crc16(data[at:]) == 0:
                return end
        if start == begin:
            break
    return None
