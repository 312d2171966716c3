"""Character n-gram F-score, chrF and chrF++ (Popović, 2015 and 2017), by sacrebleu."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from usam.metrics import MetricConfig
from usam.metrics._sacrebleu import Sacrebleu


class CharacterF(Sacrebleu):
    """How many character n-grams answer and reference share, of the reference with the best score: 100 is perfect.

    Spaces count for nothing, so that it serves languages that write none.
    """

    class Config(MetricConfig):
        """Options of chrF, under sacrebleu's names."""

        char_order: int = Field(6, ge=1)
        """The longest n-gram of characters."""
        word_order: int = Field(0, ge=0)
        """The longest n-gram of words; 2 makes it chrF++."""
        beta: int = Field(2, ge=1)
        """How many times recall counts as precision does."""
        lowercase: bool = False
        """Compare without case."""
        whitespace: bool = False
        """Count spaces as characters."""

    unsigned = ("beta",)

    def scorer(self, package: Any) -> Any:
        """sacrebleu's chrF."""
        options = self.config.to_dict()
        options.pop("type", None)
        return package.CHRF(**options)
