"""The examples run as they are."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_ablation_prints_one_row_a_model(tmp_path, monkeypatch, capsys):
    script = EXAMPLES / "ablation.py"
    assert len(script.read_text().splitlines()) < 60
    arguments = ["ablation.py", "--folder", str(tmp_path / "corpus"), "--clips", "16", "--steps", "2", "--test", "4"]
    monkeypatch.setattr("sys.argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("paper", "w/o"))]
    assert [row[:20].strip() for row in rows] == [
        "paper",
        "w/o Whisper",
        "w/o CED",
        "w/o MERT",
        "w/o TAPM",
        "w/o SACLM",
        "w/o TAPM and SACLM",
    ]
    trainable = [int(row[20:].split()[0].replace(",", "")) for row in rows]
    assert all(count < trainable[0] for count in trainable[1:])  # every ablation takes something away
