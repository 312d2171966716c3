"""`usam estimate` prints tables for a terminal, or JSON."""

import json

import pytest
import soundfile
from conftest import noise


@pytest.fixture
def estimated(usam):
    """Run `usam estimate --json`; returns what it found."""

    def run(*arguments):
        status, out, err = usam("estimate", *arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return run


def test_its_tables_fit_a_terminal(usam):
    status, out, err = usam("estimate", "mini_paper", "--seconds", "1", "--device", "h100", "--tflops", "2")
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 80
    for told in ("trainable", "activations", "most at once", "projector.1", "hours of audio", "datasheet"):
        assert told in out


def test_a_days_hours_follow_the_speed(estimated):
    found = estimated("tiny", "--seconds", "1", "--tflops", "2", "--mfu", "0.5")
    day = found["a_day"]["tflops"]
    assert day["flops"] == 1e12
    assert day["hours"] == pytest.approx(86400 * 1e12 / found["average_flops"] * 8 / 3600)
    assert day["epochs"] is None


def test_options_go_before_a_run_file(estimated, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.5), 16000)
    (tmp_path / "train.jsonl").write_text('{"audio": "a.wav", "task": "asr", "answer": "rain"}\n' * 5)
    run = tmp_path / "run.yaml"
    run.write_text("{model: tiny, data: {train: train.jsonl}, train: {per_device_train_batch_size: 2, optim: sgd}}")
    found = estimated(run)
    assert (found["rows"], found["batches"], found["bytes"]["optimizer"]) == (5, 3, 0)
    assert estimated(run, "--batch-size", "5", "--optimizer", "adamw_torch")["batches"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--device", "h1000"], "no device 'h1000'"),
        (["--dtype", "bf16"], "--dtype bf16"),
        (["--batch-seconds", "2", "--seconds", "3"], "larger than the budget"),
    ],
)
def test_what_cannot_be_is_told(usam, arguments, told):
    status, _, err = usam("estimate", "tiny", *arguments)
    assert status == 2
    assert told in err
