"""ROUGE-L (Lin, 2004) as the package rouge-score has it: F1 of the longest common subsequence."""

from __future__ import annotations

import re
from collections.abc import Sequence

from usam.metrics._captions import longest_common
from usam.metrics._mean import Mean


class RougeL(Mean):
    """The mean F1 of each answer's and its reference's longest common subsequence: 1 is perfect.

    Words are runs of `a` to `z` and digits in lower case, not stemmed, so that it knows no other script: a text without
    such words has 0. Of several references a sample is held against the one with the best score. COCO's ROUGE-L is
    another metric: `coco_rouge_l`.
    """

    higher_is_better = True
    unit = "share of the words, F1"
    bounds = (0.0, 1.0)

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """The score, and one sample."""
        return max(_f1(_words(prediction), _words(reference)) for reference in references), 1.0


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _f1(said: list[str], right: list[str]) -> float:
    return 2 * longest_common(said, right) / max(len(said) + len(right), 1)
