"""A manifest is a JSONL file, one sample a line: audio, instruction and answer, or whole messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from usam.registry import did_you_mean

KEYS = ("audio", "audios", "prompt", "task", "answer", "messages")


class ManifestError(ValueError):
    """A manifest is wrong: the message names the file, the line and the key."""


@dataclass(frozen=True)
class Sample:
    """One line of a manifest as a chat."""

    origin: str  # file:line
    messages: tuple[Mapping[str, Any], ...]
    task: str | None = None

    @property
    def answer(self) -> str | None:
        """The text of the last turn when it is the assistant's."""
        last = self.messages[-1]
        return str(last["content"]) if last["role"] == "assistant" else None

    @property
    def question(self) -> tuple[Mapping[str, Any], ...]:
        """The messages without a final answer."""
        return self.messages[:-1] if self.messages[-1]["role"] == "assistant" else self.messages


class Manifest(Dataset[Sample]):
    """The samples of one or several JSONL files; audio is read when a batch is made.

    A row is `{"audio": path or [paths], "prompt": text or "task": name, "answer": text}`, or
    `{"messages": [...], "audio": [...]}` with the clips in place of `<|audio|>` tags, or as blocks inside
    the messages. Paths are relative to the manifest. Further keys are kept out of the model's way.

    Args:
        files: the JSONL files.
        prompts: instruction of each task.
        need_answer: whether a row without an answer is an error.

    Raises:
        ManifestError: a missing or empty file, a line that is no JSON map, missing or contradicting keys.
    """

    def __init__(
        self, files: str | Path | Sequence[str | Path], prompts: Mapping[str, str], *, need_answer: bool = False
    ) -> None:
        self.samples: list[Sample] = []
        for file in [files] if isinstance(files, (str, Path)) else files:
            self.samples += _read(Path(file), prompts, need_answer)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def _read(file: Path, prompts: Mapping[str, str], need_answer: bool) -> list[Sample]:
    if not file.is_file():
        raise ManifestError(f"{file}: no such manifest (looked in {file.parent.resolve()})")
    samples = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                samples.append(_sample(line, f"{file}:{number}", file.parent, prompts, need_answer))
    if not samples:
        raise ManifestError(f"{file}: no rows; write one JSON map a line")
    return samples


def _sample(line: str, origin: str, folder: Path, prompts: Mapping[str, str], need_answer: bool) -> Sample:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ManifestError(f"{origin}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ManifestError(f"{origin}: expected a JSON map, found {line.strip()[:60]}")
    clips = row.get("audio", row.get("audios", []))
    clips = [_beside(clip, folder) for clip in (clips if isinstance(clips, list) else [clips])]
    if "messages" in row:
        messages = tuple(_message(m, clips, folder, origin) for m in row["messages"])
        if clips:
            raise ManifestError(f"{origin}: {len(clips)} more clips in 'audio' than <|audio|> tags in 'messages'")
        if not messages or (need_answer and messages[-1]["role"] != "assistant"):
            raise ManifestError(f"{origin}: 'messages' must end with an assistant's turn to learn from")
        return Sample(origin, messages, row.get("task"))
    if not clips and "prompt" not in row and "task" not in row:
        raise ManifestError(f"{origin}: no 'audio', 'prompt', 'task' or 'messages'; {_hint(row)}")
    prompt = row.get("prompt")
    if prompt is None and "task" in row:
        if row["task"] not in prompts:
            raise ManifestError(
                f"{origin}: task '{row['task']}' has no prompt in the spec's 'prompts'; "
                f"{did_you_mean(str(row['task']), prompts)}"
            )
        prompt = prompts[row["task"]]
    content = [{"type": "audio", "audio": clip} for clip in clips]
    if prompt:
        content.append({"type": "text", "text": prompt})
    messages = ({"role": "user", "content": content},)
    if row.get("answer") is not None:
        messages += ({"role": "assistant", "content": str(row["answer"])},)
    elif need_answer:
        raise ManifestError(f"{origin}: no 'answer' to learn from; {_hint(row)}")
    return Sample(origin, messages, row.get("task"))


def _message(message: Any, clips: list[Any], folder: Path, origin: str) -> dict[str, Any]:
    """One turn, with clips taken from the row in the place of its tags; paths made absolute."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise ManifestError(f"{origin}: a message has 'role' (system, user, assistant) and 'content', found {message}")
    content = message.get("content", "")
    if isinstance(content, str):
        pieces = content.split("<|audio|>")
        if len(pieces) == 1:
            return {"role": message["role"], "content": content}
        content = [{"type": "text", "text": pieces[0]}] if pieces[0] else []
        for piece in pieces[1:]:
            if not clips:
                raise ManifestError(f"{origin}: more <|audio|> tags in 'messages' than clips in 'audio'")
            content.append({"type": "audio", "audio": clips.pop(0)})
            if piece:
                content.append({"type": "text", "text": piece})
    blocks = []
    for block in content:
        source = next((key for key in ("audio", "path", "url", "audio_url") if key in block), None)
        blocks.append({**block, source: _beside(block[source], folder)} if source else dict(block))
    return {"role": message["role"], "content": blocks}


def _beside(clip: Any, folder: Path) -> Any:
    if isinstance(clip, str) and "://" not in clip:
        return str(folder / clip)
    if isinstance(clip, dict) and isinstance(clip.get("path"), str):
        return {**clip, "path": str(folder / clip["path"])}
    return clip


def _hint(row: Mapping[str, Any]) -> str:
    for key in sorted(row):
        if key not in KEYS and "did you mean" in did_you_mean(key, KEYS):
            return f"it has '{key}': {did_you_mean(key, KEYS)}"
    return f"it has {', '.join(sorted(row)) or 'nothing'}"
