"""An ablation file: what it asks for, and what it may not."""

import pytest
from small_grids import RUN, ablation_of, write_grid

from usam.evaluation import identity as identities
from usam.evaluation.grid import read_ablation
from usam.evaluation.identity import differences, identity, made_of
from usam.registry import ComponentError
from usam.spec.page import SpecError


def names(ablation):
    return [variation.name for variation in ablation.variations]


def projectors(ablation):
    return [cell.run.spec.projector[0].type for cell in ablation.cells]


def test_the_base_comes_first_and_every_variation_has_every_seed(tmp_path):
    found = ablation_of(tmp_path, "base: run.yaml\nvary: {mlp: model.projector.0.type=mlp}\nseeds: [3, 5]\noutput: out")
    assert [(cell.variation.name, cell.seed) for cell in found.cells] == [
        ("base", 3), ("base", 5), ("mlp", 3), ("mlp", 5),
    ]  # fmt: skip
    assert [cell.run.train["seed"] for cell in found.cells] == [3, 5, 3, 5]
    assert found.cells[3].folder == tmp_path / "out" / "mlp" / "seed-5"


@pytest.mark.parametrize(
    "changes",
    [
        "model.projector.0.type=mlp",
        "[model.projector.0.type=mlp]",
        "{model: {projector: {0: {type: mlp}}}}",
        "[{model: {projector: mlp}}]",
        "{model: other.yaml}",
    ],
)
def test_a_variation_is_an_override_a_patch_a_file_or_a_list(tmp_path, changes):
    (tmp_path / "other.yaml").write_text("base: tiny\nprojector: mlp\n")
    found = ablation_of(tmp_path, f"base: run.yaml\nvary: {{other: {changes}}}")
    assert projectors(found) == ["linear", "mlp"]


def test_a_grid_is_every_combination_and_has_no_other_base(tmp_path):
    grid = "{projector: {linear: null, mlp: model.projector.0.type=mlp}, lr: {low: train.learning_rate=1e-4, high: }}"
    found = ablation_of(tmp_path, f"base: run.yaml\ngrid: {grid}")
    assert names(found) == ["linear+low", "linear+high", "mlp+low", "mlp+high"]
    assert projectors(found) == ["linear", "linear", "mlp", "mlp"]
    assert [cell.run.train["learning_rate"] for cell in found.cells] == [1e-4, 1e-2, 1e-4, 1e-2]
    assert found.against == "linear+low"


def test_another_variation_than_the_base_is_compared_with(tmp_path):
    found = ablation_of(
        tmp_path, "base: run.yaml\nagainst: low\nvary: {mlp: model.projector=mlp, low: train.learning_rate=1e-4}"
    )
    assert names(found) == ["low", "mlp"]


def test_a_run_may_stand_in_the_file(tmp_path):
    indented = RUN.replace("\n", "\n  ")
    found = ablation_of(tmp_path, f"run:{indented}\nvary: {{mlp: model.projector.0.type=mlp}}")
    assert found.cells[0].run.data["train"] == [str(tmp_path / "train.jsonl")]


@pytest.mark.parametrize(
    ("budget", "argument", "value"),
    [("{steps: 7}", "max_steps", 7), ("{epochs: 3}", "num_train_epochs", 3.0)],
)
def test_a_budget_is_equal_for_all(tmp_path, budget, argument, value):
    found = ablation_of(tmp_path, f"base: run.yaml\nvary: {{mlp: model.projector=mlp}}\nbudget: {budget}")
    assert {cell.run.train[argument] for cell in found.cells} == {value}


def test_metrics_as_a_map_replace_a_list_of_the_base(tmp_path):
    metrics = "{wer: null, chinese: {type: bleu, tokenize: zh}}"
    found = ablation_of(tmp_path, f"base: run.yaml\nvary: {{mlp: model.projector=mlp}}\nmetrics: {metrics}")
    assert list(found.cells[0].run.eval["generate"]["metrics"]) == ["wer", "chinese"]


def test_hours_of_audio_are_epochs_of_so_many(tmp_path):
    found = ablation_of(tmp_path, "base: run.yaml\nvary: {mlp: model.projector=mlp}\nbudget: {audio_hours: 0.01}")
    seconds = sum(0.5 + 0.1 * i for i in range(8))  # as write_run makes them
    assert found.cells[0].run.train["num_train_epochs"] == pytest.approx(36 / seconds)


def test_one_cache_is_shared(tmp_path):
    write_grid(tmp_path)
    (tmp_path / "run.yaml").write_text(RUN.replace("eval: train.jsonl}", "eval: train.jsonl, cache: frames}"))
    found = read_ablation(tmp_path / "grid.yaml")
    assert {cell.run.data["cache"]["folder"] for cell in found.cells} == {str(tmp_path / "frames")}


