"""Hugging Face `datasets`: a Dataset, streamed or not, or a folder that `save_to_disk` wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from usam.readers import ManifestError, Placed, Source, without_nothing


class Datasets(Source):
    """`Audio` columns are taken as the bytes or the path that they hold (`decode=False`): usam decodes them itself."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Objects of the package, and folders that hold a saved one."""
        if isinstance(source, (str, os.PathLike)):
            return any(Path(source, name).is_file() for name in ("state.json", "dataset_dict.json"))
        return type(source).__module__.partition(".")[0] == "datasets"

    @property
    def folder(self) -> str:
        """The saved dataset's folder; the working directory for an object."""
        return str(self.source) if isinstance(self.source, (str, os.PathLike)) else ""

    def rows(self) -> Iterator[Placed]:
        """Each row with its number from 0, as the dataset has it; what is null is no key at all."""
        try:
            import datasets
        except ImportError as error:
            raise ManifestError(f"{self.source}: read with datasets: pip install 'usam[datasets]'") from error
        data, name = self.source, type(self.source).__name__
        if isinstance(data, (str, os.PathLike)):
            name, data = str(data), datasets.load_from_disk(os.fspath(data))
        if isinstance(data, dict):  # a DatasetDict, streamed or not
            raise ManifestError(f"{name}: holds the splits {', '.join(data)}: give one of them, such as data['train']")
        for column, feature in (data.features or {}).items():
            if isinstance(feature, datasets.Audio):
                data = data.cast_column(column, datasets.Audio(sampling_rate=feature.sampling_rate, decode=False))
        for number, row in enumerate(data):
            yield f"{name}, row {number}", without_nothing(row)
