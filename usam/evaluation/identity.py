"""What makes a run of an ablation what it is: all that its answers depend on, as plain data, and its hash."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import __version__ as transformers_version

import usam
from usam.data.index import content
from usam.evaluation.grid import Cell
from usam.spec.page import KeyPath, SpecError
from usam.spec.spec import Spec
from usam.training.checkpoints import OUTWARD
from usam.training.run import cache_of, sources_of
from usam.weights import local_path

# In the folder of a model: of how it came about, which says nothing of what it is.
TOLD = ("trainer_state.json", "training_args.bin", "README.md", "*.log", ".*")
INSIDE = ("checkpoint-", "predictions", "runs")


def made_of(cell: Cell, then: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All that a run's answers depend on, as plain data: hashes stand for files, wherever these lie.

    Metrics are computed from the answers, so that they are not among it, unless they choose the best model. Of clips,
    only the manifests that name them are.

    Args:
        cell: the run.
        then: what a run was made of before. Options of the model that it does not name are left out, where the run that
            is asked for does not set them either: a component that has learned a new option is no other one.
    """
    run = cell.run
    model = run.spec.to_dict() if then is None else _known(run.spec, then.get("model"))
    paths = ("train", "eval", "cache", "audio_root")
    data = {key: value for key, value in run.data.items() if key not in paths and value is not None}
    data["cache"] = (cache_of(run.data) or {}).get("dtype")
    for split in ("train", "eval"):
        entries = sources_of(run, split)
        data[split] = [
            {"files": [_content(str(file)) for file in entry.files], "weight": entry.weight, "reader": entry.reader}
            for entry in entries
        ]
    train = {key: value for key, value in run.train.items() if key not in OUTWARD or key.startswith("load_best")}
    held = json.loads(json.dumps(dict(run.eval), default=str))
    if "generate" in held and run.train.get("metric_for_best_model") is None:
        held["generate"].pop("metrics", None)
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                "model": _placeless(model),
                "start": _named(run.start),
                "plugins": [_content(file) for file in run.plugins],
                "data": data,
                "train": train,
                "groups": run.groups,
                "eval": held,
                "versions": {
                    "usam": usam.__version__,
                    "torch": torch.__version__,
                    "transformers": transformers_version,
                    "python": platform.python_version(),
                },
            },
            default=str,
        )
    )


def identity(parts: Mapping[str, Any]) -> str:
    """The hash of what a run is made of."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def is_of(cell: Cell, record: Mapping[str, Any] | None) -> bool:
    """Whether what was written of a run is of the very run that is asked for."""
    return record is not None and record["identity"] == identity(made_of(cell, record["made_of"]))


def differences(old: Any, new: Any, path: KeyPath = ()) -> Iterator[str]:
    """Lines such as `model.llm.dim: was 16, now 32`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), (*path, str(key)))
    elif old != new:
        yield f"{'.'.join(path)}: was {old!s:.60}, now {new!s:.60}"


def _known(spec: Spec, then: Any) -> Any:
    """A spec without the options that were unknown then, if they are as they are where nobody names them."""
    now = spec.to_dict()
    known = _within(now, then)
    try:
        return known if Spec.from_tree(known).to_dict() == now else now
    except SpecError:  # one of them must be named
        return now


def _within(now: Any, then: Any) -> Any:
    """What of a tree another has, too."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        return {key: _within(value, then[key]) for key, value in now.items() if key in then}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [_within(*pair) for pair in zip(now, then, strict=True)]
    return now


def _placeless(node: Any) -> Any:
    """A spec with the content of sources that are on this machine in place of their paths."""
    if isinstance(node, Mapping):
        return {
            key: _named(value) if key in ("path", "tokenizer") and isinstance(value, str) else _placeless(value)
            for key, value in node.items()
        }
    return [_placeless(value) for value in node] if isinstance(node, (list, tuple)) else node


def _named(source: str | None) -> str | None:
    """The content of what is on this machine, else the hub's name."""
    if source is None or not local_path(source).exists():
        return source
    return _source(str(local_path(source)))


@cache
def _source(path: str) -> str:
    """The hash of a file, or of the files of a folder, but for what tells how and where it was trained."""
    if not Path(path).is_dir():
        return _content(path)
    digest = hashlib.sha256()
    for file in sorted(Path(path).rglob("*")):
        own = file.relative_to(path)
        if file.is_file() and not any(own.match(pattern) for pattern in TOLD) and not own.parts[0].startswith(INSIDE):
            digest.update(f"{own.as_posix()} {_content(str(file))}\n".encode())
    return digest.hexdigest()


@cache
def _content(file: str) -> str:
    return content(Path(file))
