"""A run that was stopped goes on as if it had not been, or says why it does not."""

import json
import multiprocessing
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_run
from safetensors.torch import load_file
from short_runs import SMALL, logged

from usam import SpecError
from usam.saving import SavingError
from usam.training.checkpoints import RECORD, newest
from usam.training.run import read_run
from usam.training.start import train

DROPPING = [
    SMALL[0].replace("{", "{dropout: 0.2, "),
    *SMALL[1:],
    "model.encoders.whisper.freeze=none",
    "train.max_steps=7",  # of two in an epoch
    "train.logging_steps=3",
    "train.save_steps=2",
    "train.eval_strategy=steps",
    "train.eval_steps=3",
]


def asked(run_file, folder, *overrides):
    return read_run(run_file, *DROPPING, f"train.output_dir={run_file.parent / folder}", *overrides)


def assert_same_run(one, other):
    assert logged(one) == logged(other)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing stopped: its file, and its folder with all checkpoints."""
    file = write_run(tmp_path_factory.mktemp("undisturbed"))
    return file, train(asked(file, "whole", "train.save_total_limit=9"))


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_resumed_run_is_the_undisturbed_one(step, undisturbed):
    file, whole = undisturbed
    half = file.parent / f"half-{step}"
    shutil.copytree(whole / f"checkpoint-{step}", half / f"checkpoint-{step}")
    assert_same_run(train(asked(file, half.name), resume=True), whole)


@pytest.mark.parametrize("step", [2, 3])
def test_what_is_due_at_the_end_of_an_epoch_is_done_before_its_checkpoint(step, run_file):
    """Of two steps each, the last of which ends early."""
    epochs = ["train.max_steps=3", "train.logging_strategy=epoch", "train.eval_strategy=epoch", "train.save_steps=1"]
    whole = train(asked(run_file, "whole", *epochs, "train.save_total_limit=9"))
    assert [line["step"] for line in logged(whole) if "eval_loss" in line] == [2, 3]
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / f"checkpoint-{step}", run_file.parent / "half" / f"checkpoint-{step}")
    assert_same_run(train(asked(run_file, "half", *epochs), resume=True), whole)


def test_a_run_that_had_made_all_its_steps_is_saved_without_another(run_file):
    whole = train(asked(run_file, "whole", "train.max_steps=3", "train.save_steps=3"))
    (run_file.parent / "half").mkdir()
    (whole / "checkpoint-3").rename(run_file.parent / "half" / "checkpoint-3")
    half = train(asked(run_file, "half", "train.max_steps=3", "train.save_steps=3"), resume=True)
    assert_same_run(half, whole)


def test_evaluation_leaves_the_training_as_it_is(run_file):
    without = train(asked(run_file, "without", "train.eval_strategy=no"))
    often = train(asked(run_file, "often", "train.eval_steps=1"))
    first, second = (load_file(folder / "model.safetensors") for folder in (without, often))
    assert all(torch.equal(first[name], second[name]) for name in first)


def saving(folder):
    return any(folder.glob(".checkpoint-*.saving")) or any(folder.parent.glob(f".{folder.name}.*.saving"))


def kill_often(run_file, kills):
    """Kill a run at random moments, every second time while it saves, and begin another whenever one has ended."""
    random.seed(kills)
    context = multiprocessing.get_context("fork")  # which has imported everything

    def finish(folder, lifetime=None):
        """Whether the process came to its end."""
        process = context.Process(target=train, args=[asked(run_file, folder.name)], kwargs={"resume": True})
        process.start()
        if lifetime is not None:
            lifetime(process, folder)
            process.kill()
        process.join()
        if process.exitcode == -9:
            return False
        assert process.exitcode == 0
        return True

    def sometime(process, folder):
        process.join(random.uniform(0, seconds))

    def while_it_saves(process, folder):
        saves = random.randrange(4)  # which of those that come
        for wanted in [True, False] * saves + [True]:
            while process.is_alive() and saving(folder) != wanted:
                time.sleep(0.0005)
        process.join(random.uniform(0, 0.05))

    whole = run_file.parent / "whole"
    start = time.monotonic()
    assert finish(whole)
    seconds = time.monotonic() - start
    killed = runs = 0
    while killed < kills:
        folder = run_file.parent / f"run{runs}"
        while killed < kills and not finish(folder, [sometime, while_it_saves][killed % 2]):
            killed += 1
        if killed == kills:
            finish(folder)
        assert_same_run(folder, whole)
        assert not saving(folder)
        shutil.rmtree(folder)
        runs += 1


def test_a_run_that_is_killed_ten_times_goes_on_by_itself(run_file):
    kill_often(run_file, 10)


@pytest.mark.slow
def test_a_run_that_is_killed_a_hundred_times_goes_on_by_itself(run_file):
    kill_often(run_file, 100)


@pytest.mark.slow
def test_several_processes_save_one_checkpoint_and_go_on_from_it(run_file):
    def processes(folder, *more):
        overrides = [*DROPPING, "train.ddp_backend=gloo", f"train.output_dir={folder}", "train.save_total_limit=9"]
        words = [word for override in overrides for word in ("--set", override)]
        many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        subprocess.run([*many, "-m", "usam.cli", "train", run_file, *words, *more], check=True)
        return folder

    whole = processes(run_file.parent / "whole")
    assert {f"progress_{rank}.pt" for rank in (0, 1)} < {f.name for f in (whole / "checkpoint-4").iterdir()}
    (run_file.parent / "half").mkdir()
    shutil.copytree(whole / "checkpoint-4", run_file.parent / "half" / "checkpoint-4")
    assert_same_run(processes(run_file.parent / "half", "--resume"), whole)


# Which checkpoint, and whether it fits


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run that stays as it is: its file, and its folder."""
    file = write_run(tmp_path_factory.mktemp("finished"))
    return file, train(read_run(file, *SMALL))


