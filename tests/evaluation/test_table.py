"""The table of an ablation, against numbers made by hand."""

import csv
import io
import json
import xml.etree.ElementTree as ET

import pytest
from small_grids import VARIED, ablation_of, pretend

from usam.evaluation.table import table
from usam.evaluation.writing import draw, latex, markdown, write
from usam.spec.page import SpecError

TWO = VARIED + "seeds: [0, 1]\n"
ERRORS = {  # wrong words in each of four answers of two words, by variation and seed
    ("base", 0): [0, 0, 1, 2], ("base", 1): [1, 0, 1, 2], ("mlp", 0): [0, 0, 0, 0], ("mlp", 1): [0, 0, 0, 1],
}  # fmt: skip
SAID = ["a b", "a x", "x x"]


def finished(tmp_path, **options):
    found = ablation_of(tmp_path, TWO)
    for cell in found.cells:
        wrong = ERRORS[cell.variation.name, cell.seed]
        pretend(cell, [(SAID[n], "a b") for n in wrong], loss=1.0 + cell.seed, **options)
    return found


def test_a_value_is_the_mean_over_seeds(tmp_path):
    base, mlp = table(finished(tmp_path)).rows
    assert base.scores["wer"].by_seed == {0: 3 / 8, 1: 4 / 8}
    assert base.scores["wer"].value == pytest.approx(7 / 16)
    assert mlp.scores["wer"].value == pytest.approx(1 / 16)
    assert mlp.scores["cross_entropy"].value == pytest.approx(1.5)
    assert base.scores["wer"].low < 7 / 16 < base.scores["wer"].high


def test_a_metric_reads_the_columns_of_rows(tmp_path):
    found = ablation_of(tmp_path, VARIED.replace("[wer]", "[multiple_choice]"))
    for cell, said in zip(found.cells, (["A", "rain"], ["B", "rain"]), strict=True):
        pretend(cell, [(answer, "rain") for answer in said], extra={"x_choices": ["a dog", "rain"]})
    base, mlp = table(found).rows
    assert (base.scores["multiple_choice"].value, mlp.scores["multiple_choice"].value) == (1 / 2, 1)


def test_a_difference_is_paired_over_samples_and_seeds(tmp_path):
    base, mlp = table(finished(tmp_path)).rows
    found = mlp.scores["wer"].difference
    # Per sample, over both seeds, 1, 0, 2 and 3 words are right that were wrong: of the 8 ways to turn the signs of 1,
    # 2 and 3, two have a sum of 6.
    assert found.value == pytest.approx(-6 / 16)
    assert (found.p, found.exact) == (pytest.approx(2 / 8), True)
    assert (found.seeds, found.samples) == (2, 4)
    assert base.scores["wer"].difference is None


def test_only_seeds_that_both_have_are_paired(tmp_path):
    found = finished(tmp_path)
    (found.cells[0].folder / "config.json").unlink()  # of the base, seed 0
    base, mlp = table(found).rows
    assert base.seeds == (1,)
    assert base.faults == {0: "begun: no checkpoint yet"}
    assert mlp.scores["wer"].difference.value == pytest.approx(1 / 8 - 4 / 8)
    assert mlp.scores["wer"].difference.seeds == 1


def test_other_held_out_rows_are_not_paired(tmp_path):
    found = ablation_of(tmp_path)
    pretend(found.cells[0], [("a", "a")])
    pretend(found.cells[1], [("a", "b")])
    made = table(found)
    assert made.rows[1].scores["wer"].difference is None
    assert any("Answer other held-out rows than 'base'" in note and "mlp" in note for note in made.notes)


def test_tasks_have_columns_of_their_own(tmp_path):
    found = ablation_of(tmp_path)
    for cell in found.cells:
        pretend(cell, [("a", "a", "asr"), ("a b", "b b", "aac")])
    row = table(found).rows[0]
    assert {name: row.scores[name].value for name in ("wer", "wer aac", "wer asr")} == {
        "wer": pytest.approx(1 / 3), "wer aac": 0.5, "wer asr": 0.0,
    }  # fmt: skip


def test_time_is_of_all_steps_also_where_a_run_was_interrupted(tmp_path):
    found = ablation_of(tmp_path)
    pretend(found.cells[0], [("a", "a")], steps=4, runtime=3.0)
    pretend(found.cells[1], [("a", "a")], steps=4, runtime=3.0, begun=2)
    assert [row.seconds for row in table(found).rows] == [3.0, 6.0]


def test_sizes_and_tokens_are_those_of_the_models(tmp_path):
    from usam import build_model
    from usam.training.trainer import trainable

    found = ablation_of(tmp_path)
    for row, cell in zip(table(found).rows, found.cells, strict=True):
        model = build_model(cell.run.spec)
        assert (row.parameters, row.trainable) == (sum(p.numel() for p in model.parameters()), trainable(model))
    assert [row.tokens for row in table(found).rows] == [12.5, 50.0]  # four frames of 20 ms a token; one


def test_a_run_that_was_not_evaluated_where_it_ended_is_refused(tmp_path):
    found = ablation_of(tmp_path)
    pretend(found.cells[0], [("a", "a")])
    file = found.cells[0].folder / "trainer_state.json"
    file.write_text(file.read_text().replace('"global_step": 2', '"global_step": 3'))
    with pytest.raises(SpecError, match=r"was not evaluated at its step 3, where it ended"):
        table(found)


# As text and pictures


def test_a_table_without_any_run_says_what_is_to_do(tmp_path):
    text = markdown(table(ablation_of(tmp_path)))
    assert "- base, seed 0: to do\n- mlp, seed 0: to do" in text


def test_the_files_hold_the_same_numbers(tmp_path):
    found = finished(tmp_path)
    folder = tmp_path / "written"
    folder.mkdir()
    files = write(table(found), folder)
    assert [file.name for file in files] == ["table.md", "table.csv", "table.tex", "table.json"]
    md, text, tex, data = (file.read_text() for file in files)
    lines = {(line["variation"], line["metric"]): line for line in csv.DictReader(io.StringIO(text))}
    assert float(lines["mlp", "wer"]["difference"]) == -0.375
    assert json.loads(data)["rows"][1]["scores"]["wer"]["difference"]["p"] == 0.25
    assert "| mlp | 0.062 [" in md
    assert "| 0.250 |" in md
    assert "& 0.250 &" in tex


def test_latex_is_escaped(tmp_path):
    found = ablation_of(tmp_path, VARIED.replace("{mlp:", "{2_layers:"))
    for cell in found.cells:
        pretend(cell, [("a", "a")])
    text = latex(table(found))
    assert r"2\_layers & " in text
    assert r"wer $\downarrow$" in text


def test_every_column_has_a_figure(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'usam[figures]'")
    found = table(finished(tmp_path))
    files = draw(found, tmp_path)
    assert [file.name for file in files] == ["wer.svg", "cross_entropy.svg"]
    text = " ".join(ET.parse(files[0]).getroot().itertext())
    assert "mlp" in text
    assert "wer (lower is better)" in text
    before = files[0].read_bytes()
    assert draw(found, tmp_path)[0].read_bytes() == before
