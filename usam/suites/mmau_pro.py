"""MMAU-Pro (Kumar et al., 2025): questions on long, spatial and several clips: with choices, open, or of form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from usam.readers import ManifestError
from usam.suites import Item, Suite, rows
from usam.suites._files import below, text, texts

KINDS = {"open": "open", "instruction following": "instruction_following"}
COLUMNS = ("category", "sub-cat", "length_type", "perceptual_skills", "reasoning_skills", "task_identifier", "kwargs")
JUDGES = {
    "closed": "the official scoring takes the choice whose embedding by nvidia/NV-Embed-v2 is nearest to the answer; "
    "accuracy here is by MMAU's parser, which is another number; questions with fewer than two choices are not asked, "
    "as the official script has it",
    "open": "the official scoring asks Qwen/Qwen2.5-7B-Instruct for marks from 1 to 5; answers, questions and "
    "references are in the record for it",
    "instruction_following": "the official scoring checks each answer by the rule in its task_identifier and kwargs; "
    "both are in the record for evaluate_mmau_pro_comprehensive.py",
}


class MMAUPro(Suite):
    """`test.parquet` (or the same rows as `test.json` or `test.jsonl`), and the clips where `audio_path` says.

    Each of its three kinds of questions is a split, since each is scored in a way of its own. A question may have
    several clips.
    """

    splits = ("closed", "open", "instruction_following")
    task = "mmau_pro"
    asks = "{question}{choices}"
    source = (
        "prompt: none official, the question, and its choices as MMAU's authors ask them; scoring: "
        "https://github.com/sonalkum/MMAUPro evaluate_mmau_pro_comprehensive.py"
    )
    home = (
        "https://huggingface.co/datasets/gamma-lab-umd/MMAU-Pro (CC BY-NC 4.0); the root holds test.parquet and the "
        "unpacked folder data"
    )
    by = ("x_category", "x_length_type", "x_perceptual_skills", "x_reasoning_skills")

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Accuracy where there are choices."""
        return {"accuracy": {"type": "benchmark_choice", "rule": "mmau"}} if self.split == "closed" else {}

    @property
    def not_computed(self) -> str:
        """What needs another model, or the official script."""
        return JUDGES[self.split]

    def listed(self, choices: Any) -> str:
        """As Python writes a list, behind the question."""
        return f"  Select one option from the provided choices.\n{list(choices)!r}."

    def items(self, root: Path) -> Iterator[Item]:
        """An item a question of the split's kind."""
        names = ["test.parquet", "test.jsonl", "test.json"]
        for place, row in rows(self.found(root, *names), ("id", "category")):
            choices = texts(place, row, "choices")
            kind = KINDS.get(text(place, row, "category"), "closed")
            if kind != self.split or (kind == "closed" and len(choices) < 2):
                continue
            for key in ("question", "audio_path", *(["answer"] if kind != "instruction_following" else [])):
                if row.get(key) is None:
                    raise ManifestError(f"{place}: has no '{key}'; it has {', '.join(row)}")
            given = row["audio_path"]
            clips = (
                (given,) if isinstance(given, str) and not given.startswith("[") else texts(place, row, "audio_path")
            )
            yield Item(
                place,
                text(place, row, "id"),
                tuple(map(below, clips)),
                (text(place, row, "answer"),) if row.get("answer") is not None else (),
                text(place, row, "question"),
                choices if kind == "closed" else (),
                {name.replace("-", "_"): row.get(name) for name in COLUMNS},
            )
