"""A run whose batches are made by a budget of seconds and tokens, or by transformers' samplers that look at lengths."""

import json
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch
from conftest import noise
from safetensors.torch import load_file
from short_runs import SMALL, logged
from transformers import TrainingArguments

from usam import SpecError, UsamProcessor, build_model, losses
from usam.data.collate import Collator
from usam.data.manifest import Manifest, ManifestError
from usam.data.sampling import Budget
from usam.training.rows import measured, spares
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer
from usam.types import LossOutput

BUDGET = ["data.batch_seconds=3", "train.per_device_train_batch_size=8"]
SEEN = []


@losses.register("batches_seen")
class Seen(losses.Loss):
    """Remembers which rows were in a batch, and whether they were learned from; a buffer counts."""

    def __init__(self, config, *, dim):
        super().__init__(config, dim=dim)
        self.register_buffer("calls", torch.zeros(()))

    def reset_parameters(self):
        self.calls = torch.zeros((), device=self.calls.device)

    def forward(self, inputs):
        self.calls += 1
        SEEN.append((tuple(sorted(int(i.rpartition(":")[2]) for i in inputs.batch["ids"])), int(self.calls)))
        return LossOutput(inputs.hidden.square().mean() * self.calls)


@losses.register("hungry")
class Hungry(losses.Loss):
    """Needs more memory than there is as soon as a batch has three rows."""

    def forward(self, inputs):
        if len(inputs.batch["ids"]) > 2:
            torch.empty(2**55)
        return LossOutput(inputs.hidden.square().mean())


def asked(run_file, folder, *overrides):
    return read_run(run_file, *SMALL, *BUDGET, f"train.output_dir={run_file.parent / folder}", *overrides)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


def steps(folder):
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def learned(run, **options):
    """The rows of each batch that was learned from."""
    SEEN.clear()
    train(run, **options)
    return [rows for rows, _ in SEEN]


def trainer(run_file, *overrides, kind=UsamTrainer, budget=None, **arguments):
    run = read_run(run_file, *SMALL, *overrides)
    data = Manifest(run.data["train"], run.spec.prompts)
    processor = UsamProcessor.from_spec(run.spec)
    torch.manual_seed(0)
    options = {"use_cpu": True, "report_to": "none", "remove_unused_columns": False, "disable_tqdm": True}
    return kind(
        model=build_model(run.spec),
        args=TrainingArguments(str(run_file.parent / "out"), **{**options, **arguments}),
        train_dataset=data,
        eval_dataset=data,
        data_collator=Collator(processor, tasks=True),
        processing_class=processor,
        budget=budget,
    )


# A budget


def test_an_epoch_learns_from_every_row_once_within_the_budget(run_file):
    loss = ["model.losses={seen: {type: batches_seen}}", "data.eval=null"]
    once = asked(run_file, "out", *loss, "train.max_steps=-1", "train.num_train_epochs=1", "train.save_strategy=no")
    rows = learned(once)
    tried = len(rows) - steps(run_file.parent / "out")
    assert sorted(row for batch in rows[tried:] for row in batch) == list(range(1, 9))
    assert all(len(batch) * (0.4 + 0.1 * max(batch)) <= 3.0001 for batch in rows)  # row i lasts 0.4 + 0.1 i


def test_all_planned_epochs_are_made(run_file):
    loss = ["model.losses={seen: {type: batches_seen}}", "data.eval=null"]
    run = asked(run_file, "out", *loss, "train.max_steps=-1", "train.num_train_epochs=3", "train.save_strategy=no")
    rows = learned(run)
    made = steps(run_file.parent / "out")
    assert sorted(row for batch in rows[-made:] for row in batch) == sorted(3 * list(range(1, 9)))


def test_rows_are_at_most_as_many_as_a_batch_may_have(run_file):
    loss = ["model.losses={seen: {type: batches_seen}}", "data.eval=null", "train.per_device_train_batch_size=2"]
    assert {len(batch) for batch in learned(asked(run_file, "out", *loss))} <= {1, 2}


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_is_the_undisturbed_one(step, workers, run_file):
    dropout = SMALL[0].replace("{", "{dropout: 0.2, ")
    more = [dropout, "model.encoders.whisper.freeze=none", "train.max_steps=9", "train.save_steps=1"]
    more += [f"train.dataloader_num_workers={workers}"]
    whole = train(asked(run_file, "whole", *more, "train.save_total_limit=9"))
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", run_file.parent / "half" / f"checkpoint-{step}")
    half = train(asked(run_file, "half", *more), resume=True)
    assert logged(half) == logged(whole)
    assert_same_weights(half, whole)


def test_accumulated_batches_are_those_of_one_step(run_file):
    loss = ["model.losses={seen: {type: batches_seen}}", "data.eval=null", "data.batch_seconds=1.3"]
    plain = [*loss, "train.max_steps=-1", "train.num_train_epochs=1", "train.save_strategy=no"]
    rows = learned(asked(run_file, "out", *plain, "train.gradient_accumulation_steps=2"))
    made = steps(run_file.parent / "out")
    assert sorted(row for batch in rows[-2 * made :] for row in batch) == list(range(1, 9))


