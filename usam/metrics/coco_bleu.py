"""BLEU-1 to BLEU-4 (Papineni et al., 2002) as COCO's caption evaluation has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from usam.metrics import Statistics
from usam.metrics._captions import Captions, Words, ngrams


class CocoBleu(Captions):
    """N-grams of the answers that stand in a reference, with a penalty for answers that are too short: 1 is perfect.

    Of several references the length is that of the one closest to the answer's, of equally close ones the shorter. No
    smoothing but COCO's own (1e-15 of 1e-9), so that an n-gram length without a match makes it all but 0. `bleu` is
    sacrebleu's, of translation, in hundredths.
    """

    class Config(Captions.Config):
        """Options of COCO's BLEU."""

        order: int = Field(4, ge=1, le=4)
        """The longest n-gram: 4 is what papers call BLEU-4."""

    unit = "share of the n-grams"
    bounds = (0.0, 1.0)

    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """Length of the answer and of its reference, n-grams of each length, and those of them that are right."""
        return [self._counted(*sample) for sample in samples]

    def _counted(self, said: Words, right: list[Words]) -> list[float]:
        order = self.config.order
        closest = min((abs(len(words) - len(said)), len(words)) for words in right)[1]
        known = [ngrams(words, order) for words in right]
        correct = [0.0] * order
        for ngram, count in ngrams(said, order).items():
            correct[len(ngram) - 1] += min(count, max(counts[ngram] for counts in known))
        return [len(said), closest, *(max(0, len(said) - n) for n in range(order)), *correct]

    def of(self, total: Statistics) -> float:
        """COCO's BLEU of that order."""
        order = self.config.order
        said, right, *counts = total.tolist()
        bleu = 1.0
        for guessed, correct in zip(counts[:order], counts[order:], strict=True):
            bleu *= (correct + 1e-15) / (guessed + 1e-9)
        ratio = (said + 1e-15) / (right + 1e-9)
        penalty = math.exp(1 - 1 / ratio) if 1e-3 < ratio < 1 else float(ratio >= 1)  # below it exp gives 0 anyway
        return float(bleu ** (1 / order) * penalty)
