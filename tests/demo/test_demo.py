"""The demo: what it shows of four tasks, that it writes over nothing but its own, and its recipe, small and whole."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from usam import SpecError, build_encoder, build_llm
from usam.demo import recipe, show, specialists
from usam.evaluation.grid import read_ablation
from usam.training.run import read_run
from usam.weights import read_config

SMALL = {"train": 8, "dev": 2, "test": 4}


@pytest.mark.parametrize("name", ["run.yaml", "model/run.yaml"])
def test_the_runs_of_others_are_left_alone(tmp_path, name):
    (tmp_path / "model").mkdir()
    (tmp_path / name).write_text("model: tiny\n")
    with pytest.raises(SpecError, match=rf"{name}: not of a demo, which would overwrite it"):
        recipe.prepare(tmp_path, clips=SMALL)
    assert (tmp_path / name).read_text() == "model: tiny\n"
    assert not (tmp_path / "world").exists()


def test_shuffled_rows_keep_their_questions_and_hear_other_clips(tmp_path):
    rows = [{"id": f"{i}", "audio": f"{i}.wav", "task": "asr", "answer": f"word {i}"} for i in range(5)]
    manifest = tmp_path / "asr.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [json.loads(line) for line in show.shuffled(manifest).read_text().splitlines()]
    assert [(row["id"], row["answer"]) for row in found] == [(row["id"], row["answer"]) for row in rows]
    assert sorted(row["audio"] for row in found) == [row["audio"] for row in rows]
    assert all(row["audio"] != f"{row['id']}.wav" for row in found)


def scores(heard, other):
    one = {"low": heard, "high": heard, "samples": 4}
    return {"heard": {"value": heard, **one}, "shuffled": {"value": other, **one}}


@pytest.mark.parametrize(
    ("task", "heard", "other", "right"),
    [
        ("asr", 0.12, 1.0, True),
        ("asr", 0.13, 1.0, False),
        ("s2tt", 0.8, 0.0, True),
        ("s2tt", 0.79, 0.0, False),
        ("aac", 2.0, 1.0, True),
        ("mc", 1.9, 1.0, False),
        ("aac", 0.0, 0.0, False),
        ("mc", 0.0, 0.0, False),
    ],
)
def test_a_bound_holds_or_does_not(task, heard, other, right):
    assert show.holds(task, scores(heard, other)) is right


def test_the_table_shows_a_task_beside_itself_with_the_audio_shuffled():
    lines = show.table({"asr": scores(0.1234, 0.9), "aac": scores(2.5, 1.25)}).splitlines()
    assert " ".join(lines[1].split()) == "asr word error rate 12.3% 12.3% to 12.3% 90.0% at most 12 %"
    assert " ".join(lines[2].split()) == "aac CIDEr-D 2.50 2.50 to 2.50 1.25 twice the shuffled"


def test_the_recipe_is_a_run_of_frozen_specialists_on_all_tasks(tmp_path):
    prepared = recipe.prepare(tmp_path, clips=SMALL)
    run = read_run(prepared.run_file)
    assert {name: encoder.path for name, encoder in run.spec.encoders.items()} == {
        "whisper": "usam:mini_whisper",
        "ced": "usam:mini_ced",
        "mert": "usam:mini_mert",
    }
    assert all(encoder.freeze == "all" for encoder in run.spec.encoders.values())
    assert [Path(file).stem for file in run.data["train"]] == ["asr", "s2tt", "aac", "mc"]
    assert recipe.prepare(tmp_path, clips=SMALL).world == prepared.world


@pytest.mark.parametrize("name", specialists.SPECS)
def test_what_comes_with_the_package_says_how_it_was_trained(name):
    config = read_config(f"usam:mini_{name}")
    said = {key: config["trained"][key] for key in ("tasks", "clips", "epochs", "seed")}
    how = {"clips": specialists.CLIPS, "epochs": specialists.EPOCHS[name], "seed": 0}
    assert said == {"tasks": list(specialists.TASKS[name]), **how}


def test_a_specialist_has_no_encoder_but_its_own(tmp_path):
    files = {task: tmp_path / f"{task}.jsonl" for task in ("asr", "s2tt", "aac", "mc")}
    for task, file in files.items():
        file.write_text(json.dumps({"audio": "a.wav", "task": task, "answer": "a"}) + "\n")
    grid = tmp_path / "specialists.yaml"
    grid.write_text(recipe.page(specialists._grid({"train": files, "dev": files}, 0, specialists.EPOCHS)))
    cells = {cell.variation.name: cell.run for cell in read_ablation(grid).cells}
    assert {name: list(run.spec.encoders) for name, run in cells.items()} == {n: [n] for n in specialists.SPECS}
    assert {name for name, run in cells.items() if run.data.get("augment")} == {"whisper"}


@pytest.mark.slow
def test_specialists_are_trained_and_kept_without_the_rest(tmp_path):
    said = []
    again = partial(
        specialists.train_specialists,
        tmp_path / "work",
        tmp_path / "weights",
        clips=8,
        epochs=dict.fromkeys(specialists.SPECS, 1),
        jobs=2,
    )
    again(say=said.append)
    assert build_llm("tiny", path=str(tmp_path / "weights" / "mini_lm"), dim=96).pretrained()
    for name in specialists.SPECS:
        encoder = build_encoder(name, path=str(tmp_path / "weights" / f"mini_{name}"))
        trained = build_encoder(name, path=str(tmp_path / "work" / "runs" / name / "seed-0"))
        for key, tensor in trained.state_dict().items():
            assert torch.equal(encoder.state_dict()[key], tensor.half()), key
    said.clear()
    again(say=said.append)
    assert said == ["3 of 3 runs are done already"]
