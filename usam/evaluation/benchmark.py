"""A benchmark is evaluated: its rows become a manifest beside the record, and the record says what was scored how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from usam.data.manifest import ManifestError
from usam.evaluation.evaluate import evaluate
from usam.evaluation.record import Record
from usam.saving import write_whole
from usam.suites import Loaded, Suite, SuiteConfig, build_suite, registry


def benchmark(
    model: str | Path,
    suite: str | Mapping[str, Any] | SuiteConfig,
    root: str | Path,
    *,
    metrics: str | Sequence[Any] | Mapping[str, Any] | None = None,
    split: str | None = None,
    prompt: str | None = None,
    missing: str | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> Record:
    """Answer a benchmark as it lies in a folder, and score it as its authors do, as far as that needs no judge.

    The manifest names clips below `{audio_root}`, so that records of one benchmark can be compared wherever it lies.

    Args:
        model: a saved folder or hub id.
        suite: the benchmark's name, or `{type: name, option: value}`.
        root: where it lies, as downloaded.
        metrics: instead of the benchmark's own.
        split, prompt, missing: options of the suite.
        output: the record's folder; the manifest is written beside it.
        options: others of `evaluate`.

    Raises:
        ManifestError: files, keys or clips are missing; names them, and where the benchmark comes from.
        SpecError, ComponentError: there is no such suite, split or option; and as `evaluate`.
    """
    given = {"split": split, "prompt": prompt, "missing": missing}
    built = build_suite(suite, **{name: value for name, value in given.items() if value is not None})
    loaded = built.load(root)
    file = write_rows(built, loaded, Path("eval") if output is None else Path(output).parent)
    own = dict(built.metrics) or None
    left, together = len(loaded.left_out), len(loaded.left_out) + len(loaded.rows)
    notes = [f"{left:,} of {together:,} items left out, their clips are missing"] if left else []
    notes += [f"not computed: {built.not_computed}"] if built.not_computed else []
    notes += [f"scored by other metrics than {built.name}'s own"] if metrics is not None else []
    said = {
        "suite": built.config.to_dict(),
        "split": built.split,
        "prompt": built.asks if built.config.prompt is None else built.config.prompt,
        "source": built.source,
        "home": built.home,
        "left_out": list(loaded.left_out),
    }
    return evaluate(
        model,
        file,
        metrics=own if metrics is None else metrics,
        audio_root=root,
        output=output,
        by=built.by,
        beside={"benchmark": said, "notes": notes},
        **options,
    )


def write_rows(suite: Suite, loaded: Loaded, folder: Path) -> Path:
    """The rows as a manifest, which is named by the suite, its split and what is in it."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in loaded.rows)
    file = folder / f"{suite.name}-{suite.split}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
    write_whole(file, text)
    return file


def check_is_data(data: Sequence[str]) -> None:
    """ManifestError where what should be files is the name of a benchmark."""
    for name in data:
        if name in registry.names() and not Path(name).exists():
            raise ManifestError(f"{name}: no such manifest, but a benchmark: say where it lies with --root FOLDER")
