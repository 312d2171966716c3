"""`usam data check` names what cannot be used and what is suspicious in a manifest, and counts the rest."""

import json
import multiprocessing
import sys
import time
import tracemalloc

import numpy as np
import psutil
import pytest
import soundfile
from conftest import noise

from usam.cli import main
from usam.data.check import Part, check

RATE = 16000


def write(folder, name, samples, rate=RATE):
    soundfile.write(folder / name, samples, rate)
    return name


def manifest(folder, *rows, name="d.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def row(audio, answer="seven", **more):
    return {"audio": audio, "prompt": "What is said?", "answer": answer, **more}


def found(*files, **options):
    """Kind, line and reason of each fault, and of each note."""
    parts = [one if isinstance(one, Part) else Part(str(one)) for one in files]
    report = check(parts, **options)
    return [
        [(f.kind, f.row.rpartition(":")[2] if ".jsonl:" in f.row else f.row, f.why) for f in them]
        for them in (report.faults, report.notes)
    ]


def of_kind(kind, them):
    return [(line, why) for named, line, why in them if named == kind]


# What it counts


def test_rows_clips_hours_and_formats_are_counted(usam, tmp_path):
    write(tmp_path, "a.wav", noise(1.0))
    write(tmp_path, "b.flac", np.stack([noise(2.0, 1), noise(2.0, 2)], 1), 8000)  # 4 s, for noise is at 16 kHz
    data = manifest(tmp_path, row("a.wav", task="asr"), row(["a.wav", "b.flac"], "one\n", task="order"))
    status, out, err = usam("data", "check", data, "--json")
    told = json.loads(out)
    assert (status, err, told["sound"]) == (0, "", True)
    assert (told["rows"], told["clips"], told["answers"]) == (2, 3, 2)
    assert told["hours"] == pytest.approx(6 / 3600)
    assert told["by_task"]["order"]["hours"] == pytest.approx(5 / 3600)
    assert told["by_file"] == {str(data): {"rows": 2, "clips": 3, "hours": pytest.approx(6 / 3600), "faults": 0}}
    assert told["rates"] == {"16000": 2, "8000": 1}
    assert told["channels"] == {"1": 2, "2": 1}
    assert told["formats"] == {"WAV PCM_16": 2, "FLAC PCM_16": 1}
    assert (told["seconds"]["min"], told["seconds"]["half"], told["seconds"]["max"]) == (1, 1, 4)
    assert sum(bin["clips"] for bin in told["histogram"]) == 3


def test_what_is_printed_fits_a_terminal(usam, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row(write(tmp_path, f"{i}.wav", noise(0.3 * 1.2**i, i)), f"number {i}") for i in range(12)]
    manifest(tmp_path, *rows)
    status, out, _ = usam("data", "check", "d.jsonl", "--spec", "tiny")
    assert (status, out.splitlines()[-1]) == (0, "sound: no fault was found")
    assert max(map(len, out.splitlines())) <= 80
    assert "12 rows, 12 with an answer; 12 clips, 11.9 s of sound" in out
    assert "the language model has 32,768 positions" in out
    assert "{What is said?}\n<|audio|> x 4\n---\n[[number 0<|end|>]]" in out


def test_tokens_are_those_of_a_batch(tmp_path):
    from usam import UsamProcessor, load_spec
    from usam.data.collate import Collator
    from usam.data.manifest import Manifest

    write(tmp_path, "a.wav", noise(1.0), 11025)  # 1.45 s
    write(tmp_path, "b.wav", noise(0.7))
    data = manifest(tmp_path, row("a.wav"), row(["b.wav", {"path": "a.wav", "start": 0.3, "duration": 0.5}], "x"))
    report = check([Part(str(data))], load_spec("tiny"))
    collate = Collator(UsamProcessor.from_spec("tiny"))
    assert list(report.tokens) == [collate([sample])["input_ids"].shape[1] for sample in Manifest(data, {})]


def test_workers_find_the_same_in_the_same_order(tmp_path):
    rows = [row(write(tmp_path, f"{i}.wav", noise(0.2, i % 5))) for i in range(9)]
    data = manifest(tmp_path, *rows, row("gone.wav"), {"audi": "x"})
    alone, shared = (check([Part(str(data))], workers=workers).to_dict() for workers in (0, 2))
    assert shared == alone
    assert [note["kind"] for note in alone["notes"]] == ["duplicate"] * 4 + ["repeated"]


# Faults


def test_one_broken_file_in_a_hundred_is_named_with_its_row(usam, tmp_path):
    rows = [row(write(tmp_path, f"{i}.wav", noise(0.1, i)), str(i)) for i in range(300)]
    for i in (7, 150, 299):
        (tmp_path / f"{i}.wav").write_bytes((tmp_path / f"{i}.wav").read_bytes()[:1000])
    data = manifest(tmp_path, *rows)
    status, out, _ = usam("data", "check", data)
    assert status == 1
    assert "300 rows, 300 with an answer; 297 clips" in out
    told = out.partition("faults: clips that cannot be read: 3\n")[2].splitlines()
    assert [line.split()[:2] for line in told[:3]] == [
        [f"{data}:{i + 1}:", f"{tmp_path}/{i}.wav:"] for i in (7, 150, 299)
    ]
    assert all("truncated" in line for line in told[:3])
    fast = usam("data", "check", data, "--fast", "--json")
    assert (fast[0], len(json.loads(fast[1])["faults"])) == (1, 3)


def test_faults_beyond_show_are_counted(usam, tmp_path):
    data = manifest(tmp_path, *[row(f"{i}.wav") for i in range(30)])
    status, out, _ = usam("data", "check", data, "--show", 2)
    assert (status, out.count("no such file")) == (1, 2)
    assert "... and 28 more (--show 30 names them)" in out
    assert out.splitlines()[-1] == "30 faults"


def test_a_sample_that_is_not_finite_is_found_by_decoding(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([0.1, np.nan, 0.1]), RATE, subtype="FLOAT")
    data = manifest(tmp_path, row("a.wav"))
    ((kind, _, why),), _ = found(data)
    assert kind == "audio"
    assert "the sample at 0.000 s is nan" in why
    assert found(data, fast=True)[0] == []


def test_a_row_of_no_format_is_a_fault_and_the_others_are_read(tmp_path):
    write(tmp_path, "a.wav", noise(0.2))
    data = manifest(tmp_path, row("a.wav"), {"audi": "a.wav"})
    with data.open("a") as file:
        file.write("{broken\n")
    faults, _ = found(data)
    assert [(kind, line) for kind, line, _ in faults] == [("row", "2"), ("row", "3")]
    assert "did you mean 'audio'?" in faults[0][2]


@pytest.mark.parametrize("answer", ["", "  \n"])
def test_an_empty_answer_is_a_fault(tmp_path, answer):
    write(tmp_path, "a.wav", noise(0.2))
    faults, _ = found(manifest(tmp_path, row("a.wav", answer)))
    assert faults == [("answer", "1", "the answer is empty")]


def test_tasks_without_a_prompt_are_told_once_each(tmp_path):
    from usam import load_spec

    write(tmp_path, "a.wav", noise(0.2))
    own = {"audio": "a.wav", "answer": "x"}
    rows = [{**own, "task": "arr"}, {**own, "task": "arr"}, {**own, "task": "mine", "prompt": "Why?"}]
    data = manifest(tmp_path, *rows, {**own, "task": "asr"})
    faults, _ = found(data, spec=load_spec("tiny"))
    assert faults == [("prompt", "1", "task 'arr' has no prompt in the spec's 'prompts'; did you mean 'asr'? (2 rows)")]
    assert found(data)[0] == []  # without a spec nobody knows its prompts


def test_a_clip_that_is_held_out_and_trained_on_is_a_leak_whatever_its_file_is_called(usam, tmp_path):
    write(tmp_path, "a.wav", noise(0.3))
    write(tmp_path, "b.wav", noise(0.3, 1))
    write(tmp_path, "same.flac", soundfile.read(tmp_path / "a.wav")[0])
    train = manifest(tmp_path, row("a.wav"), row("b.wav"), name="train.jsonl")
    held_out = manifest(tmp_path, row("same.flac", "other"), name="eval.jsonl")
    status, out, _ = usam("data", "check", train, "--eval", held_out)
    assert status == 1
    assert f"{held_out}:1: its clip is that of {train}:1 in train" in out
    assert found(train, Part(str(held_out)))[0] == []  # both are trained on


def test_another_part_of_a_recording_is_no_leak(tmp_path):
    write(tmp_path, "a.wav", noise(1.0))
    train = manifest(tmp_path, row({"path": "a.wav", "duration": 0.5}), name="train.jsonl")
    held_out = manifest(tmp_path, row({"path": "a.wav", "start": 0.5}), name="eval.jsonl")
    for fast in (False, True):
        assert found(train, Part(str(held_out), "eval"), fast=fast)[0] == []
        assert len(of_kind("leak", found(train, Part(str(train), "eval"), fast=fast)[0])) == 1


# What is suspicious


def test_rows_that_are_the_same_and_rows_that_contradict_each_other(tmp_path):
    write(tmp_path, "a.wav", noise(0.3))
    write(tmp_path, "b.wav", noise(0.3))
    rows = [row("a.wav"), row("b.wav"), row("a.wav", "eight"), {**row("a.wav"), "prompt": "Which word?"}]
    faults, notes = found(manifest(tmp_path, *rows))
    assert faults == []
    assert of_kind("duplicate", notes) == [("2", f"is the same row as {tmp_path}/d.jsonl:1")]
    assert of_kind("contradiction", notes) == [("3", f"has another answer than {tmp_path}/d.jsonl:1")]


@pytest.mark.parametrize(
    ("kind", "samples"),
    [
        ("silent", np.zeros(4000, np.float32)),
        ("silent", noise(0.25) * 1e-4),
        ("clipped", np.clip(noise(0.25) * 20, -1, 1)),
        ("short", noise(0.01)),
        ("long", noise(3.0)),
    ],
)
def test_a_clip_is_suspicious(tmp_path, kind, samples):
    write(tmp_path, "a.wav", noise(0.5))
    write(tmp_path, "b.wav", samples)
    faults, notes = found(manifest(tmp_path, row("a.wav"), row("b.wav")), max_seconds=2)
    assert (faults, [(named, line) for named, line, _ in notes]) == ([], [(kind, "2")])


def test_a_file_that_contradicts_itself_is_told(tmp_path):
    write(tmp_path, "a.wav", noise(0.5))
    _, notes = found(manifest(tmp_path, row("a.wav", duration=9)))
    ((_, why),) = of_kind("file", notes)
    assert "9 s from 0 s on were asked for, and there are 0.500 s" in why


def test_an_answer_that_repeats_much_is_told_of_its_task(tmp_path):
    rows = [row({"path": "a.wav", "start": i / 100}, "thank you", task="asr") for i in range(12)]
    write(tmp_path, "a.wav", noise(0.5))
    rows += [row({"path": "a.wav", "start": i / 100}, str(i), task="asr") for i in range(20, 32)]
    _, notes = found(manifest(tmp_path, *rows), fast=True)
    assert of_kind("repeated", notes) == [("'thank you'", "answers 12 of 24 rows of task 'asr'")]


# How it is asked


def test_a_run_says_its_data_and_its_model(usam, run_file):
    status, out, _ = usam("data", "check", "--run", run_file, "--json")
    told = json.loads(out)
    assert (status, told["rows"], told["context"]) == (1, 16, 32768)
    assert {fault["kind"] for fault in told["faults"]} == {"leak"}  # it is evaluated on what it is trained on


def test_a_row_of_a_run_without_an_answer_is_a_fault(usam, run_file):
    with (run_file.parent / "train.jsonl").open("a") as file:
        file.write('\n{"audio": "0.wav", "task": "asr"}')
    status, out, _ = usam("data", "check", "--run", run_file)
    assert (status, "train.jsonl:9: no answer to learn from" in out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a manifest, or a run file with --run"),
        (["none.jsonl"], "no such manifest"),
        (["--run", "run.yaml", "--spec", "tiny"], "give it alone"),
        (["empty.jsonl"], "empty.jsonl: no rows"),
        (["empty.jsonl", "--workers", 2], "empty.jsonl: no rows"),
        (["cells.csv", "--workers", 1], "cells.csv:1: the first line names each column once"),
    ],
)
def test_what_cannot_be_checked_is_an_error(usam, run_file, monkeypatch, arguments, message):
    monkeypatch.chdir(run_file.parent)
    (run_file.parent / "empty.jsonl").write_text("")
    (run_file.parent / "cells.csv").write_text("a,a\n1,2\n")
    status, out, err = usam("data", "check", *arguments)
    assert (status, out, message in err) == (2, "", True)
    assert "Traceback" not in err


