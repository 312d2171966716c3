"""Readers know the formats of manifests: each gives rows in usam's own words.

Where rows lie (lines of JSON, a table, an archive) and which keys they have are two questions, and a reader answers one
of them: a `Source` opens a kind of file or object, a `Layout` is recognised by the keys of its rows.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, cast

from usam.processor.chat import flatten
from usam.processor.clip import is_free
from usam.registry import ComponentError, Registry, did_you_mean

Row = dict[str, Any]
Placed = tuple[str, Any]
"""Where a row stands, such as `file:12`, and the row as written, or the ValueError that tells why there is none."""


class NoChat(ValueError):
    """A row without messages was given to a layout of chats: give it as a chat."""


class ManifestError(ValueError):
    """A manifest is wrong: the message names the file, the line and the key."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a manifest as a chat, its clips as blocks that `Clip.of` reads."""

    origin: str  # file:line
    messages: tuple[Mapping[str, Any], ...]
    task: str | None = None
    id: str | int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # `meta` and the columns that begin with x_
    others: tuple[str, ...] = ()  # right answers beside the one that is learned
    source: str | None = None  # of a run, what it calls the files that the row is of

    @property
    def answer(self) -> str | None:
        """The text of the last turn when it is the assistant's."""
        last = self.messages[-1]
        return flatten(last)[0] if last["role"] == "assistant" else None

    @property
    def references(self) -> tuple[str, ...]:
        """Every answer that is right, first the one that is learned; empty without an answer."""
        return () if self.answer is None else (self.answer, *self.others)

    @property
    def question(self) -> tuple[Mapping[str, Any], ...]:
        """The messages without a final answer."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages


@dataclass(frozen=True)
class Form:
    """The keys of one kind of row: all of `needs`, and what else it may have."""

    needs: tuple[str, ...]
    may: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Keys that say nothing to usam: they are kept as `x_<key>`."""
    others: bool = False
    """Whether it has columns of any name besides, kept as `x_<name>`."""

    def lacks(self, row: Mapping[str, Any]) -> list[str]:
        """Keys that it needs and the row does not have."""
        return [key for key in self.needs if key not in row]

    def surplus(self, row: Mapping[str, Any]) -> list[str]:
        """Keys of the row that it does not know."""
        return [] if self.others else self.unknown(row)

    def unknown(self, row: Mapping[str, Any]) -> list[str]:
        """Keys of the row that it has no name for."""
        known = {*self.needs, *self.may, *self.kept}
        return [key for key in row if key not in known and not is_free(str(key))]


class Reader:
    """One format of manifests: a `Source` or a `Layout`.

    Args:
        source: what is read, as it was given.
        prompts: instruction of each task, as the spec has them.
    """

    def __init__(self, source: Any = None, prompts: Mapping[str, str] | None = None) -> None:
        self.source = source
        self.prompts = prompts or {}

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Whether a path or an object is of this format, seen from outside: its name, its type."""
        return False


class Source(Reader, ABC):
    """Where rows lie."""

    @property
    def folder(self) -> str:
        """What relative paths in its rows are relative to: the file's folder; the working directory without a file."""
        parent = str(Path(self.source).parent) if isinstance(self.source, (str, os.PathLike)) else "."
        return "" if parent == "." else parent

    @abstractmethod
    def rows(self) -> Iterator[Placed]:
        """The rows of the source, each with its place: `file:12`."""


