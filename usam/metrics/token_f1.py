"""F1 of an answer's words, as SQuAD's evaluation has it (Rajpurkar et al., 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from usam.metrics._mean import Mean


class TokenF1(Mean):
    """The mean F1 of the words that answer and reference share, of the reference with the best score: 1 is perfect.

    Words are compared in lower case, without ASCII punctuation and without `a`, `an`, `the`. Where either has no words
    left, it is 1 if both have none, and 0 otherwise (SQuAD 2.0's rule).
    """

    higher_is_better = True
    unit = "share of the words, F1"
    bounds = (0.0, 1.0)

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """The score, and one sample."""
        return max(_f1(_words(prediction), _words(reference)) for reference in references), 1.0


def _words(text: str) -> list[str]:
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    return 2 * (Counter(said) & Counter(right)).total() / (len(said) + len(right))
