"""Checkpoints of a run: which of them are whole, what each was made of, and whether a run may go on from one."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import Spec

PREDICTIONS = "predictions"  # in a run's folder: what was answered at each evaluation
RECORD = "checkpoint.json"  # written last: its files with their sizes, and what the run was made of
STEP = re.compile(r"checkpoint-(\d+)")

# Arguments of the Trainer that change what is seen of a run, or where it runs, and not what it learns.
OUTWARD = (
    "output_dir", "disable_tqdm", "report_to", "run_name", "project", "trackio_space_id", "use_cpu",
    "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "push_to_hub", "torch_empty_cache_steps", "skip_memory_metrics", "include_num_input_tokens_seen",
    "include_tokens_per_second", "restore_callback_states_from_checkpoint", "debug", "enable_jit_checkpoint",
    "ddp_timeout", "ddp_backend", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ignore_data_skip",
)  # fmt: skip
OUTWARD_FAMILIES = ("logging_", "log_", "save_", "eval_", "hub_", "per_device_eval_")
LENGTH = ("max_steps", "num_train_epochs")
SPREAD = ("train.fsdp", "train.fsdp_config")  # where weights lie; a checkpoint is the same
TOGETHER = ("train.processes", "train.gradient_accumulation_steps")  # the batches of a step: their product


def seal(folder: Path, made_of: Mapping[str, Any]) -> None:
    """Say in a checkpoint which files it has, and what it was made of."""
    files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
    files.pop(RECORD, None)
    text = json.dumps({"files": files, **made_of}, indent=2)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def record(folder: Path) -> dict[str, Any]:
    """What `seal` wrote.

    Raises:
        SpecError: the checkpoint is not whole; says what is missing.
    """
    fault = incomplete(folder)
    if fault is not None:
        raise SpecError(f"{folder}: {fault}")
    found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return found


def incomplete(folder: Path) -> str | None:
    """Why nothing can go on from a checkpoint; None when it is whole."""
    file = folder / RECORD
    if not file.is_file():
        return f"has no {RECORD}: it was not saved to its end, or by something else"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        files = {name: int(size) for name, size in found["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {RECORD} is broken ({type(error).__name__}: {error})"
    for name, size in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (folder / name).stat().st_size != size:
            return f"{name} has {(folder / name).stat().st_size:,} bytes instead of {size:,}"
    if found.get("train", {}).get("save_only_model"):
        return "holds no optimizer (train.save_only_model)"
    return None


def processes(folder: Path) -> int:
    """How many processes saved a checkpoint."""
    return len(list(folder.glob("progress_*.pt"))) or 1


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, by their steps."""
    found = [path for path in run.glob("checkpoint-*") if path.is_dir() and STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those after it."""
    passed: list[str] = []
    for folder in reversed(checkpoints(run)):
        fault = incomplete(folder)
        if fault is None:
            return folder, passed
        passed.append(f"{folder}: passed over, for {fault}")
    return None, passed


def rotate(run: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest whole checkpoints beyond `limit`, but neither the newest nor the best."""
    if limit is None or limit <= 0:
        return
    good = [folder for folder in checkpoints(run) if incomplete(folder) is None]
    kept = {folder.name for folder in good[-1:]} | ({Path(best).name} if best else set())
    surplus = len(good) - max(limit, len(kept))
    for folder in [folder for folder in good if folder.name not in kept][: max(surplus, 0)]:
        shutil.rmtree(folder)


def compare(folder: Path, made_of: Mapping[str, Any]) -> list[str]:
    """Compare what a checkpoint was made of with what is to go on from it.

    Processes and steps of accumulation may differ when their product does not: the same batches make a step.

    Returns:
        Differences that leave the run what it is, or nearly: versions, its length, what is evaluated, where it runs.

    Raises:
        SpecError: differences that change the result, each named.
    """
    before = record(folder)
    with suppress(SpecError, ComponentError, KeyError):  # with the options that came since, as they are by default
        before["model"] = Spec.from_tree(before["model"]).to_dict()
    refused: list[str] = []
    told: list[str] = []
    differences = list(_differences(before, made_of))
    instead = _other_together(before, made_of) if any(key in TOGETHER for key, *_ in differences) else None
    for key, old, new in differences:
        made = "without it" if old is None else f"with {_short(old)}"
        line = f"{key}: the checkpoint was made {made}, and now it is {'left out' if new is None else _short(new)}"
        outward = key.startswith(("versions.", "data.eval", "eval.", *SPREAD))
        outward = outward or key in [f"train.{name}" for name in LENGTH]
        (told if outward or key in TOGETHER else refused).append(line)
    if instead is not None:
        refused.append(instead)
    if refused:
        raise SpecError(
            f"{folder}: cannot go on from here, for the run is another one:\n  "
            + "\n  ".join(refused)
            + "\nTake these changes back, or start anew: with --overwrite, or with another train.output_dir"
        )
    return told


def _other_together(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why these processes do not make the same steps, and what would; None where they do."""
    (old, old_steps), (new, new_steps) = _together(before), _together(now)
    if old != new and now["train"].get("train_sampling_strategy") == "batch_rebalance":
        return f"train.train_sampling_strategy: batch_rebalance deals out rows by the number of processes; start {old}"
    if old != new and "deepspeed" in now["train"]:
        return f"train.deepspeed: it saves the optimizer in parts, one for each process; start {old}"
    for name, options in now["model"].get("losses", {}).items():
        if old != new and (options.get("gather") or options.get("queue")):
            return f"model.losses.{name}: compares with what each process heard, and that would be other; start {old}"
    together = old * old_steps
    if together == new * new_steps:
        return None
    if together % new == 0:
        instead = f"write train.gradient_accumulation_steps: {together // new}"
    else:
        fitting = " or ".join(str(n) for n in range(1, together + 1) if together % n == 0)
        instead = f"start {fitting} of them, with train.gradient_accumulation_steps so that the product is {together}"
    return (
        f"train.gradient_accumulation_steps: a step was made of {together} batches (processes: {old}, steps of "
        f"accumulation: {old_steps}), and now of {new * new_steps} (processes: {new}, steps of accumulation: "
        f"{new_steps}); {instead}"
    )


def _together(made_of: Mapping[str, Any]) -> tuple[int, int]:
    """Processes, and steps of accumulation."""
    train = made_of.get("train", {})
    return int(train.get("processes", 1)), int(train.get("gradient_accumulation_steps", 1))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    now = json.loads(json.dumps(now))
    for part in now:
        old, new = dict(_leaves(before.get(part), part)), dict(_leaves(now[part], part))
        for key in dict.fromkeys([*old, *new]):
            name = key.removeprefix("train.")
            if part == "train" and (name.split(".")[0] in OUTWARD or name.startswith(OUTWARD_FAMILIES)):
                continue
            if old.get(key) != new.get(key):
                yield key, old.get(key), new.get(key)


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}")
    else:
        yield path, tree


def _short(value: Any) -> str:
    return f"{json.dumps(value):.80}"


def start_anew(run: Path, *, overwrite: bool) -> None:
    """Remove the checkpoints of the run that a folder holds; see `refuse_held`."""
    refuse_held(run, overwrite=overwrite)
    for folder in checkpoints(run):
        shutil.rmtree(folder)
    shutil.rmtree(run / PREDICTIONS, ignore_errors=True)


def refuse_held(run: Path, *, overwrite: bool) -> None:
    """Refuse to start anew in a folder that holds a run.

    Raises:
        SpecError: it is not to be overwritten.
    """
    held = checkpoints(run)
    holds = held[-1].name if held else "a trained model" if (run / "config.json").is_file() else None
    if holds is not None and not overwrite:
        raise SpecError(
            f"train.output_dir: {run} holds {holds}: go on from there with --resume, start anew with --overwrite "
            "(its checkpoints are removed), or name another folder"
        )


def advice(run: Path, command: str) -> str:
    """How to go on with a run that was stopped."""
    found, _ = newest(run)
    if found is None:
        return f"no checkpoint was saved yet (train.save_steps, train.save_strategy); begin again with: {command}"
    return f"the run can go on from {found}: {command} --resume"