class Layout(Reader, ABC):
    """Which keys a row has, and what they say in usam's own words."""

    forms: ClassVar[tuple[Form, ...]]
    beside: ClassVar[tuple[str, ...]] = ()
    """Names of files in the manifest's folder that also say how its rows are read."""

    def form(self, row: Any) -> Form | None:
        """The form that a row has exactly, the most particular one; None where it has none."""
        if not isinstance(row, dict):
            return None
        fits = [form for form in self.forms if not form.lacks(row) and not form.surplus(row)]
        return max(fits, key=lambda form: len(form.needs), default=None)

    def own(self, row: Any) -> Row:
        """A row in usam's own words; ValueError where it is none of this format."""
        form = self.form(row)
        if form is None:
            raise ValueError(self.misfit(row))
        own = self.said(row)
        if not isinstance(row, dict):
            return own
        known = {*form.needs, *form.may, *form.kept}
        kept = {f"x_{key}": row[key] for key in row if key in form.kept or (key not in known and not is_free(str(key)))}
        return own | kept | {key: row[key] for key in row if is_free(str(key))}

    @abstractmethod
    def said(self, row: Any) -> Row:
        """What a row with the right keys says, in usam's own words, without the keys that are kept."""

    def written(self, row: Row) -> Row | list[Any]:
        """A row of usam's own in this format; who calls reads it back to see whether anything is lost."""
        raise ValueError("this format is read, and not written")

    def misfit(self, row: Any) -> str:
        """Why a row is none of this format: the keys that it lacks, and those that it has too many."""
        if not isinstance(row, dict):
            return f"expected a JSON map, found {row!r:.60}"
        form = min(self.forms, key=lambda form: distance(form, row))
        lacks, surplus = form.lacks(row), form.surplus(row)
        known = [*form.needs, *form.may, *form.kept]
        hints = dict.fromkeys(did_you_mean(str(key), lacks or known) for key in surplus)
        hint = "; ".join(hint for hint in hints if hint.startswith("did"))
        told = [f"it lacks {_quoted(lacks)}"] if lacks else []
        told += [f"it has {_quoted(surplus)} too many" + (f" ({hint})" if hint else "")] if surplus else []
        own = "; your own keys begin with 'x_', or stand in 'meta'" if surplus and not lacks else ""
        return f"{' and '.join(told)}; its keys are {_quoted(known)}{own}"


def distance(form: Form, row: Mapping[str, Any]) -> float:
    """How far a row is from a form: keys it lacks count more than those it has too many, misspelt ones less."""
    lacks, unknown = form.lacks(row), [str(key) for key in form.unknown(row)]
    misspelt = 0 if form.others else sum(bool(get_close_matches(key, unknown, 1, 0.75)) for key in lacks)
    shared = sum(key in row for key in form.needs)
    return 2 * (len(lacks) - misspelt) + len(unknown) - shared / 8


