"""Questions come of files, folders, manifests, lines and Python's objects, one after the other, the bad ones too."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usam.data.manifest import ManifestError, Sample
from usam.data.nemo_config import is_config
from usam.data.reading import asking, one, rows
from usam.generate import Answerer, Chat
from usam.processor.audio import AudioError, open_audio
from usam.processor.chat import blocks, flatten
from usam.processor.clip import RANGE
from usam.processor.feature_extractor import is_clip
from usam.readers import KINDS, located, opened_by
from usam.readers.json import Json, is_chat
from usam.readers.usam import ASKING, TAG

SOUND = (
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64",
    ".rf64", ".sph", ".nist", ".voc", ".avr", ".htk",
)  # fmt: skip
"""How the names of files of sound end; others are of sound where libsndfile says so."""
LISTS = (*(kind.removeprefix("*") for kind in KINDS), ".ndjson", ".json.gz", ".csv.gz", ".tsv.gz", ".tar.gz", ".tgz")
SHOWN = 5  # files that a note names
STDIN = "-"


@dataclass(frozen=True)
class Question:
    """What is asked of the model, or why it cannot be."""

    chat: Chat | None
    audio: tuple[Any, ...] = ()
    """The clips as they were named: a path, or a map of it and of a range; None for sound without a name."""
    task: str | None = None
    prompt: str | None = None
    """In words, as the last turn has it."""
    row: str | None = None
    """Where it stands, `file:line`; None for a file of sound, and for what Python gives by itself."""
    id: str | int | None = None
    references: tuple[str, ...] = ()
    """The answers that its row has."""
    fault: Exception | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        return self.row if self.row is not None else " ".join(str(clip) for clip in self.audio) or "the question"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what is not there."""
        said = {"id": self.id, "row": self.row, "task": self.task, "prompt": self.prompt}
        found = {key: value for key, value in said.items() if value is not None}
        return {**found, "audio": list(self.audio)} if self.audio else found


