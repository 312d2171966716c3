"""CIDEr-D (Vedantam et al., 2015) as COCO's caption evaluation has it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from usam.metrics._captions import Captions, Words, ngrams
from usam.metrics._mean import Mean

Ngram = tuple[str, ...]

ORDER = 4
SIGMA = 6.0


class CiderD(Captions, Mean):
    """How alike answers and references are in their n-grams, rare ones counting more: 10 is perfect with one reference.

    How rare an n-gram is, is counted in the references of the samples that are evaluated together: log(samples), less
    the log of those with the n-gram in a reference. So values of different sets cannot be compared, nor those of a part
    with the whole: a part's value, a task's, and a bootstrap's are means of the scores that its samples have in the
    whole set, whose counts they keep. In a tiny set the value means little: what every sample's references have weighs
    nothing, and one sample alone has 0, whatever is said. Of a text of fewer than four words the n-grams that it is too
    short for count as 0, a quarter of the score for each length.
    """

    unit = "tenth of a perfect score with one reference"
    bounds = (0.0, 10.0)
    decomposes = False

    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """The score among these samples, and one sample."""
        counted = [(ngrams(said, ORDER), [ngrams(words, ORDER) for words in right]) for said, right in samples]
        found = Counter(ngram for _, right in counted for ngram in set().union(*right))
        most = math.log(len(samples))
        weights = {ngram: most - math.log(count) for ngram, count in found.items()}
        return [(_score(said, right, weights, most), 1.0) for said, right in counted]


def _score(said: Counter[Ngram], right: list[Counter[Ngram]], weights: Mapping[Ngram, float], most: float) -> float:
    answer = _vectors(said, weights, most)
    alike = [_alike(answer, _vectors(counts, weights, most), _pairs(said) - _pairs(counts)) for counts in right]
    return 10 * math.fsum(alike) / len(alike)


def _vectors(counts: Counter[Ngram], weights: Mapping[Ngram, float], most: float) -> list[dict[Ngram, float]]:
    """For each length of n-grams, how often each occurs, times how rare it is; one that no reference has is rarest."""
    found: list[dict[Ngram, float]] = [{} for _ in range(ORDER)]
    for ngram, count in counts.items():
        found[len(ngram) - 1][ngram] = count * weights.get(ngram, most)
    return found


def _pairs(counts: Counter[Ngram]) -> int:
    """How long a text is: in pairs of words, as COCO's code counts it."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 2)


def _alike(answer: list[dict[Ngram, float]], right: list[dict[Ngram, float]], longer: int) -> float:
    """Mean cosine, of what the answer has no more often than the reference, less where lengths differ."""
    cosines = []
    for a, b in zip(answer, right, strict=True):
        size = math.sqrt(sum(x * x for x in a.values()) * sum(x * x for x in b.values()))
        dot = sum(min(x, b.get(ngram, 0.0)) * b.get(ngram, 0.0) for ngram, x in a.items())
        cosines.append(dot / size if size else 0.0)
    return sum(cosines) / ORDER * math.exp(-(longer**2) / (2 * SIGMA**2))
