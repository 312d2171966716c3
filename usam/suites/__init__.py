"""Suites are benchmarks: the rows of their files as downloaded, what is asked, and how the answers are scored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from usam.component import build, own_config
from usam.readers import ManifestError, Row, source_of
from usam.readers.usam import ROOT
from usam.registry import Registry, did_you_mean
from usam.spec.page import SpecError
from usam.spec.spec import Config

SHOWN = 3
FIELD = re.compile(r"\{(question|choices)\}")


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, as its files have it."""

    place: str  # file:line
    id: str
    audio: tuple[str, ...]
    """Paths of its clips, below the root."""
    answers: tuple[str, ...]
    """All that are right; none where no text is."""
    question: str = ""
    choices: tuple[str, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else is kept of it, as `x_<name>`: what scores are told by, and what a judge would read."""


@dataclass(frozen=True)
class Loaded:
    """The rows of a split, in usam's own words, their clips below `{audio_root}`."""

    rows: tuple[Row, ...]
    left_out: tuple[str, ...]
    """Ids of the items whose clips are missing."""


class SuiteConfig(Config):
    """Options that every suite has."""

    component: ClassVar[type[Any]]

    split: str | None = None
    """Which part of it; null: the one that is usually reported."""
    prompt: str | None = None
    """What is asked, with `{question}` and `{choices}` where a row's own stand. null: the benchmark's own words; where
    it has none, what the model's spec has in `prompts` for the task."""
    missing: Literal["stop", "skip"] = "stop"
    """What an item does whose clip is not there: `skip` leaves it out, and the record counts these. The score is then
    of fewer items than others report."""


class Suite(ABC):
    """A benchmark.

    A subclass says where its items come from (`items`), and what they are scored by (`metrics`). What all have in
    common is done here: splits, prompts, ids that stand once, clips that must be there.
    """

    Config: ClassVar[type[SuiteConfig]] = SuiteConfig

    splits: ClassVar[tuple[str, ...]]
    """Names of its parts, first the one that is usually reported."""
    task: ClassVar[str]
    """Of every row."""
    asks: str | None = None
    """The official prompt, with `{question}` and `{choices}`; None where there is none."""
    source: ClassVar[str]
    """Where the prompt and the scoring come from."""
    home: ClassVar[str]
    """Where to get it, its licence, and what the root then holds."""
    by: tuple[str, ...] = ()
    """Columns by whose values scores are told too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_config(cls)

    def __init__(self, config: Any) -> None:
        self.config = config
        self.split: str = self.splits[0] if config.split is None else config.split
        if self.split not in self.splits:
            raise SpecError(f"split: {self.name} has no '{self.split}'; {did_you_mean(self.split, self.splits)}")
        if config.prompt is not None and "{question}" in (self.asks or "") and "{question}" not in config.prompt:
            raise SpecError(f"prompt: every row of {self.name} asks its own question: write {{question}} where it goes")

    @property
    def name(self) -> str:
        """Its component's name, without the package's."""
        return str(self.config.type or type(self).__name__.lower()).rpartition(":")[2]

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Any]:
        """Metrics of the split, `{type: name, option: value}` by the names they have in the record; none where only a
        judge scores."""

    @property
    def not_computed(self) -> str:
        """What the official scoring has besides, and is not computed here; empty: nothing."""
        return ""

    @abstractmethod
    def items(self, root: Path) -> Iterator[Item]:
        """The items of the split.

        Raises:
            ManifestError: a file is missing, or a row is wrong; names the file, the line and the key.
        """

    def found(self, root: Path, *names: str) -> Path:
        """The first of these files or folders below the root that there is.

        Raises:
            ManifestError: there is none of them; says where they come from.
        """
        for name in names:
            if (root / name).exists():
                return root / name
        raise ManifestError(f"{root}: holds no {' and no '.join(names)}; {self.name} comes from {self.home}")

    def listed(self, choices: Sequence[str]) -> str:
        """Choices as the official prompt has them."""
        return "\n".join(choices)

    def load(self, root: str | Path) -> Loaded:
        """The rows of the split.

        Raises:
            ManifestError: the root or a file of it is missing, a row is wrong, two have one id, or clips are missing
                and `missing` is `stop`, or all of them are.
        """
        root = Path(root).expanduser()
        if not root.is_dir():
            raise ManifestError(f"{root}: no such folder; {self.name} comes from {self.home}")
        items = list(self.items(root))
        if not items:
            raise ManifestError(f"{root}: {self.name} has no items for the split '{self.split}' here")
        self._check_ids(items)
        gone = {item.id: path for item in items for path in item.audio if not (root / path).is_file()}
        if gone and (self.config.missing == "stop" or len(gone) == len(items)):
            shown = ", ".join(list(dict.fromkeys(gone.values()))[:SHOWN]) + ", ..." * (len(gone) > SHOWN)
            remedy = "; missing: skip leaves them out" if len(gone) < len(items) else f"; they come from {self.home}"
            raise ManifestError(
                f"{root}: the clips of {len(gone):,} of {len(items):,} items are missing: {shown}{remedy}"
            )
        return Loaded(tuple(self._row(item) for item in items if item.id not in gone), tuple(gone))

    def _check_ids(self, items: Sequence[Item]) -> None:
        places: dict[str, str] = {}
        for item in items:
            if (before := places.setdefault(item.id, item.place)) is not item.place:
                raise ManifestError(f"{item.place}: the id '{item.id}' stands in {before} too; an id names one item")

    def _row(self, item: Item) -> Row:
        clips = [f"{ROOT}/{path}" for path in item.audio]
        row: Row = {"id": item.id, "audio": clips[0] if len(clips) == 1 else clips, "task": self.task}
        asks = self.asks if self.config.prompt is None else self.config.prompt
        if asks is not None:
            own = {"question": item.question, "choices": self.listed(item.choices) if item.choices else ""}
            row["prompt"] = FIELD.sub(lambda found: own[found[1]], asks)
        if item.answers:
            row["answer"] = list(item.answers)
        if item.choices:
            row["x_choices"] = list(item.choices)
        return row | {f"x_{name}": value for name, value in item.columns.items() if value is not None}


def rows(file: Path, needs: Iterable[str] = ()) -> Iterator[tuple[str, Row]]:
    """(place, row) of a file of JSON, lines of JSON, CSV or Parquet, each with the keys that are needed.

    Raises:
        ManifestError: it cannot be read, or a row lacks a key; names the file and the line.
    """
    for place, row in source_of(file, {}).rows():
        if isinstance(row, ValueError):
            raise ManifestError(f"{place}: {row}") from row
        if not isinstance(row, dict):
            raise ManifestError(f"{place}: expected a map, found {row!r:.80}")
        check_keys(place, row, needs)
        yield place, row


def check_keys(place: str, row: Mapping[str, Any], needs: Iterable[str]) -> None:
    """ManifestError where a row lacks a key that is needed."""
    if lacks := [key for key in needs if key not in row]:
        raise ManifestError(f"{place}: has no '{lacks[0]}'; it has {', '.join(map(str, row))}")


registry: Registry[Suite] = Registry(Suite, "usam.suites")  # type: ignore[type-abstract]
register = registry.register


def build_suite(component: str | Mapping[str, Any] | SuiteConfig, /, **options: Any) -> Suite:
    """One suite: `build_suite("librispeech", split="test-other").load("/data/LibriSpeech")`.

    Raises:
        SpecError, ComponentError: its name or options are wrong.
    """
    cls, config = build("usam.suites", component, options)
    suite: Suite = cls(config)
    return suite
