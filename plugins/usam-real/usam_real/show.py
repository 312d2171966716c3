"""`make real`: real parts are joined, trained on real sound in two stages, tested, and shown."""

from __future__ import annotations

import hashlib
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

import yaml

from usam.demo.show import shuffled
from usam.evaluation.evaluate import evaluate
from usam.evaluation.record import Record, aligned
from usam.report.write import write_report
from usam.saving import whole, write_whole
from usam_real._needs import require
from usam_real.corpora import KINDS, needed, recipe_of, write
from usam_real.fetch import fetch

RUNS = Path(__file__).parent / "runs"
STAGES = {"ctc": "ctc.yaml", "model": "read.yaml"}  # folder of what is trained, and its run file
THREADS = {"ctc.yaml": 1}  # its products are small, and a second processor reads clips meanwhile; otherwise all
SPECIALISTS = ("whisper", "aisfx", "crepe")
LONGEST = 40  # tokens of an answer
NEEDS = {"jiwer": "jiwer", "matplotlib": "matplotlib"}  # of tests and report
NOTHING = 1e30  # what a specialist's deviations are said to be, so that nothing of it is heard


class Asked(NamedTuple):
    """A test: its manifest in the folder of corpora, how it is measured, and whether it is asked again.

    That is with the sound of other rows, and without each specialist.
    """

    manifest: str
    metric: Mapping[str, Any]
    percent: bool
    again: bool


WER, CIDER = {"type": "wer", "normalizer": "basic"}, {"type": "cider_d"}
ASKED = {
    "human": Asked("speech/test-human.jsonl", WER, True, True),
    "neural": Asked("speech/test-neural.jsonl", WER, True, False),
    "espeak": Asked("speech/test-espeak.jsonl", WER, True, False),
    "sounds": Asked("events/test.jsonl", CIDER, False, True),
    "music": Asked("music/test.jsonl", CIDER, False, True),
}


