"""A corpus value that is the mean of its samples' scores."""

from __future__ import annotations

from usam.metrics import Metric, Statistics


class Mean(Metric):
    """It counts a score, and one sample."""

    def of(self, total: Statistics) -> float:
        """The mean."""
        return float(total[0] / total[-1])
