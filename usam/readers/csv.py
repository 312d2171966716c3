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

LISTS = ("audio", "audios", "messages", "answer", "meta", "conversations", "history", "expand_wav")


class Csv(Source):
    """Cells are text, as it stands; an empty one is no key at all.

    Columns of a part (`start`, `duration` ...) are numbers, and a cell of a column that may be a list or a map
    (`audio`, `answer`, `messages`, `meta` ...) is read as JSON where it is a whole list of texts or maps, or a map.
    `.tsv` files have tabs between cells; others commas, or semicolons or tabs where the first line has no comma.
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
        tsv = ".tsv" in [suffix.lower() for suffix in file.suffixes]
        between = "\t" if tsv or ("," not in head and "\t" in head) else ";" if "," not in head and ";" in head else ","
        names = [name.strip() for name in next(csv.reader([head], delimiter=between, strict=True), [])]
        if not all(names) or len(set(names)) < len(names):
            raise ManifestError(f"{file}:1: the first line names each column once, found {head.strip()[:120]!r}")
        table = csv.reader(lines, delimiter=between, strict=True)
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
