"""The runs of an ablation are made: one after another, side by side, or on Slurm; what is done is not done again."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, cast

import torch

from usam.evaluation.grid import Ablation, Cell
from usam.evaluation.identity import differences, identity, is_of, made_of
from usam.evaluation.results import BEGUN, begun, in_folder, is_recorded, recorded, saved, write_record
from usam.registry import ComponentError, did_you_mean
from usam.saving import write_whole
from usam.spec.page import SpecError
from usam.spec.patch import parse_override
from usam.training.checkpoints import newest
from usam.training.run import cache_of

DONE, STARTED, FAILED, NEW, OTHER = "done", "begun", "failed", "to do", "another run"
SHOWN = 5  # differences
PATIENCE = 15.0  # seconds, in which the processes of a runner that was killed end
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

Say = Callable[[str], None]


@dataclass(frozen=True)
class State:
    """How far a run is."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


def state(cell: Cell) -> State:
    """How far a run is, from what lies in its folder.

    A run is done when its model is saved, which `usam train` does last and in one step; or when its record says so.
    """
    if is_recorded(cell) and not in_folder(cell):
        return State(DONE, f"recorded in {cell.record}")
    if not cell.folder.is_dir() or not any(cell.folder.iterdir()):
        old = recorded(cell)
        return State(NEW, f"{cell.record} is of another run: {_told(cell, old['made_of'])}" if old else "")
    record = begun(cell)
    if record is None:
        return State(OTHER, f"{cell.folder} holds something that no ablation began")
    if not is_of(cell, record):
        return State(OTHER, _told(cell, record["made_of"]))
    if saved(cell.folder):
        return State(DONE)
    if record.get("failed"):
        return State(FAILED, record["failed"])
    found, _ = newest(cell.folder)
    return State(STARTED, "goes on from " + found.name if found is not None else "no checkpoint yet")


def _told(cell: Cell, parts: Mapping[str, Any]) -> str:
    """How a run differs from what is asked for."""
    lines = list(differences(parts, made_of(cell, parts)))
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "; ".join([*lines[:SHOWN], *more])


def ablate(
    ablation: Ablation,
    *,
    jobs: int = 1,
    slurm: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    overwrite: bool = False,
    say: Say = lambda line: None,
) -> dict[Cell, str]:
    """Make every run that is not done; one that fails does not stop the others.

    Each run is a process of `usam train`, whose output goes into a log beside its folder. Killed at any time, the next
    call goes on: runs from their newest checkpoints. What has a record (`Cell.record`) is done, too, wherever it was
    made, and what is done is recorded as it comes.

    Args:
        ablation: what `read_ablation` returned.
        jobs: runs at a time. They share the threads, and each has one GPU where there are several.
        slurm: options of submitit's AutoExecutor; all runs are submitted at once. `cluster: local` stays here.
        only: names of variations; the others are left alone.
        overwrite: remove what was made of something else.
        say: told each line of progress.

    Returns:
        Why each run failed that did.

    Raises:
        SpecError: a folder holds another run, a variation is unknown, or another process works in `output`.
        ComponentError: submitit is not installed.
    """
    cells = chosen(ablation, only)
    with _alone(ablation.output) as lock:
        states = {cell: state(cell) for cell in cells}
        make_room(states, overwrite)
        todo = [cell for cell in cells if states[cell].kind != DONE]
        for cell in cells:
            if cell.record is not None and states[cell].kind == DONE:
                write_record(cell)
        if len(todo) < len(cells):
            say(f"{len(cells) - len(todo)} of {len(cells)} runs are done already")
        if not todo:
            return {}
        for cell in todo:
            cell.folder.mkdir(parents=True, exist_ok=True)
            write_whole(cell.run_file, cell.run.to_yaml())
        place: _Place = _Here(jobs, lock) if slurm is None else _Slurm(ablation.output / "slurm", slurm, len(todo))
        if isinstance(place, _Here):
            _fill_caches(todo, ablation.output, place, say)
        return _work_off(todo, place, say)


def chosen(ablation: Ablation, only: Sequence[str]) -> list[Cell]:
    """The runs of the variations that are named; of all without a name.

    Raises:
        SpecError: there is no such variation.
    """
    names = [variation.name for variation in ablation.variations]
    for name in only:
        if name not in names:
            raise SpecError(f"--only {name}: no such variation; {did_you_mean(name, names)}")
    return [cell for cell in ablation.cells if not only or cell.variation.name in only]


