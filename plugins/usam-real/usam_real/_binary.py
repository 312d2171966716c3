"""Numbers and texts out of a binary file, of which a part may be missing."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from usam import ComponentError

T = TypeVar("T")


def once(file: Path, items: Iterable[tuple[str, T]]) -> dict[str, T]:
    """A map of names that stand once.

    Raises:
        ComponentError: one stands twice.
    """
    found: dict[str, T] = {}
    for name, item in items:
        if name in found:
            raise ComponentError(f"{file}: '{name}' stands there twice")
        found[name] = item
    return found


class Bytes:
    """A file that is read from its beginning to its end, little-endian; it is mapped into memory.

    Args:
        file: the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.data = np.memmap(file, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise ComponentError(f"{file}: cannot be read: {error}") from error
        self.place = 0

    def take(self, size: int) -> np.ndarray:
        """The next `size` bytes.

        Raises:
            ComponentError: the file ends before.
        """
        found = self.at(self.place, size)
        self.place += size
        return found

    def at(self, place: int, size: int) -> np.ndarray:
        """`size` bytes from `place` on, wherever reading is.

        Raises:
            ComponentError: the file ends before.
        """
        if place + size > len(self.data):
            raise ComponentError(
                f"{self.file}: ends after {len(self.data)} bytes, where {place + size} are needed: it is not whole, "
                "or of another format; fetch it again"
            )
        return self.data[place : place + size]

    def number(self, code: str) -> Any:
        """One number, by its letter in `struct`."""
        return self.numbers(code, 1)[0]

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        """Several numbers of one kind."""
        wanted = struct.calcsize(f"<{code}") * count
        return struct.unpack(f"<{count}{code}", self.take(wanted).tobytes())

    def text(self, length: str) -> str:
        """A text behind its length in bytes.

        Raises:
            ComponentError: it is no UTF-8.
        """
        found = self.take(self.number(length)).tobytes()
        try:
            return found.decode()
        except UnicodeDecodeError as error:
            raise ComponentError(f"{self.file}: at byte {self.place}: expected a text, found {found[:20]!r}") from error
