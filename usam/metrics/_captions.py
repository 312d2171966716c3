"""Captions as COCO's evaluation compares them: every text of a set is tokenised first, by a Penn Treebank tokeniser."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from usam.metrics import Metric, MetricConfig, Statistics, checked
from usam.metrics._java import PACKAGE, jar, java, run

Words = list[str]

REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that COCO leaves out. Brackets are not among them: it looks for `-LRB-` where lower case has `-lrb-`."""
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--"})
ABBREVIATED = "mr|mrs|ms|dr|prof|st|jr|sr|no|vs|etc|inc|ltd|co|corp|ave|blvd|dept|gen|gov|sen|rep|lt|col|capt|sgt"

TOKEN = re.compile(
    rf"""
      https?://\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+            # addresses
    | <[a-z/]+>
    | (?:[a-z]\.){{2,}} | (?:{ABBREVIATED})\.(?!\w) | \b[a-z]\.(?!\w)   # u.s., mr., and initials
    | '\d\ds\b | '(?:s|m|d|re|ve|ll|n'|t\b(?=\ is\b)) | n't\b | y'(?=\ all\b)   # '80s, and what CONTRACTED split off
    | \d+(?:[.,:/]\d+)+                                      # 3.5, 1,000, 10:30, 4/4
    | [a-g]\#(?!\w) | [#@][^\W\d]\w*                         # F#, #tag
    | \w(?:\w|[-'/.](?=\w))*                                 # words, with what joins their parts
    | \.{{3}} | -- | [?!]+ | [^\w\s]
    """,
    re.VERBOSE,
)
CONTRACTED = re.compile(r"(?<=\w)(n't|'(?:s|m|d|re|ve|ll))(?![\w-])|(?<=\brock) ?('n') ?(?=roll\b)")
MERGED = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b|\b(lem|gim)(me)\b|('t)(is|was)\b|\b(y')(all)\b")


def ptb_like(text: str) -> Words:
    """Tokens as the Penn Treebank's, in lower case, without those that COCO leaves out.

    Commas, colons, brackets, quotes and final full stops are split off; `don't` is `do n't`, `dog's` is `dog 's`,
    `cannot` is `can not`; `black-and-white`, `high/low`, `3.5` and `mr.` stay whole. Symbols outside the basic plane
    (emoji) are dropped, and runs of marks (`?!`, `!!!`) are tokens, both as in Stanford's tokeniser.
    """
    text = "".join(char for char in text.translate(TYPOGRAPHIC).lower() if ord(char) < 0x10000 or char.isalnum())
    text = MERGED.sub(lambda found: " ".join(part for part in found.groups() if part), text)
    text = CONTRACTED.sub(lambda found: f" {found[0].strip()} ", text)
    return [BRACKETS.get(token, token) for token in TOKEN.findall(text) if token not in REMOVED and token != '"']


def ptb_java(texts: Sequence[str]) -> list[Words]:
    """Tokens by Stanford's PTBTokenizer 3.4.1, as pycocoevalcap calls it.

    Raises:
        ComponentError: java or pycocoevalcap is missing.
    """
    what = "the PTB tokenizer"
    program: list[str | Path] = [
        java(what),
        "-Dfile.encoding=UTF-8",
        "-cp",
        jar(what, "tokenizer", "stanford-corenlp-3.4.1.jar"),
    ]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    options = ["-preserveLines", "-lowerCase", "-encoding", "utf-8"]
    found = run([*program, "edu.stanford.nlp.process.PTBTokenizer", *options], lines).split("\n")[: len(texts)]
    if len(found) < len(texts):
        raise RuntimeError(f"{what} gave {len(found)} lines for {len(texts)} texts")
    return [[token for token in line.split() if token not in REMOVED] for line in found]


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of up to `order` words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, order + 1) for i in range(len(words) - n + 1))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]


class Captions(Metric):
    """A metric of COCO's: it sees words, of all samples at once."""

    class Config(MetricConfig):
        """Options of COCO's metrics."""

        tokenizer: Literal["ptb_like", "ptb_java"] = "ptb_like"
        """What makes words of texts: `ptb_java` is COCO's own, Stanford's PTBTokenizer, and needs Java and
        pycocoevalcap; `ptb_like` follows its rules, and differs in what captions seldom hold."""

    higher_is_better = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.tokenizer == "ptb_java":
            ptb_java([])  # what is missing is told now

    @property
    def id(self) -> str:
        """With the version of pycocoevalcap where its tokenizer is used."""
        used = self.config.tokenizer == "ptb_java" and PACKAGE not in self.packages
        return f"{super().id}|{PACKAGE}:{metadata.version(PACKAGE)}" if used else super().id

    def over(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str] | str],
        ids: Sequence[Any] | None = None,
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> Statistics:
        """The statistics of each sample: (samples, counts); arguments and errors as `Metric.over` has them."""
        pairs = checked(predictions, references, ids)
        words = self._tokenized([text for answer, right in pairs for text in (answer, *right)])
        return np.array(self.counts([(next(words), [next(words) for _ in right]) for _, right in pairs]), np.float64)

    def _tokenized(self, texts: Sequence[str]) -> Iterator[Words]:
        return iter(ptb_java(texts) if self.config.tokenizer == "ptb_java" else map(ptb_like, texts))

    def statistics(self, prediction: str, references: Sequence[str]) -> Sequence[float]:
        """Of a sample alone."""
        alone: list[float] = self.over([prediction], [references])[0].tolist()
        return alone

    @abstractmethod
    def counts(self, samples: Sequence[tuple[Words, list[Words]]]) -> Sequence[Sequence[float]]:
        """The statistics of each sample, of the words of its answer and of its references."""
