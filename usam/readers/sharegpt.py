"""ShareGPT's and LLaMA-Factory's rows: `conversations` of `from, value` with `audios`, or `instruction, output`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from usam.readers import Form, Layout, ManifestError, Row, pairs, tagged, text
from usam.readers.usam import TAG, named_in_text
from usam.registry import did_you_mean

INFO = "dataset_info.json"
SOUND = ("audios", "audio", "sound", "speech")
MEDIA = ("images", "videos")
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
ALSO = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
OPENAI = {**TAGS, "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios")
ENTRY = (
    "file_name", "formatting", "columns", "tags", "ranking", "num_samples", "subset", "split", "folder",
    "hf_hub_url", "ms_hub_url", "om_hub_url",
)  # fmt: skip
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}


class ShareGPT(Layout):
    """Columns and tags are as a `dataset_info.json` says that names the file, from its folder or the one above."""

    forms = (
        Form(("conversations",), ("system", "tools", "id", *SOUND, *MEDIA)),
        Form(("instruction", "output"), ("input", "history", "system", "id", *SOUND, *MEDIA)),
    )
    beside = (INFO, f"../{INFO}")

    @classmethod
    def opens(cls, source: Any) -> bool:
        """A file that a `dataset_info.json` names; ManifestError for that file itself, which holds no rows."""
        return isinstance(source, (str, os.PathLike)) and _info(Path(source)) is not None

    @cached_property
    def info(self) -> Mapping[str, Any]:
        """What `dataset_info.json` says of the file; empty where it says nothing."""
        return (_info(Path(self.source)) if isinstance(self.source, (str, os.PathLike)) else None) or {}

    @cached_property
    def columns(self) -> dict[str, str]:
        """LLaMA-Factory's names of columns, and those of the file."""
        alpaca = self.info and not self.chats
        plain = {"messages": "conversations", "system": "system", "audios": "audios", "history": "history"}
        given = dict(self.info.get("columns") or {})
        if self.info.get("formatting") == "openai":
            plain["messages"] = "messages"
        return {**ALPACA, "audios": "audios", **given} if alpaca else {**plain, **ALPACA, **given}

    @property
    def chats(self) -> bool:
        """Whether `dataset_info.json` says that the rows are chats."""
        return self.info.get("formatting", "alpaca") in ("sharegpt", "openai")

    def form(self, row: Any) -> Form | None:
        """As its keys say; turns of `nemo_conversation` have a type, these have none."""
        if not self.info:
            turns = row.get("conversations") if isinstance(row, dict) else None
            typed = isinstance(turns, list) and any(isinstance(turn, dict) and "type" in turn for turn in turns)
            return None if typed else super().form(row)
        names = self.columns
        needs = (names["messages"],) if self.chats else (names["prompt"], names["response"])
        form = Form(needs, ("id", *names.values()), others=True)
        return form if isinstance(row, dict) and not form.lacks(row) else None

    def misfit(self, row: Any) -> str:
        """With the columns that `dataset_info.json` gives."""
        if not self.info or not isinstance(row, dict):
            return super().misfit(row)
        needs = ("messages",) if self.chats else ("prompt", "response")
        lacks = ", ".join(f"'{self.columns[key]}' ({key})" for key in needs if self.columns[key] not in row)
        return f"it lacks the columns that {INFO} names: {lacks}; the row has {', '.join(map(str, row))}"

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
        turns = self._turns(row)
        clips = named_in_text(turns, clips if isinstance(clips, list) else [clips])
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
        if names.get("messages") not in row:
            for asked, said in pairs(row, names.get("history", "history")):
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            keys = [key for key in (names["prompt"], names["query"]) if row.get(key)]
            turns.append({"role": "user", "content": "\n".join(text(row, key) for key in keys)})
            return [*turns, {"role": "assistant", "content": row[names["response"]]}]
        chat = row[names["messages"]]
        usual = OPENAI if self.info.get("formatting") == "openai" else TAGS
        tags = {**usual, **(self.info.get("tags") or {})}
        roles = {**ALSO, **{tags[f"{role}_tag"]: role for role in ("user", "assistant", "system")}}
        who, what = tags["role_tag"], tags["content_tag"]
        if not isinstance(chat, list) or not chat:
            raise ValueError(f"'{names['messages']}' is a list of turns, found {chat!r:.120}")
        for turn in chat:
            if not isinstance(turn, dict) or str(turn.get(who)) not in roles or what not in turn or len(turn) > 2:
                raise ValueError(f"a turn has '{who}' ({', '.join(roles)}) and '{what}', found {turn!r:.120}")
            said = turn[what]
            for name in ("sound", "speech"):  # also what its tags are called
                said = said.replace(f"<{name}>", "<audio>") if name in row and isinstance(said, str) else said
            turns.append({"role": roles[turn[who]], "content": said})
        return turns

    def written(self, row: Row) -> Row:
        """Turns of human and gpt, with tags."""
        turns, audios = tagged(row)
        speakers = {"user": "human", "assistant": "gpt", "system": "system"}
        said = [{"from": speakers[turn["role"]], "value": turn["content"]} for turn in turns]
        name = {"id": row["id"]} if row.get("id") is not None else {}
        return {**name, "conversations": said} | ({"audios": audios} if audios else {})


