"""SLAM-LLM's manifests: `key, source, target`, with a prompt of the row's own or that of the task 'asr'."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, single


class SlamLlm(Layout):
    """`key` becomes the `id`; lengths that were counted before are kept as `x_source_len` and `x_target_len`."""

    forms = (Form(("key", "source", "target"), ("prompt",), ("source_len", "target_len")),)

    def said(self, row: Any) -> Row:
        """Without a prompt it is speech recognition, as in SLAM-LLM."""
        asked = {"task": "asr"} if row.get("prompt") is None else {"prompt": row["prompt"]}
        return {"id": row["key"], "audio": row["source"], **asked, "answer": row["target"]}

    def written(self, row: Row) -> Row:
        """The task's name has no place in it, except for 'asr', which a row without a prompt means."""
        kept = {key: row[f"x_{key}"] for key in self.forms[0].kept if f"x_{key}" in row}
        asked = {} if row.get("prompt") is None else {"prompt": row["prompt"]}
        (target,) = answers(row, most=1)
        return {"key": row.get("id"), "source": single(row), "target": target, **asked, **kept}
