"""What suites need to read: tables without quotes, values of the kind that is expected, and how clips are called."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.readers import ManifestError, Row
from usam.readers.json import text_lines
from usam.spec.page import SpecError
from usam.suites import check_keys

SOUND = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def plain_tsv(file: Path, needs: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """(place, row) of tabs between cells without quotes, in which a backslash keeps the character behind it."""
    names: list[str] = []
    for number, line in text_lines(file):
        cells = [re.sub(r"\\(.)", r"\1", cell) for cell in re.split(r"(?<!\\)\t", line.rstrip("\r\n"))]
        if not names:
            names = cells
            check_keys(f"{file}:1", dict.fromkeys(names), needs)
        elif len(cells) != len(names):
            raise ManifestError(f"{file}:{number}: {len(cells)} cells, and {len(names)} columns: {', '.join(names)}")
        else:
            yield f"{file}:{number}", dict(zip(names, cells, strict=True))


def text(place: str, row: Mapping[str, Any], key: str) -> str:
    """The text under a key; whole numbers are texts too."""
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ManifestError(f"{place}: '{key}' is text, found {value!r:.80}")
    return str(value)


def whole(place: str, row: Mapping[str, Any], key: str) -> int:
    """The whole number under a key, which tables may write as `30` or `30.0`."""
    try:
        value = float(row[key])
        if value == int(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ManifestError(f"{place}: '{key}' is a whole number, found {row[key]!r:.80}")


def texts(place: str, row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts under a key, also where it is written as JSON or as Python writes it; empty where missing."""
    value = row.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(value)
                break
            except (ValueError, SyntaxError):
                continue
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ManifestError(f"{place}: '{key}' is a list of texts, found {row[key]!r:.80}")
    return tuple(value)


def choices(place: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a question lets choose from: two texts at least."""
    found = texts(place, row, "choices")
    if len(found) < 2:
        raise ManifestError(f"{place}: 'choices' has two texts or more, found {row['choices']!r:.80}")
    return found


def below(path: str) -> str:
    """A path that a file has, as one below the root."""
    return re.sub(r"^(\./)+", "", path)


def naming(
    root: Path, folders: Sequence[str], patterns: Sequence[str], clips: Sequence[Mapping[str, Any]], home: str
) -> str:
    """How clips are called, `folder/{id}.wav`: that of the folders, patterns and kinds of sound which finds most.

    Raises:
        ManifestError: none finds any; names where was looked, and what for.
    """
    best, most = "", 0
    for folder in folders:
        place = root / folder
        names = {file.name for file in place.iterdir()} if place.is_dir() else set()
        for pattern in patterns:
            for kind in SOUND:
                hits = sum(f"{pattern.format(**clip)}{kind}" in names for clip in clips)
                if hits > most:
                    best, most = f"{folder}/{pattern}{kind}".removeprefix("./"), hits
    if not most:
        looked = ", ".join(str(root / folder) for folder in folders)
        such = ", ".join(f"{pattern.format(**clips[0])}.wav" for pattern in patterns)
        raise ManifestError(f"no clip is found in {looked}, under names such as {such}; {home}")
    return best


def filled(called: str, clip: Mapping[str, Any]) -> str:
    """A clip's path below the root; SpecError where the option `clips` names a column that there is not."""
    try:
        return called.format(**clip)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{key}}}" for key in clip)
        raise SpecError(f"clips: {called!r} cannot be filled in ({error}); known: {known}") from error
