"""Pages of Ogg (RFC 3533)."""

from __future__ import annotations

from typing import IO

from usam.processor.containers.checksums import crc32
from usam.processor.containers.stream import (
    AGAIN,
    AudioError,
    Stream,
    pieces,
    read_at,
    truncated,
    unpack,
    warn,
)


def ogg(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """Each of the streams that follow one another, after a look at every page (RFC 3533, section 6)."""
    links: list[tuple[int, int]] = []
    begin = at = 0
    due: dict[int, int] = {}  # the number of each logical stream's next page
    ended = opening = True
    while at < size:
        head = read_at(file, at, 27)
        if not b"OggS\0".startswith(head[:5]):
            raise AudioError(f"{name}: broken: no page of Ogg stands at byte {at} of {size}; {AGAIN}")
        flags, _, serial, number, checksum, segments = unpack("<5xBqIIIB", head)
        lacing = file.read(segments)
        body = file.read(sum(lacing))
        if len(head) < 27 or len(lacing) < segments or len(body) < sum(lacing):
            raise truncated(name, "it breaks off inside a page")
        if crc32(head[:22] + b"\0\0\0\0" + head[26:] + lacing + body) != checksum:
            raise AudioError(f"{name}: broken: the page at byte {at} does not match its checksum; {AGAIN}")
        if flags & 2 and not opening:  # the first page of another link of the chain
            if not ended:
                warn(name, f"the stream before byte {at} does not end, as if something were missing")
            links.append((begin, at))
            begin, due = at, {}
        opening = bool(flags & 2)
        if number != due.get(serial, number):
            raise AudioError(f"{name}: broken: pages are missing before byte {at}; {AGAIN}")
        due[serial] = number + 1
        ended = bool(flags & 4)
        at += len(head) + len(lacing) + len(body)
    if not ended:
        warn(name, "its last page is not marked as the last, as if more had followed")
    if not links:
        return [Stream(file)]
    return [Stream(pieces(file, link)) for link in [*links, (begin, size)]]
