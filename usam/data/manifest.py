"""A manifest is a list of samples, read from files or objects of many formats, every row checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from usam.data.mixture import Entry, expanded
from usam.data.nemo_config import is_config
from usam.readers import ManifestError, Opened, Sample, read
from usam.readers.usam import sample
from usam.spec.page import SpecError

__all__ = ["Manifest", "ManifestError", "Sample"]

LISTED = 10  # wrong rows that an error tells in full


class Manifest(Dataset[Sample]):
    """The samples of one or several files, every row checked; audio is read when a batch is made.

    A row is `{"audio": clip or [clips], "prompt": text or "task": name, "answer": text}`, or
    `{"messages": [...], "audio": [...]}` with the clips in place of `<|audio|>` (or `<audio>`) tags, or as blocks
    inside the messages. A clip is a path, or a map of a source and the part that is meant, as `Clip.of` reads it; a
    row of one clip may say the part itself (`start`, `duration` ...). Paths are relative to the manifest.

    A list of answers holds several that are right: the first is learned, all are the sample's `references`.
    Further keys: `id`, and the user's own, `meta` and what begins with `x_`, which become the sample's `extra`.

    Files of other formats are put into these words by the readers (`usam list` names them), each file by the one that
    its first row is recognised by. A YAML file is a NeMo configuration: all rows of the manifests that it lists, once;
    its weights are for training, `data.train` of a run.

    Args:
        files: the files.
        prompts: instruction of each task.
        need_answer: whether a row without an answer is an error.
        reader: name of the reader of all files, where it shall not be recognised.
        audio_root: what `{audio_root}` at the beginning of a path stands for.

    Raises:
        ManifestError: a missing, empty or unreadable file, one of a format that no reader knows, or rows that are
            wrong: each with file, line and key.
        ComponentError: there is no such reader.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        prompts: Mapping[str, str],
        *,
        need_answer: bool = False,
        reader: str | None = None,
        audio_root: str | Path | None = None,
    ) -> None:
        files = [files] if isinstance(files, (str, Path)) else list(files)
        if not files:
            raise ManifestError("no manifest was given: name one file, or several")
        root = None if audio_root is None else os.path.expandvars(os.path.expanduser(audio_root))
        self.samples: list[Sample] = []
        for file in files:
            path = Path(os.path.expandvars(os.path.expanduser(file)))
            if is_config(path):
                self.samples += _listed(path, prompts, need_answer, root)
                continue
            self.samples += _read(read(path, prompts, reader), str(path), prompts, need_answer, root)

    @classmethod
    def of(
        cls,
        given: Any,
        prompts: Mapping[str, str] | None = None,
        *,
        need_answer: bool = False,
        reader: str | None = None,
        audio_root: str | Path | None = None,
    ) -> Manifest:
        """The samples of anything that a reader opens: files, a list of rows, a `datasets.Dataset`, a Manifest.

        Paths in rows that stand in no file are relative to the working directory.
        """
        if isinstance(given, Manifest):
            return given
        listed = isinstance(given, (list, tuple)) and all(isinstance(item, (str, Path)) for item in given)
        if isinstance(given, (str, Path)) or listed:
            return cls(given, prompts or {}, need_answer=need_answer, reader=reader, audio_root=audio_root)
        manifest = cls.__new__(cls)
        root = None if audio_root is None else str(audio_root)
        opened = read(given, prompts or {}, reader)
        manifest.samples = _read(opened, type(given).__name__, prompts or {}, need_answer, root)
        return manifest

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _listed(path: Path, prompts: Mapping[str, str], need_answer: bool, audio_root: str | None) -> list[Sample]:
    """The rows of the manifests that a NeMo configuration lists."""
    try:
        found = expanded([Entry((str(path),), "")])
    except SpecError as error:
        raise ManifestError(str(error)) from error
    samples: list[Sample] = []
    for entry in found:
        asked = entry.prompts(prompts)
        for file in entry.files:
            rows = _read(read(file, asked, entry.reader), file, asked, need_answer, audio_root)
            samples += map(entry.marked, rows)
    return samples


def _read(
    opened: Opened, name: str, prompts: Mapping[str, str], need_answer: bool, audio_root: str | None
) -> list[Sample]:
    samples: list[Sample] = []
    faults: list[str] = []
    wrong = 0
    own, folder = opened.layout.own, opened.folder
    read_as = "" if opened.name == "usam" else f" (read as '{opened.name}')"
    for origin, row in opened.rows:
        try:
            if isinstance(row, ValueError):
                raise row
            samples.append(sample(own(row), origin, folder, prompts, need_answer, audio_root))
        except (ValueError, RecursionError) as error:
            wrong += 1
            if wrong <= LISTED:
                what = "maps or lists are nested too deeply" if isinstance(error, RecursionError) else error
                faults.append(f"{origin}: {what}{read_as}")
    if wrong > 1:
        faults.insert(0, f"{name}: {wrong} rows are wrong" + (f"; the first {LISTED}:" if wrong > LISTED else ":"))
    if faults:
        raise ManifestError("\n".join(faults))
    if not samples:
        raise ManifestError(f"{name}: no rows; write one JSON map a line")
    return samples
