"""The paper's ablation in miniature: its grid, its page, and that what is recorded is not made anew."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import write_run
from small_grids import pretend

from usam.evaluation.grid import read_ablation
from usam.evaluation.table import parameters

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "ablation"))

import ablation  # noqa: E402

RUN = """
model: {base: mini_paper, prompts: {s2tt: Translate., aac: Describe., mc: Describe the music.}}
data: {train: train.jsonl, eval: train.jsonl}
train: {max_steps: 2, use_cpu: true, disable_tqdm: true}
eval: {generate: {metrics: [cer], max_new_tokens: 4}, canary: false}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder as it is prepared, with a stand-in for the run."""
    folder = tmp_path_factory.mktemp("prepared")
    write_run(folder)
    (folder / "base.yaml").write_text(RUN)
    shutil.copyfile(ablation.GRID, folder / "ablation.yaml")
    return folder


@pytest.fixture(scope="module")
def cells(prepared):
    return read_ablation(prepared / "ablation.yaml").cells


def of(cells, name):
    return next(cell for cell in cells if cell.variation.name == name).run.spec


def test_every_row_of_the_papers_table_is_a_row_with_three_seeds(cells):
    names = [cell.variation.name for cell in cells]
    assert set(ablation.PAPER) <= set(names)
    assert {names.count(name) for name in names} == {3}


def test_rows_change_what_they_name(cells):
    assert set(of(cells, "without MERT").encoders) == {"whisper", "ced"}
    assert of(cells, "without TAPM and SACLM").projector[1].type == "linear"
    assert set(of(cells, "without TAPM and SACLM").losses) == {"cross_entropy"}
    sparse = of(cells, "2 of 8 experts")
    assert (sparse.projector[1].experts, sparse.projector[1].top_k, "load_balance" in sparse.losses) == (8, 2, True)
    assert sparse.projector[1].router_hidden == of(cells, "base").projector[1].router_hidden
    routers = [of(cells, f"router on {name}").projector[1].router for name in ("audio", "prompt and audio")]
    assert routers == ["audio", "prompt_audio"]
    assert [of(cells, name).fusion.type for name in ("base", "PaM", "MoWE")] == ["concat", "pam", "mowe"]


@pytest.mark.parametrize("name", ["2 of 8 experts", "router on prompt and audio", "PaM", "MoWE"])
def test_the_mixtures_can_be_built(cells, name):
    assert parameters(of(cells, name))[1] > 0


def difference(low, high):
    return {
        "difference": {"value": (low + high) / 2, "low": low, "high": high, "p": 0.01},
        "value": 1.0,
        "low": 0.9,
        "high": 1.1,
    }


def test_a_direction_is_that_of_an_interval_without_zero():
    assert ablation.found(difference(0.1, 0.3), "asr") == "worse"  # more errors
    assert ablation.found(difference(0.1, 0.3), "mc") == "better"
    assert ablation.found(difference(-0.1, 0.3), "mc") == "not told apart"
    assert ablation.found(None, "mc") is None


def test_the_papers_directions_are_those_of_its_table():
    assert ablation.published("without TAPM", "aac") == "better"
    assert ablation.published("without CED", "aac") == "worse"
    assert ablation.published("without MERT", "aac") == "better and worse"  # METEOR falls, SPIDEr rises


def test_a_verdict_needs_both():
    assert ablation.verdict("without CED", "aac", "worse") == "yes"
    assert ablation.verdict("without CED", "aac", "better") == "**no**"
    assert ablation.verdict("without CED", "aac", "not told apart") == "open"
    assert ablation.verdict("without MERT", "aac", "better") == "open"
    assert ablation.verdict("PaM", "aac", "better") == ablation.verdict("without CED", "aac", None) == "–"


def test_before_the_first_run_the_page_says_so():
    assert "**No run is done yet.**" in ablation.page(None, {})


def test_the_page_in_the_docs_is_that_of_the_records():
    written = (ablation.DOCS / "ablation.md").read_text(encoding="utf-8")
    assert written == ablation.page(*ablation.state(ablation.RECORDS))


@pytest.mark.slow
def test_what_is_recorded_becomes_the_page_and_is_not_made_anew(prepared, cells, tmp_path, capfd):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'usam[figures]'")
    for cell in cells:
        if cell.variation.name in ("base", "without CED"):
            right = "b" if cell.variation.name == "without CED" else "a"
            answers = [(right, "a", task) for task in ablation.TASKS for _ in range(8)]
            shutil.rmtree(cell.folder, ignore_errors=True)
            pretend(cell, answers, seed=cell.seed)
    where = ["--folder", prepared, "--prepared", "--records", prepared / "kept", "--docs", tmp_path]
    arguments = [str(word) for word in [*where, "--only", "base", "--only", "without CED"]]
    assert ablation.main(arguments) == 0
    assert "6 of 6 runs are done already" in capfd.readouterr().err
    text = (tmp_path / "ablation.md").read_text()
    assert "Done: 6 of 36 runs" in text
    assert "still missing: without Whisper, without MERT" in text
    assert "| without CED | 1.000 [1.000, 1.000] | +1.000 [+1.000, +1.000] | 0.008 | 2.2, 5.1 | yes |" in text
    assert (tmp_path / "ablation" / "wer-asr.svg").is_file()
    shutil.rmtree(prepared / "ablation")  # another day, another checkout
    assert ablation.main(arguments) == 0
    assert "6 of 6 runs are done already" in capfd.readouterr().err
    assert (tmp_path / "ablation.md").read_text() == text
    assert json.loads((prepared / "kept" / "base" / "seed-0.json").read_text())["variation"] == "base"
