"""A budget sampler makes batches by what they hold, seconds of audio and tokens, of rows that are alike in length."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usam.data.mixture import Mixture, balanced

BUCKET = 16  # budgets that the rows of a bucket fill
NEAR = 0.02  # rows whose lengths differ by this share or less come in either order
ROOM = 1.02  # batches of every epoch, as a multiple of those that were needed once
STRATA = 8  # so many batches in a row hold rows of all lengths
TRIES = 4
LOOKED_AT = 64  # epochs of a mixture, before the first

Indices = NDArray[np.intp]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Length:
    """What a row takes in a batch; a chat may have several clips, and several rows of tokens."""

    tokens: int  # of its longest row of tokens, those of its clips included
    asked: int = 0  # of them, up to the first of its last answer
    seconds: float = 0.0  # of its longest clip
    clips: int = 1
    rows: int = 1


LENGTH = np.dtype([("tokens", "<i4"), ("asked", "<i4"), ("seconds", "<f8"), ("clips", "<i4"), ("rows", "<i4")])
"""Lengths of many rows are an array of these, the fields of `Length`."""


def columns(lengths: Iterable[Length] | NDArray[Any]) -> NDArray[Any]:
    """Lengths as an array of `LENGTH`; one that is such an array already is returned as it is."""
    if isinstance(lengths, np.ndarray):
        return lengths
    return np.array([astuple(length) for length in lengths], LENGTH)


@dataclass(frozen=True)
class Budget:
    """The most that a batch may hold, its padding included; None is no bound.

    Args:
        seconds: clips times the seconds of the longest.
        tokens: rows times the tokens of the longest.
        rows: the samples.
    """

    seconds: float | None = None
    tokens: int | None = None
    rows: int | None = None

    def share(self, lengths: NDArray[Any]) -> NDArray[np.float64]:
        """How much of the budget each row takes when the others are no longer; above 1, it does not fit."""
        seconds = lengths["clips"] * lengths["seconds"] / self.seconds if self.seconds else 0.0
        tokens = lengths["rows"] * lengths["tokens"] / self.tokens if self.tokens else 0.0
        least = np.full(len(lengths), 1 / self.rows if self.rows else 0.0)
        return np.asarray(np.maximum(np.maximum(seconds, tokens), least), np.float64)


class BudgetSampler:
    """Batches of row numbers within a budget, in another order every epoch, with every row once.

    Rows are sorted by whichever would be padded more, their seconds or their tokens, and cut into two at a random place
    near the middle, again and again, until a part is a bucket of a few batches, which are filled from either end.
    So a batch holds rows of about one length in both, and the batches of every epoch are others. Any few batches that
    follow each other hold rows of all lengths, and so of tasks and sources that differ in length; among rows of one
    length, chance mixes.

    The order depends on the lengths, the budget, the seed and the epoch alone. Processes take the batches in turn, and
    gradients are accumulated over those that follow, so that one process that accumulates two batches and two
    processes make the same steps. Every epoch has as many batches, a multiple of `together`: where one is wanting, one
    is made two, the last ones for `together`. Only where every batch is a single row, rows come twice.

    Of a mixture, the rows of an epoch are those that it draws, and among batches that could come next the one does that
    keeps the sources nearest to their shares. Should the rows of an epoch need more batches than those of the first
    `LOOKED_AT` epochs did (fewer, of more than 3,000 rows), and `ROOM`, those of the smallest batches come in the next
    epoch besides its own, and a warning tells how many they are. So each row comes as often as the mixture draws it.

    Args:
        lengths: of each row, an array of `LENGTH` or a list of Length.
        budget: what a batch may hold.
        seed: of the order.
        together: the batches of a step: processes times steps of accumulation.
        mixture: draws the rows of each epoch; None: they are all rows.

    Raises:
        ValueError: there is no row, or one is larger than the budget, or the mixture is of other rows.
    """

    def __init__(
        self,
        lengths: Sequence[Length] | NDArray[Any],
        budget: Budget,
        *,
        seed: int = 0,
        together: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        if not len(lengths):
            raise ValueError("no rows to make batches of")
        lengths = columns(lengths)
        if mixture is not None and len(mixture) != len(lengths):
            raise ValueError(f"the mixture is of {len(mixture):,} rows, and {len(lengths):,} have lengths")
        self.budget = budget
        self.seed = seed
        self.together = together
        self.mixture = mixture
        self.epoch = 0
        self._seconds = lengths["seconds"].astype(np.float64)
        self._tokens, self._clips, self._rows = (lengths[name].astype(np.int64) for name in ("tokens", "clips", "rows"))
        self._shares = budget.share(lengths)
        worst = int(self._shares.argmax())
        if self._shares[worst] > 1:
            found = Length(*lengths[worst].item())
            raise ValueError(f"row {worst} is larger than the budget: {found}, {budget}")
        looked_at = min(LOOKED_AT, max(2, 200_000 // len(lengths))) if mixture is not None else 0
        self._late = [np.array([], np.intp)] * (looked_at + 1)  # by epoch: rows that had no place in the one before
        self._first = self._cut(self._shuffled(self._random(), 0), self._random())
        most = len(self._first)
        for epoch in range(looked_at):
            random = self._random(epoch)
            most = max(most, len(self._cut(self._shuffled(random, epoch), random)))
        self._count = min(math.ceil(ROOM * most), len(lengths))

    def __len__(self) -> int:
        return math.ceil(self._count / self.together) * self.together

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose batches come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = self._random(self.epoch)
        parts, late = self._parts(random, self.epoch)
        if len(late):
            told = "epoch %d: %d rows have no place in its batches; they come in the next one"
            logger.warning(told, self.epoch, len(late))
        while (wanting := self._count - len(parts)) > 0:
            largest = sorted(range(len(parts)), key=lambda i: len(parts[i]), reverse=True)
            parts = _halved(parts, set(largest[:wanting]))
        batches = self._spread(parts, random)
        while len(batches) < len(self):
            last = next((i for i in reversed(range(len(batches))) if len(batches[i]) > 1), None)
            batches = _halved(batches, {last}) if last is not None else batches + batches[: len(self) - len(batches)]
        yield from (batch.tolist() for batch in batches)

    def largest(self) -> list[list[int]]:
        """Batches as large as any that may come: of the longest clips, of the most tokens, and of the most rows."""
        orders = [np.lexsort((-self._tokens, -self._seconds)), np.lexsort((-self._seconds, -self._tokens))]
        orders.append(np.argsort(self._shares, kind="stable"))
        found = [order[: self._most(order)].tolist() for order in orders]
        return [batch for i, batch in enumerate(found) if sorted(batch) not in map(sorted, found[:i])]

    def padding(self, some: Sequence[int]) -> tuple[float, float, float, float]:
        """Of a batch: the seconds of its clips and of what pads them, its tokens and those that pad them.

        Rows with several clips count as if these were all as long as the longest.
        """
        batch = np.asarray(some)
        seconds = float((self._clips * self._seconds)[batch].sum())
        tokens = float((self._rows * self._tokens)[batch].sum())
        return seconds, self._held(batch)[0] - seconds, tokens, self._held(batch)[1] - tokens

    def fullest(self, some: Sequence[int]) -> str:
        """The option of a run file that a batch fills most."""
        seconds, tokens = self._held(np.asarray(some))
        shares = {
            "data.batch_seconds": seconds / (self.budget.seconds or math.inf),
            "data.batch_tokens": tokens / (self.budget.tokens or math.inf),
            "train.per_device_train_batch_size": len(some) / (self.budget.rows or math.inf),
        }
        return max(shares, key=lambda name: shares[name])

    def _random(self, *epoch: int) -> np.random.RandomState:
        return np.random.RandomState([self.seed % 2**32, *epoch])  # its numbers are the same in all versions of numpy

    def _shuffled(self, random: np.random.RandomState, epoch: int) -> Indices:
        """The rows of an epoch, so that chance mixes those of one length."""
        if self.mixture is None:
            return random.permutation(len(self._shares))
        while len(self._late) <= epoch:  # the epochs before, of a run that goes on
            before = len(self._late) - 1
            self._parts(self._random(before), before)
        rows = np.concatenate([self.mixture.order(self.seed, epoch), self._late[epoch]])
        return rows[random.permutation(len(rows))]

    def _parts(self, random: np.random.RandomState, epoch: int) -> tuple[list[Indices], Indices]:
        """The rows of an epoch in no more batches than it has, and those that have no place there."""
        for _ in range(TRIES):
            parts = self._cut(self._shuffled(random, epoch), random)
            if len(parts) <= self._count:
                late = self._late[0]  # none
                break
        else:
            if self.mixture is None:
                return self._first, self._late[0]
            parts = sorted(parts, key=len, reverse=True)
            parts, late = parts[: self._count], np.concatenate(parts[self._count :])
        if len(self._late) == epoch + 1:
            self._late.append(late)
        return parts, late

    def _held(self, some: Indices) -> tuple[float, float]:
        """Seconds and tokens with their padding."""
        seconds = self._clips[some].sum() * self._seconds[some].max()
        return float(seconds), float(self._rows[some].sum() * self._tokens[some].max())

    def _fits(self, some: Indices) -> bool:
        seconds, tokens = self._held(some)
        pairs = ((seconds, self.budget.seconds), (tokens, self.budget.tokens), (len(some), self.budget.rows))
        return len(some) == 1 or all(bound is None or held <= bound for held, bound in pairs)

    def _cut(self, some: Indices, random: np.random.RandomState) -> list[Indices]:
        """The rows in batches, neighbours beside each other."""
        if self._fits(some):
            return [some]
        by = max(self._seconds[some], self._tokens[some], key=lambda of: 1 - of.mean() / max(of.max(), 1e-9))
        upward = 1 if random.random_sample() < 0.5 else -1  # a bucket is filled from either end
        nearly = upward * by * random.uniform(1 - NEAR, 1 + NEAR, len(some))
        some = some[np.argsort(nearly, kind="stable")]
        shares = np.cumsum(self._shares[some])
        if shares[-1] <= BUCKET:
            place = self._most(some)
        else:
            place = int(np.searchsorted(shares, shares[-1] * random.uniform(0.25, 0.75)))
        return [*self._cut(some[:place], random), *self._cut(some[place:], random)]

    def _spread(self, parts: list[Indices], random: np.random.RandomState) -> list[Indices]:
        """Parts in an order of chance in which every stretch has some from everywhere."""
        when: list[Any] = []
        for stratum in np.array_split(np.arange(len(parts)), STRATA):
            places = (np.arange(len(stratum)) + random.random_sample(len(stratum))) / max(len(stratum), 1)
            when += zip(places, random.permutation(stratum), strict=True)
        spread = [parts[i] for _, i in sorted(when)]
        return spread if self.mixture is None else balanced(spread, self.mixture)

    def _most(self, order: Indices) -> int:
        """How many of the first rows fit into one batch."""
        seconds = np.cumsum(self._clips[order]) * np.maximum.accumulate(self._seconds[order])
        tokens = np.cumsum(self._rows[order]) * np.maximum.accumulate(self._tokens[order])
        fit = (seconds <= (self.budget.seconds or math.inf)) & (tokens <= (self.budget.tokens or math.inf))
        return max(1, min(int(fit.sum()), self.budget.rows or len(order)))


def _halved(parts: list[Indices], places: set[int]) -> list[Indices]:
    """The parts, some of them, where they have two rows, made two."""
    halves: list[Indices] = []
    for place, part in enumerate(parts):
        middle = len(part) // 2 if place in places else 0
        halves += [part[:middle], part[middle:]] if middle else [part]
    return halves
