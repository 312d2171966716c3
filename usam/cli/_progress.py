"""How far a command is, on standard error, where someone looks at it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar, cast

T = TypeVar("T")


def progress(rows: Iterable[T]) -> Iterable[T]:
    """The rows themselves, counted in a terminal as they pass."""
    if not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    return cast(Iterable[T], tqdm(rows, desc="reading", unit=" rows", file=sys.stderr))