def test_a_reader_that_is_killed_is_an_error_and_no_waiting(tmp_path, capfd):
    write(tmp_path, "a.wav", noise(2.0))
    data = manifest(tmp_path, *[row("a.wav")] * 20000)

    def command():
        sys.argv = ["usam", "data", "check", str(data), "--workers", "1"]
        main()

    process = multiprocessing.get_context("fork").Process(target=command)
    process.start()
    while not (readers := psutil.Process(process.pid).children()):
        time.sleep(0.01)
    readers[0].kill()
    process.join(60)
    waits = process.is_alive()
    process.kill()
    err = capfd.readouterr().err
    assert (waits, process.exitcode) == (False, 2)
    assert f"error: a process that reads data (pid {readers[0].pid}) was killed" in err


def test_a_row_of_three_hours_takes_bounded_memory(tmp_path):
    block = (noise(60.0, rate=4000) * 32767).astype(np.int16)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 4000, 1) as file:
        for _ in range(180):
            file.write(block)
    data = manifest(tmp_path, row("long.wav"))
    tracemalloc.start()
    _, notes = found(data, max_seconds=600)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert notes == [("long", "1", f"{tmp_path}/long.wav: 3:00:00, more than 600 s")]
    assert peak < 32 * 2**20  # its samples are 165 MiB
