"""The miniature world: speech, sound events and music, made here, to train, develop and test on.

Nothing is downloaded, everything that sounds is known, and test has nothing of training's: other random
numbers, and held-out voices, sentences, scenes, combinations and parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import soundfile

from usam.data.index import code_of
from usam.data.spoken import espeak_version, holds
from usam.data.world import draw, music, numerals, sounds, speech, synthesis
from usam.data.world.draw import SAMPLE_RATE, SPLITS
from usam.registry import did_you_mean
from usam.saving import whole

DOMAINS: dict[str, ModuleType] = {"speech": speech, "sounds": sounds, "music": music}
PROMPTS = {
    "asr": "Transcribe this audio.",
    "s2tt": "Translate the number into Chinese.",
    "aac": "Describe the sounds.",
    "mc": "Describe the music.",
}
"""An instruction for each task, for the `prompts` of a spec."""


def write_world(
    folder: str | Path,
    *,
    train: int | Mapping[str, int] = 2000,
    dev: int | Mapping[str, int] = 200,
    test: int | Mapping[str, int] = 200,
    seed: int = 0,
    domains: Sequence[str] = tuple(DOMAINS),
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, Path]]:
    """Write the world's clips and manifests, unless the folder holds the very same ones already.

    Args:
        folder: receives, for each split, `SPLIT/TASK.jsonl` and the clips in `SPLIT/TASK/`; and `world.json`, which
            says how all was made.
        train: clips of each task to train on, or a number for each by its name; 0 writes none.
        dev: clips of each task to choose by.
        test: clips of each task to report on, once.
        seed: another seed draws other clips. What a split may draw from stays, so that no test, of whatever seed,
            holds anything of any training.
        domains: some of "speech" (tasks `asr`, `s2tt`), "sounds" (`aac`) and "music" (`mc`).
        progress: called with the number of clips written so far.

    Returns:
        The manifests by split and task. Rows have `audio` (a path relative to the manifest), `id`, `task`, `answer`
        (for captions a list, of which the first is learned) and in `meta` what is true of the clip: `seconds`; in
        `events` what sounds, with `onset` and `offset` in seconds; and how it was made.

    Raises:
        FileExistsError: the folder holds something else.
        ImportError: speech is asked for, and eSpeak NG is not installed.
        ValueError: an unknown domain, or a number of clips below zero.
    """
    folder = Path(folder)
    sizes = {"train": train, "dev": dev, "test": test}
    recipe = _recipe(sizes, seed, domains)
    asked = [
        (split, task, DOMAINS[name], count)
        for split in SPLITS
        for name in domains
        for task in _tasks(name)
        if (count := _count(sizes[split], task))
    ]
    manifests: dict[str, dict[str, Path]] = {}
    for split, task, *_ in asked:
        manifests.setdefault(split, {})[task] = folder / split / f"{task}.jsonl"
    if holds(folder, recipe, "world"):
        return manifests
    written = 0
    with whole(folder) as made:
        for split, task, domain, count in asked:
            rows = []
            (made / split / task).mkdir(parents=True)
            for number, (wave, row) in enumerate(domain.clips(task, split, count, seed), start=1):
                audio = f"{task}/{number:05d}.wav"
                soundfile.write(made / split / audio, np.round(wave * 32767).astype(np.int16), SAMPLE_RATE)
                row["meta"] = {"seconds": round(len(wave) / SAMPLE_RATE, 4), **row["meta"]}
                rows.append({"id": f"{split}-{task}-{number:05d}", "audio": audio, "task": task, **row})
                written += 1
                if progress is not None:
                    progress(written)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (made / split / f"{task}.jsonl").write_text(lines, encoding="utf-8")
        (made / "world.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    return manifests


def _tasks(domain: str) -> tuple[str, ...]:
    return tuple(DOMAINS[domain].TASKS)


def _count(size: int | Mapping[str, int], task: str) -> int:
    return size.get(task, 0) if isinstance(size, Mapping) else size


def _recipe(sizes: dict[str, int | Mapping[str, int]], seed: int, domains: Sequence[str]) -> dict[str, Any]:
    """All that decides the bytes of a world."""
    for name in domains:
        if name not in DOMAINS:
            raise ValueError(f"no domain '{name}'; {did_you_mean(name, DOMAINS)}")
    if not domains or len(set(domains)) < len(domains):
        raise ValueError(f"domains are {list(domains)}; name each once, and at least one of {', '.join(DOMAINS)}")
    tasks = [task for name in domains for task in _tasks(name)]
    for split, size in sizes.items():
        for task in size if isinstance(size, Mapping) else ():
            if task not in tasks:
                raise ValueError(f"{split}: no task '{task}'; {did_you_mean(task, tasks)}")
        if any(_count(size, task) < 0 for task in tasks):
            raise ValueError(f"{split} is {size}; write how many clips of each task, or 0 for none")
    if not any(_count(size, task) for size in sizes.values() for task in tasks):
        raise ValueError("train, dev and test are 0: there is nothing to write")
    modules = (draw, synthesis, numerals, speech, sounds, music)
    code = {module.__name__.rpartition(".")[2]: code_of(module.__name__) for module in modules}
    spoken = {"espeak": espeak_version()} if "speech" in domains else {}
    counts = {split: dict(size) if isinstance(size, Mapping) else size for split, size in sizes.items()}
    return {**counts, "seed": seed, "domains": list(domains), **spoken, "code": code}
