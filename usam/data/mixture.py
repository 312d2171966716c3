"""A mixture draws rows from several sources, each in its share, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from usam.data.nemo_config import is_config, read_config
from usam.readers import ManifestError, Sample
from usam.registry import did_you_mean
from usam.spec.page import KeyPath, Places, SpecError

KEYS = ("file", "weight", "reader", "audio_root", "name")
AHEAD = 32  # batches of which the next one is chosen
MEGABATCH = 50  # batches within which rows are sorted by length, as transformers does it

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Entry:
    """A source as a run file names it: its files, in which share it is drawn, and how it is read."""

    files: tuple[str, ...]
    name: str
    weight: float | None = None
    reader: str | None = None
    audio_root: str | None = None
    tags: Mapping[str, Any] = field(default_factory=dict)
    """What a NeMo configuration says of every row: `context` is what is asked, and others are kept as `x_<tag>`."""

    def marked(self, sample: Sample) -> Sample:
        """A sample of this source, which knows it."""
        extra = {f"x_{key}": value for key, value in self.tags.items() if key != "context"}
        if "context" in self.tags and sample.task == "asr":  # asked with the words of the configuration
            sample = replace(sample, task=None)
        return replace(sample, source=self.name, extra={**sample.extra, **extra} if extra else sample.extra)

    def prompts(self, prompts: Mapping[str, str]) -> Mapping[str, str]:
        """The instruction of each task, for its rows."""
        return {**prompts, "asr": str(self.tags["context"])} if "context" in self.tags else prompts


def entries(given: Any, places: Places | None = None, path: KeyPath = ("data", "train")) -> list[Entry]:
    """The sources that a run file names: a file, a map, or a list of files and maps.

    A map has `file` (one, or a list of files that are one source) and may have `weight`, `reader`, `audio_root` and
    `name`; without a name, a source is called as its file is.

    Raises:
        SpecError: the key, and what to write instead.
    """
    places = places or Places()
    listed = list(given) if isinstance(given, (list, tuple)) else [given]
    if not listed or not all(isinstance(item, (str, Path)) or _is_source(item) for item in listed):
        raise SpecError(f"{places.at(path)}expected a manifest, or a list of them; found {given!r}")
    found, known = [], dict[str, str]()
    for i, item in enumerate(listed):
        own = (*path, str(i)) if isinstance(given, (list, tuple)) else path
        entry = _entry(item, places, own)
        for file in entry.files:
            where, real = places.at(own), str(Path(file).expanduser().resolve())
            if real in known:
                raise SpecError(f"{where}{file} is named twice: rows that shall come more often have a higher weight")
            known[real] = where
        found.append(entry)
    if path[-1] == "eval" and any(entry.weight is not None for entry in found):
        raise SpecError(f"{places.at(path)}what is held out is looked at row by row: leave the weights out")
    without = [i for i, entry in enumerate(found) if entry.weight is None]
    if without and len(without) < len(found):
        raise SpecError(
            f"{places.at((*path, str(without[0])))}has no weight, and others have one: give one to each, or to none"
        )
    return _named(found, places.at(path))


def _is_source(item: Any) -> bool:
    return isinstance(item, Mapping) and not item.keys().isdisjoint(KEYS)


def _entry(item: Any, places: Places, path: KeyPath) -> Entry:
    if not isinstance(item, Mapping):
        return Entry((str(item),), "")
    for key in item:
        if key not in KEYS:
            raise SpecError(f"{places.at((*path, str(key)))}no such key of a source; {did_you_mean(str(key), KEYS)}")
    files = item.get("file")
    files = files if isinstance(files, (list, tuple)) else [files]
    if not files or not all(isinstance(file, (str, Path)) and str(file) for file in files):
        where = places.at((*path, "file"))
        raise SpecError(f"{where}a source is a map with 'file', a manifest or several; found {item.get('file')!r}")
    weight: Any = item.get("weight")
    if "weight" in item:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 < weight < math.inf:
            why = "; leave a source out that shall not be drawn" if weight == 0 and number else ""
            raise SpecError(f"{places.at((*path, 'weight'))}expected a number, more than 0; found {weight!r}{why}")
    text: dict[str, str | None] = {}
    for key in ("reader", "audio_root", "name"):
        value = item.get(key)
        if not isinstance(value, (str, Path, type(None))) or value == "":
            raise SpecError(f"{places.at((*path, key))}expected text, found {value!r}")
        text[key] = None if value is None else str(value)
    name = text["name"] or ""
    return Entry(tuple(map(str, files)), name, weight, text["reader"], text["audio_root"])


def _named(found: Sequence[Entry], where: str) -> list[Entry]:
    """The entries with names: what was given, else the file's without its endings, else its path."""
    short = [entry.name or Path(entry.files[0]).name.partition(".")[0] for entry in found]
    twice = {name for name, count in Counter(short).items() if count > 1}
    named = [
        replace(entry, name=entry.name or (entry.files[0] if name in twice else name))
        for entry, name in zip(found, short, strict=True)
    ]
    for name, count in Counter(entry.name for entry in named).items():
        if count > 1:
            raise SpecError(f"{where}{count} sources are called '{name}': give each a name of its own")
    return named


