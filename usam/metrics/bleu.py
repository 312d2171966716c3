"""Corpus BLEU (Papineni et al., 2002), by sacrebleu."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from usam.metrics import MetricConfig
from usam.metrics._sacrebleu import Sacrebleu
from usam.spec.page import SpecError


class Bleu(Sacrebleu):
    """N-grams of the answers that stand in a reference, with a penalty for answers that are too short: 100 is perfect.

    A sample alone is scored as the corpus is, so that it has 0 where it is shorter than the longest n-gram.
    """

    class Config(MetricConfig):
        """Options of BLEU, under sacrebleu's names."""

        tokenize: Literal["13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab"] = "13a"
        """How texts become words: `13a` is WMT's, `intl` splits every Unicode punctuation, `zh` Chinese characters."""
        lowercase: bool = False
        """Compare without case."""
        max_ngram_order: int = Field(4, ge=1)
        """The longest n-gram."""
        smooth_method: Literal["exp", "floor", "add-k", "none"] = "exp"
        """What an n-gram length without a match counts as."""

    unsigned = ("max_ngram_order",)

    def scorer(self, package: Any) -> Any:
        """sacrebleu's BLEU.

        Raises:
            SpecError: the tokenizer needs a package that is not installed.
        """
        options = self.config.to_dict()
        options.pop("type", None)
        try:
            return package.BLEU(force=True, **options)
        except (ImportError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise SpecError(f"tokenize: {self.config.tokenize} cannot be used here: {said}") from error
