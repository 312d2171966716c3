"""Parameters with a learning rate of their own, and the paper's schedule by its name."""

import json

import pytest
import yaml
from safetensors.torch import load_file
from short_runs import SMALL, logged
from transformers import TrainingArguments

from usam import SpecError, build_model
from usam.spec.page import Places
from usam.training.presets import resolved
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer

GROUPS = "groups={projector: {learning_rate: 1e-2}, llm: {lr_scale: 0.5, weight_decay: 0.3}}"


def optimizer(run_file, *overrides, **arguments):
    run = read_run(run_file, *SMALL, *overrides)
    usual = {"learning_rate": 1e-3, "weight_decay": 0.1, "use_cpu": True, "report_to": "none"}
    arguments = TrainingArguments(str(run_file.parent / "out"), **{**usual, **arguments})
    trainer = UsamTrainer(model=build_model(run.spec), args=arguments, groups=run.groups)
    return trainer.create_optimizer(), trainer.model


def of(groups, parameter):
    (group,) = [group for group in groups if any(p is parameter for p in group["params"])]
    return group["lr"], group["weight_decay"]


def test_a_group_has_its_rate_and_its_weight_decay(run_file):
    adam, model = optimizer(run_file, GROUPS)
    projector, layer = model.model.projector.stages[0].map[0], model.model.language_model.layers[0]
    assert of(adam.param_groups, projector.weight) == (1e-2, 0.1)
    assert of(adam.param_groups, layer.self_attn.q_proj.weight) == (5e-4, 0.3)
    assert of(adam.param_groups, projector.bias) == (1e-2, 0.0)  # biases and norms never decay
    assert of(adam.param_groups, model.model.encoders.whisper.encoder.conv1.weight) == (1e-3, 0.1)
    count = sum(len(group["params"]) for group in adam.param_groups)
    assert count == sum(p.requires_grad for p in model.parameters())


def test_a_pattern_names_parameters_and_wins_over_their_components_scale(run_file):
    scale = "model.encoders.whisper.lr_scale=0.1"
    adam, model = optimizer(run_file, scale, "groups={'*.conv1.*': {lr_scale: 2}}")
    encoder = model.model.encoders.whisper.encoder
    assert of(adam.param_groups, encoder.conv1.weight)[0] == pytest.approx(2e-3)
    assert of(adam.param_groups, encoder.conv2.weight)[0] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("{projektor: {lr_scale: 2}}", r"groups.projektor: it names no parameter; what trains stands at .*projector.0"),
        (
            "{llm: {lr_scale: 2}, '*norm*': {lr_scale: 1}}",
            r"groups: 'llm' and '\*norm\*' both name model.language_model",
        ),
        ("{llm: {lr: 2}}", "groups.llm.lr: no such option of a group; known: learning_rate, lr_scale"),
        ("{llm: {lr_scale: 2, learning_rate: 1}}", "groups.llm: learning_rate and lr_scale say the same"),
        ("{llm: {lr_scale: fast}}", "groups.llm.lr_scale: expected a number, 0 or more; found 'fast'"),
        ("{llm: {learning_rate: 0}}", "groups.llm.learning_rate: expected a number, more than 0; found 0"),
        ("{llm: {}}", "groups.llm: expected a map of learning_rate, lr_scale, weight_decay; found {}"),
    ],
)
def test_what_a_group_cannot_be_is_said(run_file, groups, message):
    with pytest.raises(SpecError, match=message):
        train(read_run(run_file, *SMALL, f"groups={groups}"))


def test_groups_that_are_no_map_are_refused_with_their_line(run_file):
    run_file.write_text(run_file.read_text() + "groups: [llm]\n")
    with pytest.raises(SpecError, match=r"run.yaml:12: groups: expected a map of places or patterns of names"):
        read_run(run_file)


def test_a_group_of_what_is_frozen_is_refused(run_file):
    with pytest.raises(SpecError, match=r"groups.encoders.whisper: all that it names is frozen"):
        train(
            read_run(run_file, *SMALL, "model.encoders.whisper.freeze=all", "groups={encoders.whisper: {lr_scale: 2}}")
        )


