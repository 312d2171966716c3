"""NeMo's `multimodal_conversation`: turns of type 'text' or 'audio', several of which may make one message."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, chat, messages

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
PART = ("duration", "offset", "channel")


class NemoConversation(Layout):
    """Turns of one speaker that follow each other are one message; a turn of audio may name a part of its file."""

    forms = (Form(("conversations",), ("id",), ("custom",)),)

    def form(self, row: Any) -> Form | None:
        """As its keys say, and every turn has a type."""
        turns = row.get("conversations") if isinstance(row, dict) else None
        typed = isinstance(turns, list) and turns and all(isinstance(t, dict) and "type" in t for t in turns)
        return super().form(row) if typed else None

    def said(self, row: Any) -> Row:
        """Audio becomes a block with its part."""
        found: list[tuple[str, Any]] = []
        for turn in row["conversations"]:
            speaker, value, kind = turn.get("from"), turn.get("value"), turn["type"]
            role = ROLES.get(str(speaker).lower())
            if role is None:
                raise ValueError(f"a turn is 'from' User, Assistant or System, found {speaker!r:.80}")
            extra = set(turn) - {"from", "value", "type", *(PART if kind == "audio" else ())}
            if kind not in ("text", "audio") or extra:
                raise ValueError(f"a turn has 'from', 'value' and 'type' (text, audio), found {turn!r:.120}")
            part = {key: turn[key] for key in PART if turn.get(key) is not None}
            block = {"type": "text", "text": value} if kind == "text" else {"type": "audio", "audio": value, **part}
            found.append((role, block))
        return {"messages": chat(found)} | ({"id": row["id"]} if row.get("id") is not None else {})

    def written(self, row: Row) -> Row:
        """One turn a block."""
        turns = []
        for message, block in ((m, b) for m in messages(row) for b in m["content"]):
            value = block["text"] if block["type"] == "text" else block["audio"]
            part = {"offset" if key == "start" else key: block[key] for key in ("start", "duration") if key in block}
            turn = {"from": message["role"].capitalize(), "value": value, "type": block["type"], **part}
            turns.append(turn | ({"channel": block["channel"]} if "channel" in block else {}))
        name = {"id": row["id"]} if row.get("id") is not None else {}
        return {"conversations": turns, **name} | ({"custom": row["x_custom"]} if "x_custom" in row else {})