@pytest.fixture
def trained(run_file, finished):
    """The same in the folder of this test's own run, whose rows are the same: with checkpoints 2 and 4."""
    return Path(shutil.copytree(finished[1], run_file.parent / "out"))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut off"), "model.safetensors has 7 bytes instead of"),
        (lambda f: (f / RECORD).unlink(), f"has no {RECORD}"),
        (lambda f: (f / RECORD).write_text('{"fi'), f"its {RECORD} is broken"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(finished, tmp_path, damage, why):
    trained = Path(shutil.copytree(finished[1], tmp_path / "copy"))
    damage(trained / "checkpoint-4")
    found, (passed,) = newest(trained)
    assert found == trained / "checkpoint-2"
    assert "checkpoint-4: passed over" in passed
    assert why in passed


def test_a_run_goes_on_from_the_checkpoint_before_a_broken_one(run_file, trained):
    before = load_file(trained / "model.safetensors")
    (trained / "checkpoint-4" / "trainer_state.json").unlink()
    after = load_file(train(read_run(run_file, *SMALL), resume=True) / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert newest(trained)[0] == trained / "checkpoint-4"


def test_a_run_without_a_checkpoint_begins(run_file):
    assert (train(read_run(run_file, *SMALL), resume=True) / "config.json").is_file()


def test_a_trained_model_without_checkpoints_is_not_trained_anew_by_resuming(run_file, trained):
    for step in (2, 4):
        shutil.rmtree(trained / f"checkpoint-{step}")
    with pytest.raises(SpecError, match="holds a trained model, and no checkpoint to go on from"):
        train(read_run(run_file, *SMALL), resume=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.llm.tie_word_embeddings=true",
            r"model.llm.tie_word_embeddings: .* made with false, and now it is true",
        ),
        ("model.losses.cross_entropy.label_smoothing=0.1", r"model.losses.cross_entropy.label_smoothing"),
        ("train.learning_rate=2e-3", r"train.learning_rate: .* made with 0.001, and now it is 0.002"),
        ("train.seed=1", r"train.seed: .* made without it, and now it is 1"),
        ("data.too_long=skip", r"data.too_long: .* made with .stop., and now it is .skip."),
    ],
)
def test_another_run_does_not_go_on_from_a_checkpoint(finished, override, message):
    file, _ = finished
    with pytest.raises(SpecError, match=message):
        train(read_run(file, *SMALL, override), resume=True)