class Asker:
    """Makes questions of what is given.

    Args:
        answerer: whose tasks and prompts are meant.
        prompt, task: asked about everything, instead of what a row asks itself. Without them a row that asks nothing
            in words, and a file, are asked the model's only task.
        reader, audio_root: of manifests, as `Manifest` takes them.
        note: is told what is passed over.

    Raises:
        ValueError: both a prompt and a task, or a task that the model does not know.
    """

    def __init__(
        self,
        answerer: Answerer,
        *,
        prompt: str | None = None,
        task: str | None = None,
        reader: str | None = None,
        audio_root: str | None = None,
        note: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.answerer, self.task, self.reader, self.audio_root, self.note = answerer, task, reader, audio_root, note
        self.asked = None if prompt is None and task is None else answerer.words(prompt, task)
        tasks = answerer.processor.prompts
        self._only = next(iter(tasks)) if len(tasks) == 1 else None

    def words(self) -> tuple[str, str | None]:
        """What is asked where nothing else is said, and the task that it is of; ValueError where there is nothing."""
        if self.asked is not None:
            return self.asked, self.task
        return self.answerer.words(None, self._only), self._only

    @property
    def clips(self) -> int:
        """How many clips the words have tags for; 0 where they do not say where clips stand."""
        return 0 if self.asked is None else len(TAG.findall(self.asked))

    def about(self, *clips: Any) -> Question:
        """One question about one or several clips."""
        audio = tuple(map(_named, clips))
        try:
            words, task = self.words()
            return Question(self.answerer.ask(list(clips), words), audio, task, words)
        except ValueError as error:
            return Question(None, audio, fault=error)

    def path(self, given: str | Path) -> Iterator[Question]:
        """Questions about a file of sound or a folder of them, or those of a manifest.

        Raises:
            ValueError: it is no manifest, and nothing says what to ask.
        """
        if is_manifest(given, self.reader):
            return self.rows(given)
        self.words()
        return (found if isinstance(found, Question) else self.about(found) for found in self.files(given))

    def files(self, given: str | Path) -> Iterator[str | Question]:
        """The files of sound in a folder, sorted, or the file itself; and the questions that cannot be asked."""
        if not Path(given).expanduser().is_dir():
            yield str(given)
            return
        others, count = [], 0
        for file in _within(Path(given).expanduser()):
            if isinstance(file, OSError):
                yield Question(None, (str(file.filename),), fault=file)
            elif is_sound(file):
                count += 1
                yield str(file)
            else:
                others.append(str(file.relative_to(Path(given).expanduser())))
        if count == 0:
            what = f"none of its {len(others):,} files is sound" if others else "there is no file in it"
            yield Question(None, (str(given),), fault=ValueError(f"{given}: {what} that can be read"))
        elif others:
            shown = ", ".join(others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
            self.note(f"{given}: passed over, as no sound that can be read: {len(others):,} files ({shown})")

    def rows(self, given: Any) -> Iterator[Question]:
        """The questions of a manifest or an object of rows; a row that is wrong is one that cannot be asked."""
        prompts = self.answerer.processor.prompts
        try:
            for place, found in rows(given, prompts, prompt=self.asked, reader=self.reader, audio_root=self.audio_root):
                yield self._row(place, found)
        except (ValueError, OSError) as error:
            name = given if isinstance(given, (str, Path)) else type(given).__name__
            yield Question(None, row=str(name), fault=error)

    def row(self, row: Any, place: str | None = None) -> Question:
        """The question of one row, which stands in no file."""
        named = place or "the row"
        try:
            given = {"prompt": self.asked, "reader": self.reader, "audio_root": self.audio_root}
            found: Sample | ManifestError = one(named, row, self.answerer.processor.prompts, **given)
        except ManifestError as error:
            found = error
        return self._row(place, found)

    def lines(self, lines: Iterable[bytes], first: int = 1) -> Iterator[Question]:
        """The questions of lines: a path, or a row as JSON.

        Args:
            lines: as they were read; empty ones ask nothing.
            first: number of the first.
        """
        for number, line in enumerate(lines, first):
            place, text = f"{STDIN}:{number}", os.fsdecode(line).strip("\r\n")
            if not text.strip():
                continue
            if text.lstrip()[0] in "{[" and not os.path.exists(text):
                try:
                    value = Json.value(line, place)
                except ManifestError as error:
                    value = error
                if text.lstrip()[0] == "{" or not isinstance(value, ValueError):
                    yield self.row(value, place)
                    continue
            try:
                yield from self.path(text)
            except ValueError as error:
                yield Question(None, (text,), row=place, fault=error)

    def single(self, given: Any) -> Question | None:
        """The question of what is one; None where it is none or several."""
        if isinstance(given, Question):
            return given
        if isinstance(given, (str, Path)):
            several = Path(given).expanduser().is_dir() or is_manifest(given, self.reader)
            return None if several else self.about(str(given))
        if isinstance(given, Mapping):
            return self.row(dict(given)) if any(key in given for key in ASKING) else self.about(dict(given))
        if is_chat(given):
            return self.row(list(given))
        if isinstance(given, (list, tuple)):
            return self.about(given) if is_clip(given) else None
        sound = isinstance(given, (bytes, bytearray, memoryview)) or any(
            hasattr(given, name) for name in ("__array__", "read", "get_all_samples")
        )
        return self.about(given) if sound and not opened_by(given) else None

    def several(self, given: Any) -> Iterator[Question]:
        """The questions of a folder, a manifest, a table, or of each item of what holds several."""
        if isinstance(given, (str, Path)):
            yield from self.path(given)
        elif not isinstance(given, (list, tuple, Iterator)):
            yield from self.rows(given)
        else:
            for item in given:
                found = self.single(item)
                if found is not None:
                    yield found
                else:
                    yield from self.several(item)

    def _row(self, place: str | None, found: Sample | ManifestError) -> Question:
        """The question of a row, or what is wrong with it."""
        if isinstance(found, ManifestError):
            return Question(None, row=place, fault=found)
        words, task = _words(found), found.task
        if not words and (self._only is not None or self.answerer.processor.prompts):
            try:
                words, task = self.words()
                found = asking(found, words)
            except ValueError as error:
                told = f"{found.origin}: asks nothing in words: {error}"
                return Question(None, _heard(found), row=place, id=found.id, fault=ValueError(told))
        elif self.asked is not None:
            task = self.task
        return Question(found.question, _heard(found), task, words, place, found.id, found.references)


def is_manifest(path: str | Path, reader: str | None = None) -> bool:
    """Whether a path is asked for its rows: by its name, or as a reader says who knows such files or folders.

    Args:
        reader: name of a reader, which opens every file that is not called as files of sound are.
    """
    name = str(path).lower()
    if name.endswith(SOUND):
        return False
    if name.endswith(LISTS) or is_config(name):
        return True
    whole = Path(located(path))
    return (reader is not None and whole.is_file()) or opened_by(whole)


def is_sound(file: Path) -> bool:
    """Whether a file is of sound: by its name, or as its header says."""
    if file.suffix.lower() in SOUND:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever reads it is told
            with open_audio(file, 16000):
                return True
    except (AudioError, OSError):
        return False


def _within(folder: Path) -> Iterator[Path | OSError]:
    """All files in a folder and in those in it, also behind links; and what cannot be looked into."""
    failed: list[OSError] = []
    seen = set[str]()
    for at, inner, files in os.walk(folder, onerror=failed.append, followlinks=True):
        yield from iter(failed)
        failed.clear()
        if (real := os.path.realpath(at)) in seen:  # a link to a folder above it
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        yield from (Path(at, name) for name in sorted(files))
    yield from failed


def _words(sample: Sample) -> str:
    """What the last turn asks in words; empty where it has none."""
    texts = [block["text"] for block in blocks(sample.question[-1]) if block["type"] == "text"]
    if not "".join(texts).strip():
        return ""
    return flatten(sample.question[-1])[0] if len(texts) > 1 else str(texts[0])


def _heard(sample: Sample) -> tuple[Any, ...]:
    """The clips of a sample as they are named."""
    messages: Sequence[Mapping[str, Any]] = sample.question
    found = [block for turn in messages for block in blocks(turn) if block["type"] != "text"]
    return tuple(map(_named, found))


def _named(clip: Any) -> Any:
    """A clip's path, with its range if it has one; None where it has no name."""
    source, part = clip, dict[str, Any]()
    while isinstance(source, Mapping):
        part |= {key: source[key] for key in RANGE if source.get(key) is not None}
        source = next((source[key] for key in ("path", "audio", "url") if source.get(key) is not None), None)
    if not isinstance(source, (str, Path)) or str(source).startswith("data:"):
        return None
    return {"audio": str(source), **part} if part else str(source)
