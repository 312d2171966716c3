"""A manifest is a list of samples, read from files or objects of many formats, every row checked."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from usam.data import reading
from usam.data.index import Index, build, code_of, content, known, place_of, said, stamp
from usam.data.mixture import Entry
from usam.data.reading import Rules, WrongRow
from usam.readers import (
    Layout,
    ManifestError,
    Opened,
    Reader,
    Sample,
    Source,
    read,
    registry,
    source_of,
)
from usam.readers.json import Json
from usam.registry import ComponentError

__all__ = ["Manifest", "ManifestError", "Sample"]

LISTED = 10  # wrong rows that an error tells in full
SMALL = 10_000  # rows that are held in memory, so that nothing is left beside small manifests


class Manifest(Dataset[Sample], Sequence[Sample]):
    """The samples of one or several files, every row checked; audio is read when a batch is made.

    A row is `{"audio": clip or [clips], "prompt": text or "task": name, "answer": text}`, or
    `{"messages": [...], "audio": [...]}` with the clips in place of `<|audio|>` (or `<audio>`) tags, or as blocks
    inside the messages. A clip is a path, or a map of a source and the part that is meant, as `Clip.of` reads it; a
    row of one clip may say the part itself (`start`, `duration` ...). Paths are relative to the manifest.

    A list of answers holds several that are right: the first is learned, all are the sample's `references`.
    Further keys: `id`, and the user's own, `meta` and what begins with `x_`, which become the sample's `extra`.

    Files of other formats are put into these words by the readers (`usam list` names them), each file by the one that
    its first row is recognised by. A YAML file is a NeMo configuration: all rows of the manifests that it lists, once;
    its weights are for training, `data.train` of a run.

    A file of more than 10,000 rows is indexed and not loaded: a row is read when it is asked for, by any process, from
    the file itself (lines of JSON), or from a copy of its rows. The index, about 24 bytes a row, and the copy are kept
    in a folder `.NAME.usam` beside the file, or in `$XDG_CACHE_HOME/usam` (`~/.cache/usam`) where that place cannot be
    written, and may be removed at any time. Rows that hold sound themselves are loaded whatever their number, and so is
    what comes from Python.

    Args:
        files: the files.
        prompts: instruction of each task.
        need_answer: whether a row without an answer is an error.
        reader: name of the reader of all files, where it shall not be recognised.
        audio_root: what `{audio_root}` at the beginning of a path stands for.

    Raises:
        ManifestError: a missing, empty or unreadable file, one of a format that no reader knows, or rows that are
            wrong: each with file, line and key. Also when a row is asked for, and is another than it was at first.
        ComponentError: there is no such reader.
    """

    lengths: NDArray[Any] | None
    """What each row takes in a batch, as `usam.data.sampling.LENGTH`, once somebody measured it."""

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        prompts: Mapping[str, str],
        *,
        need_answer: bool = False,
        reader: str | None = None,
        audio_root: str | Path | None = None,
    ) -> None:
        files = [files] if isinstance(files, (str, Path)) else list(files)
        if not files:
            raise ManifestError("no manifest was given: name one file, or several")
        rules = Rules(dict(prompts), need_answer, reader, audio_root)
        found = [part for file in files for part in reading.files(file, rules)]
        self._put([_part(path, own) for path, own, _ in found], [source for *_, source in found])

    @classmethod
    def of(
        cls,
        given: Any,
        prompts: Mapping[str, str] | None = None,
        *,
        need_answer: bool = False,
        reader: str | None = None,
        audio_root: str | Path | None = None,
    ) -> Manifest:
        """The samples of anything that a reader opens: files, a list of rows, a `datasets.Dataset`, a Manifest.

        Paths in rows that stand in no file are relative to the working directory.
        """
        if isinstance(given, Manifest):
            return given
        listed = isinstance(given, (list, tuple)) and all(isinstance(item, (str, Path)) for item in given)
        if isinstance(given, (str, Path)) or listed:
            return cls(given, prompts or {}, need_answer=need_answer, reader=reader, audio_root=audio_root)
        manifest = cls.__new__(cls)
        rules = Rules(dict(prompts or {}), need_answer, reader, audio_root)
        opened = read(given, rules.prompts, reader)
        manifest._put([Held(_held(opened, type(given).__name__, rules) or [], None, None)])
        return manifest

    @classmethod
    def joined(cls, manifests: Sequence[Manifest]) -> Manifest:
        """The samples of several, one after the other."""
        found = cls.__new__(cls)
        found._put(
            [part for manifest in manifests for part in manifest.parts],
            [source for manifest in manifests for source in manifest._sources],
        )
        if any(manifest._chosen is not None for manifest in manifests):
            begins = np.cumsum([0, *(manifest._starts[-1] for manifest in manifests)])
            found._chosen = np.concatenate([m.numbers + begin for m, begin in zip(manifests, begins, strict=False)])
        return found

    def of_source(self, source: Entry) -> Manifest:
        """The same samples, which know what a run calls their source."""
        found = copy(self)
        found._sources = (source,) * len(self.parts)
        return found

    def _put(self, parts: Sequence[Held | Indexed], sources: Sequence[Entry | None] = ()) -> None:
        self.parts = tuple(parts)
        self._sources = tuple(sources) or (None,) * len(parts)
        self._starts = [0, *accumulate(map(len, parts))]
        self._chosen: NDArray[np.intp] | None = None
        self.lengths = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the lengths, which are for those who make batches."""
        return self.__dict__ | {"lengths": None}

    def __len__(self) -> int:
        return self._starts[-1] if self._chosen is None else len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Manifest: ...
    def __getitem__(self, index: int | slice) -> Sample | Manifest:
        """A sample, or a Manifest of some."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        row = range(len(self))[index]  # also from the end, and no further
        row = row if self._chosen is None else int(self._chosen[row])
        part = bisect_right(self._starts, row) - 1
        sample, source = self.parts[part][row - self._starts[part]], self._sources[part]
        return sample if source is None else source.marked(sample)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples, each read when it is asked for."""
        return self

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of the bytes of each file that was given."""
        return [part.hash for part in self.parts]

    @property
    def numbers(self) -> NDArray[np.intp]:
        """Which rows of its files these are."""
        return np.arange(self._starts[-1]) if self._chosen is None else self._chosen

    @property
    def sources(self) -> dict[str, int]:
        """How many samples each source has that a run calls by name."""
        parts = np.searchsorted(self._starts, self.numbers, side="right") - 1
        counts = np.bincount(parts, minlength=len(self.parts)).tolist()
        found: dict[str, int] = {}
        for source, count in zip(self._sources, counts, strict=True):
            if source is not None:
                found[source.name] = found.get(source.name, 0) + count
        return found

    def select(self, rows: Any) -> Manifest:
        """A Manifest of the samples with these numbers, in this order, with their lengths."""
        found = copy(self)
        found._chosen = self.numbers[np.asarray(rows, dtype=np.intp)]
        found.lengths = None if self.lengths is None else self.lengths[rows]
        return found

    def find(self, origin: str) -> int | None:
        """The number of the row that stands there (`file:line`), the last one; None when it is not in here."""
        found = [part.find(origin) for part in self.parts]
        rows = [start + row for start, row in zip(self._starts, found, strict=False) if row is not None]
        if self._chosen is not None:
            rows = np.flatnonzero(np.isin(self._chosen, rows)).tolist()
        return max(rows, default=None)


class Held:
    """Samples in memory.

    Args:
        samples: all of them.
        path: the file that they were read from, if any.
        seen: its stamp at that time.
    """

    def __init__(self, samples: list[Sample], path: Path | None, seen: Any) -> None:
        self.samples, self.path, self.seen = samples, path, seen
        self._places: dict[str, int] | None = None
        self._hash: str | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Sample:
        return self.samples[row]

    @property
    def hash(self) -> str:
        """SHA-256 of the file's bytes, when it is first asked for."""
        if self._hash is None:
            if self.path is None:
                raise ManifestError("rows that come from Python are in no file, and have no hash")
            self._hash = content(self.path)
            if stamp(self.path) != self.seen:
                raise ManifestError(f"{self.path}: changed after it was read; start again when it is written")
        return self._hash

    def find(self, origin: str) -> int | None:
        """The number of the row that stands there."""
        if self._places is None:
            self._places = {sample.origin: i for i, sample in enumerate(self.samples)}
        return self._places.get(origin)


