"""METEOR 1.5 for English (Denkowski and Lavie, 2014), by its Java program."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from usam.metrics import Statistics
from usam.metrics._captions import Captions, Words
from usam.metrics._java import PACKAGE, jar, java

FIELDS = 23  # what METEOR counts in a sample
SAID, RIGHT, CHUNKS, SAID_FOUND, RIGHT_FOUND = 0, 1, 20, 21, 22


class Meteor(Captions):
    """How well answer and reference align, in words, stems, synonyms and paraphrases: 1 is perfect.

    Of several references a sample is held against the one with the best score. The value is METEOR's of the whole set,
    which is no mean of the samples' scores. The program takes some seconds to start, and runs until the metric is gone.
    """

    class Config(Captions.Config):
        """Options of METEOR."""

        tokenizer: Literal["ptb_like", "ptb_java"] = "ptb_java"
        """What makes words of texts: `ptb_java` is COCO's own, `ptb_like` follows its rules."""

    unit = "share of the words, METEOR's F with recall 5.7 times, less for their order"
    bounds = (0.0, 1.0)
    packages = (PACKAGE,)

    def __init__(self, config: Any) -> None:
        self._program = [
            java("METEOR"),
            "-Dfile.encoding=UTF-8",
            "-Xmx2G",
            "-jar",
            str(jar("METEOR", "meteor", "meteor-1.5.jar")),
        ]
        jar("METEOR", "meteor", "data", "paraphrase-en.gz")
        super().__init__(config)
        self._started: _Program | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_started": None}

    def _ask(self, line: str, answers: int) -> list[str]:
        if self._started is None:
            self._started = _Program([*self._program, "-", "-", "-stdio", "-l", "en", "-norm"])
        return self._started.ask(line, answers)

    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """METEOR's own counts; a sample whose words are all found, in one row, has no break in it."""
        found = []
        for said, right in samples:
            texts = (" ".join(words).replace("|||", "") for words in (*right, said))
            counts = [float(count) for count in self._ask(" ||| ".join(["SCORE", *texts]), 1)[0].split()]
            if len(counts) != FIELDS:
                raise RuntimeError(f"METEOR gave {len(counts)} counts of a sample; expected {FIELDS}")
            whole = counts[SAID_FOUND] == counts[SAID] and counts[RIGHT_FOUND] == counts[RIGHT]
            if counts[CHUNKS] == 1 and whole:
                counts[CHUNKS] = 0.0  # as METEOR does before it adds up
            found.append(counts)
        return found

    def of(self, total: Statistics) -> float:
        """METEOR's score."""
        return float(self._ask("EVAL ||| " + " ".join(map(repr, total.tolist())), 2)[-1])


class _Program:
    """A program that answers lines with lines, until it is forgotten."""

    def __init__(self, command: list[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 closed with the program
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, encoding="utf-8")
        self._turn = threading.Lock()
        weakref.finalize(self, self._process.kill)

    def ask(self, line: str, answers: int) -> list[str]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._turn:
            try:
                stdin.write(line + "\n")
                stdin.flush()
                found = [stdout.readline() for _ in range(answers)]
            except BrokenPipeError:
                found = [""]
        if "" in found:
            self._process.wait()
            self._said.seek(0)
            said = " ".join(self._said.read().decode(errors="replace").split())[-500:]
            raise RuntimeError(f"METEOR ended with {self._process.returncode}: {said}")
        return found
