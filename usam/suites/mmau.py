"""MMAU (Sakshi et al., 2024): questions of sound, music and speech with choices, of which one is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.suites import Item, Suite, rows
from usam.suites._files import below, choices, text


class MMAU(Suite):
    """`mmau-test-mini.json`, a list of maps, and the clips where `audio_id` says.

    Answers are read as the official script does: all words of the right choice must stand in them, and none that only
    other choices have. The 9,000 questions of its other split have no public answers; send predictions to their board.
    """

    splits = ("test-mini",)
    task = "mmau"
    asks = "{question}  Select one option from the provided choices.\n{choices}."
    source = (
        "prompt: https://github.com/Sakshi113/MMAU/issues/3, an author; scoring: evaluation.py there (string_match)"
    )
    home = (
        "https://github.com/Sakshi113/MMAU (CC BY-NC 4.0); the root holds mmau-test-mini.json and the folder "
        "test-mini-audios"
    )
    by = ("x_task", "x_difficulty", "x_category", "x_sub_category")

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Accuracy by the official parser."""
        return {"accuracy": {"type": "benchmark_choice", "rule": "mmau"}}

    def listed(self, choices: Sequence[str]) -> str:
        """As Python writes a list."""
        return repr(list(choices))

    def items(self, root: Path) -> Iterator[Item]:
        """An item a question."""
        file = self.found(root, f"mmau-{self.split}.json")
        for place, row in rows(file, ("id", "audio_id", "question", "choices", "answer")):
            columns = {name: row.get(name.replace("_", "-")) for name in ("task", "difficulty", "category")}
            yield Item(
                place,
                text(place, row, "id"),
                (below(text(place, row, "audio_id")),),
                (text(place, row, "answer"),),
                text(place, row, "question"),
                choices(place, row),
                {**columns, "sub_category": row.get("sub-category"), "dataset": row.get("dataset")},
            )
