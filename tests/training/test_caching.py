"""A run with a cache learns what it learns without, and computes its encoders' frames once."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from short_runs import SMALL, logged
from torch.nn.modules.module import register_module_forward_hook
from transformers import Trainer

from usam import SpecError
from usam.data.cache import held, verify
from usam.saving import SavingError
from usam.training.caching import build, built, part_of
from usam.training.run import cache_of, read_run
from usam.training.start import train

TINY = [*SMALL, "model.encoders.whisper.freeze=all"]
THREE = [
    "model.encoders.whisper.path=null",
    SMALL[0],
    *(f"model.encoders.{name}.freeze=all" for name in ("whisper", "ced", "mert")),
]
STEPS = ["train.max_steps=5", "train.logging_steps=1", "train.save_steps=5"]


def asked(run_file, out, *overrides, cache="cache"):
    place = [] if cache is None else [f"data.cache={run_file.parent / cache}"]
    return read_run(run_file, *TINY, *STEPS, *place, f"train.output_dir={run_file.parent / out}", *overrides)


def losses(folder):
    return [value for line in logged(folder) for key, value in line.items() if "loss" in key]


def of_three(run_file):
    """The paper's composition in miniature."""
    path = run_file.with_name("three.yaml")
    path.write_text(run_file.read_text().replace("model: tiny", "model: mini_paper"))
    return path


@pytest.mark.parametrize("spec", ["tiny", "mini_paper"])
def test_losses_are_those_of_a_run_without(spec, run_file):
    file, small = (run_file, TINY) if spec == "tiny" else (of_three(run_file), THREE)
    runs = {}
    for name, cache in (("without", None), ("filling", "cache"), ("reading", "cache")):
        place = [] if cache is None else [f"data.cache={run_file.parent / cache}"]
        out = f"train.output_dir={run_file.parent / name}"
        runs[name] = losses(train(read_run(file, *small, *STEPS, *place, out)))
    assert len(runs["without"]) > 10
    assert runs["filling"] == pytest.approx(runs["without"], rel=0, abs=1e-6)
    assert runs["reading"] == pytest.approx(runs["without"], rel=0, abs=1e-6)


@contextmanager
def after_each(kind, do):
    """Do something after each call of a module of this class."""
    hook = register_module_forward_hook(lambda module, *_: do() if type(module).__name__ == kind else None)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.slow
def test_two_processes_fill_and_read_one_cache_and_learn_the_same(run_file):
    def processes(out, *overrides):
        folder = run_file.parent / out
        overrides = [*TINY, *STEPS, "train.ddp_backend=gloo", f"train.output_dir={folder}", *overrides]
        words = [word for override in overrides for word in ("--set", override)]
        many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        subprocess.run([*many, "-m", "usam.cli", "train", run_file, *words], check=True)
        return losses(folder)

    without = processes("without")
    place = f"data.cache={run_file.parent / 'cache'}"
    assert processes("filling", place) == pytest.approx(without, rel=0, abs=1e-6)
    assert verify(run_file.parent / "cache") == []
    assert processes("reading", place) == pytest.approx(without, rel=0, abs=1e-6)


@pytest.mark.parametrize("how", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_a_run_that_spreads_its_weights_is_refused(how, run_file, monkeypatch):
    """One process alone has nobody to share with: here the flag alone is set that says so."""
    own = Trainer.create_accelerator_and_postprocess

    def spread(self):
        own(self)
        setattr(self, how, True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", spread)
    with pytest.raises(SpecError, match=r"data.cache: FSDP and DeepSpeed spread the encoders' weights"):
        train(asked(run_file, "out"))


def test_each_clip_is_encoded_once_in_all_epochs_and_runs(run_file):
    calls = []
    with after_each("Whisper", lambda: calls.append(1)):
        train(asked(run_file, "first"))
        assert len(calls) == 2  # batches of an epoch
        train(asked(run_file, "second", "train.dataloader_num_workers=1"))
        assert len(calls) == 2


def test_a_cache_that_was_built_is_what_a_run_reads(run_file):
    calls = []
    with after_each("Whisper", lambda: calls.append(1)):
        cache, skipped = build(asked(run_file, "out"), batch=3)
        assert (cache.encoded, len(calls), skipped) == (8, 3, [])
        assert build(asked(run_file, "out"))[0].encoded == 0
        train(asked(run_file, "out"))
        assert len(calls) == 3


def test_parts_of_one_file_are_clips_of_their_own_and_the_same_sound_is_one(run_file):
    (run_file.parent / "copy.wav").write_bytes((run_file.parent / "5.wav").read_bytes())
    ranges = [{}, {"start": 0.1}, {"start": 0.1, "duration": 0.3}, {"offset": 0.1, "duration": 0.3}]
    clips = [*({"audio": "5.wav", **part} for part in ranges), {"audio": "copy.wav"}]
    rows = [json.dumps({**clip, "task": "asr", "answer": "ab"}) for clip in clips]
    (run_file.parent / "train.jsonl").write_text("\n".join(rows))
    assert build(asked(run_file, "out"))[0].encoded == 3


def test_parts_make_the_whole(run_file):
    counts = [build(asked(run_file, "out"), part=(i, 3))[0].encoded for i in (1, 2, 3)]
    # Rows 1 to 8 for training, and the same clips held out.
    assert sum(counts) == 8
    assert build(asked(run_file, "out"))[0].encoded == 0


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, (1, 1)),
        ({"RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}, (3, 3)),
    ],
)
def test_launchers_say_which_part(environment, part):
    assert part_of(environment) == part


def start(run, part):
    process = multiprocessing.get_context("fork").Process(target=build, args=(run,), kwargs={"part": part, "batch": 1})
    process.start()
    return process


def test_two_build_one_cache(run_file):
    for process in [start(asked(run_file, "out"), (1, 1)) for _ in range(2)]:
        process.join()
        assert process.exitcode == 0
    assert verify(run_file.parent / "cache") == []
    assert [one.clips for one in held(run_file.parent / "cache")] == [8]


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_a_build_that_is_killed_goes_on(seconds, run_file):
    process = start(asked(run_file, "out"), (1, 1))
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    build(asked(run_file, "out"))
    assert verify(run_file.parent / "cache") == []
    assert [(one.clips, one.unfinished) for one in held(run_file.parent / "cache")] == [(8, 0)]


def test_a_run_that_is_interrupted_keeps_what_was_encoded(run_file):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), after_each("UsamForConditionalGeneration", interrupt):
        train(asked(run_file, "out"))
    assert [one.clips for one in held(run_file.parent / "cache")] == [4]


