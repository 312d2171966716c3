"""Sentences out of fortunes whose words are all in a list of English words, once each."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

SHORTEST, LONGEST = 3, 12  # words
PLAIN = re.compile(r"[A-Za-z][A-Za-z' ,;:\"-]*[.!?]+")
ENDS = re.compile(r"(?<=[.!?])[\"']?\s+")
ATTRIBUTION = re.compile(r"\n\s*--.*", re.DOTALL)


def sentences(texts: Path, words: Path) -> dict[str, str]:
    """By what is said, in lower case and without punctuation, the sentence as it is written; sorted.

    Args:
        texts: the folder of fortunes.
        words: a list of words, one a line.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    known = {word.lower() for word in words.read_text(encoding="utf-8").split()}
    found: dict[str, str] = {}
    for file in sorted(texts.iterdir()):
        if not file.suffix:
            for sentence in _of(file.read_text(encoding="utf-8", errors="replace")):
                own = said(sentence).split()
                if SHORTEST <= len(own) <= LONGEST and known.issuperset(own):
                    found.setdefault(" ".join(own), sentence)
    return dict(sorted(found.items()))


def shared(found: Mapping[str, str], counts: Mapping[str, int], seed: int) -> dict[str, list[tuple[str, str]]]:
    """By name, as many pairs of what is said and what is written; none is in two of them.

    Raises:
        ValueError: there are too few.
    """
    if sum(counts.values()) > len(found):
        raise ValueError(
            f"{len(found)} sentences were found, and {sum(counts.values())} are needed: ask for fewer clips"
        )
    order = sorted(found.items())
    random.Random(f"{seed}:sentences").shuffle(order)
    drawn = iter(order)
    return {name: [next(drawn) for _ in range(count)] for name, count in counts.items()}


def said(text: str) -> str:
    """A text in lower case, without punctuation but for apostrophes within words."""
    return " ".join(word for part in re.split(r"[^a-z']+", text.lower()) if (word := part.strip("'")))


def _of(page: str) -> Iterator[str]:
    for saying in page.split("\n%\n"):
        for sentence in ENDS.split(" ".join(ATTRIBUTION.sub("", saying).split())):
            if PLAIN.fullmatch(sentence):
                yield sentence
