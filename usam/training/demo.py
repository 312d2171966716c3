"""The main job on the embedded default: speak a corpus, train on it, and look at what was learned."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from tqdm import tqdm

from usam.data.inspection import describe_parts
from usam.data.manifest import Manifest, Sample
from usam.data.spoken import write_corpus
from usam.generate import Answerer
from usam.saving import write_whole
from usam.spec.page import SpecError

T = TypeVar("T")
TEST_CLIPS = 200
BOUNDS = {"unseen sentences": (0.0, 0.12), "audio shuffled": (0.60, float("inf"))}
TRAIN = {
    "num_train_epochs": 5,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 90,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "logging_steps": 50,
    "save_strategy": "no",
    "seed": 0,
}


def run(folder: Path, clips: int = 3000) -> None:
    """Run every stage, print a table of word error rates, and keep it in `results.json`.

    It may be run again in its folder, where it writes over what it wrote before, and over nothing else.

    Raises:
        SpecError: the folder holds a run file or a model that the demo did not write.
        SystemExit: with status 1 when the model has not learned to listen.
    """
    again = _is_own(folder)
    seconds: dict[str, float] = {}
    total = clips + 2 * TEST_CLIPS
    with _stage("speak the corpus", seconds), tqdm(total=total, desc="speaking", unit="clip") as bar:
        manifests = write_corpus(
            folder / "corpus", train=clips, test=TEST_CLIPS, progress=lambda written: bar.update(written - bar.n)
        )
    asked = {name: _ask_how_many(manifest) for name, manifest in manifests.items()}
    run_file = folder / "run.yaml"
    write_whole(run_file, _run_file(folder, [manifests["train"], asked["train"]]))
    with _stage("train", seconds):
        _usam("train", str(run_file), *["--overwrite"] * again)
    with _stage("reload and evaluate", seconds):  # the model was trained in another process
        answerer = Answerer.load(folder / "model")
        sets = {name: Manifest(manifests[key], answerer.processor.prompts) for name, key in SETS.items()}
        truths, heard, rates = {}, {}, {}
        for name, samples in sets.items():
            truths[name] = [sample.answer or "" for sample in samples.samples]
            heard[name] = _answers(answerer, samples.samples, name)
            rates[name] = word_error_rate(truths[name], heard[name])
        first = next(iter(SETS))
        others = _answers(answerer, shuffle(sets[first].samples), "audio shuffled")  # asked about another clip
        rates["audio shuffled"] = word_error_rate(truths[first], others)
        right = {}
        for name, key in SETS.items():
            counted = Manifest(asked[key], answerer.processor.prompts).samples
            said = _answers(answerer, counted, f"how many words, {name}")
            right[name] = sum(s.answer == answer for s, answer in zip(counted, said, strict=True)) / len(counted)
    with _stage("usam generate", seconds):
        wav = manifests["unseen_sentences"].parent / _first_wav(manifests["unseen_sentences"])
        spoken = _usam("generate", str(folder / "model"), str(wav), "--task", "asr", capture=True)
    _report(rates, right, seconds, truths[first], heard[first])
    some = [*sets[first].samples[:16], *Manifest(asked[SETS[first]], answerer.processor.prompts).samples[:16]]
    print("\n" + describe_parts(answerer.model, answerer.processor, some))
    print(f"\n$ usam generate {folder / 'model'} {wav}\n{spoken.strip()}   (said: {truths[first][0]})")
    results = {
        "word_error_rate": rates,
        "count_accuracy": right,
        "seconds": seconds,
        "clips": clips,
        "threads": torch.get_num_threads(),
    }
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    for name, (low, high) in BOUNDS.items():
        if not low <= rates[name] <= high:
            print(
                f"\n{name}: {rates[name]:.1%} is outside {low:.0%} to {high:.0%}: the model has not learned to listen"
            )
            raise SystemExit(1)


SETS = {"unseen sentences": "unseen_sentences", "unseen voices": "unseen_voices"}


def _is_own(folder: Path) -> bool:
    """Whether a demo has run in the folder."""
    corpus = str((folder / "corpus").resolve())
    held = [file for file in (folder / "run.yaml", folder / "model" / "run.yaml") if file.is_file()]
    for file in held:
        if corpus not in file.read_text(encoding="utf-8"):
            raise SpecError(f"{file}: not of a demo, which would overwrite it; name another folder with --folder")
    return bool(held)


def _ask_how_many(manifest: Path) -> Path:
    """A second task beside the corpus: every sixth clip again, asked how many words it holds."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()][::6]
    asked = manifest.with_name(f"{manifest.stem}-count.jsonl")
    counts = ({"audio": row["audio"], "task": "count", "answer": str(len(row["answer"].split()))} for row in rows)
    asked.write_text("".join(f"{json.dumps(row)}\n" for row in counts), encoding="utf-8")
    return asked


def _run_file(folder: Path, manifests: Sequence[Path]) -> str:
    tree = {
        "model": "mini_paper",
        "data": {"train": [str(manifest.resolve()) for manifest in manifests]},
        "train": {"output_dir": str((folder / "model").resolve()), **TRAIN},
    }
    return yaml.safe_dump(tree, sort_keys=False)


def _usam(*arguments: str, capture: bool = False) -> str:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "usam.cli", *arguments]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE if capture else None, env=os.environ)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def _answers(answerer: Answerer, samples: Sequence[Sample], name: str) -> list[str]:
    found = answerer.answer((s.question for s in samples), batch_size=50, max_new_tokens=40)
    return list(tqdm(found, total=len(samples), desc=name, unit="clip"))


def word_error_rate(truths: Sequence[str], heard: Sequence[str]) -> float:
    """Substitutions, insertions and deletions over the words of the truth, for the whole corpus."""
    import jiwer

    return float(jiwer.wer(list(truths), list(heard)))


def shuffle(items: Sequence[T], seed: int = 0) -> list[T]:
    """The items in an order in which none keeps its place."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    places = dict(zip(order, order[1:] + order[:1], strict=True))
    return [items[places[i]] for i in range(len(items))]


def _first_wav(manifest: Path) -> str:
    with manifest.open(encoding="utf-8") as lines:
        return str(json.loads(next(lines))["audio"])


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def _report(
    rates: dict[str, float],
    right: dict[str, float],
    seconds: dict[str, float],
    truth: Sequence[str],
    heard: Sequence[str],
) -> None:
    print(f"\n{'said':28} heard")
    for said, answer in list(zip(truth, heard, strict=True))[:8]:
        print(f"{said:28} {answer}{'' if said == answer else '   <--'}")
    print(f"\n{'word error rate':24}")
    for name, rate in rates.items():
        print(f"  {name:22} {rate:6.1%}")
    print("words counted rightly")
    for name, rate in right.items():
        print(f"  {name:22} {rate:6.1%}")
    print(f"{'seconds':24}")
    for name, duration in seconds.items():
        print(f"  {name:22} {duration:6.1f}")
