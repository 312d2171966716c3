"""Run files are checked as strictly as specs, and the Trainer does what they say."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import noise
from safetensors.torch import load_file
from short_runs import SMALL, logged

from usam import SpecError, build_model
from usam.generate import Answerer
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer


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
        ("data.train=3", "data.train: expected a manifest, or a list of them; found 3"),
        ("data.train=[]", r"data.train: expected a manifest, or a list of them; found \[\]"),
        ("data.train=[a.jsonl, 3]", "data.train: expected a manifest, or a list of them"),
        ("data.eval={a: b}", "data.eval: expected a manifest, or a list of them"),
        ("data.bad_audio=ignore", "data.bad_audio: expected one of stop, skip; found 'ignore'"),
        ("data.too_long=cut", "data.too_long: expected one of stop, skip, truncate_answer; found 'cut'"),
        ("data.bad_share=2", "data.bad_share: expected a share from 0 to 1, such as 0.01; found 2"),
        ("data.bad_share=0.1", "data.bad_share: means nothing without data.bad_audio: skip"),
        ("data.bad_shar=0.1", "no such split or option; did you mean 'bad_share'"),
        ("train.do_train=true", "train.do_train: means nothing to `usam train`: `usam train` trains"),
        ("train.do_eval=true", "train.do_eval: means nothing to `usam train`: name held-out manifests in data.eval"),
        ("train.do_predict=true", "train.do_predict: means nothing to `usam train`: use `usam generate`"),
        ("train.resume_from_checkpoint=x", "go on with `usam train RUN --resume`"),
        ("train.overwrite_output_dir=true", "start anew with `usam train RUN --overwrite`"),
        ("train.prediction_loss_only=true", "train.prediction_loss_only: means nothing"),
        ("train.remove_unused_columns=true", "rows of a manifest have no columns"),
        ("train.label_names=[answers]", "rows of a manifest have no columns"),
        ("train.learning_rate=fast", "train.learning_rate: expected a number, found 'fast'"),
        ("train.learning_rate=0", "train.learning_rate: with 0 nothing would be learned"),
        ("train.metric_for_best_model=loss_cross_entrop", "nothing measures .*did you mean 'loss_cross_entropy'"),
        ("train.max_steps=2.5", "train.max_steps: expected a whole number, found 2.5"),
        ("train.bf16=perhaps", "train.bf16: expected true or false, found 'perhaps'"),
        ("train.max_steps=0", "train.max_steps: with 0 no step would be made"),
        ("train.num_train_epochs=0", "train.num_train_epochs: with 0 no step would be made"),
        ("train.per_device_train_batch_size=0", "with 0 no step would be made"),
        ("train.output_dir=3", "train.output_dir: expected a folder to save in; found 3"),
        ("model.losses={cross_entropy: null}", "losses: a run without losses learns nothing"),
        ("model.losses.cross_entropy.weight=0", r"losses: every weight is 0 \(cross_entropy\)"),
    ],
)
def test_a_fault_in_a_run_is_named(run_file, override, message):
    with pytest.raises(SpecError, match=message):
        read_run(run_file, override)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model: 3", r"run.yaml:1: model: expected a bundled spec, a file, or a whole spec; found 3"),
        ("model: [tiny]", r"run.yaml:1: model: expected a bundled spec"),
        ("model: tiny\nstart: 3", r"run.yaml:2: start: expected the folder of a saved model; found 3"),
        (
            "model: {encoders: {whisper: {}}, projector: linear, llm: tiny, losses: {}}\ndata: {train: a}",
            r"run.yaml:1: model.losses: a run without losses learns nothing",
        ),
        ("model: tiny\ndata: 3", r"run.yaml:2: data: expected a map, found 3"),
        ("model: tiny\ntrain: [1]", r"run.yaml:2: train: expected a map, found \[1\]"),
        ("model: tiny\ntrain: 0", r"run.yaml:2: train: expected a map, found 0"),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(tmp_path, line, message):
    (tmp_path / "run.yaml").write_text(line + "\n")
    with pytest.raises(SpecError, match=message):
        read_run(tmp_path / "run.yaml")


def test_what_is_in_force_anyway_may_be_written(run_file):
    read_run(run_file, "train.remove_unused_columns=false", "train.label_names=[labels]", "train.warmup_steps=0.1")


def test_a_folder_to_save_in_is_no_file(run_file):
    for place in (run_file, run_file / "deeper"):
        with pytest.raises(SpecError, match=rf"train.output_dir: {run_file} is a file; name a folder to save in"):
            read_run(run_file, f"train.output_dir={place}")


def test_evaluation_needs_something_to_look_at(run_file):
    with pytest.raises(SpecError, match=r"train.eval_strategy: there is nothing to evaluate; name it in data.eval"):
        read_run(run_file, "data.eval=null", "train.eval_strategy=epoch")


def test_what_is_held_out_is_looked_at_in_the_end(run_file):
    folder = train(read_run(run_file, *SMALL))
    assert [line["step"] for line in logged(folder) if "eval_loss" in line] == [4]


def test_the_best_model_is_that_of_the_lowest_loss(run_file):
    best = ["train.load_best_model_at_end=true", "train.metric_for_best_model=loss_cross_entropy"]
    every = ["train.eval_strategy=steps", "train.eval_steps=1", "train.save_steps=1", "train.learning_rate=0.3"]
    folder = train(read_run(run_file, *SMALL, *best, *every, "train.save_total_limit=9"))
    losses = {line["step"]: line["eval_loss_cross_entropy"] for line in logged(folder) if "eval_loss" in line}
    lowest = min(losses, key=lambda step: losses[step])
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(folder / f"checkpoint-{lowest}")
    one, other = (load_file(f / "model.safetensors") for f in (folder, folder / f"checkpoint-{lowest}"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("limit", [1, 2])
def test_the_newest_and_the_best_checkpoint_are_kept(run_file, limit):
    best = ["train.metric_for_best_model=loss", "train.eval_strategy=steps", "train.eval_steps=1", "train.save_steps=1"]
    folder = train(read_run(run_file, *SMALL, *best, "train.learning_rate=1", f"train.save_total_limit={limit}"))
    state = json.loads((folder / "trainer_state.json").read_text())
    kept = {str(f) for f in folder.glob("checkpoint-*")}
    assert kept == {str(folder / "checkpoint-4"), state["best_model_checkpoint"]}


def test_a_model_of_which_nothing_moves_is_not_trained(run_file):
    frozen = [f"model.{part}.freeze=all" for part in ("encoders.whisper", "projector.0", "llm")]
    with pytest.raises(
        SpecError, match="nothing would train: every part is frozen and has no adapters; write `freeze: none`"
    ):
        train(read_run(run_file, *SMALL, *frozen))
    assert not (run_file.parent / "out").exists()


def test_a_run_made_in_python_is_checked_as_well(run_file):
    run = read_run(run_file, *SMALL)
    with pytest.raises(SpecError, match=r"train.do_train: means nothing"):
        train(dataclasses.replace(run, train={**run.train, "do_train": True}))


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


def test_a_misspelt_size_is_not_passed_over(run_file):
    with pytest.raises(SpecError, match=r"encoders.whisper.arch.d_modle: .*did you mean 'd_model'"):
        train(read_run(run_file, "model.encoders.whisper.arch.d_modle=8"))


def test_a_format_and_a_root_are_named_in_the_run(run_file):
    rows = [f"{{audio_root}}/{i}.wav,ab,asr\n" for i in range(8)]
    (run_file.parent / "train.csv").write_text("".join(["audio,answer,task\n", *rows]))
    named = [f"data.audio_root={run_file.parent}", "data.train=train.csv", "data.eval=null", "train.max_steps=1"]
    with pytest.raises(ValueError, match=r"train\.csv.*nemo"):
        train(read_run(run_file, *named, "data.reader=nemo"))
    assert (train(read_run(run_file, *named, "data.reader=usam")) / "config.json").is_file()


def test_how_data_is_read_is_text(run_file):
    with pytest.raises(SpecError, match=r"data.reader: expected text, found 3"):
        read_run(run_file, "data.reader=3")
