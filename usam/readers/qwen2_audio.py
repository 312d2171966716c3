"""Qwen2-Audio's chats: a row is a list of messages, or a map of one under `conversation`."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, messages


class Qwen2Audio(Layout):
    """Blocks name their clips as in transformers: `audio_url`, `audio`, `path` or `url`."""

    forms = (Form(("conversation",), ("id",)),)

    def form(self, row: Any) -> Form | None:
        """A list of messages has it too."""
        if isinstance(row, list) and row and all(isinstance(turn, dict) and "role" in turn for turn in row):
            return self.forms[0]
        return super().form(row)

    def said(self, row: Any) -> Row:
        """The messages are usam's own."""
        if isinstance(row, list):
            return {"messages": row}
        return {"messages": row["conversation"]} | ({"id": row["id"]} if row.get("id") is not None else {})

    def written(self, row: Row) -> Row | list[Any]:
        """Clips as blocks with `audio_url`."""
        turns = []
        for message in messages(row):
            content = [
                {**{k: v for k, v in block.items() if k != "audio"}, "audio_url": block["audio"]}
                if block["type"] == "audio"
                else block
                for block in message["content"]
            ]
            turns.append({"role": message["role"], "content": content})
        return {"conversation": turns, "id": row["id"]} if row.get("id") is not None else turns
