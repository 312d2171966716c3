"""U-SAM's manifests: `key, wav, label, task`, several references joined by tabs."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, single


class USam(Layout):
    """The task's prompt comes from the spec; `dur`, the length of the file, is kept as `x_dur`."""

    forms = (Form(("key", "wav", "label", "task"), kept=("dur",)),)

    def said(self, row: Any) -> Row:
        """`label` with tabs is a list of references."""
        label = row["label"]
        told = label.split("\t") if isinstance(label, str) and "\t" in label else label
        return {"id": row["key"], "audio": row["wav"], "task": row["task"], "answer": told}

    def written(self, row: Row) -> Row:
        """References are joined by tabs."""
        dur = {"dur": row["x_dur"]} if "x_dur" in row else {}
        label = "\t".join(answers(row))
        return {"key": row.get("id"), "wav": single(row), "label": label, "task": row.get("task"), **dur}
