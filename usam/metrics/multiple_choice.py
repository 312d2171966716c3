"""Multiple choice: which choice an answer names, read strictly, by its letter, or by what it mentions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

from usam.metrics import MetricConfig, Statistics
from usam.metrics._mean import Mean
from usam.spec.page import SpecError

COLUMN = "x_choices"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class MultipleChoice(Mean):
    """The share of answers that name the right choice: 1 is perfect.

    An answer that names none, or more than one, is wrong and never guessed at; how many these are is told beside the
    value (`unparsed`). A reference is the text of a choice, or its letter; a text goes before a letter.
    """

    class Config(MetricConfig):
        """Options of multiple choice."""

        parser: Literal["strict", "letter", "first_mention", "words"] = "strict"
        """How answers are read. `strict`: nothing but a choice's letter, text or both (`b`, `(B)`, `B. rain`, `rain`).
        `letter`: the one letter that the answer begins with (`B) ...`), has in parentheses, or calls its answer
        (`the answer is B`). `first_mention`: the choice whose text stands first in it, of those that begin at one
        place the longest. `words`: MMAU's own, the choice all of whose words stand in it, and none that only other
        choices have."""
        choices: list[str] | None = None
        """The choices of every sample, in the order of their letters; null: each sample's own, its column
        `x_choices`."""

    higher_is_better = True
    unit = "share of the samples"
    bounds = (0.0, 1.0)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.choices is not None:
            try:
                _Choices(config.choices)
            except ValueError as error:
                raise SpecError(f"choices: {error}") from error

    @property
    def columns(self) -> tuple[str, ...]:
        """The samples' choices, where none are given for all."""
        return (COLUMN,) if self.config.choices is None else ()

    def statistics(self, prediction: str, references: Sequence[str], x_choices: Any = None) -> Sequence[float]:
        """Whether it is right, whether it could not be read, and one sample.

        Raises:
            ValueError: a reference is none of the choices, or these are no list of different texts.
        """
        choices = _Choices(x_choices if self.config.choices is None else self.config.choices)
        right = {choices.right(reference) for reference in references}
        said = PARSERS[self.config.parser](choices, prediction)
        return float(said in right), float(said is None), 1.0

    def details(self, statistics: Statistics) -> dict[str, float]:
        """`unparsed`: the share of answers that name no choice, or more than one."""
        return {"unparsed": float(statistics[:, 1].mean())}


class _Choices:
    """The choices of a sample, and how an answer names one: by place; None where it names none, or several."""

    def __init__(self, texts: Any) -> None:
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"choices are a list of texts, found {texts!r}")
        if not 2 <= len(texts) <= len(LETTERS):
            raise ValueError(f"there are {len(texts)} choices: write 2 to {len(LETTERS)}")
        plain = [_plain(text) for text in texts]
        labelled = [re.fullmatch(rf"\(?{LETTERS[i].lower()}[).:]\s*(.+)", text) for i, text in enumerate(plain)]
        self.texts = [found[1] for found in labelled if found] if all(labelled) else plain
        if "" in self.texts or len(set(self.texts)) < len(self.texts):
            raise ValueError(f"two choices are the same, or one is empty: {list(texts)}")

    def right(self, reference: str) -> int:
        """The choice that a reference is."""
        if _plain(reference) in self.texts:
            return self.texts.index(_plain(reference))
        found = self.strict(reference)
        if found is None:
            raise ValueError(f"its reference {reference!r} is none of the choices {self.texts}, and no letter of one")
        return found

    def strict(self, answer: str) -> int | None:
        """A letter, a text, or both, and nothing else."""
        text = _plain(answer)
        named = {place for place, choice in enumerate(self.texts) if choice == text}
        if found := re.fullmatch(r"[(\[]?([a-z])[)\]]?[.:,]?", text):
            named.add(LETTERS.lower().index(found[1]))
        if found := re.fullmatch(r"[(\[]?([a-z])[)\].:,]+\s*(\S.*)", text):
            both = [place for place, choice in enumerate(self.texts) if choice == found[2]]
            named |= {*both, LETTERS.lower().index(found[1])} if both else set()
        return self._only(named)

    def letter(self, answer: str) -> int | None:
        """The one letter that it gives for its answer; a bare small one only where it says nothing else."""
        if found := re.fullmatch(r"\W*([A-Za-z])\W*", answer):
            return self._only({LETTERS.index(found[1].upper())})
        said = [letter for pattern in SAID for letter in pattern.findall(answer)]
        return self._only({LETTERS.index(letter) for letter in said})

    def first_mention(self, answer: str) -> int | None:
        """The choice whose text stands first, as whole words where its writing separates words."""
        text = _plain(answer)
        found = {}
        for place, choice in enumerate(self.texts):
            before = r"(?<!\w)" if _spaced(choice[0]) else ""
            after = r"(?!\w)" if _spaced(choice[-1]) else ""
            if mention := re.search(f"{before}{re.escape(choice)}{after}", text):
                found[place] = (mention.start(), -len(choice))
        return min(found, key=lambda place: found[place]) if found else None

    def words(self, answer: str) -> int | None:
        """The choice with all its words in the answer, and none there that other choices have and it has not."""
        said = _words(answer)
        own = [_words(choice) for choice in self.texts]
        fits = {
            place
            for place, words in enumerate(own)
            if said and words <= said and not said & (set().union(*own) - words)
        }
        return self._only(fits)

    def _only(self, named: set[int]) -> int | None:
        (place, *others) = sorted(named) or [len(self.texts)]
        return place if not others and place < len(self.texts) else None


SAID = [  # what a letter is an answer by; `A dog` and `I hear` are none
    re.compile(r"^[\s*\"'(\[]*([A-Z])(?:[)\]*]|[.:,](?=\s|$)|\s*$)", re.MULTILINE),
    re.compile(r"\(([A-Z])\)"),
    re.compile(
        r"\b(?i:answer|option|choice)\b(?:\s+(?i:is))?\s*:?\s*[*(\[\"']*"
        r"((?:[B-HJ-Z]\b(?!')|[AI](?=\s*(?:[)\].:,*\"';]|$))))",
        re.MULTILINE,
    ),
    re.compile(r"(?:答案|选择?)[是为]?\s*[::]?\s*[(（]?([A-Z])(?![A-Za-z])"),
]

PARSERS: dict[str, Callable[[_Choices, str], int | None]] = {
    "strict": _Choices.strict,
    "letter": _Choices.letter,
    "first_mention": _Choices.first_mention,
    "words": _Choices.words,
}


def _plain(text: str) -> str:
    """Without case, without spaces around and more than one in a row, and without a full stop at the end."""
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return text[:-1].rstrip() if text.endswith((".", "。")) and len(text) > 1 else text


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))


def _spaced(char: str) -> bool:
    """Whether a character is a letter or digit of a writing with spaces between words."""
    return char.isalnum() and ord(char) < 0x2E80
