"""CSV and TSV: the first line names the columns, which are the keys of rows of any layout."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usam.processor.clip import RANGE
from usam.readers import ManifestError, Placed, Row, Source
from usam.readers.json import text_lines

SOUND = (".wav", ".flac", ".mp3", ".ogg", ".opus")
BETWEEN = (",", ";", "\t", "|")
LISTS = ("audio", "audios", "messages", "answer", "meta", "conversations", "history", "expand_wav")


class Csv(Source):
    """Cells are text, as it stands; an empty one is no key at all.

    Columns of a part (`start`, `duration` ...) are numbers, and a cell of a column that may be a list or a map
    (`audio`, `answer`, `messages`, `meta` ...) is read as JSON where it is a whole list of texts or maps, or a map.
    `.tsv` files have tabs between cells; others what the first line has most of: commas, semicolons, tabs or bars.
    Spaces behind each of them in the first line stand behind them in all lines, and are no part of a cell.
    """

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Files that end in .csv or .tsv, gzipped (.gz) or not."""
        if not isinstance(source, (str, os.PathLike)):
            return False
        return Path(str(source).removesuffix(".gz")).suffix.lower() in (".csv", ".tsv") and Path(source).is_file()

    def rows(self) -> Iterator[Placed]:
        """Each row with the line on which it begins."""
        file = Path(self.source)
        lines = (line for _, line in text_lines(file))
        head = next(lines, "")
        most = max(BETWEEN, key=head.count)  # the first of those that occur alike
        between = "\t" if ".tsv" in [suffix.lower() for suffix in file.suffixes] else most
        if between not in head and most in head:
            raise ManifestError(f"{file}:1: has no tabs, but {most!r} between its cells: name it .csv")
        try:
            written = next(csv.reader([head], delimiter=between, strict=True), [])
        except csv.Error as error:
            raise ManifestError(f"{file}:1: not CSV: {error}; the first line names each column once") from error
        names = [name.strip() for name in written]
        if not all(names) or len(set(names)) < len(names):
            hint = "" if all(names) else "; a column has no name (pandas writes its index so: to_csv(..., index=False))"
            raise ManifestError(f"{file}:1: the first line names each column once, found {head.strip()[:120]!r}{hint}")
        if sounds := [name for name in names if name.lower().endswith(SOUND)]:
            raise ManifestError(f"{file}:1: the first line names the columns, such as audio,text; found '{sounds[0]}'")
        spaced = len(written) > 1 and all(name.startswith(" ") for name in written[1:])
        table = csv.reader(lines, delimiter=between, strict=True, skipinitialspace=spaced)
        begins = 2
        while True:
            origin = f"{file}:{begins}"
            try:
                cells = next(table, None)
            except csv.Error as error:
                raise ManifestError(f"{origin}: not CSV: {error}; a quote within quotes is written twice") from error
            if cells is None:
                return
            begins = table.line_num + 2
            if len(cells) == len(names):
                yield origin, _row(dict(zip(names, cells, strict=True)))
            elif cells:
                yield origin, ValueError(f"{len(cells)} cells, and {len(names)} columns: {', '.join(names)}")


def _row(cells: dict[str, str]) -> Row | ValueError:
    try:
        return {name: _cell(name, cell) for name, cell in cells.items() if cell != ""}
    except ValueError as error:
        return error


def _cell(name: str, cell: str) -> Any:
    if name in RANGE:
        try:
            return int(cell) if name == "channel" else float(cell)
        except ValueError as error:
            raise ValueError(f"'{name}' is a number, found {cell[:80]!r}") from error
    if name in LISTS and cell[0] in "[{":
        try:
            value = json.loads(cell)
        except ValueError:
            return cell
        listed = value if isinstance(value, list) else [value]
        return value if all(isinstance(item, (str, dict, list)) for item in listed) else cell
    return cell
