"""Trained runs that studies share, and what their models lose on development data."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainingArguments

from usam import UsamForConditionalGeneration
from usam.data.cache import Keyed
from usam.data.collate import Collator
from usam.model.checkpoint import processor_beside
from usam.training import caching
from usam.training.run import Run, read_run, samples_of
from usam.training.start import DEFAULTS, train
from usam.training.trainer import UsamTrainer


@dataclass(frozen=True)
class Study:
    """What a study trains, and where.

    Args:
        run_file: of a run with `data.eval`: the development data.
        folder: where each run has a folder of its own; one that is there is not trained again.
        seeds: of each variant.
        overrides: of all runs.
    """

    run_file: Path
    folder: Path
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]

    @classmethod
    def asked(cls, about: str) -> Study:
        """What the command line asks for; by default the run of the demo."""
        parser = argparse.ArgumentParser(description=about)
        parser.add_argument("--run", type=Path, help="A run file with data.eval; by default that of the demo.")
        parser.add_argument("--folder", type=Path, help="Where runs go, and are found again; by default nowhere.")
        parser.add_argument("--seeds", type=int, default=3)
        parser.add_argument("--quick", action="store_true", help="Print the figures alone.")
        parser.add_argument("overrides", nargs="*", help="Of the run file, such as train.max_steps=300.")
        given = parser.parse_args()
        folder = given.folder or Path(tempfile.mkdtemp())
        if given.run is None:
            from usam.demo.recipe import prepare

            prepare(folder / "demo")
        run_file = given.run or folder / "demo" / "run.yaml"
        return cls(run_file, folder, tuple(range(given.seeds)), tuple(given.overrides))

    @property
    def run(self) -> Run:
        """The run that variants differ from."""
        return read_run(self.run_file, *self.overrides)

    def place(self, kind: str) -> str:
        """Where the run's spec has the stage of this type, or the last one: `model.projector.1`."""
        stages = self.run.spec.projector
        found = [i for i, stage in enumerate(stages) if stage.type == kind] or [len(stages) - 1]
        return f"model.projector.{found[0]}"

    def trained(self, name: str, seed: int, *overrides: str) -> Path:
        """The folder of one run; it is trained where it is not there yet."""
        out = self.folder / f"{name}-{seed}"
        if not (out / "trainer_state.json").is_file():
            more = (f"train.seed={seed}", f"train.output_dir={out}", "train.disable_tqdm=true")
            train(read_run(self.run_file, *self.overrides, *overrides, *more), overwrite=True)
        return out

    def held_out(self, out: Path) -> HeldOut:
        """A trained model before the development data."""
        return HeldOut(self.run, out)


class HeldOut:
    """A trained model, and its cross entropy on development data, in nats a token."""

    def __init__(self, run: Run, out: Path) -> None:
        others = [f"losses.{name}=null" for name in run.spec.losses if name != "cross_entropy"]
        self.model = UsamForConditionalGeneration.from_pretrained(out, *others, "losses.cross_entropy.weight=1")
        processor = processor_beside(out, self.model.config.parsed)
        self.rows = samples_of(run, "eval")
        self.tasks = sorted({sample.task or "other" for sample in self.rows})
        self.cache = caching.of_run(run, self.model)
        collate = Collator(processor, tasks=True)
        options: Any = {**DEFAULTS, "per_device_eval_batch_size": 32, "disable_tqdm": True, "output_dir": str(out)}
        self.trainer = UsamTrainer(
            model=self.model,
            args=TrainingArguments(**options),
            eval_dataset=self.rows,
            data_collator=collate if self.cache is None else Keyed(collate, self.cache.rate),
            processing_class=processor,
            cache=self.cache,
        )
        self.trainer.remove_callback(PrinterCallback)

    def losses(self) -> dict[str, float]:
        """By task."""
        with self.cache or nullcontext():
            found = self.trainer.evaluate()
        return {task: found[f"eval_loss_{task}"] for task in self.tasks}

    def batches(self) -> Any:
        """(tasks, what the model takes) of all batches."""
        with self.cache or nullcontext():
            for batch in self.trainer.get_eval_dataloader():
                batch.pop("sources", None)  # which are counted in training
                inputs, _ = self.trainer.inputs_of(batch)
                yield batch["tasks"], self.trainer._prepare_inputs(inputs)


def mean(losses: dict[str, float]) -> float:
    """Over tasks, each as much as any other."""
    return sum(losses.values()) / len(losses)
