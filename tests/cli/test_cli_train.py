"""`usam train` and `usam export` as their users see them."""

import os
import signal
import sys
import time

import pytest
import soundfile
from conftest import noise
from processes import start

from usam.cli import main

SMALL = [
    "model.encoders.whisper.arch={d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 16, "
    "num_mel_bins: 80, max_source_positions: 50}",
    "model.llm={type: tiny, dim: 16, layers: 1, heads: 2}",
    "data.eval=null",
]


def command(*arguments):
    return ["usam", *map(str, arguments), *[word for one in SMALL for word in ("--set", one)]]


@pytest.fixture
def usam(monkeypatch, capfd):
    """Run a command; returns (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capfd.readouterr()

    return run


def test_a_run_is_begun_gone_on_with_and_begun_anew(usam, run_file):
    out = run_file.parent / "out"
    assert usam(*command("train", run_file))[:1] == (0,)
    status, _, err = usam(*command("train", run_file))
    assert status == 2
    assert err == (
        f"error: train.output_dir: {out} holds checkpoint-4: go on from there with --resume, start anew with "
        "--overwrite (its checkpoints are removed), or name another folder\n"
    )
    assert usam(*command("train", run_file, "--resume"))[0] == 0
    assert usam(*command("train", run_file, "--overwrite"))[0] == 0
    status, _, err = usam(*command("train", run_file, "--overwrite", "--resume"))
    assert (status, err) == (2, "error: either go on (--resume) or start anew (--overwrite)\n")


def test_skipped_rows_are_counted_and_their_list_is_named(usam, run_file):
    (run_file.parent / "3.wav").unlink()
    status, _, err = usam(*command("train", run_file, "--set", "data.bad_audio=skip", "--set", "data.bad_share=0.2"))
    assert status == 0
    assert f"1 row was skipped or cut: see {run_file.parent}/out/skipped.jsonl" in err


def test_an_interrupted_run_says_how_to_go_on(run_file):
    """As with Ctrl-C, once there is a checkpoint."""
    arguments = command("train", run_file, "--set", "train.max_steps=100000", "--set", "train.save_steps=1")
    process = start(run_file.parent, *arguments[1:])
    while not list(run_file.parent.glob("out/checkpoint-*")) and process.is_alive():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(120)
    assert process.exitcode == 130
    last = (run_file.parent / "command.err").read_text().strip().splitlines()[-1]
    assert last.startswith(f"interrupted; the run can go on from {run_file.parent}/out/checkpoint-")
    assert f"usam train {run_file} --set" in last
    assert last.endswith("--resume")


def test_a_model_is_not_exported_over_itself(usam, run_file):
    soundfile.write(run_file.parent / "a.wav", noise(1.0), 16000)
    usam(*command("train", run_file))
    out = run_file.parent / "out"
    status, _, err = usam("usam", "export", out, out)
    assert (status, err) == (
        2,
        f"error: {out}: is the model to export, which would be overwritten; name another folder\n",
    )
    assert usam("usam", "generate", out, run_file.parent / "a.wav", "--task", "asr")[0] == 0
