"""What the log says of losses: the objective's parts, by task, whatever the batches and processes a step is made of."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from short_runs import SMALL, logged

from usam import UsamProcessor, build_model
from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.training.parts import Parts
from usam.training.run import read_run
from usam.training.start import train

TASKS = ["asr", "asr", "asr", "aac", None, "aac", "asr", "aac"]
STEPS = ["train.logging_steps=2", "train.save_strategy=no", "data.eval=null", "model.losses.cross_entropy.weight=0.5"]
STEPS += ["model.prompts.aac=Describe this audio."]


@pytest.fixture
def run_file(run_file):
    """Rows of two tasks and of none, with answers of many lengths."""
    manifest = run_file.parent / "train.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i, (row, task) in enumerate(zip(rows, TASKS, strict=True)):
        row |= {"task": task, "answer": "ab" * (1 + i)}
        if task is None:
            del row["task"]
            row["prompt"] = "What?"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return run_file


def asked(run_file, folder, *overrides):
    return read_run(run_file, *SMALL, *STEPS, f"train.output_dir={run_file.parent / folder}", *overrides)


def lines(folder):
    return [line for line in logged(folder) if "loss" in line]


def test_a_task_is_a_mean_over_its_supervised_tokens(run_file):
    still = ["train.learning_rate=1e-30", "train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=4"]
    run = asked(run_file, "out", *still, "train.seed=3", "train.max_steps=2", "model.losses.cross_entropy.weight=1")
    (line,) = lines(train(run))
    model = build_model(run.spec, seed=3).eval()
    collate = Collator(UsamProcessor.from_spec(run.spec), tasks=True)
    sums = {}
    for sample in Manifest(run.data["train"], run.spec.prompts):
        batch = collate([sample])
        labels = batch["labels"][0, 1:]
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k not in ("tasks", "rows")}).logits[0, :-1]
        total = sums.setdefault(sample.task or "other", [0.0, 0])
        total[0] += F.cross_entropy(logits, labels, reduction="sum").item()
        total[1] += int((labels != -100).sum())
    for task, (total, count) in sums.items():
        assert line[f"loss_cross_entropy/{task}"] == pytest.approx(total / count, rel=1e-4)


def test_parts_weigh_as_in_the_objective(run_file):
    """Micro-batches of one step have answers of different lengths; the loss that is logged is half of its only part."""
    for line in lines(train(asked(run_file, "out", "train.gradient_accumulation_steps=2"))):
        assert line["loss"] == pytest.approx(0.5 * line["loss_cross_entropy"], rel=1e-5)


def test_rows_without_tasks_are_told_by_no_task(run_file):
    manifest = run_file.parent / "train.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = [{k: v for k, v in {**row, "prompt": "What?"}.items() if k != "task"} for row in rows]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    assert not any("/" in key for line in lines(train(asked(run_file, "out"))) for key in line)


def test_means_are_those_of_all_processes():
    one, other = Parts(), Parts()
    one.steps = other.steps = 1
    one.add("cross_entropy", 3.0, 0.25)
    other.add("cross_entropy", 1.0, 0.75)
    one.add_tokens("cross_entropy", torch.tensor([3.0]), torch.tensor([[-100, 5, -100]]), ["asr"])
    other.add_tokens(
        "cross_entropy", torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[0, 5, 5], [0, 5, -100]]), ["asr", "a"]
    )
    both = [one.state, other.state]
    assert one.means(lambda _: both) == {
        "loss_cross_entropy": 1.5,
        "loss_cross_entropy/a": 0.0,
        "loss_cross_entropy/asr": 2.0,
    }


@pytest.mark.slow
def test_two_processes_log_what_one_does_that_accumulates(run_file):
    """Losses, losses by task, and routing."""
    mixture = "model.projector=[{type: linear, stack: 5}, {type: moe, experts: 2}]"
    more = [mixture, "train.per_device_train_batch_size=2", "train.max_steps=4"]
    one = lines(train(asked(run_file, "one", *more, "train.gradient_accumulation_steps=2")))
    folder = run_file.parent / "two"
    overrides = [*SMALL, *STEPS, *more, "train.ddp_backend=gloo", f"train.output_dir={folder}"]
    words = [word for override in overrides for word in ("--set", override)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*many, "-m", "usam.cli", "train", run_file, *words], check=True)
    two = lines(folder)
    assert {"loss_cross_entropy/asr", "loss_cross_entropy/other", "router/aac/expert1"} < two[0].keys()
    for ours, theirs in zip(one, two, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
