"""An ablation file: a base run, what is varied, seeds and a budget; and the runs that it asks for."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from usam.config import resolve
from usam.processor.processor import UsamProcessor
from usam.registry import ComponentError, did_you_mean
from usam.spec.page import KeyPath, Places, SpecError, parse_yaml
from usam.spec.spec import Spec
from usam.training import rows
from usam.training.run import Run, cache_of, run_of, samples_of, sources_of

KEYS = ("base", "run", "vary", "grid", "against", "seeds", "budget", "metrics", "output")
BUDGETS = ("steps", "epochs", "audio_hours")
OURS = {  # what a variation may not change, and where it is said
    ("train", "seed"): "the seeds of all variations are those of `seeds`",
    ("train", "output_dir"): "each run has a folder of its own in `output`",
    ("eval", "generate", "metrics"): "all variations are measured alike, by `metrics`",
}
LENGTH = {("train", "max_steps"), ("train", "num_train_epochs")}
BASE = "base"
NAME = re.compile(r"\w[\w .,+=-]*(?<![ .])")
LONGEST = 80


@dataclass(frozen=True)
class Variation:
    """One row of the table: its name, and the overrides that make it of the base."""

    name: str
    overrides: tuple[str, ...]
    where: str
    """File, line and key, for errors."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of the grid."""

    variation: Variation
    seed: int
    run: Run
    folder: Path
    """Where it is trained; its run file and its log stand beside it."""
    record: Path | None = None
    """Where what it found is kept, to be taken up elsewhere."""

    @property
    def name(self) -> str:
        """The variation and the seed, as they are told."""
        return f"{self.variation.name}, seed {self.seed}"

    @property
    def run_file(self) -> Path:
        """What `usam train` is given."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Ablation:
    """What an ablation file asks for."""

    file: Path
    variations: tuple[Variation, ...]
    against: str
    """The variation that the others are compared with."""
    seeds: tuple[int, ...]
    budget: str
    """What is equal for all runs, in words."""
    output: Path
    cells: tuple[Cell, ...]
    """By variation, then by seed."""

    def of(self, variation: Variation) -> list[Cell]:
        """The runs of a variation."""
        return [cell for cell in self.cells if cell.variation == variation]


def read_ablation(file: str | Path, plugins: Sequence[str | Path] = (), records: str | Path | None = None) -> Ablation:
    """Read an ablation file, and resolve every run that it asks for.

    Args:
        file: the ablation file.
        plugins: files of components.
        records: a folder of what runs found: `<variation>/seed-<seed>.json`.

    Raises:
        SpecError: file, line and key, and what to write instead.
        ComponentError: a component of a run is unknown or fails to load.
    """
    return _Reader(Path(file), plugins, None if records is None else Path(records)).read()


class _Reader:
    def __init__(self, file: Path, plugins: Sequence[str | Path], records: Path | None) -> None:
        self.records = records
        self.file, self.plugins, self.places = file, [str(Path(p).expanduser().resolve()) for p in plugins], Places()
        if not file.is_file():
            raise SpecError(f"{file}: no such ablation file (looked in {file.parent.resolve()})")
        tree = parse_yaml(file.read_text(encoding="utf-8"), str(file), self.places)
        if not isinstance(tree, dict):
            raise SpecError(f"{file}: an ablation file is a map of 'base', 'vary' and 'seeds'; found {tree!r}")
        for key in tree:
            if key not in KEYS:
                raise self.wrong((key,), f"no such part of an ablation; {did_you_mean(key, KEYS)}")
        self.tree: dict[str, Any] = tree

    def wrong(self, path: KeyPath, why: str) -> SpecError:
        return SpecError(f"{self.places.at(path)}{why}")

    def read(self) -> Ablation:
        tree, path, places = self._base()
        if self.tree.get("metrics") is not None:  # these replace the base's, a map also a list
            tree = _without(tree, ("eval", "generate", "metrics"))
        self.base = tree, path, places
        variations, against = self._variations()
        seeds = self._seeds()
        output = self._output()
        shared = self._shared()
        cells: list[Cell] = []
        for variation in variations:
            for seed in seeds:
                folder = output / variation.name / f"seed-{seed}"
                own = [f"train.seed={seed}", f"train.output_dir={json.dumps(str(folder))}"]
                run = self._resolved([*shared, *variation.overrides, *own], variation.where)
                record = self.records and self.records / variation.name / f"seed-{seed}.json"
                cells.append(Cell(variation, seed, run, folder, record))
                for split in ("train", "eval"):
                    for file in (file for entry in sources_of(run, split) for file in entry.files):
                        if not Path(file).exists():
                            raise SpecError(f"{variation.where}data.{split}: {file}: no such manifest")
        self._check_different(cells)
        self._check_batches(cells)
        return Ablation(self.file, tuple(variations), against, seeds, self.budget, output, tuple(cells))

    # The base

    def _base(self) -> tuple[Any, Path, Places]:
        """The tree of the base run, the file that it stands in, and where its keys are written."""
        if ("base" in self.tree) == ("run" in self.tree):
            raise SpecError(f"{self.file}: name a run file as 'base', or write a run as 'run'; one of them")
        if "run" in self.tree:
            lines = {path[1:]: line for path, line in self.places.lines.items() if path[:1] == ("run",)}
            return self.tree["run"], self.file.resolve(), Places(lines)
        base = self.tree["base"]
        if not isinstance(base, str):
            raise self.wrong(("base",), f"expected a run file, found {base!r}; a run itself stands under 'run'")
        path = (self.file.parent / Path(base).expanduser()).resolve()
        if not path.is_file():
            raise self.wrong(("base",), f"{path}: no such run file")
        places = Places()
        return parse_yaml(path.read_text(encoding="utf-8"), str(path), places), path, places

    def _resolved(self, overrides: Sequence[str], where: str) -> Run:
        """A run, with all that it names found from anywhere."""
        tree, path, places = self.base
        try:
            run = run_of(tree, path, *overrides, plugins=self.plugins, places=Places(dict(places.lines)))
        except (SpecError, ComponentError) as error:
            raise type(error)(f"{where}{error}") from error
        data = dict(run.data)
        if (kept := cache_of(data)) is not None:
            data["cache"] = {**kept, "folder": str(Path(kept["folder"]).resolve())}
        start = str(Path(run.start).resolve()) if run.start is not None and Path(run.start).exists() else run.start
        return replace(run, data=data, start=start)

    # What is varied

    def _variations(self) -> tuple[list[Variation], str]:
        vary, grid = self._map("vary"), self._map("grid")
        if not vary and not grid:
            raise SpecError(f"{self.file}: nothing is varied: write 'vary', named variations, or 'grid', a product")
        found = [self._variation(name, node, ("vary", name)) for name, node in vary.items()]
        products = list(self._products(grid))
        against = self.tree.get("against", BASE if vary else products[0].name)
        if not isinstance(against, str):
            raise self.wrong(("against",), f"expected the name of a variation, found {against!r}")
        known = [BASE, *(variation.name for variation in [*found, *products])]
        if against not in known:
            raise self.wrong(("against",), f"no such variation; {did_you_mean(against, known)}")
        if against == BASE:
            found.insert(0, Variation(BASE, (), f"{self.file}: "))
        found += products
        seen: dict[str, Variation] = {}
        for variation in found:
            if (other := seen.setdefault(variation.name.casefold(), variation)) is not variation:
                raise SpecError(
                    f"{variation.where}'{variation.name}' and '{other.name}' would have one folder; "
                    "give one of them another name"
                )
        first = next(variation for variation in found if variation.name == against)
        return [first, *(variation for variation in found if variation is not first)], against

    def _map(self, key: str) -> dict[str, Any]:
        node = self.tree.get(key)
        if key not in self.tree:
            return {}
        if not isinstance(node, dict) or not node:
            raise self.wrong((key,), f"expected a map of names and what each of them changes; found {node!r}")
        return node

    def _products(self, grid: Mapping[str, Any]) -> Iterator[Variation]:
        factors: list[list[Variation]] = []
        for factor, levels in grid.items():
            if not isinstance(levels, dict) or not levels:
                raise self.wrong(("grid", factor), f"expected a map of names and what each changes; found {levels!r}")
            factors.append([self._variation(name, node, ("grid", factor, name)) for name, node in levels.items()])
        for levels in itertools.product(*factors) if factors else ():
            overrides = tuple(override for level in levels for override in level.overrides)
            yield Variation("+".join(level.name for level in levels), overrides, levels[-1].where)

    def _variation(self, name: str, node: Any, path: KeyPath) -> Variation:
        where = self.places.at(path)
        if not NAME.fullmatch(name) or len(name) > LONGEST:
            raise SpecError(
                f"{where}'{name}' becomes a folder: write at most {LONGEST} letters, digits, spaces and any of "
                "_ . , + = -, with a letter or a digit first and no space or dot last"
            )
        if name == BASE:
            raise SpecError(f"{where}'{BASE}' is the base run itself; give the variation another name")
        return Variation(name, tuple(self._overrides(node, path)), where)

    def _overrides(self, node: Any, path: KeyPath) -> Iterator[str]:
        """Texts as `read_run` takes them: of one override, a patch, a list of both, or nothing, which is the base."""
        for item in node if isinstance(node, list) else [] if node is None else [node]:
            if isinstance(item, str):
                key, equals, _ = item.partition("=")
                if not equals:
                    raise self.wrong(path, f"'{item}': write key.key=value, such as model.projector.1.experts=8")
                self._refuse_ours(tuple(key.strip().split(".")), path)
                yield item
            elif isinstance(item, dict) and item:
                for key, value in item.items():
                    for leaf in _leaves(value, (key,)):
                        self._refuse_ours(leaf, path)
                    yield f"{key}={json.dumps(value, ensure_ascii=False)}"
            else:
                raise self.wrong(path, f"expected overrides, a map of what changes, or a list of them; found {item!r}")

    def _refuse_ours(self, key: KeyPath, path: KeyPath) -> None:
        for ours, why in OURS.items():
            if key[: len(ours)] == ours:
                raise self.wrong(path, f"{'.'.join(key)}: {why}")
        if key[:2] in LENGTH and "budget" in self.tree:
            raise self.wrong(path, f"{'.'.join(key)}: all runs have the same `budget`; leave one of them out")

    # What is equal

    def _seeds(self) -> tuple[int, ...]:
        seeds = self.tree.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
            raise self.wrong(("seeds",), f"expected a list of whole numbers, such as [0, 1, 2]; found {seeds!r}")
        if len(set(seeds)) < len(seeds):
            raise self.wrong(("seeds",), f"a seed stands here twice: {seeds!r}")
        return tuple(seeds)

    def _output(self) -> Path:
        output = self.tree.get("output", f"runs/{self.file.stem}")
        if not isinstance(output, str) or not output.strip():
            raise self.wrong(("output",), f"expected a folder, found {output!r}")
        return (self.file.parent / Path(output).expanduser()).resolve()

    def _shared(self) -> list[str]:
        """Overrides of all runs: the budget and the metrics."""
        given = list(self._budget())
        if (metrics := self.tree.get("metrics")) is not None:
            if not isinstance(metrics, (list, dict)) or not metrics:
                raise self.wrong(("metrics",), f"expected a list of metrics, such as [wer]; found {metrics!r}")
            if isinstance(metrics, dict):  # in an override null would remove what is not there
                metrics = {name: {} if node is None else node for name, node in metrics.items()}
            given.append(f"eval={json.dumps({'generate': {'metrics': metrics}})}")
        base = self._resolved(given, "")
        if base.data.get("eval") is None:
            raise SpecError(f"{self.file}: the base run holds nothing out to compare by; name it in data.eval")
        return given

    def _budget(self) -> Iterator[str]:
        budget = self.tree.get("budget")
        if budget is None:
            self.budget = "what the base run trains (train.max_steps, train.num_train_epochs)"
            return
        known = isinstance(budget, dict) and len(budget) == 1 and next(iter(budget)) in BUDGETS
        if not known:
            raise self.wrong(("budget",), f"expected one of {', '.join(BUDGETS)}, as {{steps: 1000}}; found {budget!r}")
        ((kind, value),) = budget.items()
        whole = kind == "steps"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not 0 < value < 1e12:
            number = "a whole number" if whole else "a number"
            raise self.wrong(("budget", kind), f"expected {number}, more than 0; found {value!r}")
        if kind == "steps":
            self.budget = f"{value:,} steps"
            yield f"train.max_steps={value}"
            return
        self.budget = f"{value:g} epochs"
        if kind == "audio_hours":
            hours = self._hours()
            self.budget, value = f"{value:g} hours of audio, {value / hours:.4g} epochs", value / hours
        yield "train.max_steps=-1"
        yield f"train.num_train_epochs={float(value)}"

    def _hours(self) -> float:
        """Of audio in an epoch of the base run."""
        run = self._resolved([], "")
        if run.data.get("stream"):
            raise self.wrong(("budget", "audio_hours"), "a stream has no epochs to count hours of; write steps")
        found = rows.measured(samples_of(run, "train"), UsamProcessor.from_spec(run.spec))
        hours = float((found["seconds"] * found["clips"]).sum()) / 3600
        if hours == 0:
            raise self.wrong(("budget", "audio_hours"), "no row of data.train has audio; write steps or epochs")
        return hours

    # What is refused

    def _check_different(self, cells: Sequence[Cell]) -> None:
        """Two names for one run would be a difference of nothing."""
        seen: dict[str, Variation] = {}
        for cell in cells:
            if cell.seed != cells[0].seed:
                continue
            key = json.dumps(_told(cell.run), sort_keys=True, default=str)
            other = seen.setdefault(key, cell.variation)
            if other is not cell.variation:
                out = f", or write `against: {cell.variation.name}`, which leaves out the base" * (other.name == BASE)
                raise SpecError(
                    f"{cell.variation.where}'{cell.variation.name}' and '{other.name}' are the same run; "
                    f"leave one of them out{out}"
                )

    def _check_batches(self, cells: Sequence[Cell]) -> None:
        """Refuse batches that would depend on how many tokens a model makes of a row, where models differ in that."""
        first = cells[0]
        for cell in cells:
            by = _by_tokens(cell.run)
            if by is not None and _counts(cell.run.spec) != _counts(first.run.spec):
                raise SpecError(
                    f"{cell.variation.where}{by} makes batches by the tokens of the rows, and '{cell.variation.name}' "
                    f"makes other tokens of them than '{first.variation.name}': their batches would differ; write "
                    "train.per_device_train_batch_size instead, so that all see the same rows in the same order"
                )


def _without(node: Any, path: KeyPath) -> Any:
    """A tree without one of its leaves, if it has it."""
    if not isinstance(node, dict) or path[0] not in node:
        return node
    if len(path) == 1:
        return {key: value for key, value in node.items() if key != path[0]}
    return {**node, path[0]: _without(node[path[0]], path[1:])}


def _leaves(node: Any, path: KeyPath) -> Iterator[KeyPath]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, *str(key).split(".")))
    else:
        yield path


def _by_tokens(run: Run) -> str | None:
    """What of a run makes its batches depend on lengths in tokens."""
    for key in ("batch_seconds", "batch_tokens"):
        if run.data.get(key) is not None:
            return f"data.{key}"
    if run.data.get("too_long") == "skip":
        return "data.too_long: skip"
    strategy = run.train.get("train_sampling_strategy", "random")
    return None if strategy == "random" else f"train.train_sampling_strategy: {strategy}"


def _counts(spec: Spec) -> Any:
    """What decides how many tokens rows have."""
    whole = resolve(spec)
    clips = [whole.placeholders(round(whole.sample_rate * tenth / 10)) for tenth in range(1, 300)]
    llm = {key: value for key, value in spec.to_dict()["llm"].items() if key not in ("lora", "freeze", "lr_scale")}
    return clips, llm, dict(spec.prompts)


def _told(run: Run) -> dict[str, Any]:
    """The run without where it is saved."""
    train = {key: value for key, value in run.train.items() if key not in ("output_dir", "seed")}
    return {"model": run.spec.to_dict(), "start": run.start, "data": run.data, "train": train,
            "groups": run.groups, "eval": run.eval}  # fmt: skip
