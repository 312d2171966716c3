"""Hugging Face `datasets`: a Dataset, streamed or not; a folder that `save_to_disk` wrote; an `.arrow` file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from usam.readers import ManifestError, Placed, Source, without_nothing

END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream of Arrow


class Datasets(Source):
    """`Audio` columns are taken as the bytes or the path that they hold (`decode=False`): usam decodes them itself."""

    @classmethod
    def opens(cls, source: Any) -> bool:
        """Objects of the package, folders that hold a saved one, and files that end in .arrow."""
        if isinstance(source, (str, os.PathLike)):
            saved = any(Path(source, name).is_file() for name in ("state.json", "dataset_dict.json"))
            return saved or (Path(source).suffix == ".arrow" and Path(source).is_file())
        return type(source).__module__.partition(".")[0] == "datasets"

    @property
    def folder(self) -> str:
        """The saved dataset's folder; the working directory for an object."""
        if not isinstance(self.source, (str, os.PathLike)):
            return ""
        return str(self.source) if Path(self.source).is_dir() else super().folder

    def rows(self) -> Iterator[Placed]:
        """Each row with its number from 0, as the dataset has it; what is null is no key at all."""
        try:
            import datasets
        except ImportError as error:
            raise ManifestError(f"{self.source}: read with datasets: pip install 'usam[datasets]'") from error
        name = str(self.source) if isinstance(self.source, (str, os.PathLike)) else type(self.source).__name__
        number = -1
        try:
            for number, row in enumerate(_undecoded(_opened(self.source, name, datasets), datasets)):
                yield f"{name}, row {number}", without_nothing(row)
        except ManifestError:
            raise
        except (ImportError, OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's are ValueErrors
            raise ManifestError(f"{name}: cannot be read with datasets after {number + 1} rows: {error}") from error


def _opened(source: Any, name: str, datasets: Any) -> Any:
    """The dataset that was given or is stored there; ManifestError where it is none, or several."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        for file in sorted(Path(path).rglob("*.arrow")) if os.path.isdir(path) else [Path(path)]:
            _check_end(file)
        data = datasets.load_from_disk(path) if os.path.isdir(path) else datasets.Dataset.from_file(path)
    else:
        data = source
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        first = next(iter(data), "train")
        such = f"data['{first}']" if data is source else os.path.join(name, first)
        raise ManifestError(f"{name}: holds the splits {', '.join(data)}: give one of them, such as {such}")
    if not isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        raise ManifestError(f"a {name} holds no rows: give a datasets.Dataset, such as load_dataset(...)['train']")
    return data


def _check_end(file: Path) -> None:
    """ManifestError where a file has lost its end: files are mapped into memory, and what is missing kills us."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - len(END)))
        if stream.read() != END:
            raise ManifestError(f"{file}: cannot be read with datasets: it breaks off; copy or save it again")


def _undecoded(data: Any, datasets: Any) -> Any:
    """The dataset with its `Audio` as it is stored, in lists and maps too, and its rows in Python's own types."""
    if isinstance(data, datasets.Dataset):
        own = data.format["type"] == "custom"  # a transform of the user's
        data = data if own else data.with_format(None)
        sounds = {name: feature for name, feature in data.features.items() if isinstance(feature, datasets.Audio)}
        for name, feature in sounds.items():
            data = data.cast_column(name, replace(feature, decode=False))
        if own or all("Audio(" not in repr(feature) for name, feature in data.features.items() if name not in sounds):
            return data
        data = data.to_iterable_dataset()  # casting what lies deeper would copy it
    return data.with_format(None).decode(False) if data.features else data
