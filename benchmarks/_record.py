"""Writes a benchmark's result, with the machine it was measured on, beside the scripts."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The processor, its cores and the memory."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    gigabytes = f", {memory[0] / 2**20:.0f} GiB" if memory else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores{gigabytes}"


def _lines(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines() if Path(file).exists() else []


def record(script: str, rows: list[dict[str, Any]], raw: dict[str, Any]) -> None:
    """Write `results/<script>.json` and print it; a bound that is not met ends the script with status 1.

    With `--quick` on the command line the figures are printed alone.
    """
    name = Path(script).name
    versions = {"python": platform.python_version()}
    versions |= {n: sys.modules[n].__version__ for n in ("torch", "transformers") if n in sys.modules}
    result = {"script": name, "machine": machine(), "versions": versions, "rows": rows, "raw": raw}
    if "--quick" not in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / name).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['what']}: {row['measured']} (bound: {row['bound']}) {'ok' if row['ok'] else 'NOT MET'}")
    if not all(row["ok"] for row in rows):
        raise SystemExit(1)
