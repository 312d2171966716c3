"""A run is started: what its file says becomes a model, its rows and a Trainer, and what comes of it is saved."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers import __version__ as transformers_version

from usam.data.augment import Augment
from usam.data.cache import Keyed
from usam.data.collate import Collator, Skipped
from usam.data.index import content
from usam.data.manifest import ManifestError
from usam.data.sampling import Budget
from usam.data.trial import check_names
from usam.model.checkpoint import check_place, provenance
from usam.model.learning import check_learns
from usam.model.model import UsamForConditionalGeneration
from usam.processor.audio import AudioError
from usam.processor.lengths import context_length
from usam.saving import STAGED
from usam.spec.page import SpecError
from usam.training import caching, checkpoints, held_out, rows
from usam.training.checks import DATA
from usam.training.groups import grouped
from usam.training.run import Run, cache_of, check, samples_of, sources_of, stream_of
from usam.training.sampling import BY_LENGTH
from usam.training.sources import made_of, mixture_of
from usam.training.trainer import UsamTrainer

logger = logging.getLogger(__name__)

# What audio batches need, unless the run file says otherwise.
DEFAULTS = {
    "output_dir": "runs/usam",
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "report_to": "none",
    "save_total_limit": 2,
    "dataloader_pin_memory": torch.cuda.is_available(),
    "use_cpu": not torch.accelerator.is_available(),  # else several processes would not know of each other there
}


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
    evaluation = held_out.evaluation(run.eval)
    try:
        arguments = TrainingArguments(**{**DEFAULTS, **run.train, **held_out.arguments(evaluation, run.train)})
    except (TypeError, ValueError, ImportError) as error:
        raise SpecError(f"train: {error}") from error
    folder = output_dir(run)
    found, passed = _found(run, folder, resume, overwrite)
    model, processor = caching.built(run, arguments.seed)
    check_place(model, folder)
    check_learns(model)
    grouped(model, run.groups)
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
    augment = Augment.of(data["augment"], arguments.seed)
    left_out: list[Skipped] = []
    splits: dict[str, Any] = {}
    hashes: dict[str, list[str]] = {}
    with arguments.main_process_first(local=False, desc="indexing and measuring"):
        for split in ("train", "eval"):
            if split == "train" and data["stream"]:
                hashes[split] = [content(Path(file)) for source in sources_of(run, split) for file in source.files]
            elif data[split] is not None:
                samples = samples_of(run, split)
                hashes[split] = samples.hashes
                if context is not None or looks:
                    most = augment.most if augment is not None and split == "train" else None
                    samples.lengths = rows.measured(samples, processor, most=most, quiet=quiet)
                splits[split], long = rows.fitting(
                    samples, processor, context, data["too_long"], lengths=samples.lengths
                )
                left_out += long
                if context is not None and data["too_long"] == "truncate_answer":
                    splits[split].lengths = rows.cut_to(splits[split].lengths, context)
    spares = splits["train"] if data["bad_audio"] == "skip" and not data["stream"] else None
    if budget is not None:
        splits["train"], large = rows.within(splits["train"], splits["train"].lengths, budget, data["too_long"])
        left_out += large
        spares = rows.spares(splits["train"], splits["train"].lengths, budget) if data["bad_audio"] == "skip" else None
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
        stand_in=bool(data["stream"]) and data["bad_audio"] == "skip",
    )
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    trainer = UsamTrainer(
        model=model,
        args=arguments,
        train_dataset=stream_of(run, seed) if data["stream"] else splits["train"],
        eval_dataset=splits.get("eval"),
        data_collator=collate if cache is None else Keyed(collate, cache.rate),
        processing_class=processor,
        budget=budget,
        mixture=None if data["stream"] else mixture_of(run, splits["train"]),
        sources=[source.name for source in sources_of(run, "train")],
        share=data["bad_share"],
        made_of=_made_of(run, model, hashes, arguments.world_size),
        run_file=run.to_yaml(),
        cache=cache,
        groups=run.groups,
        augment=augment,
        evaluation=evaluation,
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


def _made_of(
    run: Run, model: UsamForConditionalGeneration, hashes: Mapping[str, list[str]], processes: int
) -> dict[str, Any]:
    """What makes a run what it is, as plain data; hashes stand for files."""
    about = provenance(model)
    files = {split: hashes.get(split, []) for split in ("train", "eval")}
    usual = {**{field.name: field.default for field in fields(TrainingArguments)}, **DEFAULTS}
    policies = {key: run.data.get(key, default) for key, default in DATA.items() if key not in files}
    policies["cache"] = (cache_of(run.data) or {}).get("dtype")  # what is stored as it is changes nothing
    return {
        "model": run.spec.to_dict(),
        "sources": {name: source["sha256"] for name, source in about["sources"].items()},
        "data": {**files, **policies, **made_of(run)},
        "eval": held_out.evaluation(run.eval).model_dump(exclude_defaults=True),
        "train": {
            **{k: v for k, v in run.train.items() if v != usual.get(k)},
            **({"groups": run.groups} if run.groups else {}),
            "processes": processes,
        },
        "versions": {
            "usam": about["usam"],
            **about["components"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers_version,
        },
    }
