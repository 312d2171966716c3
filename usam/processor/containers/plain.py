"""Headers in front of plain samples: AU, NIST Sphere."""

from __future__ import annotations

import re
from typing import IO

from usam.processor.containers.stream import (
    AGAIN,
    STREAMED,
    AudioError,
    Stream,
    pieces,
    read_at,
    truncated,
    unpack,
    warn,
)


def au(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """AU, of either order of bytes."""
    order = "<" if read_at(file, 0, 4) == b"dns." else ">"
    begin, declared, channels = unpack(f"{order}4xII8xI", read_at(file, 0, 24))
    if channels not in (1, 2, 4, 6, 8):
        warn(name, f"its header says {channels} channels, an unusual number")
    return [Stream(file, _between(begin, declared, size, name), bare=True)]


def nist(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """NIST Sphere."""
    found = re.match(rb"NIST_1A\s+(\d+)\s", read_at(file, 0, 16))
    begin = int(found[1]) if found else 1024
    header = read_at(file, 0, min(begin, 1 << 16)).decode("latin-1")
    fields = dict(re.findall(r"^(\w+) -\S+ (\S+)", header, re.M))
    try:
        frames, channels, width = (int(fields[key]) for key in ("sample_count", "channel_count", "sample_n_bytes"))
    except (KeyError, ValueError) as error:
        raise AudioError(f"{name}: its header lacks sample_count, channel_count or sample_n_bytes; {AGAIN}") from error
    length = frames * channels * width
    _between(begin, length, size, name)
    return [Stream(pieces(file, (0, begin + length)), length, frames, bare=True)]


def _between(begin: int, declared: int, size: int, name: str) -> int | None:
    """Bytes of sound from `begin` on; None for a file that was written to a pipe."""
    if declared in STREAMED:
        return None
    if begin + declared > size:
        raise truncated(name, f"its header declares {declared} bytes of sound, and {max(0, size - begin)} are there")
    if begin + declared < size:
        warn(name, f"{size - begin - declared} bytes stand after the end that its header declares")
    return declared
