"""Exact match: the share of answers that are one of their references."""

from __future__ import annotations

from collections.abc import Sequence

from usam.metrics._labels import Matching, matched
from usam.metrics._mean import Mean


class Accuracy(Mean):
    """The share of answers that are, whole, one of their references: 1 is perfect.

    An empty answer is right only where a reference is empty.
    """

    class Config(Matching):
        """Options of exact match."""

    higher_is_better = True
    unit = "share of the samples"
    bounds = (0.0, 1.0)

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Whether it is right, and one sample."""
        right = {matched(reference, self.config) for reference in references}
        return float(matched(prediction, self.config) in right), 1.0
