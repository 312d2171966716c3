"""ROUGE-L (Lin, 2004) as COCO's caption evaluation has it, which is not what rouge-score has."""

from __future__ import annotations

from collections.abc import Sequence

from usam.metrics._captions import Captions, Words, longest_common
from usam.metrics._mean import Mean

BETA = 1.2


class CocoRougeL(Captions, Mean):
    """The mean F-score of the longest common subsequences of each answer and its references: 1 is perfect.

    Precision is the best that any reference gives, recall too, maybe of another (pycocoevalcap). An empty answer has 0,
    but 1 where a reference is empty too.
    """

    unit = "share of the words, F with recall 1.2 times"
    bounds = (0.0, 1.0)

    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """The score, and one sample."""
        return [(_score(said or [""], [words or [""] for words in right]), 1.0) for said, right in samples]


def _score(said: Words, right: list[Words]) -> float:
    common = [longest_common(said, words) for words in right]
    precision = max(common) / len(said)
    recall = max(n / len(words) for n, words in zip(common, right, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision and recall else 0.0
