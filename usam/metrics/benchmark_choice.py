"""Multiple choice as benchmarks' own scripts read answers, so that scores are those that their boards would give."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from usam.metrics import MetricConfig, Statistics
from usam.metrics._mean import Mean

COLUMN = "x_choices"
LETTERS = "ABCD"


class BenchmarkChoice(Mean):
    """The share of answers that name the right choice, read as one benchmark's script does: 1 is perfect.

    `multiple_choice` reads answers more carefully; this one repeats what is published, with its faults. A reference is
    the text of a choice.
    """

    class Config(MetricConfig):
        """Options of multiple choice by a benchmark's rule."""

        rule: Literal["mmau", "air_bench", "muchomusic"] = "mmau"
        """`mmau` (MMAR's too): all words of the right choice stand in the answer, and none that only others have.
        `air_bench`: the letter that it begins with, or that stands last but one in it; an answer without such is not
        counted at all. `muchomusic`: the one capital letter A to D that occurs in it, behind `The correct answer is:`
        where that is said; else the first choice whose text it holds."""

    higher_is_better = True
    unit = "share of the samples"
    bounds = (0.0, 1.0)

    @property
    def columns(self) -> tuple[str, ...]:
        """The choices of a sample, in the order of their letters."""
        return (COLUMN,)

    def statistics(self, prediction: str, references: Sequence[str], x_choices: Any = None) -> Sequence[float]:
        """Whether it is right, whether it could not be read, and whether it counts.

        Raises:
            ValueError: the choices are no list of texts, or the reference is none of them.
        """
        if not isinstance(x_choices, (list, tuple)) or not all(isinstance(text, str) for text in x_choices):
            raise ValueError(f"choices are a list of texts, found {x_choices!r}")
        found = [RULES[self.config.rule](prediction, reference, list(x_choices)) for reference in references]
        if any(found):
            return 1.0, 0.0, 1.0
        unread = all(one is None for one in found)
        return 0.0, float(unread), float(not unread or self.config.rule != "air_bench")

    def of(self, total: Statistics) -> float:
        """The mean of those that count; 0 where none does."""
        return super().of(total) if total[-1] else 0.0

    def details(self, statistics: Statistics) -> dict[str, float]:
        """`unparsed`: the share of answers that could not be read."""
        return {"unparsed": float(statistics[:, 1].mean())}


def _mmau(prediction: str, reference: str, choices: list[str]) -> bool | None:
    """As `string_match` of MMAU's evaluation.py: an answer without any word is one that could not be read."""
    said, right = _words(prediction), _words(reference)
    if not said:
        return None
    wrong = {word for choice in choices if _words(choice) != right for word in _words(choice)} - right
    return right <= said and not said & wrong


def _air_bench(prediction: str, reference: str, choices: list[str]) -> bool | None:
    """As AIR-Bench's score_foundation.py."""
    right = _place(reference, choices)
    said = prediction.strip().replace("\n", "")
    if not said or said == "None":
        return None
    letter = next((char for char in (said[0], said[-2:-1]) if char and char in LETTERS), None)
    return None if letter is None else LETTERS.index(letter) == right


def _muchomusic(prediction: str, reference: str, choices: list[str]) -> bool | None:
    """As `extract_responses` of MuChoMusic's scoring.py."""
    right = _place(reference, choices)
    said = prediction.split("The correct answer is:")[-1].strip()
    letters = set(LETTERS) & set(said)
    if len(letters) == 1:
        return LETTERS.index(letters.pop()) == right
    plain = said.lower()
    place = next((i for i, choice in enumerate(choices) if choice.lower().strip() in plain), None)
    return None if place is None else place == right


RULES: dict[str, Callable[[str, str, list[str]], bool | None]] = {
    "mmau": _mmau,
    "air_bench": _air_bench,
    "muchomusic": _muchomusic,
}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))


def _place(reference: str, choices: list[str]) -> int:
    if reference not in choices:
        raise ValueError(f"its reference {reference!r} is none of the choices {choices}")
    return choices.index(reference)