def test_the_log_tells_each_groups_rate_as_it_falls(run_file):
    lines = [line for line in logged(train(read_run(run_file, *SMALL, GROUPS))) if "loss" in line]
    for line in lines:
        assert line["learning_rate/projector"] == pytest.approx(10 * line["learning_rate"])
        assert line["learning_rate/llm"] == pytest.approx(0.5 * line["learning_rate"])
    assert lines[1]["learning_rate"] < lines[0]["learning_rate"]


def test_a_resumed_run_has_the_groups_it_began_with(run_file):
    run = read_run(run_file, *SMALL, GROUPS)
    whole = train(run)
    before, log = load_file(whole / "model.safetensors"), logged(whole)
    (whole / "checkpoint-4" / "optimizer.pt").unlink()
    after = load_file(train(run, resume=True) / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)
    assert logged(whole) == log
    with pytest.raises(SpecError, match=r"train.groups.llm.lr_scale: .* made with 0.5, and now it is 0.4"):
        train(read_run(run_file, *SMALL, GROUPS.replace("0.5", "0.4")), resume=True)


def test_a_saved_run_has_its_groups(run_file):
    folder = train(read_run(run_file, *SMALL, GROUPS, "train.max_steps=1", "train.save_strategy=no"))
    assert dict(read_run(folder / "run.yaml").groups["llm"]) == {"lr_scale": 0.5, "weight_decay": 0.3}


# The paper's schedule


def test_the_preset_is_the_papers_and_what_is_written_wins(run_file):
    page = yaml.safe_load(run_file.read_text())
    page["train"] = {"preset": "paper", "output_dir": str(run_file.parent / "out"), "use_cpu": True, "max_steps": 1}
    run_file.write_text(yaml.safe_dump(page))
    found = read_run(run_file).train
    assert (found["learning_rate"], found["weight_decay"], found["warmup_steps"]) == (5e-5, 1e-6, 0.13)
    assert found["lr_scheduler_type"] == "linear"
    assert found["per_device_train_batch_size"] * found["gradient_accumulation_steps"] == 64
    assert "preset" not in found
    assert read_run(run_file, "train.learning_rate=1e-4").train["learning_rate"] == 1e-4
    saved = yaml.safe_load((train(read_run(run_file, *SMALL)) / "run.yaml").read_text())
    assert saved["train"]["weight_decay"] == 1e-6


@pytest.mark.parametrize(("processes", "rows", "steps"), [(4, 16, 1), (8, 8, 1), (1, 16, 4), (128, None, None)])
def test_the_presets_batch_is_that_of_all_processes(processes, rows, steps):
    if steps is None:
        with pytest.raises(SpecError, match="a step has 64 rows, which 128 processes with batches of 1 do not make"):
            resolved({"preset": "paper"}, Places(), processes=processes)
        return
    found = resolved({"preset": "paper"}, Places(), processes=processes)
    assert (found["per_device_train_batch_size"], found["gradient_accumulation_steps"]) == (rows, steps)


def test_warm_up_is_a_share_of_the_steps(tmp_path):
    arguments = TrainingArguments(str(tmp_path), **resolved({"preset": "paper", "use_cpu": True}, Places()))
    assert arguments.get_warmup_steps(1000) == 130


def test_under_a_budget_the_preset_says_nothing_of_batches():
    assert "per_device_train_batch_size" not in resolved({"preset": "paper"}, Places(), budget=True)


def test_a_preset_that_is_none_is_named(run_file):
    with pytest.raises(SpecError, match=r"train.preset: no preset 'papper'; did you mean 'paper'"):
        read_run(run_file, "train.preset=papper")


def test_no_line_of_a_run_without_groups_speaks_of_them(run_file):
    folder = train(read_run(run_file, *SMALL, "train.max_steps=1", "train.save_strategy=no"))
    assert "groups" not in (folder / "run.yaml").read_text()
    assert not any("learning_rate/" in json.dumps(line) for line in logged(folder))
