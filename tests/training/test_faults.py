"""What goes wrong in long runs: broken files among good ones, a row of hours, a process that is killed."""

import json
import multiprocessing
import os
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
from conftest import noise
from short_runs import SMALL

import usam
from usam.cli import main
from usam.data.check import Part, check
from usam.data.manifest import ManifestError
from usam.processor.audio import AudioError
from usam.training.checkpoints import newest
from usam.training.run import read_run
from usam.training.start import train

BATCHES = ["train.max_steps=10", "train.per_device_train_batch_size=20"]


def listed(folder):
    return {json.loads(line)["row"] for line in (folder / "skipped.jsonl").read_text().splitlines()}


def test_one_broken_file_in_a_hundred_is_skipped_and_a_check_names_the_same(run_file):
    data = run_file.parent / "train.jsonl"
    good = data.read_text().splitlines()
    lines = [good[i % 3] for i in range(200)]
    for i in (50, 120):
        (run_file.parent / f"broken{i}.wav").write_bytes((run_file.parent / "3.wav").read_bytes()[:5000])
        lines[i] = good[3].replace("3.wav", f"broken{i}.wav")
    data.write_text("\n".join(lines))
    run = read_run(run_file, *SMALL, "data.bad_audio=skip", "data.eval=null", *BATCHES)
    named = {fault.row for fault in check([Part(str(data))]).faults}
    assert named == listed(train(run)) == {f"{data}:51", f"{data}:121"}
    lines[7] = good[0].replace("0.wav", "gone.wav")  # three in two hundred are too many
    data.write_text("\n".join(lines))
    with pytest.raises(AudioError, match=r"3 of 200 rows cannot be read, more than data\.bad_share"):
        train(run, overwrite=True)


@pytest.fixture
def hours(run_file):
    """A run of which one row has three hours of sound."""
    block = (noise(60.0, rate=4000) * 32767).astype(np.int16)
    with soundfile.SoundFile(run_file.parent / "long.wav", "w", 4000, 1) as file:
        for _ in range(180):
            file.write(block)
    with (run_file.parent / "train.jsonl").open("a") as data:
        data.write('\n{"audio": "long.wav", "task": "asr", "answer": "x"}')
    return run_file


def test_a_row_of_three_hours_stops_the_run_before_it_is_decoded(hours):
    run = read_run(hours, *SMALL, "data.eval=null")
    tracemalloc.start()
    with pytest.raises(
        ManifestError, match=r"train.jsonl:9: 135,\d+ tokens, and the language model has 32,768 positions"
    ):
        train(run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20  # its samples at the model's rate are 659 MiB


def test_a_row_of_three_hours_is_left_out_when_it_is_asked(hours):
    folder = train(read_run(hours, *SMALL, "data.eval=null", "data.too_long=skip"))
    assert listed(folder) == {f"{hours.parent}/train.jsonl:9"}


def command(*words):
    """A command, in a process of its own."""
    sys.argv = ["usam", *map(str, words)]
    main()


def test_a_reader_that_is_killed_ends_the_run_with_a_reason_and_it_goes_on(run_file, capfd):
    settings = [*SMALL, "data.eval=null", "train.dataloader_num_workers=2", "train.max_steps=100000"]
    words = ["train", run_file, *(word for setting in settings for word in ("--set", setting))]
    folder = run_file.parent / "out"
    process = multiprocessing.get_context("fork").Process(target=command, args=words)  # it has imported everything
    process.start()
    killed = None
    while killed is None and process.is_alive():
        readers = psutil.Process(process.pid).children()
        if (folder / "checkpoint-2").is_dir() and readers:
            killed = readers[0].pid
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.01)
    process.join(120)
    waits = process.is_alive()
    process.kill()
    told = capfd.readouterr().err
    assert not waits
    assert process.exitcode == 2
    assert f"a process that reads data (pid {killed}) was killed" in told
    assert "--resume" in told
    assert f'File "{Path(usam.__file__).parent}' not in told  # Python's own thread may lose a pipe, and say so
    checkpoint, _ = newest(folder)
    steps = int(checkpoint.name.rpartition("-")[2]) + 2
    train(read_run(run_file, *settings, f"train.max_steps={steps}"), resume=True)
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == steps
