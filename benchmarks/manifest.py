"""A manifest of 1,000,000 rows: what its index costs once, and what a start costs that finds it.

Lines of JSON with a clip, a task, an answer, an id and two columns of the user's own, 193 bytes each on average; the
clips are eight files of a second. A start opens the manifest, and makes batches of 16 rows in random order with the
processor of the `tiny` spec: a process by itself, and one with four workers that were forked. Each stage is a process
of its own. Time is that of the processor, the workers' included, from after the imports. Memory is that of
/proc/PID/smaps_rollup: of one process the RSS (at its peak for the build, from /proc/PID/status), less what it was
after the imports; of a process with its workers the sum of their PSS, in which shared pages count once, less the PSS
after the imports.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROWS, BATCH, WORKERS, CLIPS = 1_000_000, 16, 4, 8
PROMPTS = {"asr": "Transcribe the speech."}
SECONDS, MEGABYTES = 5.0, 300.0


def write(folder: Path) -> Path:
    """The manifest and its clips."""
    import numpy as np
    import soundfile

    for i in range(CLIPS):
        noise = np.random.default_rng(i).standard_normal(16000) * 0.1
        soundfile.write(folder / f"{i}.wav", noise, 16000)
    with (folder / "train.jsonl").open("w") as file:
        for i in range(ROWS):
            said = f"this is what was said in recording number {i} of a collection of many hours"
            more = {"id": f"collection-{i:07}", "x_speaker": f"speaker {i % 9973}", "x_snr": i % 40}
            file.write(json.dumps({"audio": f"{i % CLIPS}.wav", "task": "asr", "answer": said, **more}) + "\n")
    return folder / "train.jsonl"


def rollup(pid: int | str, key: str) -> float:
    """A line of smaps_rollup, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e6


def peak() -> float:
    """The most memory that this process has had, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def stage(what: str, file: Path) -> dict[str, Any]:
    """One stage, in a process of its own."""
    import torch
    from torch.utils.data import DataLoader

    from usam import UsamProcessor
    from usam.data.collate import Collator
    from usam.data.manifest import Manifest

    processor = UsamProcessor.from_spec("tiny")
    Manifest.of([{"audio": "a.wav", "prompt": "x"}])  # imports the readers
    before, pss, begin = rollup("self", "Rss"), rollup("self", "Pss"), time.process_time()
    manifest = Manifest(file, PROMPTS, need_answer=True)
    opened = time.process_time() - begin
    if what == "build":
        return {"cpu_seconds": opened, "peak_mb": peak() - before}
    workers = WORKERS if what == "workers" else 0
    torch.manual_seed(0)
    options: dict[str, Any] = {"multiprocessing_context": "fork"} if workers else {}
    batches = iter(
        DataLoader(manifest, BATCH, shuffle=True, num_workers=workers, collate_fn=Collator(processor), **options)
    )
    next(batches)
    found = {"open_cpu_seconds": opened, "cpu_seconds": time.process_time() - begin, "rss_mb": 0.0}
    for _ in range(8 * max(workers, 1)):
        next(batches)
    found["rss_mb"] = rollup("self", "Rss") - before
    if workers:
        pids: Sequence[int] = [process.pid for process in batches._workers]  # type: ignore[attr-defined]
        found["all_pss_mb"] = rollup("self", "Pss") + sum(rollup(pid, "Pss") for pid in pids) - pss
        own = [rollup(pid, "Private_Clean") + rollup(pid, "Private_Dirty") for pid in pids]
        found["worker_uss_mb"] = max(own)
        cpu = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        found["cpu_seconds"] += sum(int(c[11]) + int(c[12]) for c in cpu) / 100  # more than the first batch's
    return found


def main() -> None:
    """All stages."""
    from _record import record

    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder))
        for what in ("build", "start", "workers"):
            done = subprocess.run([sys.executable, __file__, what, str(file)], check=True, stdout=subprocess.PIPE)
            raw[what] = json.loads(done.stdout.splitlines()[-1])
        size = (file.parent / f".{file.name}.usam" / "index").stat().st_size
        raw["bytes"] = {"manifest": file.stat().st_size, "index": size}
    start, workers, build = raw["start"], raw["workers"], raw["build"]
    rows: list[dict[str, Any]] = []

    def told(what: str, value: float, unit: str, bound: float) -> None:
        measured = f"{value:.3g} {unit}"
        rows.append({"what": what, "measured": measured, "bound": f"under {bound:g} {unit}", "ok": value < bound})

    told(f"first batch of {ROWS:,} rows, with the index there", start["cpu_seconds"], "s of CPU", SECONDS)
    told("memory of a process that reads, beside its imports", start["rss_mb"], "MB", MEGABYTES)
    told(f"memory of a process and {WORKERS} workers, beside the imports", workers["all_pss_mb"], "MB", MEGABYTES)
    told("the first start ever, which checks every row and makes the index", build["cpu_seconds"], "s of CPU", 60)
    told("memory of the first start, at its peak", build["peak_mb"], "MB", MEGABYTES)
    record(__file__, rows, raw)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(stage(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
