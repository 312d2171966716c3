"""WEST's manifests: `wav, txt`, or `messages` whose content may be a single block."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, single


class West(Layout):
    """`wav, txt` is speech recognition. Beside `messages`, `wav` only repeats a clip in them: kept as `x_wav`."""

    forms = (
        Form(("wav", "txt"), ("key",), ("duration",)),
        Form(("messages", "key"), (), ("wav", "duration")),
    )

    def said(self, row: Any) -> Row:
        """A block that stands alone is put into a list."""
        name = {"id": row["key"]} if row.get("key") is not None else {}
        if "messages" not in row:
            return {**name, "audio": row["wav"], "task": "asr", "answer": row["txt"]}
        turns = row["messages"]
        return {**name, "messages": [_listed(turn) for turn in turns] if isinstance(turns, list) else turns}

    def written(self, row: Row) -> Row:
        """Chats as they are, answers of the task 'asr' as `wav, txt`."""
        name = {"key": row["id"]} if row.get("id") is not None else {}
        kept = {key: row[f"x_{key}"] for key in ("wav", "duration") if f"x_{key}" in row}
        if "messages" in row:
            return {**name, "messages": row["messages"], **kept}
        (text,) = answers(row, most=1)
        return {**name, "wav": single(row), "txt": text, **kept}


def _listed(turn: Any) -> Any:
    """A message whose content is a single block, with a list of it."""
    alone = isinstance(turn, dict) and isinstance(turn.get("content"), dict)
    return {**turn, "content": [turn["content"]]} if alone else turn
