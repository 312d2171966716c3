"""MMAR (Ma et al., 2025): questions that need several steps of reasoning on speech, sound, music and their mixtures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.suites import Item, Suite, rows
from usam.suites._files import below, choices, text

COLUMNS = ("modality", "category", "sub-category", "language")


class MMAR(Suite):
    """`MMAR-meta.json`, a list of maps, or `MMAR-meta.jsonl`, and the clips where `audio_path` says.

    Answers are read as the official script does, which is MMAU's. The repository gives no prompt; MMAU's is asked.
    """

    splits = ("test",)
    task = "mmar"
    asks = "{question}  Select one option from the provided choices.\n{choices}."
    source = "prompt: none official, MMAU's; scoring: https://github.com/ddlBoJack/MMAR code/evaluation.py (MMAU's)"
    home = (
        "https://huggingface.co/datasets/BoJack/MMAR (CC BY-NC 4.0); the root holds MMAR-meta.json and the unpacked "
        "folder audio"
    )
    by = ("x_modality", "x_category", "x_sub_category")

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Accuracy by the official parser."""
        return {"accuracy": {"type": "benchmark_choice", "rule": "mmau"}}

    @property
    def not_computed(self) -> str:
        """The later scoring of how models reason."""
        return "MMAR-Rubrics, by which a judge model scores the reasoning"

    def listed(self, choices: Sequence[str]) -> str:
        """As Python writes a list."""
        return repr(list(choices))

    def items(self, root: Path) -> Iterator[Item]:
        """An item a question."""
        file = self.found(root, "MMAR-meta.json", "MMAR-meta.jsonl")
        for place, row in rows(file, ("id", "audio_path", "question", "choices", "answer")):
            yield Item(
                place,
                text(place, row, "id"),
                (below(text(place, row, "audio_path")),),
                (text(place, row, "answer"),),
                text(place, row, "question"),
                choices(place, row),
                {name.replace("-", "_"): row.get(name) for name in COLUMNS},
            )
