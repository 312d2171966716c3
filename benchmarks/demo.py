"""The main job, whole: what `usam demo` reaches, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _record import record


def main() -> None:
    """One run in a new folder, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "usam.cli", "demo", "--folder", folder], check=True)
        seconds = time.perf_counter() - start
        results = json.loads((Path(folder) / "results.json").read_text())
    rates = results["word_error_rate"]
    rows = [
        row("word error rate on unseen sentences", rates["unseen sentences"], "at most 12 %", 0.0, 0.12),
        row("word error rate on unseen sentences by unseen voices", rates["unseen voices"], "none", 0.0, 9.0),
        row("word error rate with the audio shuffled", rates["audio shuffled"], "at least 60 %", 0.6, 9.0),
        row("words counted rightly, unseen voices", results["count_accuracy"]["unseen voices"], "none", 0.0, 1.0),
        {
            "what": "`usam demo`, from speaking the corpus to the last transcript",
            "measured": f"{seconds:.0f} s",
            "bound": "360 s",
            "ok": seconds < 360,
        },
    ]
    record(__file__, rows, results)


def row(what: str, rate: float, bound: str, low: float, high: float) -> dict[str, object]:
    """A rate with its bound."""
    return {"what": f"`usam demo`: {what}", "measured": f"{rate:.1%}", "bound": bound, "ok": low <= rate <= high}


if __name__ == "__main__":
    main()
