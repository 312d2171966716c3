"""A manifest is a JSONL file, one sample a line: audio, instruction and answer, or whole messages."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from torch.utils.data import Dataset

from usam.config import AUDIO_TOKEN
from usam.processor.chat import blocks, flatten, proper
from usam.processor.clip import KEYS as CLIP_KEYS
from usam.processor.clip import RANGE, Clip, is_free, known_keys, names_source
from usam.registry import did_you_mean

KEYS = ("audio", "audios", "prompt", "task", "answer", "messages", "id", *RANGE)
ASKING = ("audio", "audios", "prompt", "task", "messages")  # one of them at least
ROLES = ("system", "user", "assistant")
TAG = re.compile(r"<\|?audio\|?>", re.IGNORECASE)
LISTED = 10  # wrong rows that an error tells in full


class ManifestError(ValueError):
    """A manifest is wrong: the message names the file, the line and the key."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a manifest as a chat, its clips as blocks that `Clip.of` reads."""

    origin: str  # file:line
    messages: tuple[Mapping[str, Any], ...]
    task: str | None = None
    id: str | int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # `meta` and the columns that begin with x_
    others: tuple[str, ...] = ()  # right answers beside the one that is learned

    @property
    def answer(self) -> str | None:
        """The text of the last turn when it is the assistant's."""
        last = self.messages[-1]
        return flatten(last)[0] if last["role"] == "assistant" else None

    @property
    def references(self) -> tuple[str, ...]:
        """Every answer that is right, first the one that is learned; empty without an answer."""
        return () if self.answer is None else (self.answer, *self.others)

    @property
    def question(self) -> tuple[Mapping[str, Any], ...]:
        """The messages without a final answer."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages


class Manifest(Dataset[Sample]):
    """The samples of one or several JSONL files, every row checked; audio is read when a batch is made.

    A row is `{"audio": clip or [clips], "prompt": text or "task": name, "answer": text}`, or
    `{"messages": [...], "audio": [...]}` with the clips in place of `<|audio|>` (or `<audio>`) tags, or as blocks
    inside the messages. A clip is a path, or a map of a source and the part that is meant, as `Clip.of` reads it; a
    row of one clip may say the part itself (`start`, `duration` ...). Paths are relative to the manifest.

    A list of answers holds several that are right: the first is learned, all are the sample's `references`.
    Further keys: `id`, and the user's own, `meta` and what begins with `x_`, which become the sample's `extra`.

    Files are UTF-8, with or without a byte order mark, gzipped or not.

    Args:
        files: the JSONL files.
        prompts: instruction of each task.
        need_answer: whether a row without an answer is an error.

    Raises:
        ManifestError: a missing, empty or unreadable file, or rows that are wrong: each with file, line and key.
    """

    def __init__(
        self, files: str | Path | Sequence[str | Path], prompts: Mapping[str, str], *, need_answer: bool = False
    ) -> None:
        files = [files] if isinstance(files, (str, Path)) else list(files)
        if not files:
            raise ManifestError("no manifest was given: name one file, or several")
        self.samples: list[Sample] = []
        for file in files:
            path = os.path.expandvars(os.path.expanduser(file))
            self.samples += _read(Path(path), prompts, need_answer)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _read(file: Path, prompts: Mapping[str, str], need_answer: bool) -> list[Sample]:
    samples: list[Sample] = []
    faults: list[str] = []
    wrong = 0
    folder = "" if str(file.parent) == "." else str(file.parent)
    for number, line in _lines(file):
        origin = f"{file}:{number}"
        try:
            samples.append(_sample(_row(line), origin, folder, prompts, need_answer))
        except (ValueError, RecursionError) as error:
            wrong += 1
            if wrong <= LISTED:
                what = "maps or lists are nested too deeply" if isinstance(error, RecursionError) else error
                faults.append(f"{origin}: {what}")
    if wrong > 1:
        faults.insert(0, f"{file}: {wrong} rows are wrong" + (f"; the first {LISTED}:" if wrong > LISTED else ":"))
    if faults:
        raise ManifestError("\n".join(faults))
    if not samples:
        raise ManifestError(f"{file}: no rows; write one JSON map a line")
    return samples


GZIP = b"\x1f\x8b"
OTHERS = {  # what a manifest is taken for now and then, by its first bytes
    b"\xff\xfe": "UTF-16; write it as UTF-8: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; write it as UTF-8: iconv -f UTF-16 -t UTF-8",
    b"\0\0\xfe\xff": "UTF-32; write it as UTF-8: iconv -f UTF-32 -t UTF-8",
    b"PK\3\4": "a zip archive; unpack it, or pack it with gzip",
    b"BZh": "packed with bzip2; unpack it, or pack it with gzip",
    b"\xfd7zX": "packed with xz; unpack it, or pack it with gzip",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it, or pack it with gzip",
    b"PAR1": "a Parquet file; write one JSON map a line",
}


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    if not file.is_file():
        what = "is a folder; name the manifest in it" if file.is_dir() else "no such manifest"
        raise ManifestError(f"{file}: {what} (looked in {file.parent.resolve()})")
    number = 0
    try:
        with file.open("rb") as raw:
            handle = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == GZIP else raw
            head = handle.peek(4)[:4]
            for magic, what in OTHERS.items():
                if head.startswith(magic):
                    raise ManifestError(f"{file}:1: {what}")
            if b"\0" in head:
                raise ManifestError(f"{file}:1: holds zero bytes, as UTF-16 and UTF-32 do; write it as UTF-8")
            text = io.TextIOWrapper(cast(IO[bytes], handle), encoding="utf-8", errors="surrogateescape")
            for number, line in enumerate(text, 1):
                if not line.isascii():
                    line = _utf8(line, f"{file}:{number}").removeprefix("\ufeff")  # files with a mark may be joined
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ManifestError(f"{file}:{number + 1}: gzip breaks off here ({error}); copy or pack it again") from error
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read: {error.strerror or error}") from error


def _utf8(line: str, origin: str) -> str:
    try:
        line.encode()
    except UnicodeEncodeError as error:  # a byte that was no UTF-8 has become a surrogate
        byte = ord(line[error.start]) - 0xDC00
        raise ManifestError(
            f"{origin}: not UTF-8: byte 0x{byte:02x} at character {error.start + 1}; if the file is Latin-1 or "
            "Windows-1252, write it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    return line


def _row(line: str) -> dict[str, Any]:
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        hint = "; one JSON map a line is expected, each on one line" if line.strip() in ("[", "{") else ""
        raise ValueError(f"not JSON: {error}{hint}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON map, found {line.strip()[:60]}")
    return row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = [key for key in found if keys.count(key) > 1]
        raise ValueError(f"the key '{twice[0]}' stands twice in one map")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _sample(row: dict[str, Any], origin: str, folder: str, prompts: Mapping[str, str], need_answer: bool) -> Sample:
    if row.keys().isdisjoint(ASKING):
        raise ValueError(f"no 'audio', 'prompt', 'task' or 'messages'; {_hint(row)}")
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
    return Sample(origin, _placed(turns, row, folder), task, name, extra, others)


def _clips(row: Mapping[str, Any]) -> list[Any]:
    """What the row itself holds of clips, as written."""
    named = [key for key in ("audio", "audios") if key in row]
    if len(named) == 2:
        raise ValueError("'audio' and 'audios' both name clips: write one of them")
    if not named:
        return []
    given = row[named[0]]
    if given is None or given == []:
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
    if TAG.search(prompt):
        content = list(_split(prompt, clips, "'prompt'"))
        _all_taken(clips, "'prompt'")
        return content
    if not clips and not prompt:
        raise ValueError(f"nothing is asked: no clip and no words; {_hint(row)}")
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
    for i, piece in enumerate(TAG.split(text)):
        if i and not clips:
            raise ValueError(f"more {AUDIO_TOKEN} tags in {where} than clips in 'audio'")
        if i:
            yield {"type": "audio", "audio": clips.pop(0)}
        if piece:
            yield {"type": "text", "text": piece}


def _all_taken(clips: Sequence[Any], where: str) -> None:
    if clips:
        raise ValueError(f"{len(clips)} more clips in 'audio' than {AUDIO_TOKEN} tags in {where}")


def _placed(turns: list[dict[str, Any]], row: Mapping[str, Any], folder: str) -> tuple[Mapping[str, Any], ...]:
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
                Clip.of({"audio": block["audio"], **part} if part else block["audio"], folder).block()
                if block["type"] == "audio"
                else block
                for block in turn["content"]
            ]
    return tuple(turns)


def _hint(row: Mapping[str, Any]) -> str:
    for key in sorted(row):
        if key not in KEYS and "did you mean" in did_you_mean(key, KEYS):
            return f"it has '{key}': {did_you_mean(key, KEYS)}"
    return f"it has {', '.join(sorted(row)) or 'nothing'}"
