"""Rows that Python holds: a list of maps, or of chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from usam.readers import Placed, Source


class Memory(Source):
    """A list of rows; paths are relative to the working directory."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Lists and tuples of maps or of chats."""
        return isinstance(source, (list, tuple)) and all(isinstance(row, (Mapping, list)) for row in source)

    def rows(self) -> Iterator[Placed]:
        """Each row with its number from 0, as the list has it."""
        for number, row in enumerate(self.source):
            yield f"row {number}", dict(row) if isinstance(row, Mapping) else row
