"""Containers of sound, taken apart far enough to know whether a file is whole and how long it truly is.

libsndfile believes headers, skips what is broken, and reads only the first of several streams, all without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from usam.processor.containers.chunks import aiff, caf, riff, w64
from usam.processor.containers.flac import flac
from usam.processor.containers.mpeg import after_id3, header, mp3
from usam.processor.containers.ogg import ogg
from usam.processor.containers.plain import au, nist
from usam.processor.containers.stream import AudioError, AudioWarning, Stream, pieces, read_at

__all__ = ["AudioError", "AudioWarning", "Stream", "streams"]


def streams(file: IO[bytes], size: int, name: str) -> list[Stream]:
    """The streams of a seekable file of `size` bytes, one after another; nearly always one.

    Raises:
        AudioError: truncated or broken.

    Warns:
        AudioWarning: there is more in the file than its header says, or something else.
    """
    magic = read_at(file, 0, 4)
    if magic in PARSERS:
        return PARSERS[magic](file, size, name)
    begin = after_id3(file, 0)
    magic = read_at(file, begin, 4)
    if magic == b"fLaC":
        return flac(file if begin == 0 else pieces(file, (begin, size)), size - begin, name)
    if header(magic):
        return mp3(file, begin, size, name)
    return [Stream(file, known=False)]


PARSERS: dict[bytes, Callable[[IO[bytes], int, str], list[Stream]]] = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64", b"RIFX"), riff),
    b"FORM": aiff,
    b"riff": w64,
    b"caff": caf,
    b".snd": au,
    b"dns.": au,
    b"NIST": nist,
    b"OggS": ogg,
}
