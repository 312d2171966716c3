"""How far a command is, on standard error, where someone looks at it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

T = TypeVar("T")


def progress(rows: Iterable[T]) -> Iterable[T]:
    """The rows themselves, counted in a terminal as they pass."""
    if not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    return cast(Iterable[T], tqdm(rows, desc="reading", unit=" rows", file=sys.stderr))


@contextmanager
def counter(what: str, unit: str) -> Iterator[Callable[[int], None] | None]:
    """What shows, in a terminal, how many have been made so far; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc=what, unit=f" {unit}", file=sys.stderr) as bar:
        yield lambda count: bar.update(count - bar.n)
