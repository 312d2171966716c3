"""Rows in usam's own words: audio, instruction and answer, or whole messages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from usam.config import AUDIO_TOKEN
from usam.processor.chat import blocks, proper
from usam.processor.clip import KEYS as CLIP_KEYS
from usam.processor.clip import RANGE, Clip, is_free, known_keys, names_source
from usam.readers import Form, Layout, Row, Sample
from usam.registry import did_you_mean

KEYS = ("audio", "audios", "prompt", "task", "answer", "messages", "id", *RANGE)
_KNOWN = frozenset(KEYS)
ASKING = ("audio", "audios", "prompt", "task", "messages")  # one of them at least
ROLES = ("system", "user", "assistant")
TAG = re.compile(r"<\|?audio\|?>", re.IGNORECASE)
NAMED = re.compile(r"<\|?audio\|?>(?:([^<>\n]+)</audio>)?", re.IGNORECASE)  # a tag, or one around a path
ROOT = "{audio_root}"


class Usam(Layout):
    """Rows in usam's own words, which every other layout is put into; `sample` checks them."""

    forms = tuple(Form((key,), KEYS) for key in ASKING)

    def own(self, row: Any) -> Row:
        """The row itself."""
        return cast(Row, row)

    said = written = own

    def misfit(self, row: Any) -> str:
        """That it asks for nothing."""
        return _asks_nothing(row)


def sample(
    row: Any,
    origin: str,
    folder: str,
    prompts: Mapping[str, str],
    need_answer: bool = False,
    audio_root: str | None = None,
) -> Sample:
    """A row as a chat, everything in it checked.

    Args:
        row: what was read, in usam's own words.
        origin: where it stands.
        folder: what its relative paths are relative to.
        prompts: instruction of each task.
        need_answer: whether a row without an answer is an error.
        audio_root: what `{audio_root}` at the beginning of a path stands for.

    Raises:
        ValueError: what is wrong in the row.
    """
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON map, found {json.dumps(row)[:60]}")
    if row.keys().isdisjoint(ASKING):
        raise ValueError(_asks_nothing(row))
    if not row.keys() <= _KNOWN:
        known_keys(row, KEYS, "a row")
    task = row.get("task")
    if task is not None:
        proper(task, "task")
    clips = _clips(row)
    others: tuple[str, ...] = ()
    if "messages" in row:
        turns = _turns(row, clips, need_answer)
    else:
        turns = [{"role": "user", "content": _asked(row, clips, prompts)}]
        answers = _answers(row)
        if answers:
            turns.append({"role": "assistant", "content": answers[0]})
            others = tuple(answers[1:])
        elif need_answer:
            raise ValueError(f"no 'answer' to learn from; {_hint(row)}")
    name = row.get("id")
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int))):
        raise ValueError(f"'id' is text or a whole number, found {name!r:.80}")
    extra = {key: row[key] for key in row if is_free(key)}
    return Sample(origin, _placed(turns, row, folder, audio_root), task, name, extra, others)


def _clips(row: Mapping[str, Any]) -> list[Any]:
    """What the row itself holds of clips, as written."""
    named = [key for key in ("audio", "audios") if key in row]
    if len(named) == 2:
        raise ValueError("'audio' and 'audios' both name clips: write one of them")
    if not named:
        return []
    given = row[named[0]]
    none = isinstance(given, list) and not given  # an array may not be compared with a list
    if none and "messages" in row:  # a chat without sound among others
        return []
    if given is None or none:
        raise ValueError(
            f"'{named[0]}' is {json.dumps(given)}: name a clip, or leave the key out of a row without sound"
        )
    return list(given) if isinstance(given, list) else [given]


def _asked(row: Mapping[str, Any], clips: list[Any], prompts: Mapping[str, str]) -> list[dict[str, Any]]:
    """The user's turn of a row without messages: its clips, then its prompt, unless tags say where clips stand."""
    prompt = row.get("prompt")
    task = row.get("task")
    if prompt is None and task is not None:
        if task not in prompts:
            raise ValueError(f"task '{task}' has no prompt in the spec's 'prompts'; {did_you_mean(task, prompts)}")
        prompt = prompts[task]
    prompt = "" if prompt is None else proper(prompt, "prompt")
    if not clips and not prompt:
        raise ValueError(f"nothing is asked: no clip and no words; {_hint(row)}")
    return asked(prompt, clips)


def asked(prompt: str, clips: Sequence[Any]) -> list[dict[str, Any]]:
    """A question as blocks: its clips where tags stand in the prompt, else before it.

    Raises:
        ValueError: there are not as many tags as clips.
    """
    if TAG.search(prompt):
        left = list(clips)
        content = list(_split(prompt, left, "'prompt'"))
        _all_taken(left, "'prompt'")
        return content
    said = [{"type": "text", "text": prompt}] if prompt else []
    return [{"type": "audio", "audio": clip} for clip in clips] + said


def _answers(row: Mapping[str, Any]) -> list[str]:
    given = row.get("answer")
    if given is None:
        return []
    if given == []:
        raise ValueError("'answer' is an empty list: write text, or several texts that are all right")
    return [_answer(text, "answer") for text in (given if isinstance(given, list) else [given])]


def _answer(text: Any, key: str) -> str:
    if AUDIO_TOKEN in proper(text, key):
        raise ValueError(f"'{key}' of the assistant holds {AUDIO_TOKEN}, which stands for a clip: leave it out")
    return cast(str, text)