def expanded(found: Sequence[Entry], *, held_out: bool = False) -> list[Entry]:
    """The sources with those that a NeMo configuration lists in its place; its weights are shares of its own.

    Args:
        found: what `entries` gave; their files exist.
        held_out: whether every row is looked at, once: then a configuration with weights is refused.

    Raises:
        SpecError: a configuration is wrong, or only some sources have weights, or a file is named twice.
    """
    if not any(is_config(file) for entry in found for file in entry.files):
        return list(found)
    sources: list[Entry] = []
    for entry in found:
        if not any(map(is_config, entry.files)):
            sources.append(entry)
            continue
        if len(entry.files) > 1 or entry.reader is not None:
            raise SpecError(f"{entry.files[0]}: a NeMo configuration is a source of its own, and names its readers")
        config = read_config(entry.files[0])
        if held_out and config.weighted:
            raise SpecError(f"{entry.files[0]}: what is held out is looked at row by row: leave the weights out")
        for own in config.sources:
            weight = None if held_out else own.share * (1.0 if entry.weight is None else entry.weight)
            sources.append(Entry(own.files, "", weight, own.reader, entry.audio_root, own.tags))
    known = Counter(str(Path(file).resolve()) for entry in sources for file in entry.files)
    for file, count in known.items():
        if count > 1:
            raise SpecError(f"{file} is named {count} times: rows that shall come more often have a higher weight")
    if len({entry.weight is None for entry in sources}) > 1:
        raise SpecError("data.train: a NeMo configuration has weights, and other sources have none: give one to each")
    return _named(sources, "data.train: ")


def shares(sizes: Sequence[int], weights: Sequence[float] | None, temperature: float | None = None) -> list[float]:
    """The share of the rows drawn that each source has.

    `p_i = s_i^(1/T) / sum_j s_j^(1/T)`, where `s_i` is the source's weight, or without weights its number of rows: so
    temperatures are read in multilingual practice (Arivazhagan et al. 2019, section 4; T = 5 there; `alpha` of XLM-R,
    Conneau et al. 2020, is 1 / T). T = 1, or none, takes them as they are; a high one makes all alike.
    """
    size = np.log(np.asarray(sizes if weights is None else weights, dtype=float))
    scaled = np.exp((size - size.max()) / (temperature or 1.0))
    return [float(share) for share in scaled / scaled.sum()]