def _info(file: Path) -> Mapping[str, Any] | None:
    """What a `dataset_info.json` says of a file: the one in its folder, else the one above."""
    if file.name == INFO and file.is_file():
        entries = _entries(file)
        if entries:
            files = ", ".join(f"{e['file_name']} ({name})" for name, e in entries.items() if "file_name" in e)
            raise ManifestError(
                f"{file}: describes datasets, and holds no rows; give the file of one: {files or 'none'}"
            )
        return None
    for folder in (file.parent, file.parent.parent):
        beside = folder / INFO
        if not beside.is_file():
            continue
        found = {name: e for name, e in _entries(beside).items() if _names(folder, e, file)}
        if not found:
            continue
        (name, entry), *others = found.items()
        for other, differs in others:
            if differs != entry:
                raise ManifestError(
                    f"{beside}: '{name}' and '{other}' both name {file.name}, and say different things of it"
                )
        _check(entry, f"{beside}: '{name}'")
        return entry
    return None


def _names(folder: Path, entry: Mapping[str, Any], file: Path) -> bool:
    named = entry.get("file_name")
    return isinstance(named, str) and os.path.abspath(folder / named) in map(
        str, (file.absolute(), file.absolute().parent)
    )


def _entries(info: Path) -> dict[str, Mapping[str, Any]]:
    try:
        known = json.loads(info.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{info}: not JSON: {error}") from error
    given = known if isinstance(known, dict) else {}
    return {name: e for name, e in given.items() if isinstance(e, dict) and "file_name" in e}


def _check(entry: Mapping[str, Any], where: str) -> None:
    """Raise ManifestError at what an entry says and usam cannot do, or does not know."""
    for key in ("ranking", "num_samples"):
        if entry.get(key):
            raise ManifestError(f"{where}: '{key}' is not followed here: every row is learned as it is; leave it out")
    for key, known in (("columns", COLUMNS), ("tags", (*TAGS, "observation_tag", "function_tag"))):
        named = entry.get(key) or {}
        if not isinstance(named, dict) or not all(isinstance(value, str) for value in named.values()):
            raise ManifestError(f"{where}: '{key}' is a map of names, found {named!r:.120}")
        for name in named:
            if name not in known:
                raise ManifestError(f"{where}: '{key}' has no '{name}'; {did_you_mean(name, known)}")
    for key in entry:
        if key not in ENTRY:
            raise ManifestError(f"{where}: unknown key '{key}'; {did_you_mean(key, ENTRY)}")
    if entry.get("formatting", "alpaca") not in ("alpaca", "sharegpt", "openai"):
        raise ManifestError(f"{where}: 'formatting' is alpaca, sharegpt or openai, found {entry['formatting']!r:.80}")
