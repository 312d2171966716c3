"""SLAM-LLM's manifests of many tasks: `key, task, path, target`, with prompts in a `multiprompt.jsonl` beside."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from usam.readers import Form, Layout, ManifestError, Row, answers, single, text

PROMPTS = "multiprompt.jsonl"
ARCHIVE = re.compile(r"\.ark:\d+$")


class SlamLlmAispeech(Layout):
    """Each row asks with one of its task's prompts in `multiprompt.jsonl` (`{"task": ..., "prompt": ...}` a line).

    Which one is drawn by the row's key, so that every epoch and every machine draws the same. `{}` in it is filled with
    the row's `hotword`. Without that file the spec's `prompts` ask, under the
    task's name in lower case.
    """

    forms = (Form(("key", "task", "path", "target"), ("hotword",), ("source_len", "target_len")),)
    beside = (PROMPTS,)

    @cached_property
    def pool(self) -> dict[str, list[str]]:
        """The prompts of each task, from the file beside the manifest; empty without one."""
        if not isinstance(self.source, (str, os.PathLike)):
            return {}
        file = Path(self.source).parent / PROMPTS
        pool: dict[str, list[str]] = {}
        if file.is_file():
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    pool.setdefault(text(row, "task"), []).append(text(row, "prompt"))
                except (ValueError, KeyError, TypeError) as error:
                    raise ManifestError(
                        f"{file}:{number}: expected {{'task': name, 'prompt': text}}, found {line[:80]}"
                    ) from error
        return pool

    def said(self, row: Any) -> Row:
        """The drawn prompt, filled in; the task keeps its name."""
        task, key, path = text(row, "task"), row["key"], row["path"]
        if isinstance(path, str) and ARCHIVE.search(path):
            raise ValueError(
                f"'path' points into a Kaldi archive ({path}), which is not read: write its sounds as files"
            )
        own = {"id": key, "audio": path, "task": task, "answer": row["target"]}
        if not self.pool:
            asked = self.prompts.get(task.lower())
            own["task"] = task if asked is None else task.lower()
        elif task in self.pool:
            drawn = int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:8], "big")
            asked = own["prompt"] = self.pool[task][drawn % len(self.pool[task])]
        else:
            raise ValueError(f"task '{task}' has no prompt in {PROMPTS}; it has {', '.join(sorted(self.pool))}")
        if row.get("hotword") is not None:
            words = text(row, "hotword")
            if "{}" not in (asked or ""):
                raise ValueError(f"the row has '{words}' to fill in, and the prompt of '{task}' has no {{}} for it")
            own["prompt"] = str(asked).replace("{}", words)
        return own

    def written(self, row: Row) -> Row:
        """Prompts have no place in its rows."""
        kept = {key: row[f"x_{key}"] for key in self.forms[0].kept if f"x_{key}" in row}
        (target,) = answers(row, most=1)
        return {"key": row.get("id"), "task": row.get("task"), "path": single(row), "target": target, **kept}