def test_other_data_do_not_go_on_from_a_checkpoint(run_file, trained):
    rows = (run_file.parent / "train.jsonl").read_text()
    (run_file.parent / "train.jsonl").write_text(rows.replace("abab", "abba"))
    with pytest.raises(SpecError, match=r"data.train"):
        train(read_run(run_file, *SMALL), resume=True)


def test_another_source_does_not_go_on_from_a_checkpoint(run_file, trained):
    for folder in trained.glob("checkpoint-*"):
        made = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps({**made, "sources": {"model.language_model": {"a.safetensors": "0"}}}))
    with pytest.raises(SpecError, match=r"sources.model.language_model.a.safetensors: .* made with .0., and now"):
        train(read_run(run_file, *SMALL), resume=True)


def test_another_version_goes_on_and_is_told(run_file, trained, capfd):
    for folder in trained.glob("checkpoint-*"):
        made = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps({**made, "versions": {**made["versions"], "torch": "1.0"}}))
    import logging

    logging.getLogger("usam").addHandler(handler := logging.StreamHandler())
    train(read_run(run_file, *SMALL), resume=True)
    logging.getLogger("usam").removeHandler(handler)
    assert 'versions.torch: the checkpoint was made with "1.0", and now it is' in capfd.readouterr().err


@pytest.mark.parametrize("override", ["train.logging_steps=1", "train.save_steps=1", "train.dataloader_num_workers=1"])
def test_what_does_not_change_the_result_may_be_another(run_file, trained, override):
    shutil.rmtree(trained / "checkpoint-4")
    assert train(read_run(run_file, *SMALL, override), resume=True) == trained


def test_an_argument_that_is_written_as_it_was_by_default_is_no_other(run_file, trained):
    assert train(read_run(run_file, *SMALL, "train.seed=42", "train.weight_decay=0"), resume=True) == trained


def test_a_shorter_run_does_not_take_more_steps_than_it_plans(finished):
    with pytest.raises(SpecError, match="checkpoint-4: has made 4 steps, more than the 3 planned"):
        train(read_run(finished[0], *SMALL, "train.max_steps=3"), resume=True)


def test_a_longer_run_may_go_on(run_file, trained):
    longer = train(read_run(run_file, *SMALL, "train.max_steps=6"), resume=True)
    assert (longer / "checkpoint-6").is_dir()


# Starting anew


def test_a_folder_that_holds_a_run_is_not_begun_anew(run_file, trained):
    with pytest.raises(SpecError, match="holds checkpoint-4: go on from there with --resume, start anew with --overwr"):
        train(read_run(run_file, *SMALL))
    for step in (2, 4):
        shutil.rmtree(trained / f"checkpoint-{step}")
    with pytest.raises(SpecError, match="holds a trained model"):
        train(read_run(run_file, *SMALL))


def test_a_folder_that_holds_a_run_is_overwritten_when_it_is_asked(run_file, trained):
    train(read_run(run_file, *SMALL, "train.max_steps=1", "train.save_steps=1"), overwrite=True)
    assert [f.name for f in trained.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_run_is_not_saved_over_its_own_file_or_start(run_file, trained):
    with pytest.raises(SpecError, match="holds the run file, which would be overwritten"):
        train(read_run(run_file, *SMALL, f"train.output_dir={run_file.parent}"))
    text = run_file.read_text().replace("model: tiny", f"model: {trained}")
    (run_file.parent / "second.yaml").write_text(text)
    with pytest.raises(SpecError, match="is also where the run starts from"):
        train(read_run(run_file.parent / "second.yaml"), overwrite=True)


def test_a_full_disk_leaves_the_checkpoint_before(run_file):
    run = read_run(run_file, *SMALL, "train.max_steps=2", "train.save_steps=2")
    folder = train(run)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = read_run(run_file, *SMALL, "train.max_steps=4", "train.save_steps=2")
    size = (folder / "checkpoint-2" / "optimizer.pt").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))
    try:
        with pytest.raises(SavingError, match=r"checkpoint-4: could not be saved"):
            train(more, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert newest(folder) == (folder / "checkpoint-2", [])
    assert (train(more, resume=True) / "checkpoint-4").is_dir()