class Indexed:
    """Samples that are read when they are asked for.

    Args:
        path: the file.
        index: where its rows lie.
        source: what opens it.
        layout: of its rows.
        name: of the layout.
        rules: how rows are read.
    """

    def __init__(self, path: Path, index: Index, source: Source, layout: Layout, name: str, rules: Rules) -> None:
        self.path, self.index, self.layout, self.name, self.rules = path, index, layout, name, rules
        self.folder = source.folder
        self._value = source.value if isinstance(source, Json) else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Sample:
        line = self.index.line(row)
        spooled = self.index.spooled
        origin = f"{self.path}, row {row + 1}" if spooled else f"{self.path}:{self.index.rows[row]['place']}"
        if line is None:
            raise ManifestError(f"{origin}: the manifest is not what it was when it was opened: start again")
        if self._value is None or spooled:
            origin, value = said(line)
        else:
            value = self._value(line, origin)
        return self.rules.sample(origin, value, self.layout, self.name, self.folder)

    @property
    def hash(self) -> str:
        """SHA-256 of the file's bytes."""
        return self.index.hash

    @property
    def key(self) -> str:
        """A hash of what its samples are made of: the file, and how it is read."""
        layout = code_of(type(self.layout).__module__)
        text = f"{self.hash} {self.rules.key(self.path)} {self.name} {layout} {self.path}"
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

    def find(self, origin: str) -> int | None:
        """The number of the row that stands there."""
        places = self.index.rows["place"]
        if self.index.spooled:
            some = np.flatnonzero(places == place_of(origin))
            return next((int(row) for row in some if self[int(row)].origin == origin), None)
        line = origin.removeprefix(f"{self.path}:")
        row = int(np.searchsorted(places, int(line))) if line.isdecimal() else len(places)
        return row if row < len(places) and places[row] == int(line) else None


