"""A run file names a spec, its data and the arguments of transformers' Trainer."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments

from usam.data.manifest import Manifest
from usam.data.mixture import Entry, entries, expanded
from usam.data.stream import BUFFER, Stream
from usam.registry import ComponentError, did_you_mean
from usam.registry.files import load_file
from usam.spec.page import Places, SpecError, parse_yaml, write_yaml
from usam.spec.patch import merge, parse_override
from usam.spec.spec import Spec, component_config, read
from usam.training import held_out
from usam.training.groups import check_groups
from usam.training.presets import resolved

PARTS = ("model", "start", "plugins", "data", "train", "groups", "eval")
DATA = {
    "train": None, "eval": None, "temperature": None, "reader": None, "audio_root": None, "bad_audio": "stop",
    "bad_share": 0.01, "stream": None, "shuffle_buffer": None, "too_long": "stop",
    "batch_seconds": None, "batch_tokens": None, "cache": None, "augment": None,
}  # fmt: skip
CACHE = {"folder": None, "dtype": None, "limit": None}
POLICIES = {"bad_audio": ("stop", "skip"), "too_long": ("stop", "skip", "truncate_answer")}
BUDGET = ("batch_seconds", "batch_tokens")

# Arguments that only transformers' example scripts read, or that mean nothing here, and what to write instead.
METRICS = "held-out data is measured by its losses and, by eval.generate, through the answers to it"
COLUMNS = "rows of a manifest have no columns to choose from"
INSTEAD = {
    "do_train": "`usam train` trains",
    "do_eval": "name held-out manifests in data.eval; train.eval_strategy says when they are looked at",
    "do_predict": "use `usam generate` on the trained model, or eval.generate, which answers what is held out",
    "resume_from_checkpoint": "go on with `usam train RUN --resume`",
    "overwrite_output_dir": "start anew with `usam train RUN --overwrite`",
    "label_smoothing_factor": "write it as model.losses.cross_entropy.label_smoothing",
    "prediction_loss_only": METRICS,
    "batch_eval_metrics": METRICS,
    "include_for_metrics": METRICS,
    "eval_do_concat_batches": METRICS,
    "remove_unused_columns": COLUMNS,
    "label_names": COLUMNS,
    "length_column_name": COLUMNS,
    "preset": "read_run puts its arguments in its place; in Python, usam.training.presets.resolved",
    "group_by_length": "write train.train_sampling_strategy: group_by_length, or a budget, data.batch_seconds",
}
IN_FORCE = {"remove_unused_columns": False, "label_names": ["labels"]}
BESIDE_A_BUDGET = {  # what it may be there, and why nothing else
    "train_sampling_strategy": ("random", "a budget puts rows of one length together itself"),
    "dataloader_drop_last": (False, "batches of a budget leave no row over"),
    "auto_find_batch_size": (False, "the largest batch is tried before the first step"),
}
FILES = ("deepspeed", "fsdp_config")  # arguments that may name a file
POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs"
)  # fmt: skip


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
    _check(rest, places)
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
    _check_losses(spec, rest, places)
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
    _check(tree, Places())
    _check_losses(run.spec, tree, Places())


def _check_losses(spec: Spec, tree: Mapping[str, Any], places: Places) -> None:
    """Refuse a run that would learn from nothing, or be judged by what is not measured."""
    where = places.at(("model", "losses"))
    if not spec.losses:
        raise SpecError(f"{where}a run without losses learns nothing; write losses: {{cross_entropy: {{}}}}")
    if all(cast(Any, loss).weight == 0 for loss in spec.losses.values()):
        raise SpecError(
            f"{where}every weight is 0 ({', '.join(spec.losses)}), so that nothing would be learned; "
            "give one of them a weight"
        )
    metric = tree["train"].get("metric_for_best_model")
    answers = held_out.metrics(held_out.evaluation(tree["eval"], places).generate, places)
    known = ["loss", *(f"loss_{name}" for name in spec.losses), *answers]
    judged = metric is None or held_out.measured_by(str(metric), answers) is not None
    if not judged and str(metric).removeprefix("eval_") not in known:
        where = places.at(("train", "metric_for_best_model"))
        raise SpecError(f"{where}nothing measures {metric!r}; {did_you_mean(str(metric), known)}")


def _check(tree: Mapping[str, Any], places: Places) -> None:
    for part in ("data", "train"):
        if not isinstance(tree[part], Mapping):
            raise SpecError(f"{places.at((part,))}expected a map, found {tree[part]!r}")
    _check_data(tree["data"], places)
    check_groups(tree["groups"], places)
    known = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    for key, value in tree["train"].items():
        where = places.at(("train", key))
        if key in INSTEAD and value != IN_FORCE.get(key, INSTEAD):
            raise SpecError(f"{where}means nothing to `usam train`: {INSTEAD[key]}")
        if key not in known:
            raise SpecError(f"{where}no argument of transformers' Trainer; {did_you_mean(key, known)}")
        _check_argument(where, key, value, known[key])
    if budget := [key for key in BUDGET if tree["data"].get(key) is not None]:
        for key, (only, why) in BESIDE_A_BUDGET.items():
            if tree["train"].get(key, only) != only:
                where = places.at(("train", key))
                raise SpecError(f"{where}does not go with data.{budget[0]}: {why}; leave one of them out")
    if tree["data"].get("stream"):
        _check_stream(tree["data"], tree["train"], places)
    strategy = tree["train"].get("eval_strategy", "no")
    if strategy != "no" and not tree["data"].get("eval"):
        raise SpecError(f"{places.at(('train', 'eval_strategy'))}there is nothing to evaluate; name it in data.eval")
    held_out.check(tree["eval"], tree["data"], tree["train"], places)


def _check_stream(data: Mapping[str, Any], train: Mapping[str, Any], places: Places) -> None:
    """Refuse what needs to know all rows before the first step."""
    if train.get("max_steps", -1) <= 0:
        where = places.at(("train", "max_steps"))
        raise SpecError(f"{where}a stream (data.stream) has no end that could be planned: say how many steps it trains")
    weighted = [entry.weight for entry in entries(data["train"]) if entry.weight is not None]
    needs = {
        "data.batch_seconds": data.get("batch_seconds") is not None,
        "data.batch_tokens": data.get("batch_tokens") is not None,
        "data.temperature": data.get("temperature") is not None,
        "data.train": bool(weighted),
        "data.too_long": data.get("too_long") == "skip",
        "train.train_sampling_strategy": train.get("train_sampling_strategy", "random") != "random",
    }
    for key, asked in needs.items():
        if asked:
            what = "a weight" if key == "data.train" else "this"
            raise SpecError(
                f"{places.at(tuple(key.split('.')))}{what} needs the number and the lengths of all rows, which a "
                "stream (data.stream) does not know beforehand: leave one of them out"
            )


def _check_data(data: Mapping[str, Any], places: Places) -> None:
    for key, value in data.items():
        where = places.at(("data", key))
        if key not in DATA:
            raise SpecError(f"{where}no such split or option; {did_you_mean(key, DATA)}")
        if key in POLICIES and value not in POLICIES[key]:
            raise SpecError(f"{where}expected one of {', '.join(POLICIES[key])}; found {value!r}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if key == "bad_share" and not (number and 0 <= value <= 1):
            raise SpecError(f"{where}expected a share from 0 to 1, such as 0.01; found {value!r}")
        if key in BUDGET and value is not None and not (number and 0 < value < math.inf):
            raise SpecError(f"{where}expected how many of them a batch may hold, more than 0; found {value!r}")
        if key == "batch_tokens" and isinstance(value, float):
            raise SpecError(f"{where}expected a whole number, found {value!r}")
        if key in ("reader", "audio_root") and not isinstance(value, (str, Path, type(None))):
            raise SpecError(f"{where}expected text, found {value!r}")
        if key in ("train", "eval") and value is not None:
            entries(value, places, ("data", key))
        if key == "temperature" and value is not None and not (number and 0 < value < math.inf):
            raise SpecError(f"{where}expected a number, more than 0, such as 5; found {value!r}")
        if key == "stream" and not isinstance(value, (bool, type(None))):
            raise SpecError(f"{where}expected true or false, found {value!r}")
        if key == "shuffle_buffer" and value is not None and (not number or isinstance(value, float) or value < 1):
            raise SpecError(f"{where}expected how many rows are held to be shuffled, 1 or more; found {value!r}")
    if data.get("shuffle_buffer") is not None and not data.get("stream"):
        raise SpecError(f"{places.at(('data', 'shuffle_buffer'))}means nothing without data.stream: true; write both")
    _check_cache(data.get("cache"), places)
    _check_augment(data, places)
    if "bad_share" in data and data.get("bad_audio") != "skip":
        raise SpecError(
            f"{places.at(('data', 'bad_share'))}means nothing without data.bad_audio: skip; write both or none"
        )
    if data.get("train") is None:
        raise SpecError(f"{places.at(('data',))}a run needs 'data.train': one manifest, or a list")


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


def _check_cache(cache: Any, places: Places) -> None:
    where = places.at(("data", "cache"))
    given = {"folder": cache} if isinstance(cache, (str, Path)) else cache
    if given is None:
        return
    if not isinstance(given, Mapping) or not isinstance(given.get("folder"), (str, Path)) or not str(given["folder"]):
        raise SpecError(f"{where}expected a folder, or a map of {', '.join(CACHE)}; found {cache!r}")
    for key in given:
        if key not in CACHE:
            raise SpecError(f"{places.at(('data', 'cache', key))}no such option; {did_you_mean(str(key), CACHE)}")
    if given.get("dtype") not in (None, "float16", "bfloat16"):
        where = places.at(("data", "cache", "dtype"))
        raise SpecError(f"{where}expected float16 or bfloat16, or nothing; found {given['dtype']!r}")
    limit = given.get("limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit > 0):
        raise SpecError(f"{places.at(('data', 'cache', 'limit'))}expected GiB, more than 0; found {limit!r}")


def _check_augment(data: Mapping[str, Any], places: Places) -> None:
    listed, where = data.get("augment"), places.at(("data", "augment"))
    if listed is None:
        return
    if not isinstance(listed, (list, tuple)):
        raise SpecError(f"{where}expected a list of augmentations, such as [speed, {{type: gain}}]; found {listed!r}")
    for i, one in enumerate(listed):
        component_config("usam.augmentations", one, ("data", "augment", str(i)), places)
    if listed and data.get("cache") is not None:
        raise SpecError(
            f"{where}does not go with data.cache, which keeps what encoders give for a clip as it is: augmentation "
            "lets them hear another one in each epoch; leave one of them out"
        )


def _check_argument(where: str, key: str, value: Any, field: dataclasses.Field[Any]) -> None:
    """Numbers and switches are what they say: the Trainer itself would fail with them late, or not at all."""
    default = field.default
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise SpecError(f"{where}expected true or false, found {value!r}")
    if isinstance(default, (int, float)) and not isinstance(default, bool) and not number:
        raise SpecError(f"{where}expected a number, found {value!r}")
    choices = field.metadata.get("choices")
    if choices is not None and isinstance(value, str) and value not in choices:
        raise SpecError(f"{where}expected one of {', '.join(map(str, choices))}; found {value!r}")
    if field.type in (int, "int") and isinstance(value, float):
        raise SpecError(f"{where}expected a whole number, found {value!r}")
    if (key in POSITIVE and value <= 0) or (key == "max_steps" and value == 0):
        raise SpecError(f"{where}with {value!r} no step would be made; expected more than 0")
    if key == "learning_rate" and value <= 0:
        raise SpecError(f"{where}with {value!r} nothing would be learned; expected more than 0")
    if key == "output_dir":
        if not isinstance(value, (str, Path)) or not str(value).strip():
            raise SpecError(f"{where}expected a folder to save in; found {value!r}")
        above = next(path for path in (Path(value), *Path(value).absolute().parents) if path.exists())
        if not above.is_dir():
            raise SpecError(f"{where}{above} is a file; name a folder to save in")


def _beside(files: Any, folder: Path) -> list[Any]:
    """Files, or maps of sources, found from where one is, or beside the run file."""
    found: list[Any] = []
    for file in [files] if isinstance(files, (str, Path, Mapping)) else files:
        if isinstance(file, Mapping):
            found.append({**file, "file": _beside(file["file"], folder)})
        else:
            name = os.path.expandvars(os.path.expanduser(file))
            found.append(name if Path(name).exists() else str(folder / name))
    return found
