"""A run file names a spec, its data and the arguments of transformers' Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usam.data.manifest import Manifest
from usam.data.mixture import Entry, entries, expanded
from usam.data.stream import BUFFER, Stream
from usam.readers import located
from usam.registry import ComponentError, did_you_mean
from usam.registry.files import load_file
from usam.spec.page import Places, SpecError, parse_yaml, write_yaml
from usam.spec.patch import merge, parse_override
from usam.spec.spec import Spec, read
from usam.training.checks import BUDGET, check_losses, check_tree
from usam.training.presets import resolved

PARTS = ("model", "start", "plugins", "data", "train", "groups", "eval")
FILES = ("deepspeed", "fsdp_config")  # arguments that may name a file


@dataclass(frozen=True)
class Run:
    """A run file, checked: the spec, the manifests, the Trainer's arguments, and the model to start from, if any."""

    spec: Spec
    data: Mapping[str, Any]
    """`train` and `eval`: a manifest or a list of them; without `train.eval_strategy`, what is held out is looked at
    once, in the end. And what happens to rows that cannot be learned from:

    Instead of a file, a source may be a map: `file` (or a list of files), `name`, a `reader` and an `audio_root` of its
    own, and `weight`, its share of the rows that are drawn for an epoch, which has as many as all sources together
    (`Mixture` says in which order). All sources have weights or none. `temperature` T raises them, or without weights
    the sources' numbers of rows, to the power of 1 / T: 1 draws by size, a high one from all alike. A YAML file is a
    NeMo `input_cfg`, whose sources, weights and tags are taken. Without any of these every row comes once in an epoch.
    What is held out is looked at row by row, and takes no weights. With several sources the log counts as `seen/<name>`
    the rows that were learned from, since the run began.

    `stream`: rows are read while the run trains, instead of before: of sources that are too large to be looked through.
    Sources come in an order of chance, their rows through a buffer of `shuffle_buffer` (1000), again and again until
    `train.max_steps` are made; 1 leaves everything in its order. What is wrong with a row is found when it comes.
    Weights, a temperature, a budget, `group_by_length` and `too_long: skip` need all rows beforehand, and are refused.
    Under `bad_audio: skip` the next row of its batch stands in for one that cannot be read, and `bad_share` is of all
    rows of all steps.

    `reader` names the format of the manifests where it shall not be recognised; `audio_root` is what `{audio_root}` at
    the beginning of their paths stands for.
    `bad_audio`, a clip cannot be read: `stop` ends the run there; `skip` gives its row's place in the batch to the
    next row of the manifest that can be read, so that batches and steps stay as planned. What is held out is read once
    before the run starts, and rows that cannot be read are in no evaluation.
    `bad_share`: the share of the rows that may be skipped so (0.01); one more ends the run.
    `too_long`, a row has more tokens than the language model has positions, which is looked at before the run starts:
    `stop` tells which; `skip` leaves such rows out; `truncate_answer` cuts their answers, which then have no end.
    Rows that were skipped are listed in `skipped.jsonl` in the output folder.

    With a budget, `batch_seconds`, `batch_tokens` or both, rows of about one length make a batch of a process, as many
    as it has room for, padding included: clips times the seconds of the longest, and rows times the tokens of the
    longest; `train.per_device_train_batch_size`, where it is written, is then the most rows. The largest batches that
    may come are tried once before the first step, except under DeepSpeed. `too_long` says what happens to a row that
    alone is larger.

    `cache`, a folder, or a map of `folder`, `dtype` and `limit` (GiB) as `FeatureCache` takes them: what the encoders
    give for a clip is computed in the first epoch, and read in those that follow, and in the next run.

    `augment`, a list of augmentations (`usam list` names them), changes the clips of `train`, and only while training:
    `[{type: speed, factors: [0.9, 1, 1.1]}, {type: noise, files: musan, p: 0.5}, spec_augment]`. What is drawn depends
    on `train.seed`, the epoch and the row. It does not go with `cache`.
    """
    train: Mapping[str, Any]
    """Arguments of transformers' Trainer. In a run file `preset: paper` stands for the paper's optimizer, schedule and
    batch; what is written beside it wins."""
    start: str | None = None
    plugins: tuple[str, ...] = ()
    file: str | None = None
    groups: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Parameters with another `learning_rate` (or `lr_scale`, a multiple of the run's, in place of their component's)
    or `weight_decay`, by a place in the spec, such as `projector` or `encoders.whisper`, or by a pattern of their
    names. A name that fits nothing that trains is an error, and so is a parameter in two groups."""
    eval: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What is done with what is held out, beside its losses: `generate` answers to it and measures them, `canary` tells
    whether the audio matters, `early_stopping` ends the run where nothing gets better; see `Evaluation`."""

    def to_yaml(self) -> str:
        """The run as a page of YAML that `read_run` reads back."""
        start = {"start": self.start} if self.start is not None else {}
        plugins = {"plugins": list(self.plugins)} if self.plugins else {}
        groups = {"groups": {name: dict(options) for name, options in self.groups.items()}} if self.groups else {}
        held = {"eval": dict(self.eval)} if self.eval else {}
        rest = {"data": dict(self.data), "train": dict(self.train), **groups, **held}
        return write_yaml({"model": self.spec.to_dict(), **start, **plugins, **rest})