def _part(path: Path, rules: Rules) -> Held | Indexed:
    """The rows of a file, all of them right: from its index where it has one."""
    source, key = source_of(path, rules.prompts, rules.reader), rules.key(path)
    index = known(path, source)
    if index is None:
        seen = stamp(path)
        held = _held(read(path, rules.prompts, rules.reader), str(path), rules, SMALL)
        index = None if held is not None else build(path, source, lambda: read(path, rules.prompts, rules.reader).rows)
        if index is None:
            held = _held(read(path, rules.prompts, rules.reader), str(path), rules) if held is None else held
            return Held(held or [], path, seen)
    elif (remembered := index.checked(key)) is not None:
        name, code = remembered
        layout = _layout(name)
        if layout is not None and code_of(layout.__module__) == code:
            return Indexed(path, index, source, layout(path, rules.prompts), name, rules)
    opened = read(path, rules.prompts, rules.reader)
    found = Indexed(path, index, source, opened.layout, opened.name, rules)
    faults = _Faults()
    for row in tqdm(range(len(found)), desc=f"checking {path.name}", unit="row", disable=None):
        try:
            found[row]
        except WrongRow as fault:
            faults.add(str(fault))
    faults.check(str(path))
    index.remember(key, [opened.name, code_of(type(opened.layout).__module__)])
    return found


def _layout(name: str) -> type[Layout] | None:
    try:
        found: type[Reader] = registry.get(name)
    except ComponentError:  # of a plugin that is no longer here
        return None
    return found if issubclass(found, Layout) else None


def _held(opened: Opened, name: str, rules: Rules, most: int | None = None) -> list[Sample] | None:
    """The samples of all rows; None when there are more than `most`."""
    samples: list[Sample] = []
    faults = _Faults()
    for number, (origin, row) in enumerate(opened.rows):
        if number == most:
            return None
        try:
            samples.append(rules.sample(origin, row, opened.layout, opened.name, opened.folder))
        except WrongRow as fault:
            faults.add(str(fault))
    faults.check(name)
    if not samples:
        raise ManifestError(f"{name}: no rows; write one JSON map a line")
    return samples


class _Faults:
    """Rows that are wrong: all are counted, the first are told."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, told: str) -> None:
        self.count += 1
        if self.count <= LISTED:
            self.first.append(told)

    def check(self, name: str) -> None:
        """ManifestError where there are any."""
        if not self.count:
            return
        more = f"; the first {LISTED}:" if self.count > LISTED else ":"
        head = [f"{name}: {self.count} rows are wrong{more}"] if self.count > 1 else []
        raise ManifestError("\n".join([*head, *self.first]))
