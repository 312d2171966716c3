"""transformers' Trainer for our models: what is logged, what stops it, what is saved, and the run that starts it."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers import __version__ as transformers_version
from transformers.trainer_utils import TrainOutput, has_length

from usam.data.cache import FeatureCache, Keyed
from usam.data.collate import Collator, Skipped, check_share
from usam.data.manifest import ManifestError, Sample
from usam.data.sampling import Budget, Length
from usam.data.trial import check_names
from usam.model.assembly import parts
from usam.model.checkpoint import check_place, provenance
from usam.model.learning import check_learns
from usam.model.model import UsamForConditionalGeneration
from usam.processor.audio import AudioError
from usam.processor.lengths import context_length
from usam.saving import STAGED, WEIGHTS, put, stage, whole
from usam.spec.page import SpecError
from usam.training import caching, checkpoints, rows
from usam.training.routing import Routing
from usam.training.run import DATA, Run, cache_of, check, samples_of
from usam.training.sampling import BY_LENGTH, SamplingTrainer
from usam.weights import reading

logger = logging.getLogger(__name__)

# What audio batches need, unless the run file says otherwise.
DEFAULTS = {
    "output_dir": "runs/usam",
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "report_to": "none",
    "greater_is_better": False,  # every metric is a loss; the Trainer would take loss_NAME for something else
    "save_total_limit": 2,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


class IncompleteRun(ValueError):
    """Less work was done than planned: the message says what, and how much."""


class UsamTrainer(SamplingTrainer):
    """transformers' Trainer with learning-rate scales, the loss's parts and the routing in the log, and guards.

    Checkpoints are saved whole, and a resumed run logs and learns what an undisturbed one does. A run that made fewer
    steps than planned, or looked at fewer samples than it was given, is an error.

    Args:
        args, kwargs: as the Trainer takes them, and `budget` and `lengths`, as SamplingTrainer does.
        share: the share of the rows that may be skipped because their clips cannot be read.
        made_of: what a checkpoint records of the run, to be compared before anything goes on from it.
        run_file: the run as a page of YAML, saved with every checkpoint.
        cache: frames of the encoders, read instead of computed where they are stored.
    """

    def __init__(
        self,
        *args: Any,
        share: float = 0.0,
        made_of: Mapping[str, Any] | None = None,
        run_file: str | None = None,
        cache: FeatureCache | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.share = share
        self.made_of = dict(made_of or {})
        self.run_file = run_file
        self.cache = cache
        if cache is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise SpecError("data.cache: FSDP and DeepSpeed spread the encoders' weights over processes; leave one out")
        self.skipped: dict[str, Skipped] = {}  # by row
        self._parts: dict[str, list[Tensor]] = {}
        self._measured: dict[str, list[Tensor]] = {}  # of an evaluation
        self._routing = Routing()
        self._staged: Path | None = None  # where a checkpoint is being written
        self._resumed: Path | None = None
        self.add_callback(_GoOn(self))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own groups, split by each component's `lr_scale`."""
        optimizer = cast(torch.optim.Optimizer, super().create_optimizer(model))
        scales = learning_rate_scales(self.accelerator.unwrap_model(self.model))
        if set(scales.values()) - {1.0}:
            groups = []
            for group in optimizer.param_groups:
                for scale in sorted({scales.get(id(p), 1.0) for p in group["params"]}):
                    own = [p for p in group["params"] if scales.get(id(p), 1.0) == scale]
                    groups.append({**group, "params": own, "lr": group["lr"] * scale})
            optimizer.param_groups[:] = groups
        return optimizer

    def try_largest(self) -> None:
        """What is gathered for the log stays as it is, too."""
        before = self._parts, self._routing, self.skipped
        self._parts, self._routing, self.skipped = {}, Routing(), {}
        try:
            super().try_largest()
        finally:
            self._parts, self._routing, self.skipped = before

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The model's loss; stops at the first part that is not finite, and when too many rows cannot be read.

        Raises:
            FloatingPointError: names the loss and the step.
            AudioError: names the rows.
        """
        tasks = inputs.pop("tasks", None)  # the model knows no tasks
        skipped = inputs.pop("skipped", ())
        clips = inputs.pop("clips", None)
        if self.cache is not None and "input_values" in inputs:
            heard = self.cache.frames(inputs["input_values"], inputs.get("input_values_mask"), clips)
            inputs = {**inputs, "audio_frames": heard}
        if skipped:
            self.skipped |= {row.row: row for row in skipped}
            check_share(list(self.skipped.values()), len(cast(Any, self.train_dataset)), self.share)
        if not model.training:  # each batch by itself: how many tokens other processes have at the moment means nothing
            kwargs["num_items_in_batch"] = None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if model.training and tasks is not None:
            self._routing.add(tasks, outputs.get("aux") or {})
        for name, value in (outputs.get("losses") or {}).items():
            if not math.isfinite(value.item()):
                raise FloatingPointError(
                    f"loss '{name}' is {value.item()} at step {self.state.global_step + 1}; lower the learning rate "
                    "or its lr_scale, clip gradients (max_grad_norm), or train in bf16 instead of fp16"
                )
            if model.training:
                self._parts.setdefault(name, []).append(value.detach())
            else:  # weighted by samples, as the Trainer does with the sum
                value = self.gather_function(value.detach().repeat(self.args.eval_batch_size))
                self._measured.setdefault(name, []).append(value.float().cpu())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each unweighted part since the last line, and of what routers did with each task."""
        if "loss" in logs:
            for name, values in self._parts.items():
                logs[f"loss_{name}"] = float(torch.stack(values).float().mean())
            self._parts.clear()
            logs |= self._routing.means()
        if "train_loss" in logs:  # of the whole run, also when it was resumed
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """A file that is broken, or would execute code, is named."""
        with reading(f"{checkpoint}: optimizer or scheduler", checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """A file that is broken, or would execute code, is named."""
        with reading(f"{checkpoint}: rng_state", checkpoint):
            super()._load_rng_state(checkpoint)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as planned, or go on from a checkpoint (True: the newest whole one).

        Raises:
            IncompleteRun: the plan has no step, or fewer were made.
            SpecError: the checkpoint is not whole, or was made by another run.
        """
        loader = self.get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            raise IncompleteRun(
                f"no step would be made: {len(cast(Any, self.train_dataset))} rows are fewer than a batch of "
                f"{self._train_batch_size * self.args.world_size}, and train.dataloader_drop_last leaves them out"
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
            if state.global_step == planned:
                return self._take(self._resumed, state)
        done = cast(TrainOutput, super().train(str(self._resumed) if self._resumed else None, *args, **kwargs))
        if self.state.global_step < planned and not self.control.should_training_stop:
            raise IncompleteRun(f"{self.state.global_step} of {planned} planned steps were made; nothing more is saved")
        return done

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

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Batches of every sample: `dataloader_drop_last` is about steps of training."""
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """The mean loss over all samples, and as `eval_loss_NAME` each unweighted part.

        It draws from no random numbers that training would draw from.

        Raises:
            IncompleteRun: fewer samples were looked at than there are.
        """
        self._measured = {}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        seen = max((sum(map(len, values)) for values in self._measured.values()), default=None)
        given = len(dataloader.dataset) if has_length(dataloader.dataset) else None
        if seen is not None and given is not None and seen < given:
            raise IncompleteRun(f"{metric_key_prefix}: {seen} of {given} samples were looked at; the data ended early")
        for name, values in self._measured.items():
            output.metrics[f"{metric_key_prefix}_loss_{name}"] = float(torch.cat(values).mean())
        return output

    # What a checkpoint is

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer does it, into a folder beside that becomes the checkpoint when it is complete."""
        if self.cache is not None:  # a run that goes on from here reads the same frames
            self.cache.flush()
        run, step = Path(self._get_output_dir(trial)), self.state.global_step
        folder = run / f"checkpoint-{step}"
        with self._whole(folder, ["*"]) as staged:
            self._staged = staged
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staged = None
            written = staged / folder.name
            self._save_progress(written)
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
            checkpoints.rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)

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

    def _save_progress(self, folder: Path) -> None:
        """What was gathered since the last line of the log, and the rows that were skipped."""
        progress = {
            "loss": self._tr_loss,
            "total": self._total_loss_scalar,
            "logged": self._globalstep_last_logged,
            "parts": self._parts,
            "routing": self._routing.state,
            "skipped": [astuple(row) for row in self.skipped.values()],
        }
        torch.save(progress, self._progress(folder))

    def _restore(self, folder: Path) -> None:
        place = "cpu" if self.args.device.type == "cpu" else self.args.device  # of many processes one is on cpu:1
        progress = torch.load(self._progress(folder), weights_only=True, map_location=place)
        self._tr_loss = progress["loss"]
        self._total_loss_scalar = progress["total"]
        self._globalstep_last_logged = progress["logged"]
        self._parts = progress["parts"]
        self._routing = Routing(progress["routing"])
        self.skipped = {row[0]: Skipped(*row) for row in progress["skipped"]}

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

    def __init__(self, trainer: UsamTrainer) -> None:
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
        if self.trainer._resumed is not None and self.trainer._progress(self.trainer._resumed).is_file():
            self.trainer._restore(self.trainer._resumed)


def learning_rate_scales(model: Any) -> dict[int, float]:
    """The `lr_scale` of every parameter, by its identity."""
    inner = next((m for m in model.modules() if isinstance(m, UsamForConditionalGeneration)), None)
    if inner is None:
        return {}
    named = dict(parts(inner))
    scales = {}
    for name, parameter in inner.named_parameters():
        part = next((part for prefix, part in named.items() if name.startswith(prefix)), inner.config.llm())
        scales[id(parameter)] = float(part.config.lr_scale)
    return scales


def train(run: Run, *, resume: str | bool | None = None, overwrite: bool = False) -> Path:
    """Train a run's model and save it, with its processor and the run itself, in `train.output_dir`.

    Args:
        run: what `read_run` returned.
        resume: a checkpoint folder, or True for the newest whole one in `output_dir`; where there is none, the run
            begins.
        overwrite: begin anew in a folder that holds a run; its checkpoints are removed.

    Raises:
        SpecError: nothing would train, `output_dir` holds a run, or the checkpoint is another run's.
        ManifestError, AudioError: rows that are wrong or too long, clips that cannot be read.
        IncompleteRun: less was done than planned.
    """
    check(run)
    data = {**DATA, **run.data}
    try:
        arguments = TrainingArguments(**{**DEFAULTS, **run.train})
    except (TypeError, ValueError) as error:
        raise SpecError(f"train: {error}") from error
    folder = output_dir(run)
    found, passed = _found(run, folder, resume, overwrite)
    model, processor = caching.built(run, arguments.seed)
    check_place(model, folder)
    check_learns(model)
    if run.start is None:  # what was saved may hold options of another version
        check_names(run.spec, model)
    cache = caching.of_run(run, model)
    quiet = bool(arguments.disable_tqdm)
    context = context_length(model.config.text_config)
    seconds, most = data["batch_seconds"], data["batch_tokens"]
    budget = None
    if seconds is not None or most is not None:
        budget = Budget(seconds, most, run.train.get("per_device_train_batch_size"))
    looks = budget is not None or arguments.train_sampling_strategy in BY_LENGTH
    lengths: dict[str, Length] = {}
    left_out: list[Skipped] = []
    splits: dict[str, list[Sample]] = {}
    for split in ("train", "eval"):
        if data[split] is not None:
            samples = samples_of(run, split)
            if context is not None or looks:
                new = [sample for sample in samples if sample.origin not in lengths]
                lengths |= rows.measured(new, processor, quiet=quiet)
            splits[split], long = rows.fitting(samples, processor, context, data["too_long"], lengths=lengths)
            left_out += long
    if context is not None and data["too_long"] == "truncate_answer":
        lengths = rows.cut_to(lengths, context)
    spares = splits["train"] if data["bad_audio"] == "skip" else None
    if budget is not None:
        splits["train"], large = rows.within(splits["train"], lengths, budget, data["too_long"])
        left_out += large
        spares = rows.spares(splits["train"], lengths, budget) if data["bad_audio"] == "skip" else None
    if "eval" in splits and data["bad_audio"] == "skip":
        splits["eval"], unread = rows.readable(splits["eval"], processor, data["bad_share"], quiet=quiet)
        left_out += unread
    collate = Collator(
        processor,
        tasks=True,
        spares=spares,
        share=data["bad_share"],
        context=context,
        cut=data["too_long"] == "truncate_answer",
    )
    trainer = UsamTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits.get("eval"),
        data_collator=collate if cache is None else Keyed(collate, cache.rate),
        processing_class=processor,
        budget=budget,
        lengths=lengths,
        share=data["bad_share"],
        made_of=_made_of(run, model, arguments.world_size),
        run_file=run.to_yaml(),
        cache=cache,
    )
    for line in passed:
        logger.warning(line)
    if found is None and arguments.should_save:
        checkpoints.start_anew(folder, overwrite=overwrite or bool(resume))
    for left in folder.glob(f".checkpoint-*{STAGED}") if arguments.should_save else ():  # a kill's
        shutil.rmtree(left, ignore_errors=True)
    with _without_traceback(), cache or nullcontext():
        trainer.train(str(found) if found is not None else None)
        if "eval" in splits and arguments.eval_strategy == "no":
            trainer.evaluate()
    trainer.save_run(folder, left_out)
    return folder


@contextmanager
def _without_traceback() -> Iterator[None]:
    """What is wrong with a row, also when a process that reads found it: torch puts the traceback into the message."""
    try:
        yield
    except (AudioError, ManifestError) as error:
        _, traceback, message = str(error).rpartition(f"{type(error).__name__}: ")
        if not traceback:
            raise
        raise type(error)(message.rstrip()) from error


def output_dir(run: Run) -> Path:
    """Where a run is saved."""
    return Path(run.train.get("output_dir", DEFAULTS["output_dir"]))


def _found(run: Run, folder: Path, resume: str | bool | None, overwrite: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and what is to be said of others."""
    if resume and overwrite:
        raise SpecError("either go on (--resume) or start anew (--overwrite)")
    if run.start is not None and folder.exists() and Path(run.start).exists() and os.path.samefile(folder, run.start):
        raise SpecError(f"train.output_dir: {folder} is also where the run starts from; name another folder")
    if isinstance(resume, (str, Path)):
        checkpoints.record(Path(resume))
        return Path(resume), []
    if resume:
        found, passed = checkpoints.newest(folder)
        if found is None:
            if (folder / "config.json").is_file():
                why = "; ".join(passed) or "it was trained without checkpoints, or they were removed"
                raise SpecError(
                    f"train.output_dir: {folder} holds a trained model, and no checkpoint to go on from ({why}): "
                    "start anew with --overwrite, or name another folder"
                )
            passed.append(f"{folder}: no checkpoint to go on from; the run begins")
        return found, passed
    checkpoints.refuse_held(folder, overwrite=overwrite)
    own = Path(run.file) if run.file is not None else None
    if own is not None and not overwrite and own.name == "run.yaml" and own.resolve().parent == folder.resolve():
        raise SpecError(
            f"train.output_dir: {folder} holds the run file, which would be overwritten; name another folder"
        )
    return None, []


def _made_of(run: Run, model: UsamForConditionalGeneration, processes: int) -> dict[str, Any]:
    """What makes a run what it is, as plain data; hashes stand for files."""
    about = provenance(model)
    files = {split: run.data.get(split) or [] for split in ("train", "eval")}
    hashes = {
        s: [_hash(f) for f in ([names] if isinstance(names, (str, Path)) else names)] for s, names in files.items()
    }
    usual = {**{field.name: field.default for field in fields(TrainingArguments)}, **DEFAULTS}
    policies = {key: run.data.get(key, default) for key, default in DATA.items() if key not in files}
    policies["cache"] = (cache_of(run.data) or {}).get("dtype")  # what is stored as it is changes nothing
    return {
        "model": run.spec.to_dict(),
        "sources": {name: source["sha256"] for name, source in about["sources"].items()},
        "data": {**hashes, **policies},
        "train": {**{k: v for k, v in run.train.items() if v != usual.get(k)}, "processes": processes},
        "versions": {
            "usam": about["usam"],
            **about["components"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers_version,
        },
    }


def _hash(file: str | Path) -> str:
    path = Path(os.path.expandvars(os.path.expanduser(file)))
    digest = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:  # a folder of Parquet, a saved dataset
        if not each.is_dir():
            with each.open("rb") as handle:
                hashlib.file_digest(handle, lambda: digest)
    return digest.hexdigest()


def trainable(model: nn.Module) -> int:
    """How many parameters train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
