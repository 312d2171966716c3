"""`usam ablate`: what is printed and written, and that it survives being killed."""

import json
import random
import re
import sys
import time
from pathlib import Path

import processes
import pytest
import yaml
from conftest import write_run

PAGE = (Path(__file__).parents[2] / "docs" / "ablate.md").read_text(encoding="utf-8")
GRIDS = Path(__file__).parents[1] / "evaluation"
GRID = """
base: run.yaml
vary: {mlp: model.projector.0.type=mlp, broken: data.train=broken.jsonl}
budget: {steps: 3}
metrics: [wer]
output: out
"""


def write_small(folder, text=GRID):
    sys.path.insert(0, str(GRIDS))
    from small_grids import write_grid

    (folder / "broken.jsonl").write_text('{"audio": "nowhere.wav", "task": "asr", "answer": "a"}\n' * 4)
    return write_grid(folder, text)


def finish(file):
    """What the command ended with: (exit status, standard output, standard error)."""
    return processes.usam(file.parent, "ablate", file, "--jobs", "2")


def without_time(folder):
    """The rows that did not fail, but for how long they took."""
    found = json.loads((folder / "table.json").read_text())
    return [{**row, "seconds": None} for row in found["rows"] if not row["faults"]], found["columns"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of three runs, of which one fails, undisturbed: (its file, what the command ended with)."""
    file = write_small(tmp_path_factory.mktemp("ablation"))
    return file, finish(file)


def test_a_run_that_fails_is_a_row_with_its_error_and_the_others_go_on(finished):
    file, ended = finished
    status, out, err = ended
    assert status == 1
    rows = {row["name"]: row for row in json.loads((file.parent / "out" / "table.json").read_text())["rows"]}
    assert rows["base"]["seeds"] == rows["mlp"]["seeds"] == [0]
    assert rows["mlp"]["scores"]["wer"]["difference"]["samples"] == 8
    assert re.search("failed: .*nowhere.wav", rows["broken"]["faults"]["0"])
    assert re.search(r"3/3 .*seed 0: ", err)
    assert "about" in err
    assert "| mlp | " in out


def test_a_dry_run_lists_what_is_done(finished, usam):
    status, out, _ = usam("ablate", finished[0], "--dry-run")
    assert status == 0
    assert "base, seed 0: as it is (done)" in out
    assert "mlp, seed 0: model.projector.0.type=mlp (done)" in out
    assert "broken, seed 0: data.train=broken.jsonl (failed: " in out
    assert "2 of 3 runs are done; budget: 3 steps" in out


def test_tables_are_written_anew_without_training(finished, usam):
    out = finished[0].parent / "out"
    before = (out / "table.md").read_text()
    (out / "table.md").unlink()
    status, printed, _ = usam("ablate", finished[0], "--table")
    assert (status, printed, (out / "table.md").read_text()) == (1, before, before)


def kill(file, until):
    """Start the command, and kill it when something has come about."""
    runner = processes.start(file.parent, "ablate", file, "--jobs", "2", name="killed")
    while not until() and runner.is_alive():
        time.sleep(0.02)
    runner.kill()
    runner.join()


def killed_grid(file):
    """What does not fail of the same grid, in another folder."""
    other = file.with_name("killed.yaml")
    other.write_text(GRID.replace("output: out", "output: killed").replace(", broken: data.train=broken.jsonl", ""))
    return other, file.parent / "killed"


def test_killed_at_its_first_checkpoint_and_its_first_model_it_ends_with_the_same_table(finished):
    other, folder = killed_grid(finished[0])
    kill(other, lambda: any(folder.glob("*/seed-0/checkpoint-*")))
    kill(other, lambda: any(folder.glob("*/seed-0/config.json")))
    assert finish(other)[0] == 0
    assert len(without_time(folder)[0]) == 2
    assert without_time(folder) == without_time(finished[0].parent / "out")


@pytest.mark.slow
def test_killed_twenty_times_at_random_it_ends_with_the_same_table(finished):
    other, folder = killed_grid(finished[0])
    moments = random.Random(0)
    for _ in range(20):
        end = time.monotonic() + moments.uniform(0, 40)
        kill(other, lambda end=end: time.monotonic() > end)
    assert finish(other)[0] == 0
    assert len(without_time(folder)[0]) == 2
    assert without_time(folder) == without_time(finished[0].parent / "out")


# What the page says


def blocks():
    return dict(re.findall(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def write_page(folder, **changes):
    write_run(folder)
    (folder / "held_out.jsonl").write_text((folder / "train.jsonl").read_text())
    for name, text in blocks().items():
        tree = yaml.safe_load(text)
        (folder / name).write_text(yaml.safe_dump({**tree, **changes.get(name.partition(".")[0], {})}, sort_keys=False))


def test_an_ablation_of_two_projectors_and_two_losses_is_twelve_lines(usam, tmp_path):
    assert len(blocks()["ablation.yaml"].splitlines()) <= 12
    write_page(tmp_path)
    status, out, _ = usam("ablate", tmp_path / "ablation.yaml", "--dry-run")
    assert status == 0
    assert out.endswith("0 of 12 runs are done; budget: 1,000 steps\n")
    assert out.count("mlp+contrast") == 3


@pytest.mark.slow
def test_the_ablation_of_the_page_runs(usam, tmp_path):
    (program, *arguments) = re.search(r"^\$ (usam ablate .*)$", PAGE, re.MULTILINE)[1].split()
    learning = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "use_cpu": True, "disable_tqdm": True}
    write_page(tmp_path, run={"train": learning}, ablation={"budget": {"steps": 2}, "seeds": [0]})
    assert program == "usam"
    status, out, err = usam(*[str(tmp_path / word) if word.endswith(".yaml") else word for word in arguments])
    assert status == 0, err
    assert out.count("| linear+ce |") == out.count("| mlp+contrast |") == 1
    assert (tmp_path / "runs" / "ablation" / "wer.svg").is_file()


def test_the_keys_of_a_file_stand_on_the_page():
    from usam.evaluation.grid import KEYS

    rows = " ".join(line for line in PAGE.splitlines() if line.startswith("| `"))
    assert [key for key in KEYS if f"`{key}`" not in rows] == []
