"""Checksums of frames and pages."""

from __future__ import annotations

import zlib
from functools import cache

REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


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


def crc8(data: bytes) -> int:
    """Of a header of FLAC."""
    crc, table = 0, _crc_table(0x07, 8)
    for byte in data:
        crc = table[crc ^ byte]
    return crc


def crc16(data: bytes) -> int:
    """Of a frame of FLAC."""
    crc, table = 0, _crc_table(0x8005, 16)
    for byte in data:
        crc = (crc << 8 & 0xFFFF) ^ table[crc >> 8 ^ byte]
    return crc


def crc16_reflected(data: bytes) -> bytes:
    """The checksum of LAME's tag."""
    return crc16(data.translate(REVERSED)).to_bytes(2, "little").translate(REVERSED)


def crc32(data: bytes) -> int:
    """Ogg's checksum: zlib's of the reversed bits, without its inversions."""
    crc = zlib.crc32(data.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(REVERSED), "big")
