"""Anything that gives rows one by one: a generator, a torch Dataset of maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from usam.readers import Placed, Source


class Iterables(Source):
    """Maps, or chats, that come out of an object in order; paths are relative to the working directory."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Objects that can be iterated over, or have a length and items; no lists, text, maps or arrays."""
        if isinstance(source, (str, bytes, bytearray, os.PathLike, Mapping, list, tuple, type)):
            return False
        sized = hasattr(source, "__getitem__") and hasattr(source, "__len__")
        return (isinstance(source, Iterable) or sized) and not hasattr(source, "__array__")

    def rows(self) -> Iterator[Placed]:
        """Each row with its number from 0."""
        given, name = self.source, type(self.source).__name__
        items = given if isinstance(given, Iterable) else (given[i] for i in range(len(given)))
        for number, row in enumerate(items):
            yield f"{name}, row {number}", _row(row)


def _row(row: Any) -> Any:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, list):
        return row
    return ValueError(f"a {type(row).__name__} is no row: give a map, such as {{'audio': ..., 'answer': ...}}")