def test_the_log_counts_the_rows_of_a_step_as_they_are_on_average(run_file):
    small = trainer(run_file, budget=Budget(seconds=3.0))
    loader = small.get_train_dataloader()
    assert small.get_total_train_batch_size(small.args) == round(8 / len(loader))


# What does not fit


def test_a_row_that_is_larger_than_the_budget_stops_the_run_and_is_named(run_file):
    with pytest.raises(
        ManifestError, match=r"train.jsonl:8: 1.2 s of audio, and data.batch_seconds is 1.1\n1 of 8 rows"
    ):
        train(asked(run_file, "out", "data.batch_seconds=1.1"))
    with pytest.raises(ManifestError, match=r"train.jsonl:\d: \d+ tokens, and data.batch_tokens is 20"):
        train(asked(run_file, "out", "data.batch_tokens=20"))


def test_a_row_that_is_larger_than_the_budget_is_skipped_when_it_is_asked(run_file):
    folder = train(asked(run_file, "out", "data.batch_seconds=1.1", "data.too_long=skip", "data.eval=null"))
    (row,) = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert row["row"].endswith("train.jsonl:8")
    assert row["why"] == "1.2 s of audio, and data.batch_seconds is 1.1"


def test_no_row_within_the_budget_is_an_error_also_when_they_may_be_skipped(run_file):
    with pytest.raises(ManifestError, match="8 of 8 rows alone are larger than a batch may be"):
        train(asked(run_file, "out", "data.batch_seconds=0.1", "data.too_long=skip"))


def test_a_row_that_cannot_be_read_is_replaced_by_one_that_is_no_larger(run_file):
    for broken in (5, 0):
        (run_file.parent / f"{broken}.wav").unlink()
    folder = train(asked(run_file, "out", "data.bad_audio=skip", "data.bad_share=0.5", "data.eval=null"))
    found = {json.loads(line)["row"][-1]: json.loads(line) for line in (folder / "skipped.jsonl").open()}
    assert {row: line["instead"][-1] for row, line in found.items()} == {"6": "2", "1": "2"}  # their length is unknown


def test_what_stands_in_for_a_row_is_the_next_shorter_one(run_file):
    run = read_run(run_file, *SMALL)
    samples = Manifest(run.data["train"], run.spec.prompts).samples
    processor = UsamProcessor.from_spec(run.spec)
    lengths = measured(samples, processor)
    (run_file.parent / "5.wav").write_bytes((run_file.parent / "5.wav").read_bytes()[:9000])
    (run_file.parent / "0.wav").unlink()
    collate = Collator(processor, spares=spares(samples, lengths, Budget(seconds=3)), share=0.5)
    assert {row.instead[-1] for row in collate([samples[5]])["skipped"]} == {"5"}
    assert {row.instead[-1] for row in collate([samples[0]])["skipped"]} == {"2"}  # there is no shorter one


# The largest batches are tried before the first step


class Untried(UsamTrainer):
    def try_largest(self):
        pass


def test_the_largest_batch_is_tried_before_the_first_step_and_leaves_no_trace(run_file):
    more = [SMALL[0].replace("{", "{dropout: 0.2, "), "model.encoders.whisper.freeze=none"]
    more += ["model.losses={cross_entropy: {}, seen: {type: batches_seen, weight: 0.1}}"]
    logs, learned, models = [], [], []
    for kind in (UsamTrainer, Untried):
        SEEN.clear()
        one = trainer(run_file, *more, kind=kind, budget=Budget(seconds=3.0), max_steps=4, logging_steps=1)
        one.train()
        logs.append([{k: v for k, v in line.items() if "loss" in k} for line in one.state.log_history])
        learned.append(list(SEEN))
        models.append(one.model.state_dict())
    tried = learned[0][:-4]
    assert max(len(rows) for rows, _ in tried) >= max(len(rows) for rows, _ in learned[1])
    assert learned[0][-4:] == learned[1]  # the buffer, too, counts from its beginning
    assert logs[0] == logs[1]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_nothing_is_tried_without_a_budget(run_file):
    loss = ["model.losses={seen: {type: batches_seen}}", "data.eval=null"]
    run = read_run(run_file, *SMALL, *loss, f"train.output_dir={run_file.parent / 'out'}")
    assert len(learned(run)) == 4


@pytest.mark.parametrize(
    ("budget", "option"),
    [
        (["data.batch_seconds=3"], "data.batch_seconds"),
        (["data.batch_seconds=null", "data.batch_tokens=200"], "data.batch_tokens"),
        (["data.batch_seconds=90", "train.per_device_train_batch_size=3"], "train.per_device_train_batch_size"),
    ],
)
def test_too_large_a_budget_is_found_before_the_first_step(run_file, budget, option):
    run = asked(run_file, "out", "model.losses={hungry: {}}", "data.eval=null", *budget)
    with pytest.raises(SpecError, match=rf"^{option}: one of the largest batches, \d rows with .* does not fit into"):
        train(run)
    assert not list((run_file.parent / "out").glob("checkpoint-*"))