def _quoted(keys: Iterable[Any]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


registry: Registry[Reader] = Registry(Reader, "usam.readers")


@dataclass(frozen=True)
class Opened:
    """A source with the layout of its rows."""

    layout: Layout
    name: str  # of the layout
    rows: Iterator[Placed]
    folder: str  # what relative paths are relative to


def read(given: Any, prompts: Mapping[str, str], reader: str | None = None) -> Opened:
    """Open a file or an object with the readers that know it.

    Args:
        given: a path, or an object that a reader opens: rows, a `datasets.Dataset`.
        prompts: instruction of each task.
        reader: name of the reader, where it shall not be recognised.

    Raises:
        ManifestError: no reader knows it; the message names the nearest format.
        ComponentError: there is no reader of that name, or it fails to load.
    """
    named = registry.get(reader) if reader else None
    source = source_of(given, prompts, reader)
    rows = source.rows()
    if named is not None and issubclass(named, Layout):
        return Opened(named(given, prompts), str(reader), rows, source.folder)
    seen: list[Placed] = []
    for placed in rows:
        seen.append(placed)
        if not isinstance(placed[1], ValueError):
            break
    origin, row = seen[-1] if seen else ("", {})
    name, layout = _recognised(origin, row, given, prompts)
    return Opened(layout, name, chain(seen, rows), source.folder)


def layout_of(origin: str, row: Any, prompts: Mapping[str, str], reader: str | None = None) -> tuple[str, Layout]:
    """The layout of a row that lies in no file, and its name; arguments and errors as `read` has them."""
    named = registry.get(reader) if reader else None
    if named is not None and issubclass(named, Layout):
        return str(reader), named(None, prompts)
    return _recognised(origin, row, None, prompts)


def source_of(given: Any, prompts: Mapping[str, str], reader: str | None = None) -> Source:
    """What opens a file or an object, before anything is read; see `read`."""
    named = registry.get(reader) if reader else None
    return named(given, prompts) if named is not None and issubclass(named, Source) else _source(given, prompts)


def opened_by(given: Any) -> bool:
    """Whether a reader of usam's knows a path or an object for its own, by its name or its type: no file of JSON."""
    own = _readers(own=True)[0]
    return any(
        cls.opens(given) for name, cls in own.items() if issubclass(cls, Source) and name not in ("json", "iterables")
    )


def located(path: str | Path) -> str:
    """A path as the machine has it: with what `~` and variables stand for."""
    return os.path.expandvars(os.path.expanduser(path))


def beside() -> list[str]:
    """Files in a manifest's folder that usam's layouts look at."""
    layouts = (cls for cls in _readers(own=True)[0].values() if issubclass(cls, Layout))
    return sorted({name for layout in layouts for name in layout.beside})


JSON = (".json", ".jsonl", ".ndjson")  # files that are asked of no plugin
KINDS = ("*.jsonl", "*.jsonl.gz", "*.json", "*.csv", "*.tsv", "*.tar", "*.parquet")  # what may be meant by its folder


def _readers(own: bool) -> tuple[dict[str, type[Reader]], list[str]]:
    """usam's readers, or all others that load, by name, and why others do not: they concern who has their format."""
    readers, failing = {}, []
    for entry in registry.entries():
        if (entry.provider == "usam") == own:
            name = entry.name if own else str(entry)
            try:
                readers[name] = registry.get(name)
            except ComponentError as error:
                failing.append(str(error))
    return dict(sorted(readers.items(), key=lambda item: (item[0] != "usam", item[0]))), failing


def _source(given: Any, prompts: Mapping[str, str]) -> Source:
    """The source that opens what was given; those that open any file and any object are the last to be asked."""
    own, failing = _readers(own=True)
    last = [own.pop(name) for name in ("json", "iterables")]
    plain = isinstance(given, (str, os.PathLike)) and str(given).lower().removesuffix(".gz").endswith(JSON)
    opens = [cls for cls in own.values() if issubclass(cls, Source) and cls.opens(given)]
    if not opens and not plain:
        foreign, failing = _readers(own=False)
        opens = [cls for cls in foreign.values() if issubclass(cls, Source) and cls.opens(given)]
    for cls in (*opens, *last):
        if cls.opens(given):
            return cast(Source, cls(given, prompts))
    not_asked = "".join(f"\nnot asked: {error}" for error in failing)
    if isinstance(given, (str, os.PathLike)):
        path = Path(given)
        what = "is a folder that no reader knows; name the manifest in it" if path.is_dir() else "no such manifest"
        found = sorted(str(file.relative_to(path)) for kind in KINDS for file in path.glob(f"*/{kind}"))
        found = sorted(file.name for kind in KINDS for file in path.glob(kind)) + found
        hint = f"; it holds {', '.join(found[:5])}{' ...' if len(found) > 5 else ''}" if found else ""
        raise ManifestError(f"{given}: {what}{hint} (looked in {path.parent.resolve()}){not_asked}")
    hint = ""
    if isinstance(given, Mapping):
        hint = "; a single row is put into a list: [row]"
    elif isinstance(given, (list, tuple)):
        number, item = next((i, item) for i, item in enumerate(given) if not isinstance(item, (Mapping, list)))
        hint = f"; its item {number} is a {type(item).__name__}, and a row is a map"
    raise ManifestError(
        f"a {type(given).__name__} is no manifest: give a path, rows (maps), a table, or a datasets.Dataset"
        f"{hint}{not_asked}"
    )


def _recognised(origin: str, row: Any, given: Any, prompts: Mapping[str, str]) -> tuple[str, Layout]:
    """The layout of a row: usam's own where several would do, or where that is the nearest."""
    known: dict[str, Layout] = {}
    failing: list[str] = []
    for own in (True, False):
        readers, failing = _readers(own)
        layouts = {name: cls(given, prompts) for name, cls in readers.items() if issubclass(cls, Layout)}
        for name, layout in layouts.items():
            if layout.opens(given):
                return name, layout
        fits = {name: form for name, layout in layouts.items() if (form := layout.form(row)) is not None}
        if fits:
            name = max(fits, key=lambda name: (name == "usam", not fits[name].others, len(fits[name].needs)))
            if fits[name].others and (meant := _meant(row, fits[name], layouts)):
                raise ManifestError(f"{origin}: {_told(row, meant, layouts[meant])}")
            return name, layouts[name]
        known |= layouts
    name = "usam"
    if isinstance(row, dict):
        near = {name: min(distance(form, row) for form in layout.forms) for name, layout in known.items()}
        name = min(near, key=near.__getitem__)  # usam's own comes first among equals
    begun = not row or not isinstance(row, dict) or any(not form.lacks(row) for form in known["usam"].forms)
    if name != "usam" or not begun:  # what is wrong in a row of usam's own, its own checks tell
        not_asked = "".join(f"\nnot asked: {error}" for error in failing)
        raise ManifestError(f"{origin}: {_told(row, name, known[name])}{not_asked}")
    return name, known[name]


def _told(row: Row, name: str, layout: Layout) -> str:
    return f"no reader knows a row with {_quoted(row)}; the nearest format is '{name}': {layout.misfit(row)}"


def _meant(row: Row, taken: Form, layouts: Mapping[str, Layout]) -> str | None:
    """The format that a row is of but for a misspelt key, where another that takes any key would do."""
    for name, layout in layouts.items():
        for form in layout.forms:
            if name == "usam" or form.others or form.lacks(row):
                continue
            known = {*form.may, *form.kept}
            own = known.intersection(row) - {*taken.needs, *taken.may}
            if own or all(get_close_matches(str(key), known, 1, 0.75) for key in form.unknown(row)):
                return name
    return None


def without_nothing(row: Mapping[str, Any]) -> Row:
    """A table's row without its empty cells."""
    return {key: value for key, value in row.items() if value is not None}


# What layouts need to read: values of the kind that they expect.


def text(row: Mapping[str, Any], key: str) -> str:
    """The text under a key; ValueError where it is none."""
    if not isinstance(row[key], str):
        raise ValueError(f"'{key}' is text, found {row[key]!r:.120}")
    return cast(str, row[key])


def pairs(row: Mapping[str, Any], key: str) -> list[list[Any]]:
    """The turns under a key, [question, answer] each; none where it is missing or empty."""
    given = row.get(key) or []
    if not isinstance(given, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        raise ValueError(f"'{key}' is a list of [question, answer], found {given!r:.120}")
    return given


# What writers of layouts need: a row's parts in one plain form.


def clips(row: Row) -> list[Any]:
    """The clips of a row without messages; ValueError where it has none."""
    given = row.get("audio", row.get("audios"))
    found = given if isinstance(given, list) else [given]
    if given is None or "messages" in row or not found:
        raise ValueError(
            "this format has one question and its clips in a row: it has no place for chats, or for text alone"
        )
    return found


def single(row: Row) -> Any:
    """The only clip of a row; ValueError where it has none or several."""
    found = clips(row)
    if len(found) > 1:
        raise ValueError(f"this format has one clip in a row, and there are {len(found)}")
    return found[0]


def answers(row: Row, most: int | None = None) -> list[str]:
    """The answers of a row without messages; ValueError where there is none, or more than `most`."""
    given = row.get("answer")
    found = given if isinstance(given, list) else [given]
    if given is None:
        raise ValueError("this format has an answer in every row, and there is none")
    if most is not None and len(found) > most:
        raise ValueError(f"this format has one answer in a row, and there are {len(found)}")
    return cast(list[str], found)


def chat(found: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Messages of (role, block) pairs: blocks of one role that follow each other are one message."""
    turns: list[dict[str, Any]] = []
    for role, block in found:
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"].append(block)
        else:
            turns.append({"role": role, "content": [block]})
    return turns


def messages(row: Row) -> list[dict[str, Any]]:
    """The messages of a row, the content of each as a list of blocks; ValueError for a row without messages."""
    if "messages" not in row:
        raise NoChat("this format is of chats, and the row is none")
    return [
        {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn["content"], str)
        else turn
        for turn in row["messages"]
    ]


def tagged(row: Row) -> tuple[list[dict[str, Any]], list[Any]]:
    """The messages as text with `<audio>` tags, and the clips."""
    audios: list[Any] = []
    turns = []
    for turn in messages(row):
        text = ""
        for block in turn["content"]:
            if block["type"] == "text":
                text += block["text"]
                continue
            clip = {key: value for key, value in block.items() if key != "type"}
            audios.append(clip["audio"] if len(clip) == 1 else clip)
            text += "<audio>"
        turns.append({"role": turn["role"], "content": text})
    return turns, audios
