"""What a run file may say of its data and of the Trainer's arguments, and what is told of all else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from transformers import TrainingArguments

from usam.data.mixture import entries
from usam.registry import did_you_mean
from usam.spec.page import Places, SpecError
from usam.spec.spec import Spec, component_config
from usam.training import held_out
from usam.training.groups import check_groups

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
POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs"
)  # fmt: skip


def check_tree(tree: Mapping[str, Any], places: Places) -> None:
    """Refuse what `data`, `train`, `groups` and `eval` of a run file may not say, alone or together.

    Raises:
        SpecError: file, line and key, and what to write instead.
    """
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


def check_losses(spec: Spec, tree: Mapping[str, Any], places: Places) -> None:
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
