"""MuChoMusic (Weck et al., 2024): questions on music with four choices, of which three mislead in a known way."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.readers import ManifestError
from usam.suites import Item, Suite, SuiteConfig, rows
from usam.suites._files import below, text, texts, whole

LETTERS = "ABCD"
ANSWERS = ("correct_answer", *(f"distractor_{number}_answer" for number in (1, 2, 3)))
EXAMPLE = (  # of muchomusic_eval/configs/default.yaml
    "Question: What rhythm pattern do the digital drums primarily follow in this pop music piece? \n Options: "
    "(A) Four on the floor. (B) Off-beat syncopation. (C) Scat singing. (D) E-guitar playing a simple melody. \n "
    "The correct answer is: A"
)


class MuChoMusic(Suite):
    """`muchomusic.csv`, and the clips of its two sources beside, each with its own table.

    Choices are shuffled for each question, and its authors' order is drawn anew by each user: here it is drawn by
    `seed` and the question, or is that of a file which their `prepare_prompts.py` wrote (`prepared`). Answers are read
    as their script does.
    """

    class Config(SuiteConfig):
        """Options of MuChoMusic."""

        prepared: str | None = None
        """A JSON file below the root that `prepare_prompts.py` wrote, whose prompts are asked as they stand."""
        seed: int = 0
        """What the order of choices is drawn with, where it is not prepared."""

    splits = ("test",)
    task = "muchomusic"
    asks = EXAMPLE + "\n Question: {question}\n Options: {choices} \n The correct answer is: "
    source = "prompt: https://github.com/mulab-mir/muchomusic prepare_prompts.py; scoring: muchomusic_eval/scoring.py"
    home = (
        "https://zenodo.org/records/12709974 (CC BY-SA 4.0), with the Song Describer Dataset and MusicCaps; the root "
        "holds muchomusic.csv, sdd/song_describer.csv, sdd/audio, musiccaps/musiccaps-public.csv and musiccaps/audio"
    )
    by = ("x_dataset", "x_genre", "x_knowledge", "x_reasoning")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.prepared is not None:
            self.asks = "{question}"

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Accuracy by the official parser."""
        return {"accuracy": {"type": "benchmark_choice", "rule": "muchomusic"}}

    def listed(self, choices: Sequence[str]) -> str:
        """In one line, with letters."""
        return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))

    def items(self, root: Path) -> Iterator[Item]:
        """An item a question."""
        if self.config.prepared is not None:
            yield from _prepared(self.found(root, self.config.prepared))
            return
        file = self.found(root, "muchomusic.csv")
        clips = _Clips(root, self)
        for number, (place, row) in enumerate(rows(file, ("question", "dataset", "dataset_identifier", *ANSWERS))):
            answers = [text(place, row, key) for key in ANSWERS]
            shuffled = random.Random(f"{self.config.seed} {number}").sample(answers, len(answers))
            dataset, name = text(place, row, "dataset"), text(place, row, "dataset_identifier").removesuffix(".json")
            yield Item(
                place,
                f"{dataset}/{name}/{number}",
                (clips.of(place, dataset, name),),
                (answers[0],),
                text(place, row, "question"),
                tuple(shuffled),
                {
                    "dataset": dataset,
                    "genre": row.get("genre"),
                    "knowledge": list(texts(place, row, "music_knowledge")),
                    "reasoning": list(texts(place, row, "music_reasoning")),
                },
            )


def _prepared(file: Path) -> Iterator[Item]:
    """Items of a file that holds prompts with their choices in order."""
    for number, (place, row) in enumerate(rows(file, ("id", "prompt", "answers", "answer_orders", "audio_path"))):
        answers, order = texts(place, row, "answers"), row["answer_orders"]
        if not isinstance(order, list) or sorted(order, key=str) != list(range(len(answers))):
            raise ManifestError(f"{place}: 'answer_orders' has each place of 'answers' once, found {order!r:.80}")
        yield Item(
            place,
            f"{row.get('dataset', 'muchomusic')}/{text(place, row, 'id')}/{number}",
            (below(text(place, row, "audio_path")).removeprefix("data/"),),
            (answers[order.index(0)],),
            text(place, row, "prompt"),
            answers,
            {name: row.get(name) for name in ("dataset", "genre", "knowledge", "reasoning")},
        )


class _Clips:
    """Where the clips of its two sources lie, by their tables, each read when it is first asked for."""

    def __init__(self, root: Path, suite: Suite) -> None:
        self.root, self.suite = root, suite
        self._tables: dict[str, dict[str, str]] = {}

    def of(self, place: str, dataset: str, name: str) -> str:
        """A clip's path below the root."""
        if dataset not in ("sdd", "musiccaps"):
            raise ManifestError(f"{place}: 'dataset' is sdd or musiccaps, found '{dataset}'")
        if dataset not in self._tables:
            self._tables[dataset] = self._sdd() if dataset == "sdd" else self._musiccaps()
        key = name if dataset == "sdd" else name.rpartition("_")[0]  # the part behind tells questions apart
        if key not in self._tables[dataset]:
            raise ManifestError(f"{place}: '{key}' stands in no row of the table of {dataset}")
        return self._tables[dataset][key]

    def _sdd(self) -> dict[str, str]:
        file = self.suite.found(self.root, "sdd/song_describer.csv")
        return {
            text(place, row, "track_id"): f"sdd/audio/{text(place, row, 'path').replace('.mp3', '.2min.mp3')}"
            for place, row in rows(file, ("track_id", "path"))
        }

    def _musiccaps(self) -> dict[str, str]:
        clips = {}
        file = self.suite.found(self.root, "musiccaps/musiccaps-public.csv")
        for place, row in rows(file, ("ytid", "start_s", "end_s")):
            name, start, end = text(place, row, "ytid"), whole(place, row, "start_s"), whole(place, row, "end_s")
            clips[name] = f"musiccaps/audio/[{name}]-[{start}-{end}].wav"
        return clips
