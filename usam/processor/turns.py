"""Where a chat's answers and its instruction stand in the text that a template makes of it.

A template is a program, and writes a turn as it likes: so it is asked. What generation reads before an answer is what
the template writes before it; the answer follows there, with what the template wraps around it, up to the end of its
turn. Most templates write a turn the same way once others follow, and then one text holds all answers. Some do not
(Qwen 3 and DeepSeek-R1 drop what past turns thought): such an answer is taught in a row of its own, which ends with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from usam.config import AUDIO_TOKEN
from usam.processor.chat import Rendered, Span

Turn = Mapping[str, Any]
Draw = Callable[[Sequence[Turn], bool, bool], str]  # turns, with a generation prompt, with the last one left open
MARKS = range(0xE000, 0xF900)  # Unicode's private use area
ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Answered:
    """A chat up to an answer, as it stands when that answer has just been generated."""

    text: str
    start: int  # where generation begins
    words: int  # where the answer's own words end
    end: int | None  # behind the token that ends the turn; None when the template writes none


class Turns:
    """A chat, and the template that writes it.

    Args:
        turns: messages whose content is text, one placeholder in it for each clip.
        clips: all of their clips.
        draw: the template.
        special: the tokenizer's special tokens, one of which ends a turn.
        eos: the token that ends an answer where the template writes none.
    """

    def __init__(
        self, turns: Sequence[Turn], clips: Sequence[Any], draw: Draw, special: Iterable[str], eos: str
    ) -> None:
        self.turns, self.clips, self.draw, self.eos = turns, clips, draw, eos
        self._end = _any_of(tuple(special))
        self._known: dict[int, Answered] = {}

    def render(self, generate: bool = False, follow: bool = False, learn: bool = True) -> Rendered:
        """The chat as text, and a row for each answer that its text holds otherwise than generation writes it.

        Args:
            generate: end where the next answer begins.
            follow: end inside the last message.
            learn: False for a chat that is only read: it may hold answers that could not be taught.

        Raises:
            ValueError: the template changes the user's words, or those of an answer to learn.
        """
        size = len(self.turns)
        past = [i for i, turn in enumerate(self.turns[: size - follow]) if turn["role"] == "assistant"]
        if generate or follow or past[-1:] != [size - 1]:
            text, own = self.draw(self.turns, generate, follow), []
            drawn = (size, generate, follow)
        else:
            text, span = self._closed(past.pop())
            own, drawn = [span], (size - 1, True, False)
        kept, moved = self._standing(past, text, learn)
        return Rendered(
            text,
            tuple(self.clips),
            self._instruction(text, *drawn),
            (*kept, *own),
            more=tuple(self._row(i) for i in moved),
        )

    def answered(self, i: int) -> Answered:
        """The chat up to the answer in message `i`, with that answer where generation would write it."""
        if i not in self._known:
            self._known[i] = self._answered(i)
        return self._known[i]

    def _answered(self, i: int) -> Answered:
        prompt, text = self.draw(self.turns[:i], True, False), self.draw(self.turns[: i + 1], False, False)
        mark, words = next(_free(self.turns)), self.turns[i]["content"]
        marked = [*self.turns[:i], {**self.turns[i], "content": mark}]
        head, found, tail = self.draw(marked, False, False).rpartition(mark)
        begin = len(prompt) if text.startswith(prompt) else len(head) if text.startswith(head) else -1
        own = text[begin : len(text) - len(tail)]
        if not found or begin < 0 or not text.endswith(tail) or _letters(words) not in _letters(own):
            raise ValueError(
                f"the chat template does not write the answer {words[:60]!r} of message {i} as it is; pass another "
                "'chat_template', or a plain 'template' in the spec"
            )
        end = self._end.search(tail)
        for token in {end.group() if end else self.eos, self.eos}:
            if token in words:
                raise ValueError(
                    f"the answer {words[:60]!r} of message {i} holds {token!r}, at which generation ends; take it out"
                )
        start, stop = len(prompt), len(prompt) + len(own)
        return Answered(prompt + own + tail, start, stop, stop + end.end() if end else None)

    def _closed(self, i: int) -> tuple[str, Span]:
        """The text that ends with an answer: where the template does not end its turn, the end token does."""
        answer = self.answered(i)
        if answer.end is not None:
            return answer.text, (answer.start, answer.end)
        text = answer.text[: answer.words] + answer.text[answer.words :].rstrip() + self.eos
        return text, (answer.start, len(text))

    def _standing(self, past: Sequence[int], text: str, learn: bool) -> tuple[list[Span], list[int]]:
        """The places of the answers that a text holds as generation writes them, and those it holds otherwise."""
        kept, moved = [], []
        for i in past:
            try:
                answer = self.answered(i)
            except ValueError:
                if learn:
                    raise
                continue
            end = len(answer.text) if answer.end is None else answer.end
            if text.startswith(answer.text[:end]):
                kept.append((answer.start, end))
            elif learn:
                moved.append(i)
        return kept, moved

    def _row(self, i: int) -> Rendered:
        """The text that ends with the answer in message `i`, which alone is learned; its clips are the chat's first."""
        text, span = self._closed(i)
        past = [j for j in range(i) if self.turns[j]["role"] == "assistant"]
        kept, _ = self._standing(past, text, False)
        instruction = self._instruction(text, i, True, False)
        return Rendered(text, (), instruction, answers=(span,), read=tuple(start for start, _ in kept))

    def _instruction(self, text: str, size: int, generate: bool, follow: bool) -> tuple[Span, ...]:
        """Where the user's words before the first answer stand in a text that begins as the first turns do.

        Each run of words is drawn once more as one character that nobody writes, to see where it goes.
        """
        turns = self.turns[:size]
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), size)
        free, runs = _free(turns), dict[str, str]()
        marked = list(turns)
        for i, turn in enumerate(turns[:first]):
            if turn["role"] != "user":
                continue
            pieces = turn["content"].split(AUDIO_TOKEN)
            for k, piece in enumerate(pieces):
                if run := piece.strip():
                    mark = next(free)
                    runs[mark] = run
                    before, after = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
                    pieces[k] = before + mark + after
            marked[i] = {**turn, "content": AUDIO_TOKEN.join(pieces)}
        if not runs:
            return ()
        drawn, spans, missing = "", [], dict(runs)
        for piece in re.split(f"([{''.join(runs)}])", self.draw(marked, generate, follow)):
            if piece in runs:
                spans.append((len(drawn), len(drawn) + len(runs[piece])))
                missing.pop(piece, None)
            drawn += runs.get(piece, piece)
        if missing or not text.startswith(drawn[: spans[-1][1]]):
            words = next(iter(missing.values()), next(iter(runs.values())))
            raise ValueError(
                f"the chat template does not render the user's text {words[:60]!r} as it is; pass another "
                "'chat_template', or a plain 'template' in the spec"
            )
        return tuple(spans)


def wrapping(draw: Draw, special: Iterable[str], eos: str) -> tuple[str, str]:
    """What a template writes of itself before an answer, where generation begins, and between it and its end token."""
    mark = chr(MARKS[0])
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    row = Turns(turns, [], draw, special, eos).render()
    ((start, end),) = row.answers
    before, _, after = row.text[start:end].partition(mark)
    return before, next((after[: -len(token)] for token in (eos, *special) if after.endswith(token)), after)


@lru_cache
def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


def _free(turns: Sequence[Turn]) -> Iterator[str]:
    """Characters that no turn holds, to mark places with."""
    said = "".join(turn["content"] for turn in turns)
    return (chr(code) for code in MARKS if chr(code) not in said)


def _letters(text: str) -> str:
    return "".join(text.split())
