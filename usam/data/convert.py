"""Conversion writes the rows of one format in another, and nothing that the other has no place for."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from usam.processor.chat import blocks
from usam.readers import Layout, ManifestError, NoChat, Row, Sample, read, registry
from usam.readers.usam import ROOT, Usam, sample

PATHS = ("audio", "audios", "path", "url", "audio_url")
ELSEWHERE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:|[/~$]|\{audio_root\}")  # a path that is not relative


class ByName(dict[str, str]):
    """Prompts of tasks that nobody named: a task's prompt is its name."""

    def __contains__(self, task: object) -> bool:
        return True

    def __missing__(self, task: str) -> str:
        return f"{{{task}}}"


def convert(
    source: str | Path, out: str | Path, to: str = "usam", *, reader: str | None = None, prompts: Mapping[str, str] = {}
) -> int:
    """Write a manifest in another format, one row a line (gzipped where `out` ends in .gz); returns the rows written.

    Each row is read back from what would be written, and must be the same sample.

    Args:
        source: the manifest.
        out: the file to write; relative paths in rows are made relative to its folder.
        to: name of the reader of the format that is written.
        reader: name of the reader of `source`, where it shall not be recognised.
        prompts: instruction of each task, for formats that write it out; a task that is not in it stands for itself.

    Raises:
        ManifestError: rows that are wrong, or that the other format has no place for: with file, line and what is lost.
        ComponentError: there is no such reader.
    """
    asked = ByName(prompts)
    cls = registry.get(to)
    if not issubclass(cls, Layout):
        written = [name for name, layout in _layouts() if layout.written is not Layout.written]
        raise ManifestError(f"'{to}' is a kind of file, which is only read; write one of {', '.join(written)}")
    layout = cls(None, asked)
    opened = read(Path(source), asked, reader)
    here, there = Path(opened.folder or "."), Path(out).parent
    lines = []
    for origin, row in opened.rows:
        try:
            if isinstance(row, ValueError):
                raise row
            own = _moved(opened.layout.own(row), here, there)
            sample(own, origin, "", asked, audio_root=ROOT)
            lines.append(json.dumps(_written(own, layout, to, asked), ensure_ascii=False))
        except (ValueError, TypeError) as error:
            raise ManifestError(f"{origin}: {error}") from error
    if not lines:
        raise ManifestError(f"{source}: no rows")
    text = ("\n".join(lines) + "\n").encode()
    Path(out).write_bytes(gzip.compress(text) if str(out).endswith(".gz") else text)
    return len(lines)


def _layouts() -> Iterator[tuple[str, type[Layout]]]:
    for name in registry.names():
        cls = registry.get(name)
        if issubclass(cls, Layout):
            yield name, cls


def _written(own: Row, layout: Layout, to: str, prompts: Mapping[str, str]) -> Any:
    """A row as the layout writes it, which reads back as the same sample."""
    before = sample(own, "", "", prompts, audio_root=ROOT)
    if isinstance(layout, Usam):
        return own
    chat = {"messages": list(before.messages), **({} if before.id is None else {"id": before.id}), **before.extra}
    try:
        try:
            written = layout.written(chat if "messages" in own else own)
        except NoChat:
            written = layout.written(chat)
    except ValueError as error:
        raise ValueError(f"'{to}' cannot hold it: {error}") from error
    if isinstance(written, dict):
        written |= {
            key: value for key, value in before.extra.items() if f"x_{key}" not in written and _is_free(layout, key)
        }
        written = {key: value for key, value in written.items() if value is not None}
    try:
        after = sample(layout.own(written), "", "", prompts, audio_root=ROOT)
    except ValueError as error:
        raise ValueError(f"'{to}' cannot hold it: {error}") from error
    if lost := _differences(before, after):
        raise ValueError(f"'{to}' has no place for {', '.join(lost)}")
    return written


def _is_free(layout: Layout, key: str) -> bool:
    """Whether the layout does not write a column of the user's own under a name of its format's."""
    return not any(key == f"x_{kept}" for form in layout.forms for kept in form.kept)


def _differences(a: Sample, b: Sample) -> list[str]:
    pairs = {
        "the task": (a.task, b.task),
        "the id": (a.id, b.id),
        "what is asked and answered": (_plain(a), _plain(b)),
        "all references": (a.others, b.others),
        f"{', '.join(a.extra)}": (dict(a.extra), dict(b.extra)),
    }
    return [what for what, (before, after) in pairs.items() if before != after]


def _plain(one: Sample) -> list[Any]:
    """Messages whose texts are joined, so that two ways to write a chat are equal."""
    turns: list[Any] = []
    for message in one.messages:
        parts: list[Any] = []
        for block in blocks(message):
            if block["type"] == "text" and parts and isinstance(parts[-1], str):
                parts[-1] += block["text"]
            else:
                parts.append(block["text"] if block["type"] == "text" else dict(block))
        turns.append((message["role"], parts))
    return turns


def _moved(thing: Any, here: Path, there: Path, key: str = "") -> Any:
    """A row with its relative paths told from another folder, and bytes as base64."""
    if isinstance(thing, dict):
        if isinstance(sound := thing.get("bytes"), bytes):
            rest = {k: v for k, v in thing.items() if k not in ("bytes", "path") and v is not None}
            return {**rest, "data": base64.b64encode(sound).decode()}
        free = {k: v for k, v in thing.items() if k == "meta" or k.startswith("x_")}
        return {k: v if k in free else _moved(v, here, there, k) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [_moved(item, here, there, key) for item in thing]
    if isinstance(thing, str) and key in PATHS and thing and not ELSEWHERE.match(thing):
        return os.path.relpath(os.path.join(os.path.abspath(here), thing), os.path.abspath(there))
    if hasattr(thing, "read") or isinstance(thing, bytes):
        sound = thing if isinstance(thing, bytes) else thing.read()
        return {"data": base64.b64encode(sound).decode()}
    return thing
