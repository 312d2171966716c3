"""Word error rate, by jiwer."""

from __future__ import annotations

from usam.metrics._errors import ErrorRate


class WordErrorRate(ErrorRate):
    """Words that must be replaced, left out or put in, over the words of the reference: 0 is perfect, 1 may be passed.

    Words are what spaces separate: for a language that writes none, take `cer`.
    """

    unit = "share of the reference's words"
    process = "process_words"

    def length(self, text: str) -> int:
        """Words."""
        return len(text.split())