def show(folder: Path, *, fetched: Path | None = None, size: float = 1.0, steps: float = 1.0, seed: int = 0) -> None:
    """Do all that is not done yet, and write `report.html` and `results.json`.

    Each part is there whole or is begun again where it stopped: what is fetched, clips, labels, cached frames,
    checkpoints, batches of answers.

    Args:
        folder: gets `fetched`, `corpora`, `cache`, the run files, `ctc` and `model`, `eval` and the report.
        fetched: what `fetch` filled before; it is linked to.
        size: how many clips, as a share.
        steps: how many steps each stage makes, as a share.
        seed: of corpora and training.

    Raises:
        SystemExit: a stage failed, and has said why.
        ImportError: packages are missing; says which, before anything is done.
        ValueError: the folder was begun with other options, or with what was fetched elsewhere.
        FileNotFoundError: `fetched` is no folder, or lacks something.
    """
    require(needed(folder / "corpora", size=size, seed=seed) | NEEDS, "make real")
    folder.mkdir(parents=True, exist_ok=True)
    _begin(folder, {"size": size, "steps": steps, "seed": seed, "recipe": _recipe()})
    seconds = _times(folder)
    with _stage("fetch", folder, seconds):
        _fetched(folder / "fetched", fetched)
    with _stage("corpora", folder, seconds):
        write(folder / "fetched", folder / "corpora", size=size, seed=seed)
    for name in STAGES.values():
        write_whole(folder / name, _run(folder, name, steps, seed))
    with _stage("listen once: the encoders are frozen", folder, seconds):
        _cached(folder)
    for place, name in STAGES.items():
        with _stage(f"train {name}", folder, seconds):
            _trained(folder, place, name)
    with _stage("test", folder, seconds):
        records = _records(folder)
    found = {name: {how: _score(record) for how, record in hows.items()} for name, hows in records.items()}
    weights = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    results = {"tests": found, "seconds": seconds, "seed": seed, "size": size, "steps": steps, "delta_bytes": weights}
    results["machine"] = records["human"]["heard"].about["machine"]
    results["transcripts"] = [
        {"heard": answer["prediction"], "whisper": answer["references"][0]}
        for answer in records["human"]["heard"].answers[:20]
    ]
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    with _stage("report", folder, seconds):
        named = {f"{name}, {how}": record.folder for name, hows in records.items() for how, record in hows.items()}
        print(write_report({"model": folder / "model", **named}, folder / "report.html", rows=1))
    print("\n" + table(found))
    rows = [["heard", "Whisper's own words"], *([one["heard"], one["whisper"]] for one in results["transcripts"])]
    print("\n" + "\n".join(aligned(rows)))
    print(f"\nthe saved delta: {weights / 1e6:.1f} MB in {folder / 'model'}")
    print("\n".join(f"{name}: {duration:.0f} s" for name, duration in seconds.items()))


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Each test with its 95 % interval, beside shuffled audio, and the model without each specialist."""
    hows = ["shuffled", *(f"without {name}" for name in SPECIALISTS)]
    rows = [["test", "metric", "heard", "95 % interval", *hows]]
    for name, one in found.items():
        asked = ASKED[name]

        def shown(how: Mapping[str, float] | None, key: str = "value", percent: bool = asked.percent) -> str:
            return "" if how is None else f"{how[key]:.1%}" if percent else f"{how[key]:.2f}"

        span = f"{shown(one['heard'], 'low')} to {shown(one['heard'], 'high')}"
        metric = "word error rate" if asked.percent else "CIDEr-D"
        rows.append([name, metric, shown(one["heard"]), span, *(shown(one.get(how)) for how in hows)])
    return "\n".join(aligned(rows))


def silenced(model: Path, place: Path, specialist: str) -> Path:
    """A copy of a saved model that hears nothing of one specialist: each of its frames is the mean of training's.

    Its standardised frames become zeros, for the deviations by which they are divided are set to a number without end.
    Nothing is trained anew, so that what the model loses is more than what it would lose had it learned without.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if (place / "config.json").is_file():
        return place
    with whole(place, replaces=["*"]) as new:
        for file in model.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                shutil.copy2(file, new / file.name)
        changed = 0
        for file in sorted(model.glob("*.safetensors")):
            tensors = load_file(file)
            for key, tensor in tensors.items():
                if key.endswith(f"fusion.statistics.{specialist}.scale"):
                    tensors[key] = torch.full_like(tensor, NOTHING)
                    changed += 1
            save_file(tensors, new / file.name, metadata={"format": "pt"})
        if changed != 1:
            raise ValueError(f"{model}: {changed} tensors of the statistics of '{specialist}', expected one")
    return place


def _recipe() -> str:
    """What this version of the package makes and trains, as a short hash."""
    corpora = [recipe_of(kind, 1, 0) for kind in KINDS]
    runs = [(RUNS / name).read_text(encoding="utf-8") for name in STAGES.values()]
    return hashlib.sha256(json.dumps([corpora, runs]).encode()).hexdigest()[:8]


def _begin(folder: Path, asked: Mapping[str, Any]) -> None:
    """Go on with what was asked for before, and with nothing else: its corpora and models are there already."""
    file = folder / "asked.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else asked
    if before != asked:
        others = ", ".join(
            f"{key} {before.get(key)}, and not {value}" for key, value in asked.items() if before.get(key) != value
        )
        raise ValueError(f"{folder} was begun with {others}: name another folder, or ask for the same")
    write_whole(file, json.dumps(asked) + "\n")


def _fetched(place: Path, given: Path | None) -> None:
    if given is not None and not given.is_dir():
        raise FileNotFoundError(f"{given}: no such folder; give one that `python -m usam_real fetch` filled")
    if given is not None and place.exists() and not place.samefile(given):
        raise ValueError(f"{place} is there already, and is not {given}: remove it, or leave that out")
    if given is not None and not place.exists():
        place.symlink_to(given.resolve(), target_is_directory=True)
    if missing := [] if given is not None else fetch(place):
        raise SystemExit(f"{len(missing)} packages are missing: {', '.join(missing)}; the same command goes on")


