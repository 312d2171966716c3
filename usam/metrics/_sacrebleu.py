"""Metrics of sacrebleu: its n-gram statistics, and its id for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from usam.metrics import Metric, Statistics, needed


class Sacrebleu(Metric):
    """What sacrebleu counts in each sample, and the score that it makes of the sums; an empty text has no n-grams."""

    higher_is_better = True
    unit = "hundredth of a perfect score"
    bounds = (0.0, 100.0)
    packages = ("sacrebleu",)

    unsigned: ClassVar[tuple[str, ...]] = ()
    """Options that change the score, and that sacrebleu's signature does not hold."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._scorer = self.scorer(needed("sacrebleu.metrics"))
        self._scorer.num_refs = 1  # a signature is asked for before any text; how many there are is the data's

    @abstractmethod
    def scorer(self, package: Any) -> Any:
        """sacrebleu's object, with the options."""

    @property
    def id(self) -> str:
        """sacrebleu's signature without the number of references, and the options that it leaves out."""
        signature = [part for part in str(self._scorer.get_signature()).split("|") if not part.startswith("nrefs:")]
        more = [f"{key}:{getattr(self.config, key)}" for key in self.unsigned]
        return "|".join([self.name, *signature[:-1], *more, f"sacrebleu:{signature[-1].removeprefix('version:')}"])

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """As sacrebleu counts them; the references sorted, for of equally good ones it takes the first."""
        right = sorted(references)
        info = self._scorer._extract_reference_info([self._scorer._preprocess_segment(text) for text in right])
        counts: Sequence[float] = self._scorer._compute_segment_statistics(
            self._scorer._preprocess_segment(prediction), info
        )
        return counts

    def of(self, total: Statistics) -> float:
        """sacrebleu's score."""
        return float(self._scorer._compute_score_from_stats(total.round().astype(int).tolist()).score)