@dataclass(frozen=True)
class Mixture:
    """Sources that lie one after another in a data set, and the share of each in what is drawn.

    An epoch has as many rows as all sources together, and every epoch as many of each source: its share of them,
    rounded by largest remainders. A source is gone through in an order of chance, again and again, and each epoch goes
    on where the one before ended: none of its rows comes again before all have come, and of a source that is drawn
    less often than it has rows, other rows come in the next epoch.

    Rows of a source stand at equal distances in an epoch: among any `n` that follow each other it has its share of
    them, `n p`, and at most `1 + k p` more or fewer, of `k` sources.

    Args:
        names: of the sources.
        sizes: their numbers of rows.
        shares: what `shares` gave.

    Raises:
        ValueError: a source has no rows, or its share is less than one row of an epoch.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, size, share, count in zip(self.names, self.sizes, self.shares, self.counts, strict=True):
            if size == 0:
                raise ValueError(f"source '{name}' has no rows that can be learned from")
            if count == 0:
                raise ValueError(
                    f"source '{name}' would never come: an epoch has {len(self):,} rows, and its share of them is "
                    f"{share:.2g}; give it a higher weight, or leave it out"
                )

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The rows of each source in an epoch."""
        exact = np.round(np.array(self.shares) * len(self), 6)  # so that halves are halves on every machine
        counts = np.floor(exact).astype(int)
        for i in np.argsort(counts - exact, kind="stable")[: len(self) - counts.sum()]:
            counts[i] += 1
        return tuple(counts.tolist())

    def order(self, seed: int, epoch: int) -> Indices:
        """The row numbers of an epoch."""
        rows, when, first = [], [], 0
        for i, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            rows.append(first + self._drawn(i, seed, epoch * count, count))
            when.append((np.arange(count) + _random(seed, i, epoch, 1).random_sample()) / count)
            first += size
        return np.concatenate(rows)[np.argsort(np.concatenate(when), kind="stable")]

    def sources(self, rows: Indices) -> Indices:
        """The number of the source of each row."""
        return np.searchsorted(np.cumsum(self.sizes), rows, side="right")

    def _drawn(self, source: int, seed: int, start: int, count: int) -> Indices:
        """Draws `start` to `start + count` of a source that is gone through again and again."""
        size = self.sizes[source]
        passes = range(start // size, (start + count - 1) // size + 1)
        random, drawn = np.random.RandomState(), []
        for each in passes:
            random.seed(_key(seed, source, each, 0))  # a tenth of the time that another one takes
            drawn.append(random.permutation(size))
        return np.concatenate(drawn)[start - passes[0] * size :][:count]


def _key(seed: int, *key: int) -> list[int]:
    return [seed % 2**32, *key]


def _random(*key: int) -> np.random.RandomState:
    return np.random.RandomState(_key(*key))  # its numbers are the same in all versions of numpy


class MixtureSampler:
    """The row numbers of a mixture, an epoch at a time; of about one length together, where lengths are given.

    Args:
        mixture: what is drawn from.
        seed: of the order.
        lengths: of all rows. The rows of `MEGABATCH` batches are sorted by them, and these batches come in an order of
            chance; the longest row of an epoch is in its first batch.
        batch: rows that shall be alike.
    """

    def __init__(
        self, mixture: Mixture, *, seed: int = 0, lengths: Sequence[int] | None = None, batch: int = 1
    ) -> None:
        self.mixture = mixture
        self.seed = seed
        self.epoch = 0
        self.batch = batch
        self._lengths = None if lengths is None else np.asarray(lengths)

    def __len__(self) -> int:
        return len(self.mixture)

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose rows come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = self.mixture.order(self.seed, self.epoch)
        yield from (order if self._lengths is None else self._grouped(order, self._lengths)).tolist()

    def _grouped(self, order: Indices, lengths: NDArray[Any]) -> Indices:
        random = _random(self.seed, len(self.mixture.sizes), self.epoch, 2)
        batches: list[Indices] = []
        for start in range(0, len(order), self.batch * MEGABATCH):
            some = order[start : start + self.batch * MEGABATCH]
            some = some[np.argsort(-lengths[some], kind="stable")]
            cut = [some[i : i + self.batch] for i in range(0, len(some), self.batch)]
            tail = [cut.pop()] if len(cut[-1]) < self.batch else []  # stays the last, for all others are full
            batches += [cut[i] for i in random.permutation(len(cut))] + tail
        longest = max(range(len(batches)), key=lambda i: lengths[batches[i]].max())
        if len(batches[longest]) == self.batch:
            batches[0], batches[longest] = batches[longest], batches[0]
        return np.concatenate(batches)


def balanced(batches: Sequence[Indices], mixture: Mixture) -> list[Indices]:
    """The batches in nearly the order that they have, each the one of the next `AHEAD` that best keeps the shares.

    None waits longer than `3 * AHEAD` batches, so that what else their order is good for stays as it is.
    """
    sources = len(mixture.sizes)
    counted = np.array([np.bincount(mixture.sources(batch), minlength=sources) for batch in batches])
    surplus = counted - counted.sum(1, keepdims=True) * (np.array(mixture.counts) / len(mixture))
    so_far = np.zeros(sources)
    waiting = list(range(min(AHEAD, len(batches))))
    order: list[Indices] = []
    while waiting:
        best = int(np.square(so_far + surplus[waiting]).sum(1).argmin()) if len(order) - waiting[0] < 3 * AHEAD else 0
        chosen = waiting.pop(best)
        so_far += surplus[chosen]
        order.append(batches[chosen])
        if (following := len(order) + len(waiting)) < len(batches):
            waiting.append(following)
    return order


def mixture(found: Sequence[Entry], rows: Mapping[str, int], temperature: float | None) -> Mixture | None:
    """The mixture of sources that lie one after another; None where all rows come once.

    Args:
        found: the sources.
        rows: how many each has, by its name.
        temperature: see `shares`.

    Raises:
        ManifestError: a source has no rows left, or would never come.
        SpecError: there is nothing to weigh.
    """
    if temperature is not None and len(found) < 2:
        raise SpecError("data.temperature: means nothing with one source; name several in data.train")
    weights = [entry.weight for entry in found if entry.weight is not None]
    if not weights and temperature is None:
        return None
    sizes = [rows.get(entry.name, 0) for entry in found]
    for entry, size in zip(found, sizes, strict=True):
        if size == 0:
            raise ManifestError(f"{entry.files[0]}: no row is left to learn from, and it has a share in the mixture")
    try:
        return Mixture(
            tuple(entry.name for entry in found), tuple(sizes), tuple(shares(sizes, weights or None, temperature))
        )
    except ValueError as error:
        raise ManifestError(f"data.train: {error}") from error
