"""Runs whose rows are read while they train: which are learned from, how such a run goes on, and what it refuses."""

import json
import shutil
import subprocess
import sys
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file
from short_runs import SMALL, logged
from test_resume import assert_same_run
from transformers import TrainingArguments

from usam import SpecError, losses
from usam.data.manifest import ManifestError
from usam.data.mixture import Mixture
from usam.data.sampling import Budget
from usam.processor.audio import AudioError
from usam.training.run import read_run, stream_of
from usam.training.sampling import SamplingTrainer
from usam.training.start import train
from usam.types import LossOutput

SEEN = []
STREAM = ["data.stream=true", "data.shuffle_buffer=3", "train.max_steps=7", "train.save_steps=1"]
LOSS = "model.losses={seen: {type: rows_streamed}}"


@losses.register("rows_streamed")
class Seen(losses.Loss):
    """Remembers the rows of every batch."""

    def forward(self, inputs):
        SEEN.append([int(row.rpartition(":")[2]) for row in inputs.batch["ids"]])
        return LossOutput(inputs.hidden.square().mean())


def asked(run_file, folder, *overrides):
    return read_run(run_file, *SMALL, *STREAM, f"train.output_dir={run_file.parent / folder}", *overrides)


def learned(run, **options):
    SEEN.clear()
    train(run, **options)
    return list(SEEN)


def test_every_row_of_a_stream_is_learned_from_once_in_a_pass(run_file):
    rows = list(chain(*learned(asked(run_file, "out", LOSS, "data.eval=null", "train.max_steps=4"))))
    assert sorted(rows[:8]) == sorted(rows[8:]) == list(range(1, 9))
    assert rows[:8] != rows[8:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5])
def test_a_run_that_is_resumed_in_the_middle_is_the_undisturbed_one(run_file, step, workers):
    more = [f"train.dataloader_num_workers={workers}", "train.per_device_train_batch_size=3", "train.logging_steps=1"]
    whole = train(asked(run_file, "whole", *more, "train.save_total_limit=9"))
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", run_file.parent / "half" / f"checkpoint-{step}")
    assert_same_run(train(asked(run_file, "half", *more), resume=True), whole)


def test_a_resumed_run_reads_no_sound_of_what_it_has_seen(run_file):
    more = ["train.per_device_train_batch_size=1", "train.max_steps=8", "data.eval=null", "data.shuffle_buffer=1"]
    whole = train(asked(run_file, "whole", *more, "train.save_total_limit=9"))
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / "checkpoint-6", run_file.parent / "half" / "checkpoint-6")
    for i in range(1, 6):  # the first is read again, ahead of the last step
        (run_file.parent / f"{i}.wav").write_bytes(b"no sound any more")
    assert_same_run(train(asked(run_file, "half", *more), resume=True), whole)


def test_accumulated_batches_are_those_of_one_step(run_file):
    one = list(chain(*learned(asked(run_file, "one", LOSS, "data.eval=null"))))
    half = ["train.per_device_train_batch_size=2", "train.gradient_accumulation_steps=2"]
    assert list(chain(*learned(asked(run_file, "two", LOSS, "data.eval=null", *half)))) == one


