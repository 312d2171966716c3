"""A stream reads rows as it goes: of sources that are too many to hold, or that have no length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from random import Random
from typing import Any, TypeAlias

from torch.utils.data import IterableDataset, get_worker_info

from usam.data.mixture import Entry
from usam.data.reading import Rules
from usam.readers import ManifestError, Opened, Placed, Sample, read

BUFFER = 1000

Row: TypeAlias = Callable[[], Sample]
"""A row that was read, and is made a sample, and checked, when it is needed."""


class Stream(IterableDataset[Sample]):
    """Samples without an end: pass after pass through all sources, every row once in each.

    The order depends on the sources, the buffer, the seed and the pass alone. In each pass the sources come in an order
    of chance, their rows as they lie there, through a buffer: each row that comes in takes the place of one of chance
    in it, which goes out. A buffer of 1 leaves everything in the order that it has.

    Processes and their workers all read all lines, and each makes samples of its own alone (`part`): so there may be
    any number of them, of files and of rows, and no row comes to two. A run that goes on reads the lines, but no sound,
    of what it has seen: it is the undisturbed one, and costs reading so many lines.

    Args:
        sources: what `Manifest.of` opens (files, archives, a `datasets.IterableDataset`), entries of a run file, or
            functions that begin to give rows (maps) anew each time they are called.
        prompts: instruction of each task.
        need_answer: whether a row without an answer is an error.
        reader: name of the reader of all sources, where it shall not be recognised.
        audio_root: what `{audio_root}` at the beginning of a path stands for.
        buffer: rows that are held to be shuffled.
        seed: of the order.

    Raises:
        ManifestError: while it is read: a source has no rows, or a row is wrong, with file, line and key.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        prompts: dict[str, str],
        *,
        need_answer: bool = True,
        reader: str | None = None,
        audio_root: str | None = None,
        buffer: int = BUFFER,
        seed: int = 0,
    ) -> None:
        self.sources = list(sources)
        self.prompts = prompts
        self.need_answer = need_answer
        self.reader = reader
        self.audio_root = audio_root
        self.buffer = buffer
        self.seed = seed
        self.seen = 0
        """Batches of each process that a run had learned from when it was stopped: they are not made again."""

    def __iter__(self) -> Iterator[Sample]:
        for row in self.rows():
            yield row()

    def rows(self) -> Iterator[Row]:
        """All rows, again and again."""
        for number in count():
            yield from self._shuffled(number)

    def part(self, batch: int, process: int = 0, processes: int = 1) -> Part:
        """What one process learns from: of rows in a row, each process has `batch`, one after another."""
        return Part(self, batch, process, processes)

    def _shuffled(self, number: int) -> Iterator[Row]:
        random = Random(f"{self.seed} {number}")
        order = list(self.sources)
        if self.buffer > 1:
            random.shuffle(order)
        held: list[Row] = []
        for row in chain.from_iterable(map(self._read, order)):
            if len(held) < self.buffer:
                held.append(row)
                continue
            place = random.randrange(len(held))
            yield held[place]
            held[place] = row
        if self.buffer > 1:
            random.shuffle(held)
        yield from held

    def _read(self, source: Any) -> Iterator[Row]:
        entry = source if isinstance(source, Entry) else None
        prompts = self.prompts if entry is None else dict(entry.prompts(self.prompts))
        reader = self.reader if entry is None else entry.reader or self.reader
        root = self.audio_root if entry is None else entry.audio_root or self.audio_root
        rules = Rules(prompts, self.need_answer, reader, root)
        for given in (source,) if entry is None else entry.files:
            opened = _called(given, prompts, reader) if callable(given) else read(given, prompts, reader)
            placed = None
            for placed in opened.rows:
                yield partial(_sample, placed, opened, rules, entry)
            if placed is None:
                raise ManifestError(f"{_name(given)}: no rows to learn from")


class Part(IterableDataset[Sample | None]):
    """The rows of one process; None stands for those that a run that goes on has learned from."""

    def __init__(self, stream: Stream, batch: int, process: int, processes: int) -> None:
        self.stream = stream
        self.batch = batch
        self.process = process
        self.processes = processes

    def __iter__(self) -> Iterator[Sample | None]:
        """Of a worker: those of its batches, which are dealt out in turn."""
        worker = get_worker_info()
        own, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number, row in enumerate(self.stream.rows()):
            batch, place = divmod(number, self.batch * self.processes)
            if place // self.batch == self.process and batch % workers == own:
                yield None if batch < self.stream.seen else row()


class PassedOver:
    """A collator that makes nothing of batches that a run has learned from.

    Args:
        collate: makes all others.
    """

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> dict[str, Any]:
        return {} if samples[0] is None else self.collate(samples)


def _called(given: Callable[[], Any], prompts: dict[str, str], reader: str | None) -> Opened:
    """The rows that a function gives, in the layout of the first."""
    rows = iter(given())
    first = next(rows, None)
    if first is None:
        raise ManifestError(f"{_name(given)}: no rows to learn from")
    opened = read([first], prompts, reader)
    placed: Iterator[Placed] = ((f"{_name(given)}, row {i}", row) for i, row in enumerate(chain([first], rows)))
    return Opened(opened.layout, opened.name, placed, opened.folder)


def _name(given: Any) -> str:
    return str(getattr(given, "__name__", None) or (given if isinstance(given, str) else type(given).__name__))


def _sample(placed: Placed, opened: Opened, rules: Rules, entry: Entry | None) -> Sample:
    made = rules.sample(*placed, opened.layout, opened.name, opened.folder)
    return made if entry is None else entry.marked(made)
