"""Character error rate, by jiwer."""

from __future__ import annotations

from usam.metrics._errors import ErrorRate


class CharacterErrorRate(ErrorRate):
    """Characters, spaces between words included, that are wrong, over those of the reference: 0 is perfect."""

    unit = "share of the reference's characters"
    process = "process_characters"

    def length(self, text: str) -> int:
        """Characters, without what stands around the text."""
        return len(text.strip())