# transformers' own samplers


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
@pytest.mark.parametrize("step", [1, 3])
def test_samplers_by_length_work_and_go_on_where_they_were(strategy, step, run_file):
    more = [f"train.train_sampling_strategy={strategy}", "data.batch_seconds=null", "train.max_steps=7"]
    more += [
        "train.per_device_train_batch_size=2",
        "train.save_steps=1",
        "train.eval_strategy=steps",
        "train.eval_steps=3",
    ]
    whole = train(asked(run_file, "whole", *more, "train.save_total_limit=9"))
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", run_file.parent / "half" / f"checkpoint-{step}")
    half = train(asked(run_file, "half", *more), resume=True)
    assert logged(half) == logged(whole)
    assert_same_weights(half, whole)


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_rows_of_one_length_are_grouped(strategy, run_file):
    for i in range(8):
        soundfile.write(run_file.parent / f"{i}.wav", noise(3.0 if i % 2 else 0.5, seed=i), 16000)
    lines = (run_file.parent / "train.jsonl").read_text().splitlines()
    (run_file.parent / "train.jsonl").write_text("\n".join(8 * lines))
    grouped = trainer(run_file, train_sampling_strategy=strategy, per_device_train_batch_size=2)
    grouped.args.gradient_accumulation_steps = 4
    batches = list(grouped.get_train_dataloader().batch_sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(64))
    mixed = [batch for batch in batches if len({row % 2 for row in batch}) > 1]
    assert len(mixed) <= len(batches) / 4


def test_a_trainer_made_in_python_measures_its_rows_itself(run_file):
    grouped = trainer(run_file, train_sampling_strategy="group_by_length", per_device_train_batch_size=4)
    assert len(list(grouped.get_train_dataloader())) == 2
    grouped.processing_class = None
    grouped._by_dataset = {}
    with pytest.raises(ValueError, match="give it as processing_class, or lengths"):
        grouped.get_train_dataloader()


# What a run file may say


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.batch_seconds=0",
            "data.batch_seconds: expected how many of them a batch may hold, more than 0; found 0",
        ),
        ("data.batch_seconds=true", "data.batch_seconds: expected how many"),
        ("data.batch_tokens=-5", "data.batch_tokens: expected how many"),
        ("data.batch_tokens=99.5", "data.batch_tokens: expected a whole number, found 99.5"),
        ("train.train_sampling_strategy=group_by_length", "does not go with data.batch_seconds: a budget puts rows"),
        ("train.dataloader_drop_last=true", "does not go with data.batch_seconds: batches of a budget leave no row"),
        ("train.auto_find_batch_size=true", "does not go with data.batch_seconds: the largest batch is tried"),
        ("train.group_by_length=true", "write train.train_sampling_strategy: group_by_length"),
        ("train.train_sampling_strategy=by_length", "expected one of random, sequential, group_by_length"),
    ],
)
def test_what_means_nothing_is_refused(run_file, override, message):
    with pytest.raises(SpecError, match=message):
        read_run(run_file, *BUDGET, override)


def test_another_budget_does_not_go_on_from_a_checkpoint(run_file):
    train(asked(run_file, "out"))
    with pytest.raises(SpecError, match=r"data.batch_seconds: .* made with 3, and now it is 2"):
        train(asked(run_file, "out", "data.batch_seconds=2"), resume=True)


# Several processes


@pytest.mark.slow
def test_two_processes_learn_what_one_does_that_accumulates(run_file):
    more = ["train.max_steps=5", "train.logging_steps=1", "data.eval=null", "data.batch_seconds=1.5"]
    one = train(asked(run_file, "one", *more, "train.gradient_accumulation_steps=2"))
    folder = run_file.parent / "two"
    overrides = [*SMALL, *BUDGET, *more, "train.ddp_backend=gloo", f"train.output_dir={folder}"]
    words = [word for override in overrides for word in ("--set", override)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*many, "-m", "usam.cli", "train", run_file, *words], check=True)
    for ours, theirs in zip(logged(one), logged(folder), strict=True):
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    first, second = weights(one), weights(folder)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [["data.batch_seconds=1.5"], ["data.batch_seconds=null"]])
def test_two_processes_go_on_in_the_middle_of_a_later_epoch(run_file, sampling):
    def processes(folder, *words):
        overrides = [*SMALL, *BUDGET, "train.max_steps=8", "train.save_steps=1", "data.eval=null", *sampling]
        overrides += ["train.per_device_train_batch_size=1", "train.ddp_backend=gloo", "train.save_total_limit=9"]
        overrides += [f"train.output_dir={folder}"]
        words = [*words, *(word for override in overrides for word in ("--set", override))]
        many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        subprocess.run([*many, "-m", "usam.cli", "train", run_file, *words], check=True)
        return folder

    whole = processes(run_file.parent / "whole")  # of four steps in an epoch
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / "checkpoint-6", run_file.parent / "half" / "checkpoint-6")
    half = processes(run_file.parent / "half", "--resume")
    assert_same_weights(half, whole)
