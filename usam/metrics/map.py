"""Mean average precision of ranked labels."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from usam.metrics._labels import Matching, labels
from usam.metrics._mean import Mean


class MeanAveragePrecision(Mean):
    """The mean over samples of the average precision of the labels in an answer, the most certain first: 1 is perfect.

    An answer is a list, `dog, rain, speech`; its order is the ranking, and a label that it leaves out was never found.
    A label said twice counts where it was said first. Of several references a sample is held against the one with the
    best score; without any label a reference is met by an answer without any. It is the mean over samples, as in
    retrieval; the mean over classes, as AudioSet's taggers report it, ranks samples by a score for every class, which
    texts do not have: the two cannot be compared.
    """

    class Config(Matching):
        """Options of mean average precision."""

        separator: str = Field(",", min_length=1)
        """What separates labels in answers and references."""

    higher_is_better = True
    unit = "average precision, the mean over samples"
    bounds = (0.0, 1.0)

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """The average precision, and one sample."""
        said = labels(prediction, self.config)
        return max(_average(said, set(labels(reference, self.config))) for reference in references), 1.0


def _average(said: list[str], right: set[str]) -> float:
    """Mean over the right labels of the precision down to each: 0 for one that was not said."""
    if not right:
        return float(not said)
    ranks = [rank for rank, label in enumerate(said, 1) if label in right]
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(right)
