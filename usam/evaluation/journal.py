"""Answers are written down as they come, each process into a file of its own, so that a killed evaluation goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from usam.evaluation.record import JOURNAL, RECORD, UNFINISHED, RecordError, line_of
from usam.saving import write_whole


class Processes:
    """Who answers: this process is the `rank`-th of so many, as torchrun and accelerate launch say.

    They tell each other what they have through the CPU, whatever the model runs on.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0)) if self.count > 1 else 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0)) if self.count > 1 else 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """While they can tell each other."""
        own = self.count > 1 and not dist.is_initialized()
        if own:  # one process may have to wait long for another's last answers
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        try:
            yield
        finally:
            if own:
                dist.destroy_process_group()

    def gathered(self, own: Any) -> list[Any]:
        """What each process has; each waits for all."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return found


class Journal:
    """What was answered so far.

    Args:
        folder: of the evaluation.
        asked: what is asked of which model; whoever goes on must ask the same.
        rank: of this process, which writes a file of its own.

    Raises:
        RecordError: the folder holds another evaluation; says in what it differs.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], rank: int) -> None:
        self.folder = folder
        self._file = folder / JOURNAL.replace("*", str(rank))
        self._handle: IO[bytes] | None = None
        for name in (RECORD, UNFINISHED):
            if (folder / name).is_file():
                _check(folder, name, asked)
        if rank == 0 and not (folder / RECORD).is_file() and not (folder / UNFINISHED).is_file():
            write_whole(folder / UNFINISHED, json.dumps({"asked": asked}, indent=2, ensure_ascii=False) + "\n")

    def read(self) -> dict[int, dict[str, Any]]:
        """The answers of all processes that wrote here, by row; a line that a killed one left unfinished is none."""
        found = {}
        for file in sorted(self.folder.glob(JOURNAL)):
            text = file.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if file == self._file and len(whole) < len(text):
                os.truncate(file, len(whole))
            for line in map(json.loads, whole.splitlines()):
                found[int(line["place"])] = line
        return found

    def add(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write down answers; when this returns they are on the disk."""
        text = "".join(map(line_of, answers)).encode()
        if self._handle is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self._file.open("ab")
        self._handle.write(text)
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        """No more will come."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _check(folder: Path, name: str, asked: Mapping[str, Any]) -> None:
    try:
        before = json.loads((folder / name).read_text(encoding="utf-8"))["asked"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{folder / name}: is broken ({error!r}); name another --output, or remove it") from error
    now = json.loads(json.dumps(asked))
    differing = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    if differing:
        told = "; ".join(f"{key}: {_short(before.get(key))} then, {_short(now.get(key))} now" for key in differing)
        raise RecordError(
            f"{folder}: holds the evaluation of something else; {told}. Name another --output, or ask for the same"
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
