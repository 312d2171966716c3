"""Does the contrast select? What eq. 9 to 12 keep of a clip, against what sounds in it, in variations of `mini_paper`.

Each variation is trained on the miniature world's four tasks with several seeds. At the start and after training, what
it keeps of the development split is held against the world's truth (`usam.evaluation.selection`), and the held-out
cross entropy and a metric of each task are taken. While it trains, a look into the loss tells how much is kept, and
what moves the scores: the sparsity, or the triplet, by the frames that are kept and by those that are dropped.

Every run's result is appended to `results/selection_runs.jsonl` as it comes, and what is there is not trained again: so
a grid may be stopped, and finished another day. The whole grid takes hours. Out come the tables and the picture of
`docs/selection.md`, and `results/selection.json`.

    --run FILE     a run file to vary, with held-out rows of the world in data.eval; by default all of `mini_paper` is
                   trained, on a small world
    --frozen       the encoders stay as drawn, and their frames are cached: a fraction of the time, to look into
                   the loss
    --clips N      for training, of each task; a third as many are held out, and no more than 40
    --only A,B     variations
    --seeds 0,1
    --steps N
    --answers N    rows of each task that are answered
    --world FOLDER keeps the small world
    --table        trains nothing
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from _record import RESULTS, record
from torch import Tensor

from usam import UsamForConditionalGeneration, UsamProcessor
from usam.data.collate import Collator, passed_along
from usam.data.manifest import Sample
from usam.data.world import PROMPTS, write_world
from usam.evaluation.selection import Kept, Selection, listen, measured, measured_by_task
from usam.generate import Answerer
from usam.losses.semantic_contrastive import SemanticContrastive
from usam.metrics import build_metric
from usam.model.checkpoint import processor_beside
from usam.training import caching
from usam.training.held_out import batches, by_task
from usam.training.run import read_run, samples_of
from usam.training.start import train
from usam.types import IGNORE

ROOT = Path(__file__).parents[1]
RUNS = RESULTS / "selection_runs.jsonl"
PAGE = ROOT / "docs" / "selection.md"
PICTURE = ROOT / "docs" / "selection.svg"
LOSS = "semantic_contrastive"
CLIPS = 300  # of a task
STEPS = 240
ANSWERS = 40  # rows of a task that are answered
METRICS = {"asr": "wer", "s2tt": "cer", "aac": "rouge_l", "mc": "rouge_l"}
SEEDS = (0, 1, 2)
EVERY = 5  # steps between two looks into the loss
TRAIN = {
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.15,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
}


def l1(weight: float, **more: Any) -> dict[str, Any]:
    """Eq. 12."""
    return {"sparsity": "l1", "sparsity_weight": weight, **more}


def ratio(weight: float, **more: Any) -> dict[str, Any]:
    """The mean score held at a half."""
    return {"sparsity": "ratio", "sparsity_weight": weight, **more}


WITHOUT = "no contrast"
VARIANTS: dict[str, dict[str, Any] | None] = {
    WITHOUT: None,
    "no sparsity": {"sparsity": "none"},
    "L1 0.001": l1(0.001),
    "L1 0.01 (eq. 12)": l1(0.01),
    "L1 0.1": l1(0.1),
    "L1 1": l1(1.0),
    "ratio 0.01": ratio(0.01),
    "ratio 0.1": ratio(0.1),
    "ratio 1 (mini_paper)": ratio(1.0),
    "L1 0.01; threshold 0.25": l1(0.01, threshold=0.25),
    "L1 0.01; threshold 0.35": l1(0.01, threshold=0.35),
    "L1 0.01; hard": l1(0.01, decision="hard"),
    "L1 0.01; predicted alone": l1(0.01, beta=0.0),
    "L1 0.01; relevance alone": l1(0.01, beta=0.999),
    "ratio 1; predicted alone": ratio(1.0, beta=0.0),
    "ratio 1; relevance alone": ratio(1.0, beta=0.999),
    "L1 0.01; frames normalised": l1(0.01, normalize_frames=True),
    "ratio 1; frames normalised": ratio(1.0, normalize_frames=True),
    "half kept (topk)": {"decision": "topk", "ratio": 0.5, "sparsity": "none"},
}


def main() -> None:
    """Train what is missing, and write down what is there."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--run", type=Path)
    asked.add_argument("--frozen", action="store_true")
    asked.add_argument("--clips", type=int, default=CLIPS)
    asked.add_argument("--only", type=lambda text: text.split(","), default=list(VARIANTS))
    asked.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=list(SEEDS))
    asked.add_argument("--steps", type=int, default=STEPS)
    asked.add_argument("--answers", type=int, default=ANSWERS)
    asked.add_argument("--world", type=Path, help="folder that keeps the small world")
    asked.add_argument("--table", action="store_true")
    given = asked.parse_args()
    if unknown := [name for name in given.only if name not in VARIANTS]:
        asked.error(f"no variation {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    if not given.table:
        with tempfile.TemporaryDirectory() as place:
            base = given.run or small_run(Path(place), given)
            for seed in given.seeds:  # so that what is there when it is stopped can be compared
                for name in given.only:
                    work(base, name, seed, given, Path(place) / "model")
    found = results()
    write(found)
    record(__file__, rows(found), {"runs": RUNS.name, "count": len(found)})


# One run


def small_run(folder: Path, given: argparse.Namespace) -> Path:
    """A run file that trains `mini_paper` on a small world."""
    world = given.world or folder / "world"
    made = write_world(world, train=given.clips, dev=min(given.clips // 3, 40), test=0)
    model: dict[str, Any] = {"base": "mini_paper", "prompts": PROMPTS}
    data: dict[str, Any] = {"train": [str(file) for file in made["train"].values()]}
    data["eval"] = [str(file) for file in made["dev"].values()]
    if given.frozen:
        model["encoders"] = {name: {"freeze": "all"} for name in ("whisper", "ced", "mert")}
        data["cache"] = str(world.with_name(f"{world.name}-frames"))
    tree = {"model": model, "data": data, "train": TRAIN}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder / "run.yaml"


def work(base: Path, name: str, seed: int, given: argparse.Namespace, folder: Path) -> None:
    """Train and measure one variation, unless its result is there."""
    changed = VARIANTS[name]
    run = read_run(base, f"model.losses.{LOSS}={json.dumps(changed)}")
    held_out = list(samples_of(run, "eval"))
    recipe = (
        "specialists"
        if given.run
        else f"{given.clips} clips a task, encoders {'as drawn' if given.frozen else 'trained'}"
    )
    learned = {**run.train, "max_steps": given.steps, "seed": seed, "eval_strategy": "no", "save_strategy": "no"}
    what = {
        "spec": run.spec.to_dict(),
        "train": {key: value for key, value in learned.items() if key != "output_dir"},
        "recipe": recipe,
        "rows": [len(samples_of(run, "train")), len(held_out)],
        "answers": given.answers,
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    if any(one["key"] == key for one in results()):
        return
    quiet = {"output_dir": str(folder), "disable_tqdm": True, "report_to": "none", "logging_steps": 50}
    run = replace(run, data={**run.data, "eval": None}, train={**learned, **quiet}, eval={})
    start = looked_at(*caching.built(run, seed), held_out, 0)
    begun = time.perf_counter()
    with Trace() as trace:
        train(run, overwrite=True)
    seconds = time.perf_counter() - begun
    model = UsamForConditionalGeneration.from_pretrained(folder)
    end = looked_at(model, processor_beside(folder, run.spec), held_out, given.answers)
    line = {
        "key": key, "recipe": recipe, "variant": name, "options": changed, "seed": seed, "steps": given.steps,
        "seconds": round(seconds), "start": start, "end": end, "trace": trace.lines,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    with RUNS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(rounded(line)) + "\n")
    kept = end["selection"]["all"]["keep_rate"] if end["selection"] else float("nan")
    print(f"{name}, seed {seed}: {seconds:.0f} s, keeps {kept:.1%}, {end['cross_entropy']}", flush=True)


def looked_at(
    model: UsamForConditionalGeneration, processor: UsamProcessor, samples: Sequence[Sample], answers: int
) -> dict[str, Any]:
    """What a model keeps, how its parts of eq. 9 rank, what it loses and how well it answers, by task."""
    model.eval()
    found: dict[str, Any] = {"selection": None}
    lost = Lost()
    listening = model.register_forward_hook(lost.note, with_kwargs=True)
    if LOSS in dict(model.losses.parts()):
        parts: dict[str, list[Tensor]] = {"predicted": [], "relevance": []}
        loss: Any = model.losses[LOSS]
        mixed = loss.significance

        def apart(predicted: Tensor, to_text: Tensor, to_audio: Tensor) -> Tensor:
            parts["predicted"] += predicted
            parts["relevance"] += (to_text + to_audio) / 2
            return mixed(predicted, to_text, to_audio)

        loss.significance = apart
        rows = listen(model, processor, samples, batch_size=16)
        loss.significance = mixed
        found["selection"] = {task: asdict(one) for task, one in by_name(rows).items()}
        for part, scores in parts.items():
            alone = [
                replace(row, scores=one[: len(row.kept)].double().numpy())
                for row, one in zip(rows, scores, strict=True)
            ]
            found[f"ranking_of_{part}"] = {task: one.ranking for task, one in by_name(alone).items()}
    else:
        with torch.no_grad():
            for places in batches(samples, 16):
                batch, rows = Collator(processor).rows([samples[place] for place in places])
                model(**batch, batch=passed_along(rows), logits_to_keep=1)
    listening.remove()
    found["cross_entropy"] = lost.means()
    if answers:
        found["metric"] = answered(Answerer(model, processor), samples, answers)
    return found


def by_name(rows: Sequence[Kept]) -> dict[str, Selection]:
    """Of all rows and of each task's."""
    return {"all": measured(rows), **measured_by_task(rows)}


class Lost:
    """Cross entropy a supervised token, in nats, of each task and of all: what a model's forward tells."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def note(self, _: Any, args: Any, given: Mapping[str, Any], output: Any) -> None:
        """One batch."""
        counts = (given["labels"][:, 1:] != IGNORE).sum(-1).tolist()
        each = output.aux["cross_entropy.tokens"].split(counts)
        for task, tokens in zip(given["batch"]["tasks"], each, strict=True):
            for name in ("all", task):
                total = self.sums.setdefault(name, [0.0, 0.0])
                total[0] += float(tokens.sum())
                total[1] += len(tokens)

    def means(self) -> dict[str, float]:
        """By task."""
        return {task: total / count for task, (total, count) in self.sums.items()}


def answered(answerer: Answerer, samples: Sequence[Sample], most: int) -> dict[str, float]:
    """The metric of each task."""
    found = {}
    for task, places in by_task([sample.task for sample in samples]).items():
        own = [samples[place] for place in places[:most]]
        said = list(answerer.answer((sample.question for sample in own), batch_size=40, max_new_tokens=48))
        found[task] = build_metric(METRICS[task])(said, [sample.references for sample in own]).value
    return found


class Trace:
    """A look into the loss while a model trains: how much it keeps, and what moves its scores.

    A positive gradient is one that descent answers by lowering the scores. All are sums over a batch's frames.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []
        self.step = 0

    def __enter__(self) -> Trace:
        self.handle = torch.nn.modules.module.register_module_forward_pre_hook(self.watch)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def watch(self, module: Any, _: Any) -> None:
        """Have the scores of each training step tell their gradient."""
        if not isinstance(module, SemanticContrastive) or "scores" in vars(module):
            return
        plain = module.scores

        def scores(x: Tensor, mask: Tensor, text: Tensor, said: Tensor) -> Tensor:
            found = plain(x, mask, text, said)
            if found.requires_grad:
                found.register_hook(partial(self.note, module, x.detach(), mask, found.detach()))
            return found

        vars(module)["scores"] = scores

    def note(self, loss: Any, x: Tensor, mask: Tensor, scores: Tensor, gradient: Tensor) -> None:
        """One step."""
        self.step += 1
        if self.step % EVERY and self.step != 1:
            return
        with torch.no_grad():
            kept = loss.decide(scores, mask) > 0
            frames = mask.sum(-1, keepdim=True).clamp_min(1)
            means = scores.sum(-1, keepdim=True) / frames
            slope = {"l1": torch.ones_like(means), "ratio": 2 * (means - loss.ratio), "none": 0 * means}[loss.sparsity]
            heard = mask.any(-1, keepdim=True)
            sparse = (loss.config.weight * loss.sparsity_weight * slope / frames / heard.sum()) * mask
            triplet = (gradient - sparse) * mask
            predicted = loss.predicted(x)[mask]
            self.lines.append(
                {
                    "step": self.step,
                    "kept": float(kept[mask].float().mean()),
                    "single": float((kept.sum(-1)[heard.squeeze(-1)] <= 1).float().mean()),
                    "score": float(scores[mask].mean()),
                    "highest": float(scores.amax(-1)[heard.squeeze(-1)].mean()),
                    "predicted": float(predicted.mean()),
                    "predicted_spread": float(predicted.std()),
                    "by_sparsity": float(sparse.sum()),
                    "by_triplet_on_kept": float(triplet[kept].sum()),
                    "by_triplet_on_dropped": float(triplet[mask & ~kept].sum()),
                    "triplet_size": float(triplet.abs().sum()),
                }
            )


# What was found


def results() -> list[dict[str, Any]]:
    """Every run there is."""
    return [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()] if RUNS.exists() else []


def rounded(value: Any) -> Any:
    """Floats to five digits, so that a file of results can be read."""
    if isinstance(value, float):
        return None if value != value else float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def grouped(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], dict[str, list[Mapping[str, Any]]]]:
    """Runs by recipe and length, and in it by variation, in the order of VARIANTS."""
    groups: dict[tuple[str, int], dict[str, list[Mapping[str, Any]]]] = {}
    for one in sorted(found, key=lambda one: list(VARIANTS).index(one["variant"])):
        groups.setdefault((one["recipe"], one["steps"]), {}).setdefault(one["variant"], []).append(one)
    return groups


Result = Mapping[str, Any]


def mean(runs: Sequence[Result], of: Callable[[Result], float | None], form: str = ".0%") -> str:
    """The mean over seeds and, of several, the lowest and the highest."""
    values = [value for run in runs if (value := of(run)) is not None]
    if not values:
        return "-"
    low, middle, high = (f"{x:{form}}" for x in (min(values), statistics.fmean(values), max(values)))
    text = f"{middle} ({low} to {high})" if len(values) > 1 else middle
    return text.replace("-0.0000", "0.0000")


def at(*keys: str) -> Callable[[Result], float | None]:
    """A figure of a run."""

    def found(run: Result) -> float | None:
        value: Any = run
        for key in keys:
            value = None if value is None else value.get(key)
        return value

    return found


def table(head: Sequence[str], lines: Iterator[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *(f"| {' | '.join(x)} |" for x in lines)]
    )


def kept_table(groups: Mapping[str, Sequence[Result]]) -> str:
    """How much is kept."""
    late = QUARTERS["last quarter"]
    head = [
        "variation",
        "seeds",
        "kept at the start",
        "kept in the end",
        "clips with one token kept",
        "mean score",
        "predicted",
    ]

    def lines() -> Iterator[Sequence[str]]:
        for name, runs in groups.items():
            if name == WITHOUT:
                continue
            yield [
                name, str(len(runs)), mean(runs, at("start", "selection", "all", "keep_rate")),
                *(mean(runs, at("end", "selection", "all", key)) for key in ("keep_rate", "single")),
                *(mean(runs, partial(looks, key=key, cut=late), ".2f") for key in ("score", "predicted")),
            ]  # fmt: skip

    return table(head, lines())


def found_table(groups: Mapping[str, Sequence[Result]], task: str, when: str = "end") -> str:
    """Precision, recall and ranking, of one task."""
    head = [
        "variation",
        "precision",
        "random",
        "loudest",
        "best",
        "recall",
        "loudest",
        "ranking",
        "predicted",
        "relevance",
        "energy",
    ]

    def lines() -> Iterator[Sequence[str]]:
        for name, runs in groups.items():
            if name == WITHOUT:
                continue
            of = partial(at, when, "selection", task)
            yield [
                name, *(mean(runs, of(choice, "precision")) for choice in ("kept", "random", "loudest", "best")),
                *(mean(runs, of(choice, "recall")) for choice in ("kept", "loudest")),
                mean(runs, of("ranking"), ".2f"),
                *(mean(runs, at(when, f"ranking_of_{part}", task), ".2f") for part in ("predicted", "relevance")),
                mean(runs, of("ranking_of_energy"), ".2f"),
            ]  # fmt: skip

    return table(head, lines())


def worth_table(groups: Mapping[str, Sequence[Result]]) -> str:
    """The held-out cross entropy less that of the same seed without the contrast, and the metrics, by task."""
    without = {run["seed"]: run for run in groups.get(WITHOUT, ())}
    head = ["variation", *(f"{task}: nats, {METRICS[task]}" for task in METRICS)]

    def lines() -> Iterator[Sequence[str]]:
        for name, runs in groups.items():
            cells = []
            for task in METRICS:
                nats = at("end", "cross_entropy", task)
                if name == WITHOUT:
                    loss = mean(runs, nats, ".3f")
                else:
                    paired = [run for run in runs if run["seed"] in without]
                    loss = mean(paired, lambda run, nats=nats: nats(run) - nats(without[run["seed"]]), "+.3f")
                cells.append(f"{loss}; {mean(runs, at('end', 'metric', task), '.3f')}")
            yield [name, *cells]

    return table(head, lines())


def moved_table(groups: Mapping[str, Sequence[Result]]) -> str:
    """What moves the scores: their gradient, summed over a batch."""
    head = [
        "variation",
        "of the run",
        "by the sparsity",
        "by the triplet, kept",
        "by the triplet, dropped",
        "size of the triplet's",
    ]
    keys = ("by_sparsity", "by_triplet_on_kept", "by_triplet_on_dropped", "triplet_size")

    def lines() -> Iterator[Sequence[str]]:
        for name, runs in groups.items():
            for part, cut in () if name == WITHOUT else QUARTERS.items():
                yield [name, part, *(mean(runs, partial(looks, key=key, cut=cut), ".4f") for key in keys)]

    return table(head, lines())


QUARTERS: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "first quarter": lambda looks: looks[: max(1, len(looks) // 4)],
    "last quarter": lambda looks: looks[-max(1, len(looks) // 4) :],
}


def looks(run: Result, key: str, cut: Callable[[Sequence[Any]], Sequence[Any]]) -> float:
    """The mean of what was seen in a part of a run."""
    return statistics.fmean(line[key] for line in cut(run["trace"]))


def write(found: Sequence[Result]) -> None:
    """The tables of the page, between its marks, and its picture."""
    if not found or not PAGE.exists():
        return
    parts = []
    for (recipe, steps), groups in grouped(found).items():
        several = f"{recipe}, {steps} steps"
        parts += [
            f"### {several}: how much is kept", kept_table(groups),
            f"### {several}: what moves the scores", moved_table(groups),
            *(
                part
                for task in ("aac", "asr")
                for part in (f"### {several}: what is kept of `{task}` after training", found_table(groups, task))
            ),
            f"### {several}: what is kept of `aac` at the start", found_table(groups, "aac", "start"),
            f"### {several}: what it is worth", worth_table(groups),
        ]  # fmt: skip
    text = "\n\n".join(parts)
    page = PAGE.read_text(encoding="utf-8")
    written = re.sub(
        r"(<!-- tables -->\n).*?(<!-- /tables -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL
    )
    PAGE.write_text(written, encoding="utf-8")
    draw(found)


def draw(found: Sequence[Result]) -> None:
    """The share of tokens kept over training, a line a variation, the mean over seeds."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "selection"
    groups = max(grouped(found).values(), key=lambda groups: sum(map(len, groups.values())))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharex=True)
    styles = [
        (colour, style)
        for style in ("-", "--", ":")
        for colour in ("black", "tab:blue", "tab:red", "tab:green", "tab:orange", "tab:purple")
    ]
    for (name, runs), (colour, style) in zip(((n, r) for n, r in groups.items() if n != WITHOUT), styles, strict=False):
        length = min(len(run["trace"]) for run in runs)
        steps = [line["step"] for line in runs[0]["trace"][:length]]
        for axes, key in ((left, "kept"), (right, "predicted")):
            values = [statistics.fmean(run["trace"][i][key] for run in runs) for i in range(length)]
            axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.3, label=name)
    left.set(xlabel="step", ylabel="share of audio tokens kept", ylim=(0, 1.02))
    right.set(xlabel="step", ylabel="mean of the predicted part", ylim=(0, 1.02))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(PICTURE, metadata={"Date": None})


def rows(found: Sequence[Result]) -> list[dict[str, Any]]:
    """For the page of benchmarks: how much each variation keeps, and of what."""
    listed = []
    for (recipe, steps), groups in grouped(found).items():
        for name, runs in groups.items():
            if name == WITHOUT:
                continue
            kept = mean(runs, at("end", "selection", "all", "keep_rate"))
            precision, chance = (mean(runs, at("end", "selection", "aac", x, "precision")) for x in ("kept", "random"))
            what = (
                f"`mini_paper` ({recipe}, {steps} steps, seeds: {len(runs)}), {name}: audio tokens kept; precision on "
                "sounds, and at random"
            )
            listed.append({"what": what, "measured": f"{kept}; {precision}, {chance}", "bound": "none", "ok": True})
    return listed


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
