"""ShareGPT's and LLaMA-Factory's rows: `conversations` of `from, value` with `audios`, or `instruction, output`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from usam.readers import Form, Layout, ManifestError, Row, pairs, tagged, text
from usam.readers.usam import TAG

INFO = "dataset_info.json"
SOUND = ("audios", "audio", "sound")
MEDIA = ("images", "videos")
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
ALSO = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}


class ShareGPT(Layout):
    """Where a `dataset_info.json` beside the file names it, columns and tags are what that says."""

    forms = (
        Form(("conversations",), ("system", "tools", "id", *SOUND, *MEDIA)),
        Form(("instruction", "output"), ("input", "history", "system", "id", *SOUND, *MEDIA)),
    )
    beside = (INFO,)

    @classmethod
    def opens(cls, source: Any) -> bool:
        """A file that the `dataset_info.json` in its folder names."""
        return isinstance(source, (str, os.PathLike)) and _info(Path(source)) is not None

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What `dataset_info.json` says of the file; empty where it says nothing."""
        return (_info(Path(self.source)) if isinstance(self.source, (str, os.PathLike)) else None) or {}

    @cached_property
    def columns(self) -> dict[str, str]:
        """LLaMA-Factory's names of columns, and those of the file."""
        alpaca = self.info and self.info.get("formatting", "alpaca") == "alpaca"
        plain = {"messages": "conversations", "system": "system", "audios": "audios", "history": "history"}
        given = dict(self.info.get("columns") or {})
        if alpaca and "messages" not in given:
            return {**ALPACA, "audios": "audios", **given}
        return {**plain, **ALPACA, **given}

    def form(self, row: Any) -> Form | None:
        """As its keys say; turns of `nemo_conversation` have a type, these have none."""
        if not self.info:
            turns = row.get("conversations") if isinstance(row, dict) else None
            typed = isinstance(turns, list) and any(isinstance(turn, dict) and "type" in turn for turn in turns)
            return None if typed else super().form(row)
        names = self.columns
        chat = self.info.get("formatting", "alpaca") == "sharegpt"
        needs = (names["messages"],) if chat else (names["prompt"], names["response"])
        form = Form(needs, ("id", *names.values()), others=True)
        return form if isinstance(row, dict) and not form.lacks(row) else None

    def misfit(self, row: Any) -> str:
        """With the columns that `dataset_info.json` gives."""
        if not self.info or not isinstance(row, dict):
            return super().misfit(row)
        return f"{INFO} names the columns {', '.join(map(repr, self.columns.values()))}; the row has {', '.join(row)}"

    def said(self, row: Any) -> Row:
        """Messages with `<audio>` where a clip stands; a clip without a tag stands first."""
        names = self.columns
        for key in (*MEDIA, "tools"):
            if row.get(key):
                raise ValueError(f"'{key}' holds {row[key]!r:.60}: a model of usam hears, and takes no {key}")
        named = [key for key in dict.fromkeys((names["audios"], *SOUND)) if row.get(key)]
        if len(named) > 1:
            raise ValueError(f"'{named[0]}' and '{named[1]}' both name clips: write one of them")
        clips = row[named[0]] if named else []
        clips = clips if isinstance(clips, list) else [clips]
        turns = self._turns(row)
        told = "".join(str(turn["content"]) for turn in turns)
        if clips and not TAG.search(told):
            first = next((turn for turn in turns if turn["role"] == "user"), None)
            if first is not None and isinstance(first["content"], str):
                first["content"] = "<audio>" * len(clips) + first["content"]
        name = {"id": row["id"]} if row.get("id") is not None else {}
        return {**name, "messages": turns} | ({"audios": clips} if clips else {})

    def _turns(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        names = self.columns
        system = row.get(names.get("system", "system"))
        turns = [{"role": "system", "content": system}] if system else []
        chat = row.get(names.get("messages", ""))
        if chat is None:
            for asked, said in pairs(row, names.get("history", "history")):
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            keys = [key for key in (names["prompt"], names["query"]) if row.get(key)]
            turns.append({"role": "user", "content": "\n".join(text(row, key) for key in keys)})
            return [*turns, {"role": "assistant", "content": row[names["response"]]}]
        tags = {**TAGS, **(self.info.get("tags") or {})}
        roles = {**ALSO, **{tags[f"{role}_tag"]: role for role in ("user", "assistant", "system")}}
        who, what = tags["role_tag"], tags["content_tag"]
        if not isinstance(chat, list) or not chat:
            raise ValueError(f"'{names['messages']}' is a list of turns, found {chat!r:.120}")
        for turn in chat:
            if not isinstance(turn, dict) or str(turn.get(who)) not in roles or what not in turn or len(turn) > 2:
                raise ValueError(f"a turn has '{who}' ({', '.join(roles)}) and '{what}', found {turn!r:.120}")
            said = turn[what]
            content = said.replace("<sound>", "<audio>") if "sound" in row and isinstance(said, str) else said
            turns.append({"role": roles[turn[who]], "content": content})
        return turns

    def written(self, row: Row) -> Row:
        """Turns of human and gpt, with tags."""
        turns, audios = tagged(row)
        speakers = {"user": "human", "assistant": "gpt", "system": "system"}
        said = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns]
        name = {"id": row["id"]} if row.get("id") is not None else {}
        return {**name, "conversations": said} | ({"audios": audios} if audios else {})


def _info(file: Path) -> Mapping[str, Any] | None:
    """What the `dataset_info.json` in a file's folder says of it."""
    beside = file.parent / INFO
    if file.name == INFO or not beside.is_file():
        return None
    try:
        known = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ManifestError(f"{beside}: not JSON: {error}") from error
    entries = known.values() if isinstance(known, dict) else []
    return next((e for e in entries if isinstance(e, dict) and e.get("file_name") == file.name), None)