def read_run(file: str | Path, *overrides: str, plugins: Iterable[str | Path] = ()) -> Run:
    """Read a run file and lay `a.b=c` overrides over it (`model.llm.lora.r=16`, `train.learning_rate=1e-3`).

    `model=other.yaml` takes another model, which the other overrides of it then change.

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
    return run_of(
        parse_yaml(path.read_text(encoding="utf-8"), str(path), places),
        path,
        *overrides,
        plugins=plugins,
        places=places,
    )


def run_of(
    tree: Any, file: str | Path, *overrides: str, plugins: Iterable[str | Path] = (), places: Places | None = None
) -> Run:
    """The run of what a run file holds; arguments and errors as `read_run` has them.

    Args:
        tree: plain data.
        file: where it was read; what it names is found beside.
        places: where each of its keys was written.
    """
    path, places = Path(file), places or Places()
    if not isinstance(tree, dict):
        raise SpecError(f"{path}: a run file is a map of 'model', 'data' and 'train'; found {tree!r}")
    for key in tree:
        if key not in PARTS:
            raise SpecError(f"{places.at((key,))}no such part of a run; {did_you_mean(key, PARTS)}")
    if "model" not in tree:
        raise SpecError(f"{path}: a run needs 'model': a bundled spec, a file, or a whole spec")
    files = _plugins(tree.get("plugins"), path.parent, places)
    files = tuple(dict.fromkeys([*files, *(str(Path(plugin).expanduser().resolve()) for plugin in plugins)]))
    source, origin = tree["model"], places.at(("model",))
    parsed = [parse_override(override) for override in overrides]
    for patch, said in parsed:
        if isinstance(patch.get("model"), str):  # another one in its place
            source, origin = patch["model"], f"{said}: "
    if not isinstance(source, (str, Mapping)):
        raise SpecError(f"{origin}expected a bundled spec, a file, or a whole spec; found {source!r}")
    if not isinstance(tree.get("start"), (str, type(None))):
        raise SpecError(f"{places.at(('start',))}expected the folder of a saved model; found {tree['start']!r}")
    if isinstance(source, str) and (path.parent / source).exists():
        source = path.parent / source
    start = tree.get("start") or (source if isinstance(source, (str, Path)) and Path(source).is_dir() else None)
    if start is not None:
        start = str(path.parent / start) if (path.parent / start).is_dir() else str(start)
    model, lines = read(source)
    rest = {key: {} if tree.get(key) is None else tree[key] for key in ("data", "train", "groups", "eval")}
    for patch, origin in parsed:
        (head, value), *_ = patch.items()
        if head == "model" and isinstance(value, str):
            continue
        if head == "model":
            model = merge(model, value, lines, origin)
        elif head in rest and isinstance(value, dict):
            rest = merge(rest, patch, places, origin)
        else:
            raise SpecError(f"{origin}: starts with 'model.', 'data.', 'train.', 'groups.' or 'eval.'")
    if isinstance(rest["train"], Mapping) and isinstance(rest["data"], Mapping):
        budget = any(rest["data"].get(key) is not None for key in BUDGET)
        rest["train"] = resolved(rest["train"], places, budget=budget)
    check_tree(rest, places)
    for split in ("train", "eval"):
        if rest["data"].get(split) is not None:
            rest["data"][split] = _beside(rest["data"][split], path.parent)
    if (cache := cache_of(rest["data"])) is not None:
        rest["data"]["cache"] = {**cache, "folder": _beside(cache["folder"], path.parent)[0]}
    for key in FILES:
        if isinstance(file := rest["train"].get(key), str):
            (found,) = _beside(file, path.parent)
            if not Path(found).is_file():
                raise SpecError(f"{places.at(('train', key))}{found}: no such file")
            rest["train"][key] = found
    if rest["data"].get("augment"):
        listed = [dict(one) if isinstance(one, Mapping) else one for one in rest["data"]["augment"]]
        for one in listed:
            if isinstance(one, dict) and one.get("files"):
                one["files"] = _beside(one["files"], path.parent)
        rest["data"]["augment"] = listed
    spec = Spec.from_tree(model, lines)
    check_losses(spec, rest, places)
    return Run(spec, rest["data"], rest["train"], start, files, str(path), rest["groups"], rest["eval"])


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


def check(run: Run) -> None:
    """What `read_run` checks, for a run that was made in Python.

    Raises:
        SpecError: the key, and what to write instead.
    """
    tree = {"data": run.data, "train": run.train, "groups": run.groups, "eval": run.eval}
    check_tree(tree, Places())
    check_losses(run.spec, tree, Places())


def samples_of(run: Run, split: str, *, need_answer: bool = True) -> Manifest:
    """The rows of `data.train` or `data.eval`.

    Raises:
        ManifestError: rows that are wrong; each with file, line and key.
    """
    found = []
    for entry in sources_of(run, split):
        manifest = Manifest(
            entry.files,
            entry.prompts(run.spec.prompts),
            need_answer=need_answer,
            reader=entry.reader or run.data.get("reader"),
            audio_root=entry.audio_root or run.data.get("audio_root"),
        )
        found.append(manifest.of_source(entry))
    return Manifest.joined(found)


def stream_of(run: Run, seed: int) -> Stream:
    """The rows of `data.train`, read as the run goes.

    Raises:
        SpecError: a NeMo configuration is among the sources, whose weights a stream cannot keep.
    """
    found = sources_of(run, "train")
    if any(entry.weight is not None for entry in found):
        raise SpecError("data.train: the weights of a NeMo configuration need the number of all rows: leave stream out")
    options: dict[str, Any] = {key: run.data.get(key) for key in ("reader", "audio_root")}
    return Stream(found, dict(run.spec.prompts), buffer=run.data.get("shuffle_buffer") or BUFFER, seed=seed, **options)


def sources_of(run: Run, split: str) -> list[Entry]:
    """The sources of `data.train` or `data.eval`, in the order of `samples_of`; none without them.

    Raises:
        SpecError: a NeMo configuration among them is wrong.
    """
    if run.data.get(split) is None:
        return []
    return expanded(entries(run.data[split], path=("data", split)), held_out=split == "eval")


def cache_of(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """`data.cache` as a map of its options; None without one."""
    cache = data.get("cache")
    if cache is None:
        return None
    return dict(cache) if isinstance(cache, Mapping) else {"folder": str(cache)}


def _beside(files: Any, folder: Path) -> list[Any]:
    """Files, or maps of sources, found from where one is, or beside the run file."""
    found: list[Any] = []
    for file in [files] if isinstance(files, (str, Path, Mapping)) else files:
        if isinstance(file, Mapping):
            found.append({**file, "file": _beside(file["file"], folder)})
        else:
            name = located(file)
            found.append(name if Path(name).exists() else str(folder / name))
    return found