def make_room(states: Mapping[Cell, State], overwrite: bool) -> None:
    """Remove what other runs left in the folders, where that is allowed; never what no ablation began.

    Raises:
        SpecError: it is not; says which folders hold what.
    """
    others = {cell: now.detail for cell, now in states.items() if now.kind == OTHER}
    foreign = [detail for cell, detail in others.items() if begun(cell) is None]
    if foreign:
        raise SpecError("\n".join(foreign) + "\nMove it away, or name another `output`")
    if others and not overwrite:
        raise SpecError(
            f"{len(others)} of {len(states)} folders hold another run than is asked for:\n  "
            + "\n  ".join(f"{cell.name}: {detail}" for cell, detail in others.items())
            + "\nTake the changes back, name another `output`, or train these anew with --overwrite, which removes them"
        )
    for cell in others:
        gone = cell.folder.with_name(f".{cell.folder.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        cell.folder.rename(gone)  # in one step, so that a kill leaves no half of a run
        shutil.rmtree(gone)


@contextmanager
def _alone(output: Path) -> Iterator[IO[str]]:
    """A lock on the output, which the processes that are started hold too."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("a") as lock:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise SpecError(
                        f"{output}: another `usam ablate` is at work here; wait for it, or end it"
                    ) from None
                time.sleep(0.1)
        yield lock


# Where runs are made


class _Job(Protocol):
    def poll(self) -> int | None: ...
    def stop(self) -> None: ...


class _Place(Protocol):
    """Where runs are made: how many at a time, and how one is started."""

    jobs: int
    pause: float

    def start(self, command: Sequence[str], log: Path, cell: Cell | None = None) -> _Job: ...


class _Process:
    def __init__(self, process: subprocess.Popen[bytes], free: Callable[[], None]) -> None:
        self.process, self.free = process, free

    def poll(self) -> int | None:
        status = self.process.poll()
        if status is not None:
            self.free()
        return status

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Here:
    """Processes on this machine, which end when the one that started them does."""

    pause = 0.1

    def __init__(self, jobs: int, lock: IO[str]) -> None:
        self.jobs, self.lock = jobs, lock
        self.slots = list(range(jobs))
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        self.environment = dict(os.environ)
        if jobs > 1:
            self.environment["OMP_NUM_THREADS"] = str(max(1, threads // jobs))
        self.gpus: list[str] = []
        if jobs > 1 and torch.cuda.device_count() > 1:
            given = os.environ.get("CUDA_VISIBLE_DEVICES")
            self.gpus = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]

    def start(self, command: Sequence[str], log: Path, cell: Cell | None = None) -> _Process:
        slot = self.slots.pop(0)
        own = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                env={**self.environment, **own}, pass_fds=[self.lock.fileno()], preexec_fn=_die_with_parent,
            )  # fmt: skip
        return _Process(process, partial(self.slots.append, slot))


def _die_with_parent() -> None:
    """On Linux; elsewhere the lock keeps two runners apart until the processes of a killed one are done."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)


class Work:
    """One run as a job of submitit, which is submitted again when its time is over."""

    def __call__(self, command: Sequence[str], log: str) -> int:
        """The exit status of the command."""
        with Path(log).open("ab") as out:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, check=False
            ).returncode

    def checkpoint(self, command: Sequence[str], log: str) -> Any:
        """What goes on in its place: the same, from the newest checkpoint."""
        return _submitit().helpers.DelayedSubmission(self, command, log)


