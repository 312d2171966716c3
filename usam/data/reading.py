"""Rows of manifests become samples one by one; what is wrong with one is told with its place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from usam.data.index import code_of, content
from usam.data.mixture import Entry, expanded
from usam.data.nemo_config import is_config
from usam.processor.chat import blocks
from usam.readers import Layout, ManifestError, Sample, beside, layout_of, located, read
from usam.readers.usam import asked, sample
from usam.spec.page import SpecError

CHECKS = ("usam.readers", "usam.readers.usam", "usam.processor.chat", "usam.processor.clip")  # what checks rows


class WrongRow(ManifestError):
    """One row is wrong."""

    @classmethod
    def at(cls, origin: str, error: Exception, layout: str) -> WrongRow:
        """What is wrong with the row that stands there, and which layout it was read as."""
        what = "maps or lists are nested too deeply" if isinstance(error, RecursionError) else error
        return cls(f"{origin}: {what}" + ("" if layout == "usam" else f" (read as '{layout}')"))


@dataclass(frozen=True)
class Rules:
    """How the rows of a file are read; arguments as `Manifest` takes them."""

    prompts: Mapping[str, str]
    need_answer: bool = False
    reader: str | None = None
    audio_root: str | Path | None = None

    @cached_property
    def root(self) -> str | None:
        """What `{audio_root}` stands for, on this machine."""
        return None if self.audio_root is None else located(self.audio_root)

    def sample(
        self, origin: str, row: Any, layout: Layout, name: str, folder: str, prompt: str | None = None
    ) -> Sample:
        """A row as a sample.

        Args:
            origin: where it stands.
            row: as it is written, or the error that reading it gave.
            layout, name: its layout.
            folder: what its paths are relative to.
            prompt: asked of it, instead of what it asks itself.

        Raises:
            ManifestError: what is wrong with it.
        """
        try:
            if isinstance(row, ValueError):
                raise row
            own = layout.own(row)
            chat = isinstance(own, dict) and "messages" in own
            if prompt is not None and isinstance(own, dict) and not chat:
                own = {**own, "prompt": prompt}
            found = sample(own, origin, folder, self.prompts, self.need_answer, self.root)
        except (ValueError, RecursionError) as error:
            raise WrongRow.at(origin, error, name) from error
        return asking(found, prompt) if prompt is not None and chat else found

    def key(self, path: Path) -> str:
        """A hash of them, and of what else decides whether rows of a file are right."""
        said = [sorted(self.prompts.items()), self.need_answer, self.reader, self.root, code_of(*CHECKS)]
        for name in beside():
            file = path.parent / name
            said.append(content(file) if file.is_file() else None)
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def rows(
    given: Any,
    prompts: Mapping[str, str],
    *,
    prompt: str | None = None,
    reader: str | None = None,
    audio_root: str | Path | None = None,
) -> Iterator[tuple[str, Sample | ManifestError]]:
    """The rows of a file or an object one by one, each with its place: a sample, or what is wrong with it alone.

    Nothing is held, and no row waits for the next.

    Args:
        given: as `Manifest.of` takes it, but for lists of files.
        prompts: instruction of each task.
        prompt: asked of every row, instead of what it asks itself.
        reader, audio_root: as `Manifest` takes them.

    Raises:
        ManifestError: no reader knows it, it breaks off, or it holds nothing.
    """
    rules = Rules(dict(prompts), reader=reader, audio_root=audio_root)
    parts: list[tuple[Any, Rules]] = [(given, rules)]
    if isinstance(given, (str, Path)):
        parts = [(path, own) for path, own, _ in files(given, rules)]
    for source, own in parts:
        opened = read(source, own.prompts, own.reader)
        origin = None
        for origin, row in opened.rows:
            try:
                yield origin, own.sample(origin, row, opened.layout, opened.name, opened.folder, prompt)
            except ManifestError as error:
                yield origin, error
        if origin is None:
            name = source if isinstance(source, Path) else type(source).__name__
            raise ManifestError(f"{name}: no rows; write one JSON map a line")


def one(
    origin: str,
    row: Any,
    prompts: Mapping[str, str],
    *,
    prompt: str | None = None,
    reader: str | None = None,
    audio_root: str | Path | None = None,
) -> Sample:
    """A row that stands in no file, of whatever layout; paths are relative to the working directory.

    Raises:
        ManifestError: what is wrong with it.
    """
    if isinstance(row, ValueError):
        raise WrongRow.at(origin, row, "usam") from row
    name, layout = layout_of(origin, row, prompts, reader)
    return Rules(dict(prompts), reader=reader, audio_root=audio_root).sample(origin, row, layout, name, "", prompt)


def asking(sample: Sample, prompt: str) -> Sample:
    """The sample with another question about the same clips.

    Raises:
        ManifestError: it asks several times, or the prompt has tags for more or fewer clips.
    """
    users = [place for place, message in enumerate(sample.question) if message["role"] == "user"]
    if len(users) != 1:
        raise ManifestError(f"{sample.origin}: asks {len(users)} times, so that one prompt cannot stand for its own")
    messages = list(sample.messages)
    clips = [block for block in blocks(messages[users[0]]) if block["type"] != "text"]
    try:
        content = [part if part["type"] == "text" else part["audio"] for part in asked(prompt, clips)]
    except ValueError as error:
        raise ManifestError(f"{sample.origin}: {error}") from error
    messages[users[0]] = {**messages[users[0]], "content": content}
    return replace(sample, messages=tuple(messages))


def files(file: str | Path, rules: Rules) -> list[tuple[Path, Rules, Entry | None]]:
    """The manifests that a name stands for, and how their rows are read: one, or those that a NeMo configuration lists.

    Raises:
        ManifestError: the configuration is wrong.
    """
    path = Path(located(file))
    if not is_config(path):
        return [(path, rules, None)]
    try:
        found = expanded([Entry((str(path),), "")])
    except SpecError as error:
        raise ManifestError(str(error)) from error
    return [
        (Path(own), replace(rules, prompts=dict(entry.prompts(rules.prompts)), reader=entry.reader), entry)
        for entry in found
        for own in entry.files
    ]
