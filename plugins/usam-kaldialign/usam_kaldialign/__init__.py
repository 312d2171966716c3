"""Word errors by kaldialign, each with its place: what was replaced, left out and put in."""

from __future__ import annotations

from collections.abc import Sequence

from kaldialign import align, edit_distance

from usam.metrics import Metric, MetricConfig, Statistics

NOTHING = ""  # opposite a word that was left out or put in: no word is empty


class WordErrors(Metric):
    """Words that must be replaced, left out or put in, over the words of the reference: 0 is perfect, 1 may be passed.

    Of several references a sample is held against the one with the fewest errors, of those against the longest. Words
    are what spaces separate, compared as they are written.
    """

    class Config(MetricConfig):
        """Options of the word errors."""

        sclite_mode: bool = False
        """Whether words are aligned as NIST's sclite does: replacing one costs 4, leaving out or putting in 3; else
        each costs 1. With it errors may be more than the fewest: five words replaced are dearer than three left out and
        three put in."""

    higher_is_better = False
    unit = "share of the reference's words"
    bounds = (0.0, float("inf"))
    packages = ("kaldialign",)

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Words replaced, left out, put in; words of the reference."""
        return min((self._against(prediction, text) for text in references), key=_fewest)

    def _against(self, prediction: str, reference: str) -> tuple[float, float, float, float]:
        words = reference.split()
        found = edit_distance(words, prediction.split(), sclite_mode=self.config.sclite_mode)
        return float(found["sub"]), float(found["del"]), float(found["ins"]), float(len(words))

    def of(self, total: Statistics) -> float:
        """Errors over words; over 1 where no reference has any."""
        return float(total[:3].sum() / max(total[3], 1.0))

    def details(self, statistics: Statistics) -> dict[str, float]:
        """The shares that the three kinds of errors have in the value."""
        total = statistics.sum(0)
        kinds = ("substitutions", "deletions", "insertions")
        return {kind: float(count / max(total[3], 1.0)) for kind, count in zip(kinds, total, strict=False)}

    def alignment(self, prediction: str, references: Sequence[str]) -> list[tuple[str, str]]:
        """Word beside word, (reference, prediction), of the reference that counts; `NOTHING` where one has none."""
        reference = min(references, key=lambda text: _fewest(self._against(prediction, text)))
        return align(reference.split(), prediction.split(), NOTHING, sclite_mode=self.config.sclite_mode)


def _fewest(counts: tuple[float, ...]) -> tuple[float, ...]:
    """An order that says nothing of the order in which references stand."""
    return (sum(counts[:3]), -counts[3], *counts)


def shown(alignment: Sequence[tuple[str, str]]) -> str:
    """An alignment on one line: right words as they are, others as `(said->heard)`, with `*` for nothing."""
    return " ".join(said if said == heard else f"({said or '*'}->{heard or '*'})" for said, heard in alignment)
