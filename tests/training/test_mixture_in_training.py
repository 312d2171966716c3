"""Runs that draw from several sources: the rows that are learned from, what is logged of them, and going on."""

import json
import shutil
import subprocess
import sys
from itertools import chain

import pytest
import soundfile
from conftest import noise
from short_runs import SMALL, logged
from test_resume import assert_same_run

from usam import SpecError, losses
from usam.training.run import read_run, samples_of
from usam.training.start import train
from usam.types import LossOutput

SEEN = []
WEIGHTS = "data.train=[{file: train.jsonl, weight: 1}, {file: few.jsonl, weight: 4, name: rare}]"
LOSS = "model.losses={seen: {type: sources_seen}}"


@losses.register("sources_seen")
class Seen(losses.Loss):
    """Remembers the rows of every batch, and their sources."""

    def forward(self, inputs):
        SEEN.append(list(zip(inputs.batch["sources"], inputs.batch["ids"], strict=True)))
        return LossOutput(inputs.hidden.square().mean())


@pytest.fixture
def mixed(run_file):
    """A run of eight rows, and two of another source beside them."""
    rows = [{"audio": f"{i}.wav", "task": "asr", "answer": "few"} for i in (0, 5)]
    (run_file.parent / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return run_file


def asked(run_file, folder, *overrides):
    return read_run(run_file, *SMALL, WEIGHTS, f"train.output_dir={run_file.parent / folder}", *overrides)


def learned(run, **options):
    """The sources of the rows that were learned from, a list for each batch."""
    SEEN.clear()
    train(run, **options)
    return [[source for source, _ in batch] for batch in SEEN]


def seen(folder):
    """The last counts of the log."""
    line = next(line for line in reversed(logged(folder)) if "loss" in line)
    return {key.removeprefix("seen/"): value for key, value in line.items() if key.startswith("seen/")}


ONE_EPOCH = ["data.eval=null", "train.max_steps=-1", "train.num_train_epochs=1", "train.save_strategy=no"]


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["train.train_sampling_strategy=group_by_length"],
        ["data.batch_seconds=3"],
        ["train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=1"],
    ],
)
def test_an_epoch_draws_each_source_in_its_share(mixed, how):
    batches = learned(asked(mixed, "out", LOSS, *ONE_EPOCH, "train.logging_steps=1", *how))
    counts = seen(mixed.parent / "out")
    assert counts == {"train": 2, "rare": 8}
    tried = 1 if "data.batch_seconds=3" in how else 0  # batches before the first step
    assert sum(map(len, batches)) >= 10 + tried


def test_rows_of_a_small_source_come_in_turn(mixed):
    learned(asked(mixed, "out", LOSS, *ONE_EPOCH))
    rare = [row.rpartition(":")[2] for batch in SEEN for source, row in batch if source == "rare"]
    assert sorted(rare) == 4 * ["1"] + 4 * ["2"]


def test_a_temperature_without_weights_draws_by_a_root_of_the_sizes(mixed):
    run = asked(mixed, "out", LOSS, *ONE_EPOCH, "data.train=[train.jsonl, few.jsonl]", "data.temperature=2")
    batches = learned(run)
    assert list(chain(*batches)).count("few") == 3  # sqrt(2) / (sqrt(2) + sqrt(8)) of ten


def test_a_list_of_files_gives_every_row_once_and_counts_them(mixed):
    run = asked(mixed, "out", LOSS, *ONE_EPOCH, "data.train=[train.jsonl, few.jsonl]", "train.logging_steps=1")
    batches = learned(run)
    assert sorted(chain(*batches)) == ["few"] * 2 + ["train"] * 8
    assert seen(mixed.parent / "out") == {"few": 2, "train": 8}


def test_a_run_of_one_source_counts_nothing(run_file):
    assert seen(train(read_run(run_file, *SMALL, "train.max_steps=2"))) == {}


@pytest.mark.parametrize("how", [[], ["data.batch_seconds=3"], ["train.train_sampling_strategy=group_by_length"]])
@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_is_the_undisturbed_one(mixed, how, step):
    more = [*how, "train.max_steps=7", "train.save_steps=1", "train.logging_steps=1", "train.save_total_limit=9"]
    whole = train(asked(mixed, "whole", *more))
    (mixed.parent / "half").mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", mixed.parent / "half" / f"checkpoint-{step}")
    assert_same_run(train(asked(mixed, "half", *more), resume=True), whole)