class _Submitted:
    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return cast(int, self.job.result())
        except Exception as error:  # submitit tells of everything that happens to a job so
            print(f"error: job {self.job.job_id}: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
            return 1

    def stop(self) -> None:
        """Jobs stay in the queue: the next call takes them up."""


class _Slurm:
    """Jobs of a cluster, submitted with submitit."""

    def __init__(self, folder: Path, options: Mapping[str, Any], jobs: int) -> None:
        options = dict(options)
        submitit, cluster = _submitit(), options.pop("cluster", None)
        self.folder, self.jobs = folder, jobs
        self.pause = 0.2 if cluster == "local" else 5.0
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(name="usam", **options)
        except (NameError, RuntimeError, TypeError, ValueError) as error:
            raise SpecError(f"--slurm: {error}") from error

    def start(self, command: Sequence[str], log: Path, cell: Cell | None = None) -> _Submitted:
        assert cell is not None
        record = begun(cell) or {}
        if "job" in record and self.executor.cluster == "slurm":  # a runner that was killed submitted it
            job = _submitit().SlurmJob(folder=self.folder, job_id=record["job"])
            if not job.done(force_check=True):
                return _Submitted(job)
        job = self.executor.submit(Work(), list(command), str(log))
        write_whole(cell.folder / BEGUN, json.dumps({**record, "job": job.job_id}, indent=2) + "\n")
        return _Submitted(job)


def _submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ComponentError(
            "submitit is not installed: pip install 'usam[slurm]', or pip install submitit; or run without --slurm"
        ) from error
    return submitit


def slurm_options(text: str) -> dict[str, Any]:
    """`timeout_min=60,slurm_partition=gpu` as options; values are YAML.

    Raises:
        SpecError: not a list of key=value.
    """
    found: dict[str, Any] = {}
    for item in text.split(","):
        patch, _ = parse_override(item)
        found |= patch
    return found


# The work


def _work_off(todo: Sequence[Cell], place: _Place, say: Say) -> dict[Cell, str]:
    queue, running, failed = list(todo), dict[Cell, tuple[_Job, float]](), dict[Cell, str]()
    taken: list[float] = []
    try:
        while queue or running:
            while queue and len(running) < place.jobs:
                cell = queue.pop(0)
                running[cell] = _begin(cell, place), time.monotonic()
                say(f"{cell.name}: begins; log: {cell.log}")
            time.sleep(place.pause)
            for cell, (job, start) in list(running.items()):
                status = job.poll()
                if status is None:
                    continue
                del running[cell]
                taken.append(time.monotonic() - start)
                why = _ended(cell, status)
                if why is not None:
                    failed[cell] = why
                left = len(queue) + len(running)
                rest = sum(taken) / len(taken) * left / place.jobs
                told = f"failed: {why}" if why else f"done in {duration(taken[-1])}"
                say(f"{len(taken)}/{len(todo)} {cell.name}: {told}" + f"; about {duration(rest)} left" * bool(left))
    finally:
        for job, _ in running.values():
            job.stop()
    return failed


def _begin(cell: Cell, place: _Place) -> _Job:
    found, _ = newest(cell.folder)
    parts = made_of(cell)
    about = {
        "variation": cell.variation.name,
        "seed": cell.seed,
        "identity": identity(parts),
        "made_of": parts,
        "from": 0 if found is None else int(found.name.rpartition("-")[2]),
        **{key: value for key, value in (begun(cell) or {}).items() if key == "job"},
    }
    write_whole(cell.folder / BEGUN, json.dumps(about, indent=2) + "\n")
    command = [sys.executable, "-m", "usam.cli", "train", str(cell.run_file), "--resume"]
    cell.log.write_text("")
    return place.start(command, cell.log, cell)


def _ended(cell: Cell, status: int) -> str | None:
    """Why a run failed; None if it did not."""
    if status == 0 and saved(cell.folder):
        try:
            if cell.record is not None:
                write_record(cell)
        except SpecError as error:  # it was not evaluated where it ended: the others go on
            return str(error)
        return None
    why = last_words(cell.log) or f"ended with status {status}"
    record = begun(cell) or {}
    write_whole(cell.folder / BEGUN, json.dumps({**record, "failed": why}, indent=2) + "\n")
    return why


def last_words(log: Path) -> str:
    """What a run's log says of why it ended: its error, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def _fill_caches(todo: Sequence[Cell], output: Path, place: _Here, say: Say) -> None:
    """What frozen encoders give is computed once, before the runs that read it begin side by side."""
    seen: set[str] = set()
    for cell in todo:
        if cache_of(cell.run.data) is None:
            continue
        encoders = cell.run.spec.to_dict()["encoders"]
        drawn = any(encoder.get("path") is None for encoder in encoders.values())  # from the seed
        key = json.dumps([encoders, cell.run.data, cell.seed if drawn else None], sort_keys=True, default=str)
        if key in seen:
            continue
        seen.add(key)
        log = output / f"cache-{len(seen)}.log"
        log.write_text("")
        say(f"{cell.name}: its cache is filled; log: {log}")
        job = place.start([sys.executable, "-m", "usam.cli", "cache", "build", str(cell.run_file)], log)
        try:
            while (status := job.poll()) is None:
                time.sleep(place.pause)
        except BaseException:
            job.stop()
            raise
        if status != 0:
            say(f"{cell.name}: the cache was not filled ({last_words(log)}); its runs fill it as they train")


def duration(seconds: float) -> str:
    """`42 s`, `7 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
