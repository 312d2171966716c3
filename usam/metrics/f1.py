"""F1 of labels: over all of them together, or the mean of each label's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from usam.metrics import Metric, Statistics
from usam.metrics._labels import Matching, labels, matched
from usam.spec.page import SpecError


class F1(Metric):
    """Twice the labels that are right, over those that were said and those that should have been: 1 is perfect.

    A text is one label, or several where `separator` says so; an empty one is none. Of several references a sample is
    held against the one that leaves the fewest errors, and of those the one with the most labels. Where nothing was
    said and nothing should have been, it is 1.
    """

    class Config(Matching):
        """Options of F1."""

        average: Literal["micro", "macro", "weighted"] = "micro"
        """`micro` counts all labels together; `macro` is the mean of each label's F1, over those that occur in an
        answer or a reference; `weighted` weighs each by how often it should have been said."""
        labels: list[str] | None = Field(None, min_length=1)
        """All labels that there are, which `macro` and `weighted` need. An answer with another is wrong; for `macro`
        and `weighted` that shows in the label that it should have been. A reference with another is an error."""
        separator: str | None = Field(None, min_length=1)
        """What separates several labels in one text, such as a comma; null: each text is one label."""

    higher_is_better = True
    unit = "F1 of the labels"
    bounds = (0.0, 1.0)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.labels is None:
            if config.average != "micro":
                raise SpecError(f"labels: average: {config.average} needs them: write every label that there is")
            return
        self._places = {matched(label, config): place for place, label in enumerate(config.labels)}
        if len(self._places) < len(config.labels):
            raise SpecError(f"labels: two of {config.labels} are the same under these options; write each once")
        if "" in self._places:
            raise SpecError("labels: an empty text is no label; leave it out")

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Right, wrong and missing: of all labels, or of each and of all that are none; and whether it said any such.

        Raises:
            ValueError: a reference has a label that is none of `labels`.
        """
        said = set(labels(prediction, self.config))
        every = [set(labels(reference, self.config)) for reference in references]
        for right in every if self.config.labels is not None else ():
            if unknown := right - self._places.keys():
                raise ValueError(f"its reference {min(unknown)!r} is none of the labels {self.config.labels}")
        right = min(every, key=lambda right: (len(said ^ right), -len(right), sorted(right)))
        parts = (said & right, said - right, right - said)
        if self.config.labels is None:
            return [float(len(part)) for part in parts]
        counts = [float(label in part) for label in self._places for part in parts]
        unknown = said - self._places.keys()
        return [*counts, float(len(unknown)), float(bool(unknown)), 1.0]

    def of(self, total: Statistics) -> float:
        """F1 by the chosen average."""
        if self.config.labels is None:
            return _f1(*total.tolist())
        counts = total[:-3].reshape(-1, 3)
        if self.config.average == "micro":
            right, wrong, missing = counts.sum(0).tolist()
            return _f1(right, wrong + float(total[-3]), missing)
        known = [(_f1(*row), row[0] + row[2]) for row in counts.tolist() if sum(row)]
        if not known:
            return float(total[-3] == 0)
        if self.config.average == "macro":
            return sum(value for value, _ in known) / len(known)
        return sum(value * support for value, support in known) / max(sum(support for _, support in known), 1.0)

    def details(self, statistics: Statistics) -> dict[str, float]:
        """`unparsed`: the share of answers with a label that is none of `labels`."""
        return {} if self.config.labels is None else {"unparsed": float(statistics[:, -2].mean())}


def _f1(right: float, wrong: float, missing: float) -> float:
    return 2 * right / (2 * right + wrong + missing) if right + wrong + missing else 1.0