@pytest.mark.slow
def test_processes_learn_from_the_rows_of_one_and_count_them_together(mixed):
    def words(folder, *more):
        overrides = [*SMALL, WEIGHTS, *ONE_EPOCH[:3], "train.save_steps=1", "train.logging_steps=1", *more]
        overrides += ["train.ddp_backend=gloo", f"train.output_dir={mixed.parent / folder}"]
        return [word for override in overrides for word in ("--set", override)]

    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "usam.cli"]
    asked_for = words("many", "train.per_device_train_batch_size=1")
    subprocess.run([*many, "train", mixed, *asked_for], check=True)
    assert seen(mixed.parent / "many") == {"train": 2, "rare": 8}
    shutil.rmtree(mixed.parent / "many" / "checkpoint-5")
    subprocess.run([*many, "train", mixed, *asked_for, "--resume"], check=True)
    assert seen(mixed.parent / "many") == {"train": 2, "rare": 8}


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (WEIGHTS.replace("4", "5"), "data.train_sources: the checkpoint was made with"),
        ("data.temperature=2", "data.temperature: the checkpoint was made without it, and now it is 2"),
        ("data.train=[train.jsonl, few.jsonl]", "data.train_sources: the checkpoint was made with"),
    ],
)
def test_another_mixture_is_another_run(mixed, other, told):
    train(asked(mixed, "out", "train.max_steps=2"))
    with pytest.raises(SpecError, match=told):
        train(asked(mixed, "out", "train.max_steps=3", other), resume=True)


def test_a_row_that_cannot_be_read_gives_its_place_to_one_of_its_source(mixed):
    soundfile.write(mixed.parent / "bad.wav", noise(0.5, seed=1), 16000)
    (mixed.parent / "bad.wav").write_bytes(b"no sound")
    rows = [{"audio": name, "task": "asr", "answer": "few"} for name in ("bad.wav", "0.wav")]
    (mixed.parent / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    learned(asked(mixed, "out", LOSS, *ONE_EPOCH, "data.bad_audio=skip", "data.bad_share=0.2"))
    assert {row.rpartition(":")[2] for batch in SEEN for source, row in batch if source == "rare"} == {"2"}


def test_a_source_may_have_a_reader_and_a_root_of_its_own(mixed):
    row = {"audio_filepath": "{audio_root}/0.wav", "text": "ok"}
    (mixed.parent / "nemo.json").write_text(json.dumps(row))
    source = f"{{file: nemo.json, reader: nemo, audio_root: {mixed.parent}}}"
    run = asked(mixed, "out", f"data.train=[train.jsonl, {source}]")
    last = samples_of(run, "train")[-1]
    assert (last.source, last.messages[0]["content"][0]["audio"]) == ("nemo", str(mixed.parent / "0.wav"))


def test_a_nemo_configuration_is_trained_on(mixed):
    for name in ("a", "b"):
        rows = [{"audio_filepath": f"{i}.wav", "text": name} for i in range(3)]
        (mixed.parent / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    page = (
        "- {type: nemo, manifest_filepath: a.json, weight: 1}\n- {type: nemo, manifest_filepath: b.json, weight: 5}\n"
    )
    (mixed.parent / "mix.yaml").write_text(page)
    batches = learned(asked(mixed, "out", LOSS, *ONE_EPOCH, "data.train=mix.yaml"))
    assert sorted(chain(*batches)) == ["a"] + 5 * ["b"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.temperature=0", "data.temperature: expected a number, more than 0, such as 5; found 0"),
        ("data.temprature=2", "no such split or option; did you mean 'temperature'?"),
        ("data.train=[{file: few.jsonl, weigth: 2}]", "weigth: no such key of a source; did you mean 'weight'?"),
        ("data.eval=[{file: few.jsonl, weight: 2}]", "data.eval: what is held out is looked at row by row"),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(mixed, override, told):
    with pytest.raises(SpecError, match=told.replace("?", r"\?")):
        asked(mixed, "out", override)


@pytest.mark.parametrize("strategy", ["sequential", "batch_rebalance"])
def test_an_order_that_is_no_mixtures_is_refused(mixed, strategy):
    with pytest.raises(SpecError, match=f"train_sampling_strategy: {strategy} does not go with a mixture"):
        train(asked(mixed, "out", f"train.train_sampling_strategy={strategy}"))