def _turns(row: Mapping[str, Any], clips: list[Any], need_answer: bool) -> list[dict[str, Any]]:
    messages = row["messages"]
    for key in ("prompt", "answer"):
        if row.get(key) is not None:
            raise ValueError(f"'messages' and '{key}' contradict each other: write the {key} as a message")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"'messages' is a list of one or more messages, found {messages!r:.120}")
    turns = [_turn(message, clips) for message in messages]
    if turns[0]["role"] == "assistant":
        raise ValueError("'messages' must begin with a turn of the system or the user")
    if need_answer and turns[-1]["role"] != "assistant":
        raise ValueError("'messages' must end with an assistant's turn to learn from")
    _all_taken(clips, "'messages'")
    return turns


def _turn(message: Any, clips: list[Any]) -> dict[str, Any]:
    """One message, with clips taken from the row in the place of its tags."""
    if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
        raise ValueError(f"a message has 'role' ({', '.join(ROLES)}) and 'content', found {message!r:.120}")
    known_keys(message, ("role", "content"), "a message")
    role, content = message["role"], message["content"]
    parts = blocks(message)
    if role == "assistant":
        if any(part["type"] != "text" for part in parts):
            raise ValueError("an assistant's turn is text, which is learned: clips stand in the other turns")
        return {"role": role, "content": _answer("".join(part["text"] for part in parts), "content")}
    if isinstance(content, str) and not TAG.search(content):
        return {"role": role, "content": content}
    split: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "text":
            split += _split(part["text"], clips, "'messages'")
        elif names_source(part):
            split.append({"type": "audio", "audio": part})
        elif part["type"] == "audio" and clips:
            split.append({"type": "audio", "audio": {**part, "audio": clips.pop(0)}})
        else:
            known_keys(part, CLIP_KEYS, "a clip")
            raise ValueError(
                f"a block names no source ('path', 'url', 'audio') and 'audio' has no clip left: {part!r:.120}"
            )
    return {"role": role, "content": split}


def _split(text: str, clips: list[Any], where: str) -> Iterator[dict[str, Any]]:
    """Text with the next of the clips in the place of each tag."""
    if named := next((path for path in NAMED.findall(text) if path), None):
        raise ValueError(
            f"{where} names a clip in its text, <audio>{named}</audio>: write <audio> there and the path into "
            "'audios', or name the reader: ms_swift"
        )
    for i, piece in enumerate(TAG.split(text)):
        if i and not clips:
            raise ValueError(f"more {AUDIO_TOKEN} tags in {where} than clips in 'audio'")
        if i:
            yield {"type": "audio", "audio": clips.pop(0)}
        if piece:
            yield {"type": "text", "text": piece}


def named_in_text(turns: list[dict[str, Any]], clips: list[Any]) -> list[Any]:
    """The clips in the order of the tags, those that `<audio>path</audio>` names among them; its text becomes a tag."""
    left, found = list(clips), list[Any]()
    for turn in turns:
        if isinstance(turn.get("content"), str) and turn.get("role") != "assistant":
            for path in NAMED.findall(turn["content"]):
                found += [path] if path else left[:1]
                left = left if path else left[1:]
            turn["content"] = NAMED.sub("<audio>", turn["content"])
    return found + left


def _all_taken(clips: Sequence[Any], where: str) -> None:
    if clips:
        raise ValueError(f"{len(clips)} more clips in 'audio' than {AUDIO_TOKEN} tags in {where}")


def _placed(
    turns: list[dict[str, Any]], row: Mapping[str, Any], folder: str, audio_root: str | None
) -> tuple[Mapping[str, Any], ...]:
    """The messages with each clip's source and range read, paths beside the manifest."""
    part = {key: row[key] for key in RANGE if row.get(key) is not None}
    if part:
        count = sum(block["type"] == "audio" for t in turns if isinstance(t["content"], list) for block in t["content"])
        if count != 1:
            raise ValueError(
                f"'{next(iter(part))}' is said of the row, which has {count} clips: say it of one clip, "
                'as {"path": ..., "start": ..., "duration": ...}'
            )
    for turn in turns:
        if isinstance(turn["content"], list):
            turn["content"] = [
                _rooted(
                    Clip.of({"audio": block["audio"], **part} if part else block["audio"], folder).block(), audio_root
                )
                if block["type"] == "audio"
                else block
                for block in turn["content"]
            ]
    return tuple(turns)


def _rooted(block: dict[str, Any], audio_root: str | None) -> dict[str, Any]:
    """A clip's block with its `{audio_root}` filled in."""
    path = block["audio"]
    if isinstance(path, str) and ROOT in path:
        if audio_root is None:
            raise ValueError(f"{path[path.index(ROOT) :]}: say what {ROOT} is: Manifest(..., audio_root='/data')")
        block["audio"] = os.path.join(audio_root, path[path.index(ROOT) + len(ROOT) :].lstrip("/"))
    return block


def _asks_nothing(row: Mapping[str, Any]) -> str:
    return f"no 'audio', 'prompt', 'task' or 'messages'; {_hint(row)}{_deeper(row)}"


def _deeper(row: Mapping[str, Any]) -> str:
    """Where in a map its rows may lie, as a hint."""
    for key, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f"; if the rows lie under '{key}', write that list alone"
    inner = bool(row) and all(isinstance(value, dict) for value in row.values())
    return "; if each value is a row, write a list of them" if inner else ""


def _hint(row: Mapping[str, Any]) -> str:
    for key in sorted(row):
        if key not in KEYS and "did you mean" in did_you_mean(key, KEYS):
            return f"it has '{key}': {did_you_mean(key, KEYS)}"
    return f"it has {', '.join(sorted(row)) or 'nothing'}"
