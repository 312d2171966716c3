"""A run file names a spec, its data and the arguments of transformers' Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from usam.registry import ComponentError, did_you_mean
from usam.registry.files import load_file
from usam.spec.page import Places, SpecError, parse_yaml, write_yaml
from usam.spec.patch import merge, parse_override
from usam.spec.spec import Spec, read

PARTS = ("model", "start", "plugins", "data", "train")


@dataclass(frozen=True)
class Run:
    """A run file, checked: the spec, the manifests, the Trainer's arguments, and the model to start from, if any."""

    spec: Spec
    data: Mapping[str, Any]
    train: Mapping[str, Any]
    start: str | None = None
    plugins: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        """The run as a page of YAML that `read_run` reads back."""
        start = {"start": self.start} if self.start is not None else {}
        plugins = {"plugins": list(self.plugins)} if self.plugins else {}
        rest = {"data": dict(self.data), "train": dict(self.train)}
        return write_yaml({"model": self.spec.to_dict(), **start, **plugins, **rest})


def read_run(file: str | Path, *overrides: str, plugins: Iterable[str | Path] = ()) -> Run:
    """Read a run file and lay `a.b=c` overrides over it (`model.llm.lora.r=16`, `train.learning_rate=1e-3`).

    Args:
        file: the run file.
        overrides: as `--set` takes them.
        plugins: files of components that are imported beside those of the run's own `plugins`.

    Raises:
        SpecError: the file, line and key, and what to write instead.
        ComponentError: a component of the spec is unknown or fails to load.
    """
    path = Path(file)
    if not path.is_file():
        raise SpecError(f"{path}: no such run file (looked in {path.parent.resolve()})")
    places = Places()
    tree = parse_yaml(path.read_text(encoding="utf-8"), str(path), places)
    if not isinstance(tree, dict):
        raise SpecError(f"{path}: a run file is a map of 'model', 'data' and 'train'; found {tree!r}")
    for key in tree:
        if key not in PARTS:
            raise SpecError(f"{places.at((key,))}no such part of a run; {did_you_mean(key, PARTS)}")
    if "model" not in tree:
        raise SpecError(f"{path}: a run needs 'model': a bundled spec, a file, or a whole spec")
    files = _plugins(tree.get("plugins"), path.parent, places)
    files = tuple(dict.fromkeys([*files, *(str(Path(plugin).expanduser().resolve()) for plugin in plugins)]))
    source = tree["model"]
    if isinstance(source, str) and (path.parent / source).exists():
        source = path.parent / source
    start = tree.get("start") or (source if isinstance(source, (str, Path)) and Path(source).is_dir() else None)
    if start is not None:
        start = str(path.parent / start) if (path.parent / start).is_dir() else str(start)
    model, lines = read(source)
    rest = {key: tree.get(key) or {} for key in ("data", "train")}
    for override in overrides:
        patch, origin = parse_override(override)
        (head, value), *_ = patch.items()
        if head == "model":
            model = merge(model, value, lines, origin)
        elif head in rest and isinstance(value, dict):
            rest = merge(rest, patch, places, origin)
        else:
            raise SpecError(f"{origin}: starts with 'model.', 'data.' or 'train.'")
    _check(rest, places)
    for split in ("train", "eval"):
        if split in rest["data"]:
            rest["data"][split] = _beside(rest["data"][split], path.parent)
    return Run(Spec.from_tree(model, lines), rest["data"], rest["train"], start, files)


def _plugins(files: Any, folder: Path, places: Places) -> tuple[str, ...]:
    """The files of components that a run names, found beside it, and imported."""
    files = [files] if isinstance(files, str) else files or []
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        raise SpecError(f"{places.at(('plugins',))}expected a list of .py files, found {files!r}")
    found = tuple(str((folder / Path(file).expanduser()).resolve()) for file in files)
    for file in found:
        try:
            load_file(file)
        except ComponentError as error:
            raise ComponentError(f"{places.at(('plugins',))}{error}") from error
    return found


def _check(tree: Mapping[str, Any], places: Places) -> None:
    for part in ("data", "train"):
        if not isinstance(tree[part], Mapping):
            raise SpecError(f"{places.at((part,))}expected a map, found {tree[part]!r}")
    for key in tree["data"]:
        if key not in ("train", "eval"):
            raise SpecError(f"{places.at(('data', key))}no such split; {did_you_mean(key, ['train', 'eval'])}")
    if "train" not in tree["data"]:
        raise SpecError(f"{places.at(('data',))}a run needs 'data.train': one manifest, or a list")
    known = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    for key in tree["train"]:
        if key not in known:
            raise SpecError(
                f"{places.at(('train', key))}no argument of transformers' Trainer; {did_you_mean(key, known)}"
            )
    if tree["train"].get("label_smoothing_factor"):
        raise SpecError(
            f"{places.at(('train', 'label_smoothing_factor'))}write it as model.losses.cross_entropy.label_smoothing"
        )


def _beside(files: Any, folder: Path) -> list[str]:
    names = [files] if isinstance(files, str) else list(files)
    return [str(folder / name) if not Path(name).exists() else str(name) for name in names]
