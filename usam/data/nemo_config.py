"""NeMo's `input_cfg`: a page of YAML that lists manifests, in groups, with weights and tags.

As NeMo reads it (`read_dataset_config` in nemo/collections/common/data/lhotse/cutset.py): the weights of a list are its
members' shares, a list without weights has equal ones, and shares of nested groups are multiplied; a group's tags
replace those of its members. Paths may hold `{0..7}`, or `_OP_0..7_CL_`, which stand for one file each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usam.readers import located
from usam.registry import did_you_mean
from usam.spec.page import KeyPath, Places, SpecError, parse_yaml

READERS = {"nemo": "nemo", "multimodal_conversation": "nemo_conversation"}
KEYS = {
    "group": ("type", "input_cfg", "weight", "tags"),
    "nemo": ("type", "manifest_filepath", "weight", "tags"),
    # how NeMo writes and counts a clip, which the model's spec says here
    "multimodal_conversation": (
        "type", "manifest_filepath", "weight", "tags", "audio_locator_tag", "token_equivalent_duration"
    ),
}  # fmt: skip
INSTEAD = {
    "nemo_tarred": "unpack its archives, or pack them as WebDataset (sound with its .json) and name these",
    "lhotse": "name the cuts themselves in data.train, with a reader of cuts installed",
    "lhotse_shar": "name the cuts themselves in data.train, with a reader of cuts installed",
    "txt": "text without questions is not learned from; write rows with 'prompt' and 'answer'",
    "txt_pair": "write rows with 'prompt' and 'answer', a line of the one file and of the other",
    "nemo_sft_jsonl": "write its conversations as 'messages'",
}
RANGE = re.compile(r"(?:_OP_|\{)(-?\d+)\.\.(-?\d+)(?:_CL_|\})")
CHOICE = re.compile(r"(?:_OP_|\{)([^{}]*?,[^{}]*?)(?:_CL_|\})")
MOST = 100_000  # files that one path may stand for


@dataclass(frozen=True)
class Listed:
    """Manifests that are one source, with the share of the configuration's rows that is drawn from it."""

    files: tuple[str, ...]
    reader: str
    share: float
    tags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """The sources of a configuration, and whether it writes weights."""

    sources: tuple[Listed, ...]
    weighted: bool


def is_config(file: str | Path) -> bool:
    """Whether a file's name is that of a configuration, and of no manifest."""
    return str(file).lower().endswith((".yaml", ".yml"))


def read_config(file: str | Path) -> Config:
    """Read a configuration.

    Raises:
        SpecError: the file, line and key, and what to write instead.
    """
    path = Path(located(file))
    listed = _list(path)
    weights: list[float] = []
    sources = tuple(_sources(*listed, path, (path.resolve(),), 1.0, {}, weights))
    return Config(sources, bool(weights))


def _list(path: Path, where: str = "") -> tuple[list[Any], Places, KeyPath]:
    """The list that a page holds, or its `input_cfg`; its places, and its own."""
    if not path.is_file():
        raise SpecError(f"{where or f'{path}: '}no such configuration (looked in {path.parent.resolve()})")
    places = Places()
    tree, at = parse_yaml(path.read_text(encoding="utf-8"), str(path), places), ()
    if isinstance(tree, dict) and "input_cfg" in tree:
        for key in tree:
            if key != "input_cfg":
                raise SpecError(f"{places.at((key,))}a configuration has 'input_cfg' alone; {_outside(key)}")
        tree, at = tree["input_cfg"], ("input_cfg",)  # type: ignore[assignment]
    if not isinstance(tree, list) or not tree:
        raise SpecError(
            f"{path}: a YAML file among manifests is a NeMo configuration: a list of sources, or 'input_cfg' with one; "
            f"found {tree!r:.60}"
        )
    return tree, places, at


def _outside(key: str) -> str:
    if key in ("reweight_temperature", "temperature"):
        return "write data.temperature in the run file"
    hint = did_you_mean(key, ("input_cfg",))
    return hint if hint.startswith("did") else "what else is said of data stands in the run file"


