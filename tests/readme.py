"""Writes what is generated in README.md, and docs/benchmarks.md: tables, and what commands print."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from usam.demo import show
from usam.registry import FAMILIES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# What the figures of a script mean; docs/benchmarks.md has its groups in this order.
SAYS = {
    "demo.py": "The paper's composition in miniature on the test split of the miniature world, 200 clips of each task "
    "with voices, numbers, scenes and pieces that training never has; one run, seed 0. It listens: with the audio of "
    "another clip it fails.",
    "zoo.py": "The bundled specs have as many trainable parameters as their papers say.",
    "front_ends.py": "The model makes spectrograms of a whole batch, faster than transformers' extractors do.",
    "long_audio.py": "A second of audio costs about as much in an hour as in five minutes, and memory stays bounded.",
    "feature_cache.py": "Frames of frozen encoders are computed once: an epoch that reads them takes a fraction of the "
    "time, and learns the same.",
    "loader.py": "Rows become batches at a share of the speed at which soundfile reads their files; 1 is as fast.",
    "generation.py": "Chats of about one length are answered together; above 1 means that as they come they take "
    "longer.",
    "serving.py": "A served model answers about as fast as one that is called directly, one request after the other; "
    "of a crowd those who find a place are answered and the rest are told to come again, in bounded memory; 1 is as "
    "fast. [serving.md](serving.md) has the limits.",
    "whisper_context.py": "Whisper on the clip alone spares the silence that fills its windows of 30 s; above 1 means "
    "that the windows take longer.",
    "whisper_context_wer.py": "What `context: clip` changes in a small Whisper that was drawn at random and trained on "
    "windows of 3 s: its frames by 6 %, and little of what it hears. Trained on clips alone it learns less surely: one "
    "seed of three is far behind.",
    "window_qformer.py": "The window Q-Former gives what BLIP-2's module gives with the same weights, in less time.",
    "routing.py": "What the router's gates tell of the task, and what development loses under gates that are even, "
    "another task's, or the largest alone; [routing.md](routing.md) has the rest.",
    "norms.py": "How long projected audio is beside the language model's embeddings, 1 being as long; and what it is "
    "worth to begin with their norm.",
    "mixture.py": "All experts as two stacked products, against a loop over the experts; above 1 means that the loop "
    "takes more.",
    "mixture_auto.py": "On a CPU `backend: auto` takes no longer than the fastest of what one writes with torch; "
    "above 1 means that the fastest of the others takes longer.",
    "gpu.py": "On a GPU the mixture of experts mostly beats what one writes with torch in a CUDA graph, and often not "
    "without one, where launches count; above 1 means that the other takes longer. [kernels.md](kernels.md) has the "
    "rows.",
    "kernels_aot.py": "Every Triton kernel compiles for two architectures without spilling a register; nothing was run "
    "on a GPU for this.",
    "semantic_contrastive.py": "The semantic contrastive loss looks at the frames that a clip has, and costs a "
    "share of what 1024 slots cost.",
    "selection.py": "What the contrast keeps of a clip, in variations of eq. 9 to 12; [selection.md](selection.md) has "
    "the rest.",
    "supervised_head.py": "A training step computes logits where tokens are supervised, which saves time and memory; "
    "1 would be a step with all logits. The memory is what a step adds once torch's own code is loaded; with that code "
    "counted, as it was before, it was 0.41.",
    "padding.py": "A budget of seconds and tokens makes batches of rows of one length, with little padding.",
    "manifest.py": "A manifest of a million rows is checked and indexed once; every later start maps the index, and "
    "shares it with its workers.",
    "meta_memory.py": "`usam show` builds no weights, so that a laptop looks at ten billion parameters.",
    "startup.py": "The command line answers in a fraction of a second, with many plugins installed.",
}

# The figures of the README: script, and what it calls them.
FIVE = [
    ("demo.py", "`usam demo`: word error rate of asr"),
    ("zoo.py", "trainable parameters of the spec `paper` (U-SAM)"),
    ("front_ends.py", "Whisper's log-mel: how many times faster than transformers' extractor at batch 8"),
    ("long_audio.py", "`whisper`: memory that one hour adds"),
    ("window_qformer.py", "window Q-Former, forward and backward: time by the clock against BLIP-2's"),
]


def components() -> str:
    """One row a family, with a link to the file of each built-in component."""
    rows = ["| family | components |", "|---|---|"]
    for group in FAMILIES:
        folder = group.replace(".", "/")
        names = [e.name for e in importlib.import_module(group).registry.entries() if e.provider == "usam"]
        links = ", ".join(f"[`{name}`]({folder}/{name}.py)" for name in names)
        rows.append(f"| {group.removeprefix('usam.')} | {links} |")
    return "\n".join(rows)


def demo() -> str:
    """The table that `make demo` prints, from the run that is in the results."""
    return show.table(results()["demo.py"]["raw"]["tasks"])


def swap(most: int = 3) -> str:
    """The first lines of what differs between the paper's spec and one of its ablations."""
    command = [sys.executable, "-m", "usam.cli", "show", "paper", "no_moe"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    return "\n".join([*printed[:most], *["..."][: len(printed) - most]])


def five() -> str:
    """The few figures of the README."""
    found = results()
    rows = {what: row for script, what in FIVE for row in found[script]["rows"] if row["what"] == what}
    return "\n".join(table([rows[what] for _, what in FIVE]))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Measured figures, each beside its bound."""
    kept = [row.get("ok", True) for row in rows]
    bounds = [
        row["bound"].removesuffix(", not met") + ("" if ok else ", not met") for row, ok in zip(rows, kept, strict=True)
    ]
    lines = [f"| {row['what']} | {row['measured']} | {bound} |" for row, bound in zip(rows, bounds, strict=True)]
    return ["| what | measured | bound |", "|---|---|---|", *lines]


def results() -> dict[str, dict[str, Any]]:
    """What is in benchmarks/results, by script."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))]
    if unsaid := {result["script"] for result in found} - SAYS.keys():
        raise KeyError(f"write into SAYS of tests/readme.py what the figures of {sorted(unsaid)} mean")
    return {result["script"]: result for result in found}


def benchmarks() -> str:
    """docs/benchmarks.md: every figure, a group a script."""
    lines = [
        "# Benchmarks",
        "Each group is one script in `benchmarks/`, whose result lies in `benchmarks/results/` as JSON. Speed is a",
        "ratio to a named alternative in the same run. `make bench` measures again; `make readme` writes this page.",
    ]
    found = results()
    for script in filter(found.get, SAYS):
        result = found[script]
        versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        lines += ["", f"## {script}", textwrap.fill(SAYS[script], 120), "", *table(result["rows"])]
        lines += ["", f"On {result.get('device') or result['machine']}; {versions}."]
    return "\n".join([*lines, ""])


PARTS = [  # what is written, and between which lines
    (demo, r"\$ make demo\n", r"\$ make test\n"),
    (swap, r"\$ usam show paper no_moe\n", "```\n"),
    (components, r"<!-- components: [^\n]*-->\n", "<!-- /components -->"),
    (five, r"<!-- five: [^\n]*-->\n", "<!-- /five -->"),
]


def written(text: str) -> str:
    """README.md with its generated parts anew."""
    for part, start, end in PARTS:
        content = part()
        pattern = rf"({start}).*?({end})"
        text, count = re.subn(pattern, lambda f, new=content: f"{f[1]}{new}\n{f[2]}", text, flags=re.DOTALL)
        assert count == 1, f"README.md has {count} places for {part.__name__!r}"
    return text


FILES = {ROOT / "README.md": written, ROOT / "docs" / "benchmarks.md": lambda _: benchmarks()}

if __name__ == "__main__":
    for file, write in FILES.items():
        file.write_text(write(file.read_text(encoding="utf-8") if file.exists() else ""), encoding="utf-8")
