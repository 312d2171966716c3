"""Rows of ms-swift: `messages` and `audios`, or `query, response` with a `history`, `<audio>` where a clip stands."""

from __future__ import annotations

from typing import Any

from usam.readers import Form, Layout, Row, pairs, tagged, text
from usam.readers.usam import TAG, named_in_text


class MsSwift(Layout):
    """`messages` with `audios` are usam's own words too; this reads the older `query, response`, and empty columns.

    A clip may be named in the text: `<audio>a.wav</audio>`.
    """

    forms = (
        Form(("messages",), ("audios", "images", "videos", "tools", "id")),
        Form(("query", "response"), ("history", "system", "audios", "images", "videos", "tools", "id")),
    )

    def said(self, row: Any) -> Row:
        """The history comes before the query."""
        for key in ("images", "videos", "tools"):
            if row.get(key):
                raise ValueError(f"'{key}' holds {row[key]!r:.60}: a model of usam hears, and takes no {key}")
        own = {key: row[key] for key in ("audios", "id") if row.get(key)}
        if "messages" in row:
            turns = row["messages"]
            if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
                return _placed([dict(turn) for turn in turns], own)
            return {"messages": turns, **own}
        turns = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        history, query = pairs(row, "history"), text(row, "query")
        alone = not any(TAG.search(str(asked)) for asked in (query, *(pair[0] for pair in history)))
        if own.get("audios") and alone:  # as ms-swift does with a prompt without tags
            count = len(own["audios"]) if isinstance(own["audios"], list) else 1
            query = "<audio>" * count + query
        for asked, said in (*history, (query, row["response"])):
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return _placed(turns, own)

    def written(self, row: Row) -> Row:
        """Messages with tags."""
        turns, audios = tagged(row)
        name = {"id": row["id"]} if row.get("id") is not None else {}
        return {**name, "messages": turns} | ({"audios": audios} if audios else {})


def _placed(turns: list[dict[str, Any]], own: Row) -> Row:
    """Turns with the clips that their text names taken out of it."""
    given = own.pop("audios", [])
    clips = named_in_text(turns, given if isinstance(given, list) else [given])
    return {"messages": turns, **own} | ({"audios": clips} if clips else {})
