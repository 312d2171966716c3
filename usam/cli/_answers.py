"""A file of answers grows line by line, each whole, and is never written over in silence."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from usam.generate.questions import Question

ASKED = ("id", "row", "audio", "task", "prompt")


class Answers:
    """A file of lines of JSON.

    Args:
        file: its path.
        overwrite: a file that is there is written anew.
        resume: it is gone on with, behind its last whole line.

    Raises:
        ValueError: it is there and neither was said, or both were; it holds something else; it has no folder.
    """

    def __init__(self, file: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        self.file = Path(file)
        self._resume = resume
        self._handle: IO[bytes] | None = None
        if overwrite and resume:
            raise ValueError("--overwrite writes the file anew, --resume keeps what is in it: say one of them")
        if self.file.is_dir() or not self.file.absolute().parent.is_dir():
            what = "is a folder" if self.file.is_dir() else f"there is no folder {self.file.absolute().parent}"
            raise ValueError(f"--output {file}: {what}; name a file, such as answers.jsonl")
        if self.file.is_file() and not (overwrite or resume):
            raise ValueError(
                f"--output {file}: is there already; --resume goes on behind its last line, --overwrite writes it anew"
            )
        self._kept = b""
        if resume and self.file.is_file():
            text = self.file.read_bytes()
            self._kept = text[: text.rfind(b"\n") + 1]
        self._before = deque(_parsed(line, f"{file}:{i}") for i, line in enumerate(self._kept.splitlines(), 1))
        self.count = len(self._before)
        self.failed = sum("error" in line for line in self._before)

    def rest(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions behind those that the file has answers to.

        Raises:
            ValueError: it has answers to other ones.
        """
        for question in questions:
            if not self._before:
                yield question
                continue
            number, line = self.count - len(self._before) + 1, self._before.popleft()
            asked = json.loads(json.dumps(question.to_dict()))
            if asked != {key: line[key] for key in ASKED if key in line}:
                raise ValueError(
                    f"{self.file}:{number}: is of another question than {question.name}; give the same command again, "
                    "or --overwrite"
                )

    def write(self, row: Mapping[str, Any]) -> None:
        """One more line, which is in the file when this returns."""
        if self._handle is None:
            self._handle = self.file.open("r+b" if self._kept else "wb", buffering=0)
            if self._kept:
                self._handle.truncate(len(self._kept))
                self._handle.seek(0, os.SEEK_END)
        # Half a character of a file's name becomes what JSON escapes it as.
        self._handle.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        """No more will come.

        Raises:
            ValueError: there were more answers in the file than questions.
        """
        if self._handle is not None:
            self._handle.close()
        if self._before:
            raise ValueError(f"{self.file}: has {len(self._before):,} answers more than were asked for; --overwrite")


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no JSON, and so no answer of usam's: {error}") from error
    if not isinstance(found, dict) or not ("answer" in found or "error" in found):
        raise ValueError(f"{where}: no answer of usam's, which has an 'answer' or an 'error'")
    return found
