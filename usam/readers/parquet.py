"""Parquet files, read with pyarrow: `Audio` columns of Hugging Face datasets are maps of bytes and path."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usam.readers import ManifestError, Placed, Source, without_nothing

SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")  # as Hugging Face names the files of a split
BATCH = 256  # rows that are unpacked at once


class Parquet(Source):
    """A file, or a folder of files that are read in the order of their names."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Files that end in .parquet, and folders that hold some."""
        if not isinstance(source, (str, os.PathLike)):
            return False
        path = Path(source)
        return any(path.glob("*.parquet")) if path.is_dir() else path.is_file() and path.suffix == ".parquet"

    @property
    def folder(self) -> str:
        """The folder of the files."""
        return str(self.source) if Path(self.source).is_dir() else super().folder

    def rows(self) -> Iterator[Placed]:
        """Each row with its number from 1; what is null is no key at all."""
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise ManifestError(f"{self.source}: Parquet is read with pyarrow: pip install 'usam[datasets]'") from error
        path = Path(self.source)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        splits = {match[1] for file in files if (match := SHARD.fullmatch(file.stem))}
        if len(splits) > 1:
            raise ManifestError(f"{path}: holds the splits {', '.join(sorted(splits))}: name the files of one")
        for file in files:
            number = 0
            try:
                with parquet.ParquetFile(file) as table:
                    for batch in table.iter_batches(BATCH):
                        for row in batch.to_pylist():
                            number += 1
                            yield f"{file}:{number}", without_nothing(row)
            except (ArrowException, OSError) as error:
                raise ManifestError(f"{file}: cannot be read as Parquet after row {number}: {error}") from error
