"""The examples run as they are."""

import contextlib
import io
import re
import runpy
import weakref
from pathlib import Path

import pytest
import torch

from usam import build_model

STAGE = "model.projector.stages.0"
READS = {f"{STAGE}.qformer.layers.{i}.cross_attention.{name}" for i in (0, 1) for name in ("key", "value")}
READS |= {f"{STAGE}.positions"}
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """The script after a short run: (its names, what it printed)."""
    script = EXAMPLES / "ablation.py"
    folder = str(tmp_path_factory.mktemp("ablation") / "corpus")
    arguments = ["ablation.py", "--folder", folder, "--clips", "16", "--steps", "2", "--test", "4", "--seeds", "2"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr("sys.argv", arguments)
        names = runpy.run_path(str(script), run_name="__main__")
    return names, printed.getvalue()


@pytest.fixture(scope="module")
def rows(ablation):
    """Cells by row: trainable, then mean, lowest and highest of the loss, then those of the difference, if any."""
    table = ablation[1].split("\n\n")[0].splitlines()[1:]
    return {
        row[:20].strip(): [float(n) for n in re.findall(r"[-+]?\d+\.?\d*", row[20:].replace(",", ""))] for row in table
    }


def test_the_ablation_is_a_short_script():
    assert len((EXAMPLES / "ablation.py").read_text().splitlines()) < 90


def test_the_ablation_prints_one_row_a_model(rows):
    assert list(rows) == [
        "paper",
        "w/o Whisper",
        "w/o CED",
        "w/o MERT",
        "w/o TAPM",
        "w/o SACLM",
        "w/o TAPM and SACLM",
        "2 of 8 experts",
    ]
    whole, *others = (row[0] for row in rows.values())
    assert all(count < whole for count in others[:-1])  # every ablation takes something away
    assert others[-1] > whole


def test_the_ablation_prints_means_ranges_and_paired_differences(rows):
    base = rows["paper"]
    for name, row in rows.items():
        assert len(row) == (5 if name == "paper" else 8)
        assert row[2] < row[3]  # two seeds differ
        assert row[1] == pytest.approx((row[2] + row[3]) / 2, abs=2e-3)
        if name != "paper":
            assert row[4] == pytest.approx(row[1] - base[1], abs=2e-3)
            assert row[5] <= row[4] <= row[6]


def test_the_ablation_says_what_its_numbers_cannot_tell(ablation):
    assert "after 2 steps: mean over 2 seeds" in ablation[1]
    assert "They cannot tell what a part does to the paper's model" in ablation[1]
    assert all(len(line) <= 120 for line in ablation[1].splitlines())


def test_the_ablation_shows_every_model_the_same_batches_shuffled_anew_in_each_epoch(ablation):
    batches = ablation[0]["batches"]
    one, two, other = (list(batches(range(32), list, seed, 6)) for seed in (0, 0, 1))
    assert one == two
    assert one != other
    epochs = [one[i] + one[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(32)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_ablation_keeps_no_batch(ablation):
    class Batch:
        pass

    alive = weakref.WeakSet()

    def collate(_):
        alive.add(batch := Batch())
        return batch

    most = 0
    for _ in ablation[0]["batches"](range(32), collate, 0, 8):
        most = max(most, len(alive))
    assert most <= 2


def test_the_rows_of_a_seed_start_equal_but_for_what_is_ablated(ablation):
    whole = build_model("mini_paper", seed=3).state_dict()
    for name, patch in ablation[0]["ABLATIONS"].items():
        row = build_model("mini_paper", *patch, seed=3).state_dict()
        kept = [key for key in row if not key.startswith("model.projector.stages.1.")]
        differ = {key.rpartition(".")[0] for key in kept if not row[key].equal(whole[key])}
        # What reads the fused frames is narrower where an encoder is missing.
        assert differ == (READS if name in ("w/o Whisper", "w/o CED", "w/o MERT") else set()), name
