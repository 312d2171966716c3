"""Run files are checked as strictly as specs, and the Trainer does what they say."""

import json

import numpy as np
import pytest
import torch
from conftest import noise
from runs import SMALL

from usam import SpecError, build_model
from usam.generate import Answerer
from usam.training.run import read_run
from usam.training.trainer import UsamTrainer, learning_rate_scales, train


def test_a_run_trains_saves_and_reloads(run_file):
    folder = train(read_run(run_file, *SMALL))
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert [entry["loss_cross_entropy"] for entry in state["log_history"] if "loss" in entry]
    answerer = Answerer.load(folder)
    (answer,) = answerer.answer([answerer.ask(noise(1.0), task="asr")], max_new_tokens=3)
    assert isinstance(answer, str)
    assert read_run(folder / "run.yaml").train["max_steps"] == 4


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(run_file):
    whole = train(read_run(run_file, *SMALL, "train.output_dir=" + str(run_file.parent / "whole")))
    half = "train.output_dir=" + str(run_file.parent / "half")
    train(read_run(run_file, *SMALL, half, "train.max_steps=4", "train.save_steps=2"))
    (run_file.parent / "half" / "checkpoint-4").rename(run_file.parent / "gone")
    again = train(read_run(run_file, *SMALL, half), resume=True)
    first, second = (Answerer.load(folder).model.state_dict() for folder in (whole, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_next_stage_starts_from_the_one_before(run_file):
    first = train(read_run(run_file, *SMALL))
    text = run_file.read_text().replace("model: tiny", f"model: {first}").replace("max_steps: 4", "max_steps: 1")
    (run_file.parent / "second.yaml").write_text(text)
    run = read_run(
        run_file.parent / "second.yaml",
        "model.encoders.whisper.freeze=all",
        "model.llm.lora={r: 2, target_modules: [q_proj]}",
        "model.llm.freeze=all",
        f"train.output_dir={run_file.parent / 'two'}",
    )
    before, after = (Answerer.load(folder).model for folder in (first, train(run)))
    old, new = before.state_dict(), after.state_dict()
    assert torch.equal(
        new["model.encoders.whisper.encoder.conv1.weight"], old["model.encoders.whisper.encoder.conv1.weight"]
    )
    assert torch.equal(new["lm_head.weight"], old["lm_head.weight"])
    assert not torch.equal(new["model.projector.stages.0.map.0.weight"], old["model.projector.stages.0.map.0.weight"])
    assert any("lora_A" in name for name in new)
    assert read_run(run_file.parent / "two" / "run.yaml").start == str(first)


def test_overrides_reach_the_model_and_the_arguments(run_file):
    run = read_run(run_file, "model.llm.dim=64", "train.learning_rate=2e-4")
    assert run.spec.llm.dim == 64
    assert run.train["learning_rate"] == 2e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "no argument of transformers' Trainer; did you mean 'learning_rate'"),
        ("data.evil=1", "no such split"),
        ("model.llm.dm=3", "unknown option 'dm'; did you mean 'dim'"),
        ("llm.dim=3", "starts with 'model.'"),
        ("train.label_smoothing_factor=0.1", "model.losses.cross_entropy.label_smoothing"),
        ("data.train=null", "needs 'data.train'"),
    ],
)
def test_a_fault_in_a_run_is_named(run_file, override, message):
    with pytest.raises(SpecError, match=message):
        read_run(run_file, override)


def test_an_unknown_part_of_a_run_names_its_line(run_file):
    run_file.write_text(run_file.read_text() + "trian: {}\n")
    with pytest.raises(SpecError, match=r"run.yaml:12: trian: no such part of a run; did you mean 'train'"):
        read_run(run_file)


def test_learning_rate_scales_split_the_groups(run_file, tmp_path):
    run = read_run(run_file, *SMALL, "model.encoders.whisper.lr_scale=0.1")
    model = build_model(run.spec)
    from transformers import TrainingArguments

    arguments = TrainingArguments(str(tmp_path), learning_rate=1e-3, use_cpu=True, report_to="none")
    groups = UsamTrainer(model=model, args=arguments).create_optimizer().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(model.model.encoders.whisper.encoder.conv1.weight)] == pytest.approx(1e-4)
    assert rates[id(model.model.projector.stages[0].map[0].weight)] == pytest.approx(1e-3)
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    assert set(learning_rate_scales(model).values()) == {0.1, 1.0}


def test_a_loss_that_is_not_finite_is_named(run_file):
    run = read_run(run_file, *SMALL)
    from transformers import TrainingArguments

    from usam.data.collate import Collator
    from usam.data.manifest import Manifest
    from usam.processor.processor import UsamProcessor

    model = build_model(run.spec)
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    trainer = UsamTrainer(
        model=model,
        args=TrainingArguments(
            str(run_file.parent / "nan"),
            use_cpu=True,
            report_to="none",
            max_steps=1,
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
        train_dataset=Manifest(run.data["train"], run.spec.prompts),
        data_collator=Collator(UsamProcessor.from_spec(run.spec)),
    )
    with pytest.raises(FloatingPointError, match="loss 'cross_entropy' is nan at step 1"):
        trainer.train()


def test_answers_come_in_order_whatever_the_batch(run_file):
    folder = train(read_run(run_file, *SMALL))
    answerer = Answerer.load(folder)
    chats = [answerer.ask(noise(0.3 + 0.4 * i, seed=i), task="asr") for i in range(5)]
    one = list(answerer.answer(chats, batch_size=1, max_new_tokens=6))
    assert list(answerer.answer(chats, batch_size=3, max_new_tokens=6)) == one


def test_a_question_needs_a_prompt_or_a_known_task(run_file):
    answerer = Answerer.load(train(read_run(run_file, *SMALL, "train.max_steps=1")))
    clip = np.zeros(1600, dtype=np.float32)
    with pytest.raises(ValueError, match="no prompt for task 'aac'; known: asr"):
        answerer.ask(clip, task="aac")
    with pytest.raises(ValueError, match="either a prompt or a task"):
        answerer.ask(clip)
