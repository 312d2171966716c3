"""The demo: what the recipe makes is trained, asked about clips of the test split, and shown."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from usam.data.inspection import describe_parts
from usam.data.manifest import Manifest
from usam.demo.recipe import CLIPS, EPOCHS, Clips, Prepared, prepare
from usam.evaluation.evaluate import evaluate
from usam.evaluation.record import Record, aligned
from usam.generate import Answerer
from usam.report.write import write_report
from usam.saving import write_whole


class Asked(NamedTuple):
    """How a task is measured, and what is asked of it."""

    metric: dict[str, Any]
    name: str
    percent: bool
    bound: str
    holds: Any  # (value, value with the audio shuffled) -> whether the bound holds


ASKED = {
    "asr": Asked({"type": "wer"}, "word error rate", True, "at most 12 %", lambda heard, _: heard <= 0.12),
    "s2tt": Asked({"type": "accuracy"}, "exact match", True, "at least 80 %", lambda heard, _: heard >= 0.8),
    "aac": Asked(
        {"type": "cider_d"}, "CIDEr-D", False, "twice the shuffled", lambda heard, other: 0 < heard >= 2 * other
    ),
    "mc": Asked(
        {"type": "cider_d"}, "CIDEr-D", False, "twice the shuffled", lambda heard, other: 0 < heard >= 2 * other
    ),
}
LONGEST = 100  # bytes of an answer
PROCESSES = 4  # that fill one cache, at most


def run(folder: str | Path, *, seed: int = 0, clips: Clips = CLIPS, epochs: float = EPOCHS) -> None:
    """Run every stage, print a table of the four tasks, and write `report.html` and `results.json`.

    It may be run again in its folder, where it writes over what it wrote before, and over nothing else; world and
    features are used again.

    Raises:
        SpecError: the folder holds a run that the demo did not write.
        SystemExit: with status 1 when the model has not learned to listen.
    """
    seconds: dict[str, float] = {}
    with _stage("a world to hear", seconds):
        prepared = prepare(folder, seed=seed, clips=clips, epochs=epochs)
    with _stage("listen to it once: the encoders are frozen", seconds):
        _cache(prepared.run_file)
    with _stage("train mini_paper on all four tasks", seconds):
        _train(prepared)
    shutil.rmtree(prepared.folder / "eval", ignore_errors=True)
    with _stage("test", seconds):  # the model was trained in another process
        heard = {task: _record(prepared, task, prepared.world["test"][task], "heard") for task in ASKED}
        other = {task: _record(prepared, task, shuffled(prepared.world["test"][task]), "shuffled") for task in ASKED}
    found = {task: {"heard": _score(heard[task]), "shuffled": _score(other[task])} for task in ASKED}
    with _stage("usam generate", seconds):
        first = heard["asr"].answers[0]
        wav = prepared.world["test"]["asr"].parent / "asr" / "00001.wav"
        answer = _usam("generate", str(prepared.folder / "model"), str(wav), "--task", "asr", capture=True)
    answerer = Answerer.load(prepared.folder / "model")
    prompts = answerer.processor.prompts
    few = [sample for file in prepared.world["test"].values() for sample in Manifest(file, prompts).samples[:8]]
    print("\n" + describe_parts(answerer.model, answerer.processor, few))
    print(f"\n$ usam generate {prepared.folder / 'model'} {wav} --task asr\n{answer.strip()}")
    print(f"(said: {first['references'][0]})")
    print("\n" + table(found))
    print("\n" + "\n".join(_examples(heard)))
    with _stage("usam report", seconds):
        folders = {
            "mini_paper": prepared.folder / "model",
            **{f"{t}, {n}": r.folder for n, rs in (("heard", heard), ("shuffled", other)) for t, r in rs.items()},
        }
        print(write_report(folders, prepared.folder / "report.html", rows=1))
    print("\n" + "\n".join(f"{name}: {duration:.0f} s" for name, duration in seconds.items()))
    results = {
        "tasks": found,
        "seconds": seconds,
        "seed": seed,
        "clips": dict(clips),
        "threads": torch.get_num_threads(),
    }
    write_whole(prepared.folder / "results.json", json.dumps(results, indent=2) + "\n")
    missed = [task for task, one in found.items() if not holds(task, one)]
    for task in missed:
        print(f"\n{task}: {ASKED[task].name} is not {ASKED[task].bound}: the model has not learned to listen")
    if missed:
        raise SystemExit(1)


def shuffled(manifest: Path) -> Path:
    """The same questions and answers, each about the clip of another row, written beside the manifest."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    clips = [row["audio"] for row in rows]
    moved = [{**row, "audio": clip} for row, clip in zip(rows, clips[1:] + clips[:1], strict=True)]
    written = manifest.with_name(f"{manifest.stem}-shuffled.jsonl")
    write_whole(written, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in moved))
    return written


def holds(task: str, found: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a task's bound holds."""
    return bool(ASKED[task].holds(found["heard"]["value"], found["shuffled"]["value"]))


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The four tasks, each with its 95 % interval, beside the same model with the audio shuffled."""
    rows = [["task", "metric", "heard", "95 % interval", "audio shuffled", "asked for"]]
    for task, one in found.items():
        asked = ASKED[task]

        def shown(value: float, percent: bool = asked.percent) -> str:
            return f"{value:.1%}" if percent else f"{value:.2f}"

        span = f"{shown(one['heard']['low'])} to {shown(one['heard']['high'])}"
        rows.append(
            [task, asked.name, shown(one["heard"]["value"]), span, shown(one["shuffled"]["value"]), asked.bound]
        )
    return "\n".join(aligned(rows))


def _train(prepared: Prepared) -> None:
    """Train in a process of its own, as a user would; one thread is faster than several with so small a model."""
    again = ["--overwrite"] * (prepared.folder / "model").exists()
    _usam("train", str(prepared.run_file), *again, threads=1)


def _cache(run_file: Path) -> None:
    """Store what the encoders hear, with a process for each of a few processors."""
    parts = min(os.cpu_count() or 1, PROCESSES)
    command = [sys.executable, "-m", "usam.cli", "cache", "build", str(run_file), "--part"]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen([*command, f"{part}/{parts}"], env=alone) for part in range(1, parts + 1)]
    failed = [process for process in running if process.wait()]
    if failed:
        raise SystemExit(1)


def _record(prepared: Prepared, task: str, manifest: Path, name: str) -> Record:
    return evaluate(
        prepared.folder / "model",
        manifest,
        metrics=[ASKED[task].metric],
        max_new_tokens=LONGEST,
        batch_size=50,
        output=prepared.folder / "eval" / f"{task}-{name}",
        quiet=not sys.stderr.isatty(),
    )


def _score(record: Record) -> dict[str, float]:
    (found,) = record.about["metrics"].values()
    return {key: found[key] for key in ("value", "low", "high", "samples")}


def _examples(records: Mapping[str, Record], each: int = 3) -> Iterator[str]:
    rows = [["task", "answered", "reference"]]
    for task, record in records.items():
        rows += [[task, answer["prediction"], answer["references"][0]] for answer in record.answers[:each]]
    yield from aligned(rows)


def _usam(*arguments: str, capture: bool = False, threads: int | None = None) -> str:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "usam.cli", *arguments]
    own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    out = subprocess.PIPE if capture else None
    done = subprocess.run(command, check=False, text=True, stdout=out, env={**os.environ, **own})
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
