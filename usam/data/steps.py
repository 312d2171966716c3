"""Steps of as many batches each, so that processes and accumulation deal out the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class Steps:
    """Batches of the rows that a sampler gives, in its order; every step has `together` of them.

    In the last step of an epoch the rows that are left are dealt out evenly, so that its batches are smaller. Where
    they are fewer than its batches, the first of them come again. Processes take the batches in turn, and gradients are
    accumulated over those that follow: the rows of a step depend on their product alone.

    Args:
        sampler: gives row numbers, and says how many; accelerate may put another of them in its place.
        size: rows of a batch.
        together: the batches of a step: processes times steps of accumulation.
        drop_last: leave the rows out that make no whole step.
    """

    def __init__(self, sampler: Any, size: int, together: int, *, drop_last: bool = False) -> None:
        self.sampler = sampler
        self.size = size
        self.together = together
        self.drop_last = drop_last

    def __len__(self) -> int:
        steps = len(self.sampler) / (self.size * self.together)
        return (math.floor(steps) if self.drop_last else math.ceil(steps)) * self.together

    def __iter__(self) -> Iterator[list[int]]:
        step: list[int] = []
        for row in self.sampler:
            step.append(row)
            if len(step) == self.size * self.together:
                yield from _dealt(step, self.together)
                step = []
        if step and not self.drop_last:
            step += [step[i % len(step)] for i in range(self.together - len(step))]
            yield from _dealt(step, self.together)


def _dealt(rows: Sequence[int], count: int) -> Iterator[list[int]]:
    return (batch.tolist() for batch in np.array_split(np.asarray(rows), count))
