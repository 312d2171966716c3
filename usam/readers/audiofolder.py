"""Folders of sound with a `metadata.csv` or `metadata.jsonl` that names its files, as Hugging Face's `audiofolder`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usam.readers import ManifestError, Placed, Source
from usam.readers.csv import Csv
from usam.readers.json import Json

NAMES = ("metadata.csv", "metadata.jsonl")


class AudioFolder(Source):
    """The rows of the file, whose paths (`file_name`) are relative to the folder."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Folders that hold one of these files."""
        return isinstance(source, (str, os.PathLike)) and any(Path(source, name).is_file() for name in NAMES)

    @property
    def folder(self) -> str:
        """The folder itself."""
        return str(self.source)

    def rows(self) -> Iterator[Placed]:
        """Each row with the line of the file."""
        csv, jsonl = (Path(self.source, name) for name in NAMES)
        if csv.is_file() and jsonl.is_file():
            raise ManifestError(f"{self.source}: holds {' and '.join(NAMES)}: name the one that is meant")
        return Csv(csv).rows() if csv.is_file() else Json(jsonl).rows()
