"""AIR-Bench (Yang et al., 2024): 19 tasks with choices (foundation), and open questions that a judge scores (chat)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.readers import ManifestError
from usam.suites import Item, Suite, rows
from usam.suites._files import text

LETTERS = "ABCD"
NEEDS = ("path", "question", "answer_gt", "task_name", "dataset_name", "uniq_id")
DOMAINS = {  # of the tasks of chat, as cal_score.py has them
    "speech_QA": "speech",
    "speech_dialogue_QA": "speech",
    "music_QA": "music",
    "music_generation_analysis_QA": "music",
    "sound_QA": "sound",
    "sound_generation_QA": "sound",
    "speech_and_sound_QA": "speech_and_sound",
    "speech_and_music_QA": "speech_and_music",
}
CHOOSE = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D.\n{question}\n{choices}"
)


class AirBench(Suite):
    """`Foundation/Foundation_meta.json` and `Chat/Chat_meta.json`, each a list of maps, clips in `TASK_DATASET` beside.

    Clips of the task `Audio_Grounding` are called .flac, whatever the list says. The official prompt lists a choice
    that a question lacks as `None`, and so does this one.
    """

    splits = ("foundation", "chat")
    task = "air_bench"
    source = (
        "prompt: https://github.com/OFA-Sys/AIR-Bench Inference_Foundation.py and Inference_Chat.py; scoring: "
        "score_foundation.py"
    )
    home = (
        "https://huggingface.co/datasets/qyang1021/AIR-Bench-Dataset (its sources' licences); the root holds the "
        "folders Foundation and Chat"
    )

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.asks = CHOOSE if self.split == "foundation" else "{question}"
        self.by = ("x_part",) if self.split == "foundation" else ("x_domain",)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Accuracy of foundation, by the official parser."""
        return {"accuracy": {"type": "benchmark_choice", "rule": "air_bench"}} if self.split == "foundation" else {}

    @property
    def not_computed(self) -> str:
        """The judge's part."""
        if self.split == "foundation":
            return "the alignment of answers without a letter by a GPT, which the authors call optional"
        return (
            "the official scoring asks GPT-4 for marks from 1 to 10 of the answer and of the reference, in both "
            "orders; answers, references and meta_info are in the record for score_chat.py"
        )

    def listed(self, choices: Sequence[str]) -> str:
        """Four lines, also where there are fewer choices."""
        four = [*choices, None, None][: len(LETTERS)]
        return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, four, strict=True))

    def items(self, root: Path) -> Iterator[Item]:
        """An item a question."""
        part = self.split.capitalize()
        file = self.found(root, f"{part}/{part}_meta.json")
        choosing = self.split == "foundation"
        for place, row in rows(file, (*NEEDS, *(["choice_a", "choice_b"] if choosing else ["meta_info"]))):
            task, dataset, path = (text(place, row, key) for key in ("task_name", "dataset_name", "path"))
            if choosing and task == "Audio_Grounding":
                path = f"{path[:-3]}flac"
            given = [row.get(f"choice_{letter.lower()}") for letter in LETTERS] if choosing else []
            if choosing and row["answer_gt"] not in given:
                raise ManifestError(f"{place}: 'answer_gt' is none of the choices: {row['answer_gt']!r:.80}")
            about = {"part": f"{task}_{dataset}"}
            about |= {} if choosing else {"domain": DOMAINS.get(task, task), "meta_info": row["meta_info"]}
            yield Item(
                place,
                f"{task}_{dataset}/{text(place, row, 'uniq_id')}",
                (f"{part}/{task}_{dataset}/{path}",),
                (text(place, row, "answer_gt"),),
                text(place, row, "question"),
                tuple(str(choice) for choice in given if choice is not None),
                about,
            )