@pytest.mark.slow
def test_processes_learn_from_the_rows_of_one(run_file):
    train(asked(run_file, "one", "train.logging_steps=1", "data.eval=null"))
    overrides = [*SMALL, *STREAM, "train.logging_steps=1", "data.eval=null", "train.per_device_train_batch_size=2"]
    overrides += ["train.ddp_backend=gloo", f"train.output_dir={run_file.parent / 'two'}"]
    words = [word for override in overrides for word in ("--set", override)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "usam.cli"]
    subprocess.run([*many, "train", run_file, *words], check=True)
    first, second = (load_file(run_file.parent / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_rows_of_several_sources_are_counted(run_file):
    shutil.copy(run_file.parent / "train.jsonl", run_file.parent / "more.jsonl")
    folder = train(asked(run_file, "out", "data.train=[train.jsonl, more.jsonl]", "train.max_steps=4"))
    line = next(line for line in reversed(logged(folder)) if "loss" in line)
    assert (line["seen/train"], line["seen/more"]) == (8, 8)


# Rows that cannot be learned from


def test_a_row_that_cannot_be_read_gives_its_place_to_the_next_of_its_batch(run_file):
    (run_file.parent / "2.wav").write_bytes(b"no sound")
    more = ["data.bad_audio=skip", "data.bad_share=0.2", "data.eval=null", "train.max_steps=2", "data.shuffle_buffer=1"]
    assert learned(asked(run_file, "out", LOSS, *more)) == [[1, 2, 4, 4], [5, 6, 7, 8]]
    listed = [json.loads(line) for line in (run_file.parent / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(row["row"].rpartition(":")[2], row["instead"].rpartition(":")[2]) for row in listed] == [("3", "4")]


def test_more_rows_that_cannot_be_read_than_may_be_end_the_run(run_file):
    (run_file.parent / "2.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match="1 of 28 rows cannot be read, more than data"):
        train(asked(run_file, "out", "data.bad_audio=skip", "data.eval=null"))


def test_a_row_that_cannot_be_read_ends_the_run(run_file):
    (run_file.parent / "2.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"train\.jsonl:3"):
        train(asked(run_file, "out", "data.eval=null"))


def test_a_row_that_is_wrong_ends_the_run_when_it_comes(run_file):
    with (run_file.parent / "train.jsonl").open("a") as file:
        file.write('\n{"audio": "0.wav"}\n')
    with pytest.raises(ManifestError, match=r"train\.jsonl:9: no 'answer' to learn from"):
        train(asked(run_file, "out", "data.eval=null"))


def test_an_empty_stream_is_an_error(run_file):
    (run_file.parent / "train.jsonl").write_text("")
    with pytest.raises(ManifestError, match=r"train\.jsonl: no rows to learn from"):
        train(asked(run_file, "out", "data.eval=null"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.max_steps=-1"], "train.max_steps: a stream .* has no end that could be planned"),
        (["data.batch_seconds=3"], "data.batch_seconds: this needs the number and the lengths of all rows"),
        (["data.batch_tokens=3"], "data.batch_tokens: this needs"),
        (["data.temperature=3"], "data.temperature: this needs"),
        (["data.train=[{file: train.jsonl, weight: 1}]"], "data.train: a weight needs"),
        (["data.too_long=skip"], "data.too_long: this needs"),
        (["train.train_sampling_strategy=group_by_length"], "train.train_sampling_strategy: this needs"),
        (["data.shuffle_buffer=0"], "data.shuffle_buffer: expected how many rows are held to be shuffled, 1 or more"),
        (["data.shuffle_buffer=1.5"], "data.shuffle_buffer: expected how many rows"),
        (["data.stream=1"], "data.stream: expected true or false, found 1"),
        (["data.stream=false"], "data.shuffle_buffer: means nothing without data.stream: true; write both"),
    ],
)
def test_what_a_stream_cannot_do_is_told_before_anything_starts(run_file, overrides, told):
    with pytest.raises(SpecError, match=told):
        asked(run_file, "out", *overrides)


def test_another_buffer_is_another_run(run_file):
    train(asked(run_file, "out", "train.max_steps=2"))
    with pytest.raises(SpecError, match=r"data\.shuffle_buffer: the checkpoint was made with 3, and now it is 4"):
        train(asked(run_file, "out", "train.max_steps=3", "data.shuffle_buffer=4"), resume=True)


@pytest.mark.parametrize(
    ("options", "strategy", "told"),
    [
        ({"budget": Budget(rows=2)}, "random", "a budget needs a dataset of samples that can be counted and measured"),
        ({"mixture": Mixture(("a",), (8,), (1.0,))}, "random", "a mixture needs a dataset of samples that can be"),
        ({}, "group_by_length", "train_sampling_strategy: group_by_length needs all rows"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_in_python_too(run_file, options, strategy, told):
    args = TrainingArguments(str(run_file.parent / "out"), use_cpu=True, max_steps=1, train_sampling_strategy=strategy)
    stream = stream_of(asked(run_file, "out"), seed=0)
    with pytest.raises(ValueError, match=told):
        SamplingTrainer(torch.nn.Linear(1, 1), args, train_dataset=stream, **options).get_train_dataloader()