def test_a_disk_that_is_full_while_caching_is_told_and_leaves_a_good_cache(run_file):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    build(asked(run_file, "out"), part=(1, 4))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SavingError, match=r"safetensors: could not be saved"):
            build(asked(run_file, "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert verify(run_file.parent / "cache") == []
    assert [one.clips for one in held(run_file.parent / "cache")] == [2]
    assert build(asked(run_file, "out"))[0].encoded == 6


def test_a_cache_that_is_full_changes_no_loss(run_file):
    whole = losses(train(asked(run_file, "whole", cache=None)))
    limited = train(
        asked(run_file, "limited", f"data.cache={{folder: {run_file.parent}/small, limit: 1e-5}}", cache=None)
    )
    assert losses(limited) == pytest.approx(whole, rel=0, abs=1e-6)
    assert 0 < held(run_file.parent / "small")[0].clips < 8


def test_rows_that_cannot_be_read_are_skipped_or_named(run_file):
    (run_file.parent / "3.wav").write_bytes(b"")
    _, (row,) = build(asked(run_file, "out", "data.bad_audio=skip", "data.bad_share=0.5", "data.eval=null"))
    assert row.row.endswith("train.jsonl:4")
    with pytest.raises(ValueError, match=r"train.jsonl:4: .*3.wav"):
        build(asked(run_file, "out"))


def test_a_run_whose_encoders_train_is_refused_before_it_starts(run_file):
    run = read_run(run_file, *SMALL, f"data.cache={run_file.parent / 'cache'}")
    with pytest.raises(SpecError, match=r"data.cache: frames cannot be stored: encoders.whisper.freeze"):
        train(run)
    with pytest.raises(SpecError, match=r"data.cache: names no folder"):
        build(read_run(run_file, *SMALL))


def test_a_resumed_run_may_take_another_cache_but_no_other_precision(run_file):
    out = asked(run_file, "out", "train.save_steps=2", "train.max_steps=2")
    train(out)
    train(asked(run_file, "out", "train.max_steps=4", cache="other"), resume=True)
    half = f"data.cache={{folder: {run_file.parent}/cache, dtype: float16}}"
    with pytest.raises(SpecError, match=r"data.cache: the checkpoint was made without it, and now it is \"float16\""):
        train(asked(run_file, "out", "train.max_steps=6", half, cache=None), resume=True)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("3", "expected a folder, or a map of folder, dtype, limit; found 3"),
        ("{limit: 3}", "expected a folder, or a map"),
        ("{folder: a, dtipe: float16}", r"data.cache.dtipe: no such option; did you mean 'dtype'"),
        ("{folder: a, dtype: float32}", r"data.cache.dtype: expected float16 or bfloat16, or nothing; found 'float32'"),
        ("{folder: a, limit: 0}", r"data.cache.limit: expected GiB, more than 0; found 0"),
    ],
)
def test_a_wrong_option_is_named(written, message, run_file):
    with pytest.raises(SpecError, match=message):
        read_run(run_file, f"data.cache={written}")


def test_a_cache_is_found_beside_the_run_file(run_file):
    run = read_run(run_file, "data.cache=frames")
    assert cache_of(run.data) == {"folder": str(run_file.parent / "frames")}


def test_a_run_starts_with_the_model_whose_cache_is_built(run_file):
    one, other = (built(asked(run_file, "out"), 42)[0].state_dict() for _ in range(2))
    assert all(one[name].equal(other[name]) for name in one)
