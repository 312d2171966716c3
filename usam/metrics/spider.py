"""SPIDEr (Liu et al., 2017): the mean of CIDEr-D and SPICE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from usam.metrics._captions import Captions, Words
from usam.metrics._mean import Mean
from usam.metrics.cider_d import CiderD
from usam.metrics.spice import Spice


class Spider(Captions, Mean):
    """The mean of a sample's CIDEr-D and SPICE, and of all samples: 5.5 is perfect with one reference.

    It needs what SPICE needs, and is never computed without it. As CIDEr-D it depends on which samples are evaluated
    together: see there.
    """

    class Config(Spice.Config):
        """Options of SPIDEr: SPICE's."""

    unit = "mean of a tenth of a perfect CIDEr-D and of SPICE"
    bounds = (0.0, 5.5)
    packages = Spice.packages
    decomposes = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._cider = CiderD(CiderD.Config(tokenizer=config.tokenizer))
        self._spice = Spice(Spice.Config(tokenizer=config.tokenizer))

    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """The score among these samples, and one sample."""
        both = zip(self._cider.counts(samples), self._spice.counts(samples), strict=True)
        return [((cider[0] + spice[0]) / 2, 1.0) for cider, spice in both]
