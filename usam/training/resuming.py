"""A Trainer whose checkpoints are whole, and whose resumed runs log and learn what undisturbed ones do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import TrainOutput, has_length

from usam.data.collate import Skipped
from usam.data.stream import Stream
from usam.model.checkpoint import delta_names
from usam.saving import WEIGHTS, put, stage, whole
from usam.spec.page import SpecError
from usam.training import checkpoints, rows, sharding
from usam.training.sampling import SamplingTrainer
from usam.weights import locate, read, reading

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"

logger = logging.getLogger(__name__)


class IncompleteRun(ValueError):
    """Less work was done than planned: the message says what, and how much."""


class ResumingTrainer(SamplingTrainer):
    """SamplingTrainer whose checkpoints are saved in one step each, with what is needed to go on as if nothing were.

    A run that made fewer steps than planned is an error.

    Args:
        args, kwargs: as SamplingTrainer takes them.
        made_of: what a checkpoint records of the run, to be compared before anything goes on from it.
        run_file: the run as a page of YAML, saved with every checkpoint.
    """

    def __init__(
        self, *args: Any, made_of: Mapping[str, Any] | None = None, run_file: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.made_of = dict(made_of or {})
        self.run_file = run_file
        self.skipped: dict[str, Skipped] = {}  # by row
        self._staged: Path | None = None  # where a checkpoint is being written
        self._resumed: Path | None = None
        self._limit = self.args.save_total_limit
        self.add_callback(_GoOn(self))

    def create_accelerator_and_postprocess(self) -> None:
        """Also on CPUs the weights are spread over the processes, if that is asked for."""
        asked = sharding.asked(self.args)
        super().create_accelerator_and_postprocess()
        if asked:
            sharding.spread(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """A file that is broken, or would execute code, is named."""
        with reading(f"{checkpoint}: optimizer or scheduler", checkpoint):
            if checkpoint is None or not self.is_fsdp_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            state = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(sharding.in_parts(state, self.optimizer))
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Under FSDP, the files that one process alone would write."""
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = sharding.whole_state(self.optimizer, keep=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:
            self._fill(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            self._fill(cast(str, self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _fill(self, checkpoint: str) -> None:
        left = sharding.fill(self.model, read(locate(checkpoint)))
        self._issue_warnings_after_load(SimpleNamespace(missing_keys=[], unexpected_keys=left))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Also from weights in parts: those that are saved are gathered, and one process writes them."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        state = self.model.state_dict()
        names = delta_names(self.model, state)
        ties = {name: of for name, of in self.model.all_tied_weights_keys.items() if {name, of} <= names}
        state |= sharding.gathered(state, names - ties.keys(), keep=self.args.should_save)
        state |= {name: state[of] for name, of in ties.items()}
        self._save(output_dir, state_dict=state)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A file that is broken, or would execute code, is named.

        With another number of processes, a process draws from numbers of its own, which its place and the step give.
        """
        if checkpoint is None or checkpoints.processes(Path(checkpoint)) == self.args.world_size:
            with reading(f"{checkpoint}: rng_state", checkpoint):
                super()._load_rng_state(checkpoint)
        else:
            place = (self.args.seed, self.state.global_step, self.args.process_index)
            set_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as planned, or go on from a checkpoint (True: the newest whole one).

        Raises:
            IncompleteRun: the plan has no step, or fewer were made.
            SpecError: the checkpoint is not whole, or was made by another run.
        """
        loader = self.get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            step = super(SamplingTrainer, self).get_total_train_batch_size(self.args)
            raise IncompleteRun(
                f"no step would be made: {len(cast(Any, self.train_dataset))} rows are fewer than a batch of {step}, "
                "and train.dataloader_drop_last leaves them out"
            )
        planned = int(self.set_initial_training_values(self.args, loader)[-1] or 0)
        if resume_from_checkpoint is True:
            resume_from_checkpoint, passed = checkpoints.newest(Path(self.args.output_dir))  # type: ignore[assignment]
            for line in passed:
                logger.warning(line)
            if resume_from_checkpoint is None:
                raise SpecError(f"{self.args.output_dir}: holds no whole checkpoint to go on from")
        self._resumed = Path(cast(str, resume_from_checkpoint)) if resume_from_checkpoint else None
        if self._resumed is not None:
            for line in checkpoints.compare(self._resumed, self.made_of):
                logger.warning("%s: %s", self._resumed, line)
            state = TrainerState.load_from_json(str(self._resumed / "trainer_state.json"))
            if state.global_step > planned:
                raise SpecError(f"{self._resumed}: has made {state.global_step} steps, more than the {planned} planned")
            if isinstance(self.train_dataset, Stream):
                self.train_dataset.seen = state.global_step * self.args.gradient_accumulation_steps
            if state.global_step == planned or self.ended(self._resumed):
                return self._take(self._resumed, state)
        if self.is_fsdp_enabled:
            sharding.choose_layers(self.accelerator, self.model)
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None  # or 1 would remove the newest
        try:
            done = cast(TrainOutput, super().train(str(self._resumed) if self._resumed else None, *args, **kwargs))
        finally:
            self.args.save_total_limit = self._limit
        if self.state.global_step < planned and not self.control.should_training_stop:
            raise IncompleteRun(f"{self.state.global_step} of {planned} planned steps were made; nothing more is saved")
        return done

    def ended(self, checkpoint: Path) -> bool:
        """Whether the run ended at a checkpoint before its planned steps were made."""
        return False

    def _take(self, checkpoint: Path, state: TrainerState) -> TrainOutput:
        """A run that had made all its steps when it ended: its weights, and its log."""
        self._load_from_checkpoint(str(checkpoint))
        self._move_model_to_device(self.model, self.args.device)
        self.state = state
        self._restore(checkpoint)
        self._total_loss_scalar += float(self._tr_loss)
        self.log({"total_flos": state.total_flos, "train_loss": 0.0})
        if self.args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._load_best_model()
        return TrainOutput(state.global_step, 0.0, {})

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any, **kwargs: Any) -> Any:
        """The batches of one step.

        Raises:
            IncompleteRun: the data ended before its length was reached, as when reading it raises StopIteration.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        if len(batches) < num_batches and has_length(self.train_dataset):
            raise IncompleteRun(
                f"the data ended at step {self.state.global_step + 1} of {self.state.max_steps}: "
                f"{len(batches)} of its {num_batches} batches came"
            )
        return batches, count

    # What a checkpoint is

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer does it, into a folder beside that becomes the checkpoint when it is complete."""
        run, step = Path(self._get_output_dir(trial)), self.state.global_step
        folder = run / f"checkpoint-{step}"
        with self._whole(folder, ["*"]) as staged:
            self._staged = staged
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staged = None
            written = staged / folder.name
            torch.save(self.gathered(), self._progress(written))
            if self.state.best_global_step == step:
                self.state.best_model_checkpoint = str(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(written / "trainer_state.json"))
                if self.run_file is not None:
                    (written / "run.yaml").write_text(self.run_file, encoding="utf-8")
                checkpoints.seal(written, self.made_of)
                for path in written.iterdir():
                    path.rename(staged / path.name)
                written.rmdir()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            checkpoints.rotate(run, self._limit, self.state.best_model_checkpoint)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staged) if self._staged is not None else cast(str, super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staged is None:  # else it is not complete
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _whole(self, folder: Path, replaces: Sequence[str]) -> Iterator[Path]:
        """`whole`, for all processes of the run, which write into one folder."""
        if self.args.world_size == 1:
            with whole(folder, replaces) as staged:
                yield staged
            return
        if self.args.should_save:
            shutil.rmtree(folder.parent / f".{folder.name}.all.saving", ignore_errors=True)
            stage(folder, "all")
        self.accelerator.wait_for_everyone()
        staged = folder.parent / f".{folder.name}.all.saving"
        yield staged
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            put(staged, folder, replaces)
            shutil.rmtree(staged, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _progress(self, folder: Path) -> Path:
        return folder / ("progress.pt" if self.args.world_size == 1 else f"progress_{self.args.process_index}.pt")

    def gathered(self) -> dict[str, Any]:
        """What was gathered since the last line of the log, and the rows that were skipped: plain data and tensors."""
        return {
            "loss": self._tr_loss,
            "total": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "skipped": [astuple(row) for row in self.skipped.values()],
        }

    def take_up(self, gathered: Mapping[str, Any]) -> None:
        """Go on from what `gathered` gave when the checkpoint was saved."""
        self._tr_loss = gathered["loss"]
        self._total_loss_scalar = gathered["total"]
        self._globalstep_last_logged = gathered["logged"]
        self.skipped = {row[0]: Skipped(*row) for row in gathered["skipped"]}

    def merged(self, gathered: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """For this process: what others, more or fewer of them, had gathered.

        What the log takes the mean of over processes, each gets the mean of; every process knows all skipped rows.
        """
        first = gathered[0]
        skipped = dict.fromkeys(tuple(row) for each in gathered for row in each["skipped"])
        return {**first, "loss": torch.stack([each["loss"] for each in gathered]).mean(0), "skipped": list(skipped)}

    def _restore(self, folder: Path) -> None:
        place = "cpu" if self.args.device.type == "cpu" else self.args.device  # of many processes one is on cpu:1
        if self._progress(folder).is_file() and checkpoints.processes(folder) == self.args.world_size:
            self.take_up(torch.load(self._progress(folder), weights_only=True, map_location=place))
        elif files := sorted(folder.glob("progress*.pt"), key=lambda file: int(file.stem.partition("_")[2] or 0)):
            self.take_up(self.merged([torch.load(f, weights_only=True, map_location=place) for f in files]))

    def save_run(self, folder: Path, left_out: Sequence[Skipped] = ()) -> None:
        """Save the model, its processor, the run, its log and the rows that were skipped, in one step."""
        skipped = [*left_out, *self.skipped.values()]
        if self.args.world_size > 1:
            skipped = list(dict.fromkeys(gather_object(skipped)))
        with self._whole(folder, [*WEIGHTS, rows.LISTED]) as staged:
            self.save_model(str(staged), _internal_call=True)
            if self.args.should_save:
                if self.run_file is not None:
                    (staged / "run.yaml").write_text(self.run_file, encoding="utf-8")
                if skipped:
                    rows.listed(skipped, staged)
                self.state.save_to_json(str(staged / "trainer_state.json"))
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A delta holds what trains: the rest is missing by design, but nothing may be left over."""
        if load_result.unexpected_keys:
            raise ValueError(f"the checkpoint does not fit the model: unexpected {load_result.unexpected_keys}")


class _GoOn(TrainerCallback):
    """A resumed run takes up its log where the checkpoint left it, and repeats and leaves out nothing.

    So a checkpoint at the end of an epoch is saved when what is due there, a line of the log or an evaluation, is done.
    """

    def __init__(self, trainer: ResumingTrainer) -> None:
        self.trainer = trainer
        self.due = False  # a checkpoint

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        later = "epoch" in (args.logging_strategy, args.eval_strategy)
        last = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        if control.should_save and later and last:
            self.due, control.should_save = True, False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or self.due
        self.due = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.try_largest()
        if self.trainer._resumed is not None:
            self.trainer._restore(self.trainer._resumed)
