"""Error rates: what must be replaced, left out or put in, in the share of what should have been said."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from usam.metrics import Metric, MetricConfig, Statistics, needed
from usam.spec.page import SpecError


class ErrorRate(Metric):
    """Errors of a corpus over the length of its references, so that a long sample counts more than a short one.

    Of several references a sample is held against the one that leaves the fewest errors (multi-reference WER, Ali et
    al., 2015), and of those against the longest. A reference without words has errors, what is said there, and no
    length; where no reference of a corpus has any, the errors are over 1.
    """

    class Config(MetricConfig):
        """Options of an error rate."""

        normalizer: Literal["none", "basic", "english"] = "none"
        """What is done to both texts before: `basic` and `english` are Whisper's normalisers, as transformers has them:
        lower case without punctuation and brackets, in English also contractions, titles and numbers in one way."""
        spelling: str | None = None
        """For `english`: `normalizer.json` of a Whisper tokenizer, a map of British spellings to American ones, which
        Whisper's own numbers are made with; without it spellings stay as they are, and the id says so."""

    higher_is_better = False
    bounds = (0.0, math.inf)
    packages = ("jiwer",)

    process: ClassVar[str]
    """Name of jiwer's function."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._count = getattr(needed("jiwer"), self.process)
        if config.spelling is not None and config.normalizer != "english":
            raise SpecError(
                f"spelling: means nothing to normalizer: {config.normalizer}; write english, or leave it out"
            )
        _ = self.normalize

    @property
    def id(self) -> str:
        """Of the map of spellings its hash, and of normalisers the version of transformers."""
        if self.config.normalizer == "none":
            return f"{self.name}|normalizer:none|jiwer:{metadata.version('jiwer')}"
        spelling = f"|spelling:{self._spelling[1]}" if self.config.normalizer == "english" else ""
        versions = f"jiwer:{metadata.version('jiwer')}|transformers:{metadata.version('transformers')}"
        return f"{self.name}|normalizer:{self.config.normalizer}{spelling}|{versions}"

    @cached_property
    def _spelling(self) -> tuple[dict[str, str], str]:
        """The map of spellings, and what to call it."""
        if self.config.spelling is None:
            return {}, "none"
        file = Path(self.config.spelling).expanduser()
        try:
            text = file.read_bytes()
            return dict(json.loads(text)), hashlib.sha256(text).hexdigest()[:8]
        except (OSError, ValueError, TypeError) as error:
            raise SpecError(f"spelling: {file} is no map of spellings, a normalizer.json: {error}") from error

    @cached_property
    def normalize(self) -> Callable[[str], str]:
        """What is done to every text first."""
        if self.config.normalizer == "none":
            return str
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

        found: Any = BasicTextNormalizer()
        if self.config.normalizer == "english":
            found = EnglishTextNormalizer(self._spelling[0])
        return lambda text: str(found(text))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "normalize"}

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Errors, and the length of the reference."""
        said = self.normalize(prediction)
        found = [self._against(said, self.normalize(reference)) for reference in references]
        return min(found, key=lambda counts: (counts[0], -counts[1]))

    def _against(self, said: str, reference: str) -> tuple[float, float]:
        if not reference.strip():
            return float(self.length(said)), 0.0
        counts = self._count(reference, said)
        errors = counts.substitutions + counts.deletions + counts.insertions
        return float(errors), float(counts.hits + counts.substitutions + counts.deletions)

    @abstractmethod
    def length(self, text: str) -> int:
        """How many words, or characters, a text has."""

    def of(self, total: Statistics) -> float:
        """Errors over length."""
        errors, length = total
        return float(errors / max(length, 1.0))
