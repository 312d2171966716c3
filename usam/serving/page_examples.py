"""Clips of the miniature world, made when the page starts, for visitors who have none at hand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from usam.data.world import PROMPTS, write_world
from usam.serving.page_answers import Known

OF_EACH = 2  # clips of each task
KINDS = {"asr": "Speech", "s2tt": "Speech to translate", "aac": "Sounds", "mc": "Music"}
MISSING = "There are no example clips: the server lacks eSpeak NG (pip install 'usam[demo]')."


@dataclass(frozen=True)
class Example:
    """A clip that visitors may take, and what is true of it."""

    label: str
    file: Path
    task: str
    prompt: str
    known: Known

    @property
    def key(self) -> str:
        """By which a clip that is given is recognised as this one."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def examples(folder: Path, seed: int = 0) -> list[Example]:
    """Write a few clips of each task into a folder that is not there yet.

    Raises:
        ImportError: eSpeak NG, which speaks, is not installed.
    """
    found = []
    manifests = write_world(folder, train=0, dev=0, test=OF_EACH, seed=seed)["test"]
    for task, manifest in manifests.items():
        for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
            known = Known(tuple(answers), row["meta"]["events"])
            label = f"{KINDS[task]} {number}"
            found.append(Example(label, manifest.parent / row["audio"], task, PROMPTS[task], known))
    return found
