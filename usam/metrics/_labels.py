"""Answers that are labels: which texts are the same one, and how several stand in one text."""

from __future__ import annotations

import unicodedata
from typing import Any

from usam.metrics import MetricConfig


class Matching(MetricConfig):
    """What counts as the same text; composed and decomposed characters always do."""

    strip: bool = True
    """Spaces around the text, and more than one in a row, say nothing."""
    lowercase: bool = False
    """Compare without case."""
    punctuation: bool = True
    """Compare punctuation (every Unicode mark, P*, also within words); false leaves it out."""


def matched(text: str, config: Any) -> str:
    """The text as `Matching` compares it."""
    text = unicodedata.normalize("NFC", text)
    if not config.punctuation:
        text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
    if config.lowercase:
        text = unicodedata.normalize("NFC", text.casefold())
    return " ".join(text.split()) if config.strip else text


def labels(text: str, config: Any) -> list[str]:
    """The labels of a text, in their order, each once: all that its `separator` separates; none of an empty text."""
    parts = [text] if config.separator is None else text.split(config.separator)
    return list(dict.fromkeys(label for part in parts if (label := matched(part, config)).strip()))
