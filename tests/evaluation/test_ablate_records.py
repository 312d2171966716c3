"""Records of an ablation: what is done is taken from them elsewhere, and only if it is the very run."""

import json
import shutil
from dataclasses import replace

import pytest
from small_grids import RUN, VARIED, pretend, write_grid

from usam.evaluation.ablate import ablate, state
from usam.evaluation.grid import read_ablation
from usam.evaluation.identity import identity, made_of
from usam.evaluation.results import write_record
from usam.evaluation.table import table
from usam.spec.page import SpecError

SAID = [("a", "a"), ("b", "c")]


def grid(folder, text=VARIED):
    return read_ablation(write_grid(folder, text), records=folder / "kept")


def finished(folder, **options):
    """An ablation whose runs are done, and recorded."""
    found = grid(folder)
    for cell in found.cells:
        pretend(cell, SAID, **options)
    assert ablate(found) == {}
    return found


def elsewhere(folder, other, text=VARIED):
    """The same ablation in another folder, of which only the records were taken along."""
    other.mkdir()
    shutil.copytree(folder / "kept", other / "kept")
    write_grid(other, text)
    (other / "train.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    return read_ablation(other / "grid.yaml", records=other / "kept")


def test_what_is_done_is_recorded(tmp_path):
    finished(tmp_path, loss=2.5)
    kept = json.loads((tmp_path / "kept" / "mlp" / "seed-0.json").read_text())
    assert (kept["variation"], kept["seed"], kept["losses"]["cross_entropy"]) == ("mlp", 0, 2.5)
    assert kept["identity"] == identity(kept["made_of"])
    assert kept["answers"][1] == {"id": 1, "task": None, "prediction": "b", "references": ["c"]}


def test_elsewhere_what_is_recorded_is_done_and_makes_the_same_table(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    first = finished(here)
    other = elsewhere(here, tmp_path / "there")
    assert [str(state(cell)) for cell in other.cells] == [f"done: recorded in {cell.record}" for cell in other.cells]
    assert ablate(other) == {}
    assert not any(cell.folder.exists() for cell in other.cells)
    assert table(other).rows == table(first).rows


def test_a_record_of_another_run_is_told_of_and_not_taken(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    finished(here)
    other = elsewhere(here, tmp_path / "there")
    (tmp_path / "there" / "run.yaml").write_text(RUN.replace("1e-2", "1e-3"))
    other = read_ablation(other.file, records=tmp_path / "there" / "kept")
    told = f"to do: {other.cells[0].record} is of another run: train.learning_rate: was 0.01, now 0.001"
    assert str(state(other.cells[0])) == told
    pretend(other.cells[0], SAID)  # now it is done
    ablate(replace(other, cells=other.cells[:1]))
    assert json.loads(other.cells[0].record.read_text())["identity"] == identity(made_of(other.cells[0]))


@pytest.mark.parametrize(("override", "taken"), [("", True), (", model.projector.0.layer_norm=true", False)])
def test_a_record_from_before_an_option_is_of_a_run_that_leaves_it_as_it_is(tmp_path, override, taken):
    text = VARIED.replace("model.projector.0.type=mlp", f"[model.projector.0.type=mlp{override}]")
    cell = next(cell for cell in grid(tmp_path, text).cells if cell.variation.name == "mlp")
    pretend(cell, SAID)
    write_record(cell)
    kept = json.loads(cell.record.read_text())
    del kept["made_of"]["model"]["projector"][0]["layer_norm"]
    cell.record.write_text(json.dumps({**kept, "identity": identity(kept["made_of"])}))
    shutil.rmtree(cell.folder)
    told = f"done: recorded in {cell.record}"
    if not taken:
        told = f"to do: {cell.record} is of another run: model.projector: was"
    assert str(state(cell)).startswith(told)


def test_another_metric_is_computed_from_the_recorded_answers(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    finished(here)
    other = elsewhere(here, tmp_path / "there", VARIED.replace("[wer]", "[wer, chrf]"))
    assert table(other).rows[1].scores["chrf"].samples == 2


def test_a_broken_record_is_named(tmp_path):
    found = grid(tmp_path)
    found.cells[0].record.parent.mkdir(parents=True)
    found.cells[0].record.write_text('{"format": 1, "answers": [{')
    with pytest.raises(SpecError, match=r"kept/base/seed-0.json: no record of a run .*remove it"):
        state(found.cells[0])


def test_what_a_run_is_made_of_does_not_tell_where_its_weights_lie(tmp_path):
    parts = []
    for name in ("one", "two"):
        folder = tmp_path / name
        (folder / "ear").mkdir(parents=True)
        (folder / "ear" / "config.json").write_text("{}")
        (folder / "ear" / "trainer_state.json").write_text(name)  # how it was trained, not what it is
        text = VARIED.replace("model.projector.0.type=mlp", f"model.encoders.whisper.path={folder}/ear")
        parts.append(made_of(read_ablation(write_grid(folder, text)).cells[1]))
    assert parts[0]["model"] == parts[1]["model"]
    assert len(parts[0]["model"]["encoders"]["whisper"]["path"]) == 64
