"""The paper's recipe in miniature: a world to hear, and the run that joins three frozen specialists on all its tasks.

What is chosen here was chosen on the development split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from usam.data.world import PROMPTS, write_world
from usam.saving import write_whole
from usam.spec.page import SpecError

Clips = Mapping[str, int | Mapping[str, int]]  # by split: of each task, or by task
CLIPS: Clips = {"train": {"asr": 1500, "s2tt": 2500, "aac": 1000, "mc": 1000}, "dev": 100, "test": 200}
EPOCHS = 3
TRAIN: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 50,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "logging_steps": 25,
    "save_strategy": "no",
}


@dataclass(frozen=True)
class Prepared:
    """What there is to train the model with."""

    folder: Path
    world: Mapping[str, Mapping[str, Path]]
    """The manifests, by split and task."""
    run_file: Path
    """Trains `mini_paper` on all four tasks."""


def prepare(folder: str | Path, *, seed: int = 0, clips: Clips = CLIPS, epochs: float = EPOCHS) -> Prepared:
    """Write the world and the run file; a world that is there already is left alone.

    Args:
        folder: receives `world/` and `run.yaml`; the run caches features in `cache/`, and is saved in `model/`.
        seed: of the world and of the run.
        clips: by split, of each task or by task.
        epochs: of the run.

    Raises:
        SpecError: the folder holds another run file, or a model that none of these trained.
        ImportError: eSpeak NG is not installed.
    """
    folder = Path(folder).resolve()
    check_own(folder)
    total = sum(sum(size.values()) if isinstance(size, Mapping) else len(PROMPTS) * size for size in clips.values())
    with tqdm(total=total, desc="world", unit="clip") as bar:
        world = write_world(
            folder / "world",
            train=clips["train"],
            dev=clips["dev"],
            test=clips["test"],
            seed=seed,
            progress=lambda written: bar.update(written - bar.n),
        )
    run_file = folder / "run.yaml"
    write_whole(run_file, page(_run(world, folder, seed, epochs)))
    return Prepared(folder, world, run_file)


def check_own(folder: Path) -> None:
    """Refuse a folder in which another run file lies where these are written.

    Raises:
        SpecError: names it.
    """
    for name in ("run.yaml", "model/run.yaml"):
        file = folder / name
        if file.is_file() and str(folder / "world") not in file.read_text(encoding="utf-8"):
            raise SpecError(f"{file}: not of a demo, which would overwrite it; name another folder with --folder")


def page(tree: Mapping[str, Any]) -> str:
    """A page of YAML."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _run(world: Mapping[str, Mapping[str, Path]], folder: Path, seed: int, epochs: float) -> dict[str, Any]:
    train, dev = ([str(file) for file in world[split].values()] for split in ("train", "dev"))
    return {
        "model": "mini_paper",
        "data": {"train": train, "eval": dev, "cache": str(folder / "cache")},
        "train": {"output_dir": str(folder / "model"), **TRAIN, "num_train_epochs": epochs, "seed": seed},
    }