WRONG = {
    "bas: run.yaml": r"grid.yaml:1: bas: no such part of an ablation; did you mean 'base'",
    "vary: {a: x=1}": r"grid.yaml: name a run file as 'base', or write a run as 'run'",
    "base: no.yaml\nvary: {a: train.seed=1}": r"grid.yaml:1: base: .*no.yaml: no such run file",
    "base: run.yaml": r"grid.yaml: nothing is varied: write 'vary'.*or 'grid'",
    "base: run.yaml\ngrid: {}": r"grid.yaml:2: grid: expected a map of names",
    "base: run.yaml\ngrid:\n  projector: {}": r"grid.yaml:3: grid.projector: expected a map of names",
    "base: run.yaml\nvary: {a/b: model.projector=mlp}": r"grid.yaml:2: vary.a/b: 'a/b' becomes a folder",
    "base: run.yaml\nvary: {'..': model.projector=mlp}": r"'\.\.' becomes a folder",
    "base: run.yaml\nvary: {'': model.projector=mlp}": r"'' becomes a folder",
    "base: run.yaml\nvary: {base: model.projector=mlp}": r"vary.base: 'base' is the base run itself",
    "base: run.yaml\nvary: {a: model.projector=mlp, A: model.projector=conv}": r"'A' and 'a' would have one folder",
    "base: run.yaml\nvary: {a: model.projector=mlp, b: {model: {projector: mlp}}}": r"'b' and 'a' are the same run",
    "base: run.yaml\nvary: {a: model.projector.0.stack=4}": r"'a' and 'base' are the same run.*`against: a`",
    "base: run.yaml\nvary: {a: model.projektor=mlp}": r"grid.yaml:2: vary.a: .*'model.projektor=mlp'.*projektor",
    "base: run.yaml\nvary: {a: model.projector}": r"vary.a: 'model.projector': write key.key=value",
    "base: run.yaml\nvary: {a: 3}": r"vary.a: expected overrides.*found 3",
    "base: run.yaml\nvary: {a: train.seed=1}": r"vary.a: train.seed: the seeds of all variations are those of `seeds`",
    "base: run.yaml\nvary: {a: {train: {seed: 1}}}": r"vary.a: train.seed: the seeds",
    "base: run.yaml\nbudget: {steps: 3}\nvary: {a: train.max_steps=4}": r"vary.a: train.max_steps: .*`budget`",
    "base: run.yaml\nbudget: {hours: 3}\nvary: {a: model.projector=mlp}": r"budget: expected one of steps, epochs",
    "base: run.yaml\nbudget: {steps: 0}\nvary: {a: model.projector=mlp}": r"budget.steps: expected a whole number",
    "base: run.yaml\nseeds: [1, 1]\nvary: {a: model.projector=mlp}": r"seeds: a seed stands here twice",
    "base: run.yaml\nseeds: 3\nvary: {a: model.projector=mlp}": r"seeds: expected a list of whole numbers",
    "base: run.yaml\nmetrics: []\nvary: {a: model.projector=mlp}": r"metrics: expected a list of metrics",
    "base: run.yaml\nagainst: b\nvary: {bb: model.projector=mlp}": r"against: no such variation; did you mean 'bb'",
    "base: run.yaml\nvary: {a: data.train=no.jsonl}": r"vary.a: data.train: .*no.jsonl: no such manifest",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_its_place(tmp_path, text):
    with pytest.raises(SpecError, match=WRONG[text]):
        ablation_of(tmp_path, text)


def test_an_unknown_metric_is_told(tmp_path):
    with pytest.raises((SpecError, ComponentError), match=r"'wee'.*did you mean 'wer'"):
        ablation_of(tmp_path, "base: run.yaml\nvary: {a: model.projector=mlp}\nmetrics: [wee]")


def test_batches_by_tokens_would_differ_between_models(tmp_path):
    text = "base: run.yaml\nvary: {half: [model.projector.0.stack=8, data.batch_seconds=9]}"
    with pytest.raises(SpecError, match=r"vary.half: data.batch_seconds makes batches by the tokens.*'half'.*'base'"):
        ablation_of(tmp_path, text)


def test_batches_by_tokens_are_equal_where_the_tokens_are(tmp_path):
    write_grid(tmp_path, "base: run.yaml\nvary: {a: train.learning_rate=1}")
    (tmp_path / "run.yaml").write_text(RUN.replace("eval: train.jsonl}", "eval: train.jsonl, batch_tokens: 500}"))
    assert len(read_ablation(tmp_path / "grid.yaml").cells) == 2


# What makes a run what it is


def test_where_a_run_is_saved_and_its_metrics_are_nothing_of_it(tmp_path):
    text = "base: run.yaml\nvary: {mlp: model.projector=mlp}\n"
    one, other = (
        ablation_of(tmp_path, text + more) for more in ("output: a\nmetrics: [wer]", "output: b\nmetrics: [cer]")
    )
    assert [identity(made_of(cell)) for cell in one.cells] == [identity(made_of(cell)) for cell in other.cells]


@pytest.mark.parametrize(
    ("more", "told"),
    [("budget: {steps: 9}", "train.max_steps: was None, now 9"), ("seeds: [1]", "train.seed: was 0, now 1")],
)
def test_what_differs_is_named(tmp_path, more, told):
    text = "base: run.yaml\nvary: {mlp: model.projector=mlp}\n"
    before, now = (made_of(ablation_of(tmp_path, text + each).cells[0]) for each in ("", more))
    assert list(differences(before, now)) == [told]


def test_other_rows_of_a_manifest_are_another_run(tmp_path):
    before = made_of(ablation_of(tmp_path).cells[0])
    file = tmp_path / "train.jsonl"
    file.write_text(file.read_text().replace("abab", "ba"))
    identities._content.cache_clear()
    now = made_of(read_ablation(tmp_path / "grid.yaml").cells[0])
    assert identity(now) != identity(before)
