"""A chat as text: a placeholder for each clip, and the places of what is instruction and what is answer."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        if not self.more:
            return (self,)
        first = replace(self, more=())
        return (first, *(replace(row, audio=self.audio[: row.text.count(AUDIO_TOKEN)]) for row in self.more))

    @property
    def starts(self) -> list[int]:
        """Where answers begin."""
        return sorted({*self.read, *(start for start, _ in self.answers)})


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


def repeated(ids: Sequence[int], placeholder: int, counts: Sequence[int], text: str) -> NDArray[np.intp]:
    """How often each token stands in the end: a placeholder once for each token of its clip, any other once."""
    if text.count(AUDIO_TOKEN) != len(counts):
        raise ValueError(
            f"{text.count(AUDIO_TOKEN)} placeholders for {len(counts)} clips in {text[:80]!r}: the text holds "
            f"{AUDIO_TOKEN} once for each clip"
        )
    times = np.ones(len(ids), np.intp)
    places = [i for i, token in enumerate(ids) if token == placeholder]
    if len(places) != len(counts):
        raise ValueError(
            f"the tokenizer makes {len(places)} tokens {AUDIO_TOKEN} of {len(counts)} in {text[:80]!r}: it must keep "
            "special tokens whole ('split_special_tokens' is off)"
        )
    times[places] = counts
    return times


def replacements(text: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """What stands in the place of each placeholder of a text, as transformers tells servers of it."""
    found, grown = [], 0
    for place, count in zip(re.finditer(re.escape(AUDIO_TOKEN), text), counts, strict=True):
        new = AUDIO_TOKEN * count
        begin = place.start() + grown
        found.append(
            {
                "type": "audio",
                "span": place.span(),
                "new_span": (begin, begin + len(new)),
                "text": AUDIO_TOKEN,
                "replacement": new,
            }
        )
        grown += len(new) - len(AUDIO_TOKEN)
    return found


def mark_tokens(
    ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span] | None, never: Container[int]
) -> list[bool]:
    """Which tokens overlap the spans; None stands for all of the text."""
    if spans is None:
        return [b > a and token not in never for token, (a, b) in zip(ids, offsets, strict=True)]
    marks = [False] * len(ids)
    for start, end in spans:
        for i, (a, b) in enumerate(offsets):
            if a < end and b > start and b > a and ids[i] not in never:
                marks[i] = True
    return marks
