"""A chat as text: a placeholder for each clip, and the places of what is instruction and what is answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from usam.config import AUDIO_TOKEN
from usam.processor.clip import KINDS, Clip, check_without_source, known_keys, names_source

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """One sample as text with a placeholder for each clip, and what in it is instruction and answer."""

    text: str
    audio: tuple[Any, ...] = ()
    instruction: tuple[Span, ...] | None = None  # None: everything but special tokens
    answers: tuple[Span, ...] = ()
    read: tuple[int, ...] = ()  # where answers begin that are read and not learned
    more: tuple[Rendered, ...] = ()  # texts of its first turns, for answers that it holds otherwise than generated

    @property
    def rows(self) -> tuple[Rendered, ...]:
        """What a chat is in training: this text, and one row for each answer that needs a text of its own."""
        first = replace(self, more=())
        return (first, *(replace(row, audio=self.audio[: row.text.count(AUDIO_TOKEN)]) for row in self.more))

    def starts(self, moves: Sequence[tuple[int, int]]) -> list[int]:
        """Where answers begin, after the placeholders were repeated."""
        return [moved(start, moves) for start in sorted({*self.read, *(start for start, _ in self.answers)})]


def flatten(message: Mapping[str, Any]) -> tuple[str, list[Clip]]:
    """A message's text with a placeholder for each clip, and the clips that it holds itself."""
    text, clips = [], []
    for block in blocks(message):
        if block["type"] == "text":
            text.append(block["text"])
            continue
        text.append(AUDIO_TOKEN)
        if names_source(block) or block["type"] != "audio":
            clips.append(Clip.of(block))
        else:  # its clip is given beside the messages
            check_without_source(block)
    return "".join(text), clips


def blocks(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A message's content as blocks, checked but for their clips.

    Raises:
        ValueError: no map, content that is neither text nor a list of blocks, or a block without a known type, or
            without its text.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"a message is a map of 'role' and 'content', found {message!r:.120}")
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": proper(content, "content")}]
    if not isinstance(content, (list, tuple)) or not content:
        raise ValueError(f"a message's 'content' is text or a list of blocks, found {content!r:.120}")
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text":
            known_keys(block, ("type", "text"), "a block of text")
            proper(block.get("text"), "text")
        elif kind not in KINDS:
            raise ValueError(f"a content block has type 'text' or 'audio', found {block!r:.120}")
    return list(content)


def proper(text: Any, key: str) -> str:
    """The text itself, or ValueError when it is none that a tokenizer takes."""
    if not isinstance(text, str):
        raise ValueError(f"'{key}' is text, found {text!r:.120}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"'{key}' holds half a character ({text[error.start]!r}, a lone surrogate) at position {error.start}; "
            "write the text again as UTF-8"
        ) from error
    return text


def fill_template(template: str, content: str) -> str:
    """A user's turn in a plain template: the clips in {audio}, unless the text says where they stand."""
    pieces = [piece for piece in content.split(AUDIO_TOKEN) if piece.strip()]
    clips = content.count(AUDIO_TOKEN)
    if clips and len(pieces) <= 1:
        prompt = pieces[0].strip() if pieces else ""
        return template.replace("{audio}", AUDIO_TOKEN * clips).replace("{prompt}", prompt)
    without = re.sub(r"(?m)^\{audio\}\n|\{audio\}", "", template)
    return without.replace("{prompt}", content)


def expand(text: str, counts: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Text with each placeholder repeated, and by how many characters what follows it has moved."""
    pieces = text.split(AUDIO_TOKEN)
    if len(pieces) != len(counts) + 1:
        raise ValueError(
            f"{len(pieces) - 1} placeholders for {len(counts)} clips in {text[:80]!r}: the text holds "
            f"{AUDIO_TOKEN} once for each clip"
        )
    expanded, moves = pieces[0], []
    position, moved = len(pieces[0]), 0
    for piece, count in zip(pieces[1:], counts, strict=True):
        expanded += AUDIO_TOKEN * count + piece
        position += len(AUDIO_TOKEN)
        moved += (count - 1) * len(AUDIO_TOKEN)
        moves.append((position, moved))
        position += len(piece)
    return expanded, moves


def moved(position: int, moves: Sequence[tuple[int, int]]) -> int:
    """A place in a text after its placeholders were repeated."""
    return position + max((by for start, by in moves if start <= position), default=0)


def mark_tokens(
    ids: Sequence[int],
    offsets: Sequence[Span],
    spans: Sequence[Span] | None,
    moves: Sequence[tuple[int, int]],
    never: set[int],
) -> list[bool]:
    """Which tokens overlap the spans, which are given in the text before its placeholders were repeated."""
    if spans is None:
        return [b > a and token not in never for token, (a, b) in zip(ids, offsets, strict=True)]

    placed = [(moved(a, moves), moved(b, moves)) for a, b in spans]
    marks = [False] * len(ids)
    first, last = min((a for a, _ in placed), default=0), max((b for _, b in placed), default=0)
    for i, (token, (a, b)) in enumerate(zip(ids, offsets, strict=True)):
        if first < b and a < last and b > a and token not in never:  # most tokens are placeholders, outside of all
            marks[i] = any(a < end and b > start for start, end in placed)
    return marks