def _run(folder: Path, name: str, steps: float, seed: int) -> str:
    """A run file of the package, whose model is found from anywhere, with fewer steps where that is asked for."""
    text = (RUNS / name).read_text(encoding="utf-8")
    tree = yaml.safe_load(text.replace("path: fetched/", f"path: {folder.resolve()}/fetched/"))
    tree["train"].update(max_steps=max(2, round(steps * tree["train"]["max_steps"])), seed=seed)
    return yaml.safe_dump(tree, sort_keys=False)


def _cached(folder: Path) -> None:
    """Store what the encoders hear in the clips of both stages, with a process for each of two processors."""
    if all((folder / place / "config.json").is_file() for place in STAGES):
        print("both stages are trained")
        return
    parts = min(os.cpu_count() or 1, 2)
    for name in STAGES.values():
        run = _union(folder) if name == "read.yaml" else folder / name
        running = [
            _usam(folder, "cache", "build", str(run.name), "--part", f"{part}/{parts}", threads=1)
            for part in range(1, parts + 1)
        ]
        failed = [process for process in running if process.wait()]  # both are waited for
        if failed:
            raise SystemExit(1)


def _union(folder: Path) -> Path:
    """The run file of stage 1 with the data of stage 2, before there is anything that stage 2 could start from."""
    first, second = (yaml.safe_load((folder / name).read_text(encoding="utf-8")) for name in STAGES.values())
    file = folder / "listen.yaml"
    write_whole(file, yaml.safe_dump({**first, "data": second["data"]}, sort_keys=False))
    return file


def _trained(folder: Path, place: str, name: str) -> None:
    """Train a stage, or go on with it."""
    if (folder / place / "config.json").is_file():
        print(f"{folder / place}: there already")
        return
    if _usam(folder, "train", name, "--resume", threads=THREADS.get(name) or os.cpu_count() or 1).wait():
        raise SystemExit(1)


def _usam(folder: Path, *arguments: str, threads: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen([sys.executable, "-m", "usam.cli", *arguments], cwd=folder, env=environment)


def _records(folder: Path) -> dict[str, dict[str, Record]]:
    models = {"heard": folder / "model", "shuffled": folder / "model"}
    for name in SPECIALISTS:
        models[f"without {name}"] = silenced(folder / "model", folder / "eval" / f"model-without-{name}", name)
    return {
        name: {how: _record(folder, model, name, how) for how, model in models.items() if asked.again or how == "heard"}
        for name, asked in ASKED.items()
    }


def _record(folder: Path, model: Path, name: str, how: str) -> Record:
    asked = ASKED[name]
    manifest = folder / "corpora" / asked.manifest
    print(f"{name}, {how}", flush=True)
    return evaluate(
        model,
        shuffled(manifest) if how == "shuffled" else manifest,
        metrics=[dict(asked.metric)],
        max_new_tokens=LONGEST,
        batch_size=20,
        output=folder / "eval" / f"{name}-{how.replace(' ', '-')}",
        quiet=not sys.stderr.isatty(),
    )


def _score(record: Record) -> dict[str, float]:
    (found,) = record.about["metrics"].values()
    return {key: found[key] for key in ("value", "low", "high", "samples")}


def _times(folder: Path) -> dict[str, float]:
    """The seconds of each part, of earlier calls too."""
    file = folder / "seconds.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


@contextmanager
def _stage(name: str, folder: Path, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start, before = time.perf_counter(), seconds.get(name, 0.0)
    try:
        yield
    finally:
        seconds[name] = round(before + time.perf_counter() - start, 1)
        write_whole(folder / "seconds.json", json.dumps(seconds, indent=2) + "\n")