def _sources(
    listed: Sequence[Any],
    places: Places,
    at: KeyPath,
    path: Path,
    above: tuple[Path, ...],
    share: float,
    tags: Mapping[str, Any],
    seen: list[float],
) -> Iterator[Listed]:
    """The manifests of a list that has `share` of the whole; `seen` learns the weights that are written."""
    weights = [_weight(item, places, (*at, str(i))) for i, item in enumerate(listed)]
    written = [weight for weight in weights if weight is not None]
    seen += written
    if written and len(written) < len(weights):
        raise SpecError(f"{places.at((*at, str(weights.index(None))))}has no weight, and others of its list have one")
    total = sum(written) or len(weights)
    for i, (item, weight) in enumerate(zip(listed, weights, strict=True)):
        own = (*at, str(i))
        part = share * (1.0 if weight is None else weight) / total
        labels = {**_tags(item, places, own), **tags}
        if item["type"] == "group":
            inner: tuple[Any, Places, KeyPath] = (item.get("input_cfg"), places, (*own, "input_cfg"))
            file, within = path, above
            if isinstance(inner[0], str):
                file = _beside(inner[0], path.parent)
                if file.resolve() in above:
                    raise SpecError(f"{places.at(inner[2])}{file} holds itself")
                inner, within = _list(file, places.at(inner[2])), (*above, file.resolve())
            if not isinstance(inner[0], list) or not inner[0]:
                raise SpecError(f"{places.at(inner[2])}a group has 'input_cfg', a list; found {inner[0]!r:.60}")
            yield from _sources(*inner, file, within, part, labels, seen)
        else:
            files = _files(item, places, own, path.parent)
            yield Listed(files, READERS[item["type"]], part, labels)


def _weight(item: Any, places: Places, at: KeyPath) -> float | None:
    """The weight of a member, whose type and keys are checked."""
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(kind, str):
        raise SpecError(f"{places.at(at)}a source is a map with 'type' ({', '.join(KEYS)}); found {item!r:.60}")
    if kind not in KEYS:
        remedy = INSTEAD.get(kind) or did_you_mean(kind, KEYS)
        raise SpecError(f"{places.at((*at, 'type'))}'{kind}' is not read: {remedy}")
    for key in item:
        if key not in KEYS[kind]:
            raise SpecError(f"{places.at((*at, key))}no key of '{kind}' that is read; {did_you_mean(key, KEYS[kind])}")
    weight = item.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise SpecError(f"{places.at((*at, 'weight'))}expected a number, more than 0; found {weight!r}")
    return float(weight)


def _tags(item: Mapping[str, Any], places: Places, at: KeyPath) -> dict[str, Any]:
    tags = item.get("tags") or {}
    if not isinstance(tags, dict):
        raise SpecError(f"{places.at((*at, 'tags'))}expected a map, found {tags!r:.60}")
    if not isinstance(tags.get("context", ""), str):
        raise SpecError(f"{places.at((*at, 'tags', 'context'))}what is asked is text, found {tags['context']!r:.60}")
    return tags


def _files(item: Mapping[str, Any], places: Places, at: KeyPath, folder: Path) -> tuple[str, ...]:
    given = item.get("manifest_filepath")
    names = given if isinstance(given, list) else [given]
    where = places.at((*at, "manifest_filepath"))
    if not names or not all(isinstance(name, str) and name for name in names):
        raise SpecError(f"{where}expected a manifest, or a list of them; found {given!r:.60}")
    files = [str(_beside(name, folder)) for each in names for name in _spread(str(each), where)]
    for file in files:
        if not Path(file).exists():
            raise SpecError(f"{where}{file}: no such manifest")
    return tuple(files)


def _spread(name: str, where: str) -> list[str]:
    """The paths that one with `{0..7}` or `{a,b}` stands for; a number keeps as many digits as it is written with."""
    found = RANGE.search(name) or CHOICE.search(name)
    if found is None:
        return [name]
    if found.re is RANGE:
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + MOST:
            raise SpecError(f"{where}{found[0]} stands for no files, or for more than {MOST:,}")
        width = len(found[1]) if found[1].startswith("0") else 0
        words = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        words = found[1].split(",")
    return [path for word in words for path in _spread(name[: found.start()] + word + name[found.end() :], where)]


def _beside(name: str, folder: Path) -> Path:
    """A path as it is, or beside the configuration."""
    path = Path(located(name))
    return path if path.exists() else folder / path
