"""WEST's and WeNet's manifests: `wav, txt`, or `messages` whose content may be a single block."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, answers, single


class West(Layout):
    """`wav, txt` is speech recognition, of the part from `start` to `end` where they are given.

    Beside `messages`, `wav` only repeats a clip in them: kept as `x_wav`.
    """

    forms = (
        Form(("wav", "txt"), ("key", "start", "end"), ("duration", "speaker", "lang")),
        Form(("messages", "key"), (), ("wav", "duration")),
    )

    def said(self, row: Any) -> Row:
        """A block that stands alone is put into a list."""
        name = {"id": row["key"]} if row.get("key") is not None else {}
        if "messages" not in row:
            part = {key: row[key] for key in ("start", "end") if row.get(key) is not None}
            return {**name, "audio": row["wav"], "task": "asr", "answer": row["txt"], **part}
        turns = row["messages"]
        return {**name, "messages": [_listed(turn) for turn in turns] if isinstance(turns, list) else turns}

    def written(self, row: Row) -> Row:
        """Chats as they are, answers of the task 'asr' as `wav, txt`."""
        name = {"key": row["id"]} if row.get("id") is not None else {}
        chat = "messages" in row
        kept = {key: row[f"x_{key}"] for key in self.forms[chat].kept if f"x_{key}" in row}
        if chat:
            return {**name, "messages": row["messages"], **kept}
        (text,) = answers(row, most=1)
        part = {key: row[key] for key in ("start", "end") if row.get(key) is not None}
        part |= {"start": row["offset"]} if row.get("offset") is not None else {}
        part |= {"end": part.get("start", 0) + row["duration"]} if row.get("duration") is not None else {}
        return {**name, "wav": single(row), "txt": text, **part, **kept}


def _listed(turn: Any) -> Any:
    """A message whose content is a single block, with a list of it."""
    alone = isinstance(turn, dict) and isinstance(turn.get("content"), dict)
    return {**turn, "content": [turn["content"]]} if alone else turn
