"""How long the command line takes to answer: `import usam`, and `usam list` with 50 plugins installed."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _record import record

PLUGINS, RUNS = 50, 9


def install_plugins(folder: Path) -> None:
    """Fifty distributions that each offer an encoder and a projector, and would fail if one were imported."""
    for i in range(PLUGINS):
        package = folder / f"plugin_{i}"
        package.mkdir()
        (package / "__init__.py").write_text("raise ImportError('a listing must not import plugins')\n")
        info = folder / f"plugin_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{i}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[usam.encoders]\nencoder_{i} = plugin_{i}:Encoder\n[usam.projectors]\nprojector_{i} = plugin_{i}:P\n"
        )


def cpu_seconds(command: list[str], path: str) -> tuple[float, str]:
    """User and system time of a process and its children, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def main() -> None:
    """Medians of several runs, after one that fills the caches."""
    with tempfile.TemporaryDirectory() as folder:
        install_plugins(Path(folder))
        listing = [cpu_seconds([sys.executable, "-m", "usam.cli", "list"], folder) for _ in range(RUNS + 1)][1:]
        assert all(f"encoder_{i} " in listing[0][1] for i in range(PLUGINS)), "a plugin is not listed"
    code = "import usam, sys; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    importing = [cpu_seconds([sys.executable, "-c", code], "") for _ in range(RUNS + 1)][1:]
    bare = [cpu_seconds([sys.executable, "-c", ""], "")[0] for _ in range(RUNS + 1)][1:]
    heavy = importing[0][1].strip()
    listed, imported = (statistics.median(s for s, _ in runs) for runs in (listing, importing))
    rows = [
        {
            "what": f"`usam list` with {PLUGINS} plugins, CPU time",
            "measured": f"{listed:.2f} s",
            "bound": "0.5 s",
            "ok": listed < 0.5,
        },
        {
            "what": "`import usam`, CPU time beyond a bare Python; heavy modules it imports",
            "measured": f"{max(0.0, imported - statistics.median(bare)):.3f} s; {'none' if heavy == '[]' else heavy}",
            "bound": "no torch, no transformers",
            "ok": heavy == "[]",
        },
    ]
    record(__file__, rows, {"list": [s for s, _ in listing], "import": [s for s, _ in importing], "python": bare})


if __name__ == "__main__":
    main()
