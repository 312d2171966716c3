"""Evaluation: losses that do not depend on batches, answers that are measured, and whether the audio matters."""

import json
import logging
import shutil
import subprocess
import sys
from itertools import chain

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from conftest import noise
from safetensors.torch import load_file
from short_runs import SMALL, logged
from transformers import TrainingArguments

from usam import UsamProcessor, build_model
from usam.data.collate import Collator
from usam.data.manifest import Manifest, ManifestError, Sample
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.training import held_out
from usam.training.held_out import Evaluation, batches, clips, deranged, drawn
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer

ANSWERS = ["a", "b a b a b", "c", "abcabc abc", "d", "ee", "f f f"]
TASKS = ["asr", "aac", "asr", "asr", "aac", "asr", "asr"]
ANSWER = ["eval.generate={metrics: [wer], max_new_tokens: 4}", "eval.canary=false"]
OFTEN = ["train.eval_strategy=steps", "train.eval_steps=1", "train.save_steps=1", "train.save_total_limit=9"]


@pytest.fixture
def two_tasks(run_file):
    """The run, whose held-out rows are of two tasks, with answers of many lengths."""
    rows = [
        {"audio": f"{i}.wav", "task": task, "answer": answer, "id": f"row {i}"}
        for i, (task, answer) in enumerate(zip(TASKS, ANSWERS, strict=True))
    ]
    rows[0]["answer"] = ["a", "a a", "b"]
    (run_file.parent / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = run_file.read_text().replace("eval: train.jsonl", "eval: eval.jsonl")
    run_file.write_text(text.replace("model: tiny", "model: {base: tiny, prompts: {aac: Describe, loss_x: Say.}}"))
    return run_file


class Heard(logging.Handler):
    """What is logged as text."""

    text = ""

    def emit(self, record):
        self.text += f"{record.getMessage()}\n"


@pytest.fixture
def warnings():
    heard = Heard(logging.WARNING)
    logging.getLogger("usam.training").addHandler(heard)
    yield heard
    logging.getLogger("usam.training").removeHandler(heard)


def rewrite(two_tasks, **changes):
    """Other keys in every held-out row; None takes one out."""
    file = two_tasks.parent / "eval.jsonl"
    rows = [{**json.loads(line), **changes} for line in file.read_text().splitlines()]
    file.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows))


def asked(run_file, *overrides):
    return read_run(run_file, *SMALL, *overrides)


def trainer(run_file, evaluation=None, **arguments):
    run = asked(run_file)
    processor = UsamProcessor.from_spec(run.spec)
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "remove_unused_columns": False}
    return UsamTrainer(
        model=build_model(run.spec, seed=0),
        args=TrainingArguments(str(run_file.parent / "out"), **{**options, **arguments}),
        train_dataset=Manifest(run.data["train"], run.spec.prompts),
        eval_dataset=Manifest(run.data["eval"], run.spec.prompts),
        data_collator=Collator(processor, tasks=True),
        processing_class=processor,
        evaluation=evaluation,
    )


def losses(found):
    return {name: value for name, value in found.items() if name.startswith("eval_loss")}


def evaluations(folder):
    return [line for line in logged(folder) if "eval_loss" in line]


def predictions(folder, step):
    return [json.loads(line) for line in (folder / "predictions" / f"step-{step}.jsonl").read_text().splitlines()]


# Losses


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_loss_is_the_mean_over_all_supervised_tokens(two_tasks, size):
    evaluated = trainer(two_tasks, per_device_eval_batch_size=size)
    total = tokens = 0
    for sample in evaluated.eval_dataset:
        batch = Collator(evaluated.processing_class)([sample])
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += float(evaluated.model.eval()(**batch).loss) * count
        tokens += count
    found = evaluated.evaluate()
    assert found["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert found["eval_loss_cross_entropy"] == pytest.approx(total / tokens, rel=1e-5)


def test_losses_of_tasks_are_those_of_their_rows_alone(two_tasks):
    every = trainer(two_tasks, per_device_eval_batch_size=3).evaluate()
    for task in ("asr", "aac"):
        alone = trainer(two_tasks, per_device_eval_batch_size=2)
        rows = [sample for sample in alone.eval_dataset if sample.task == task]
        assert every[f"eval_loss_{task}"] == pytest.approx(alone.evaluate(rows)["eval_loss"], rel=1e-5)


def test_rows_without_tasks_have_no_loss_of_a_task(two_tasks):
    rewrite(two_tasks, prompt="Say.", task=None)
    assert losses(trainer(two_tasks).evaluate()).keys() == {"eval_loss", "eval_loss_cross_entropy"}


def test_a_task_with_the_name_of_a_loss_is_refused(two_tasks):
    rewrite(two_tasks, task="cross_entropy")
    two_tasks.write_text(two_tasks.read_text().replace("loss_x", "cross_entropy"))
    with pytest.raises(SpecError, match="eval_loss_cross_entropy would be both a loss's and a task's"):
        trainer(two_tasks)


def test_batches_are_of_one_task_and_the_longest_come_first():
    samples = [Sample("x", (), task) for task in "abaab"]
    assert batches(samples, 2) == [[0, 2], [3], [1, 4]]
    assert batches(samples, 2, order=[1, 5, 3, 2, 7]) == [[2, 3], [0], [4, 1]]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(two_tasks):
    generate = [ANSWER[0], "train.per_device_eval_batch_size=2", "train.max_steps=1", "train.learning_rate=1e-9"]
    one = train(asked(two_tasks, *generate))
    folder = two_tasks.parent / "two"
    overrides = [*SMALL, *generate, "train.ddp_backend=gloo", f"train.output_dir={folder}"]
    words = [word for override in overrides for word in ("--set", override)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*many, "-m", "usam.cli", "train", two_tasks, *words], check=True)
    (ours,), (theirs,) = evaluations(one), evaluations(folder)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"epoch"}:
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4), name
    assert predictions(one, 1) == predictions(folder, 1)


# Answers


def test_answers_are_measured_against_every_reference_and_written(two_tasks):
    folder = train(asked(two_tasks, *ANSWER, "eval.generate.metrics=[wer, {type: cer, normalizer: basic}]"))
    (found,) = evaluations(folder)
    rows = predictions(folder, 4)
    assert [row["id"] for row in rows] == [f"row {i}" for i in range(7)]
    assert rows[0]["references"] == ["a", "a a", "b"]
    others = [row["prediction"] for row in rows if row["task"] == "aac"]
    right = [row["references"][0] for row in rows if row["task"] == "aac"]
    assert found["eval_wer_aac"] == pytest.approx(jiwer.wer(right, others))
    assert [row["scores"]["wer"] for row in rows if row["task"] == "aac"] == [
        pytest.approx(jiwer.wer(*pair)) for pair in zip(right, others, strict=True)
    ]
    assert {"eval_wer", "eval_cer", "eval_wer_asr", "eval_cer_asr", "eval_cer_aac"} < found.keys()
    (ids,) = [line for line in logged(folder) if "eval_wer_id" in line]
    assert ids["eval_wer_id"].startswith("wer|normalizer:none|jiwer:")
    assert ids["eval_cer_id"].startswith("cer|normalizer:basic|")


def test_an_answer_is_that_of_usam_generate(two_tasks):
    from usam.generate import Answerer

    folder = train(asked(two_tasks, *ANSWER))
    run = asked(two_tasks)
    chats = [sample.question for sample in Manifest(run.data["eval"], run.spec.prompts)]
    answers = list(Answerer.load(folder).answer(chats, batch_size=2, max_new_tokens=4))
    assert [row["prediction"] for row in predictions(folder, 4)] == answers


def test_a_limit_answers_the_same_rows_each_time(two_tasks):
    folder = train(asked(two_tasks, *ANSWER, *OFTEN, "eval.generate.limit=3"))
    rows = [[row["id"] for row in predictions(folder, step)] for step in (1, 2, 3, 4)]
    assert rows == [[f"row {i}" for i in drawn(7, 3, 0)]] * 4
    assert [len(drawn(7, limit, 0)) for limit in (3, 7, 9, None, "all")] == [3, 7, 7, 7, 7]
    assert len([line for line in logged(folder) if "eval_wer_id" in line]) == 1


def test_measuring_answers_leaves_the_training_as_it_is(two_tasks):
    drop = "model.llm.lora={target_modules: [q_proj], lora_dropout: 0.3}"
    runs = {}
    for name, more in {"never": ["train.eval_strategy=no", "data.eval=null"], "often": [*OFTEN, ANSWER[0]]}.items():
        runs[name] = train(asked(two_tasks, drop, *more, f"train.output_dir={two_tasks.parent / name}"))
    never, often = (load_file(folder / "model.safetensors") for folder in runs.values())
    assert all(torch.equal(never[name], often[name]) for name in never)


def test_modes_and_random_numbers_are_as_they_were(two_tasks):
    evaluation = held_out.evaluation(
        {"generate": {"metrics": ["wer"], "max_new_tokens": 2, "options": {"do_sample": True}}}
    )
    evaluated = trainer(two_tasks, evaluation)
    evaluated.model.train()
    modes = [module.training for module in evaluated.model.modules()]
    before = torch.get_rng_state()
    first, second = evaluated.evaluate(), evaluated.evaluate()
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in evaluated.model.modules()] == modes
    assert first["eval_wer"] == second["eval_wer"]


def test_an_answer_that_has_no_room_is_told_before_the_start(two_tasks):
    evaluation = held_out.evaluation({"generate": {"metrics": ["wer"], "max_new_tokens": 60}})
    evaluated = trainer(two_tasks, evaluation)
    evaluated.model.config.text_config.max_position_embeddings = 64
    with pytest.raises(ManifestError, match=r"eval.jsonl:\d: leaves no room for an answer of 60 tokens .*lower it to"):
        evaluated.train()


# The best model, and the end


def test_the_best_model_is_that_of_the_best_metric(two_tasks):
    best = ["train.load_best_model_at_end=true", "train.metric_for_best_model=chrf", "train.learning_rate=0.3"]
    folder = train(asked(two_tasks, *OFTEN, *best, "eval.generate={metrics: [chrf], max_new_tokens: 6}"))
    found = {line["step"]: line["eval_chrf"] for line in evaluations(folder)}
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_metric"] == max(found.values())
    assert state["best_model_checkpoint"] == str(folder / f"checkpoint-{max(found, key=found.get)}")


def test_early_stopping_ends_the_run_and_a_resumed_one_stays_ended(two_tasks):
    stop = ["eval.early_stopping={patience: 2, threshold: 100}", "train.max_steps=9", "train.logging_steps=1"]
    run = asked(two_tasks, *OFTEN, *stop, "eval.canary=false")
    folder = train(run)
    steps = [line["step"] for line in evaluations(folder)]
    assert steps == [1, 2, 3]
    half = two_tasks.parent / "half"
    half.mkdir()
    shutil.copytree(folder / "checkpoint-2", half / "checkpoint-2")
    again = asked(two_tasks, *OFTEN, *stop, "eval.canary=false", f"train.output_dir={half}")
    assert [line["step"] for line in evaluations(train(again, resume=True))] == steps
    assert [line["step"] for line in evaluations(train(again, resume=True))] == steps


def test_a_metric_sees_the_columns_of_each_row_and_what_it_cannot_read_is_logged(two_tasks):
    rewrite(two_tasks, x_choices=[*ANSWERS, "a a", "b"])
    folder = train(asked(two_tasks, *ANSWER, "eval.generate.metrics=[multiple_choice]"))
    (found,) = evaluations(folder)
    assert found["eval_multiple_choice"] == 0
    assert found["eval_unparsed_of_multiple_choice"] == 1  # an untrained model says none of them
    (file,) = (folder / "predictions").glob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[0])["extra"] == {"x_choices": [*ANSWERS, "a a", "b"]}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["eval.generate={metrics: [wr]}"], r"eval.generate.metrics.0.*no component 'wr'; did you mean 'wer'"),
        (["eval.generate={metrics: []}"], "eval.generate.metrics"),
        (["eval.generate={metrics: [wer], limt: 3}"], "unknown option 'limt'; did you mean 'limit'"),
        (["eval.generate={metrics: [wer], limit: 0}"], "eval.generate.limit: .*greater than or equal to 1"),
        (["eval.generate={metrics: [{type: wer, norm: basic}]}"], "unknown option 'norm'"),
        (["eval.generate={metrics: [wer, wer]}"], "'wer' stands here twice; write a map"),
        (["eval.generate={metrics: {loss: {type: wer}}}"], "'loss' is what a loss or a time is logged as"),
        (["eval.generate={metrics: [wer], options: {num_beam: 3}}"], "did you mean 'num_beams'"),
        (["eval.generate={metrics: [wer], options: {max_length: 3}}"], "write eval.generate.max_new_tokens"),
        (["eval.canary=3"], "eval.canary: .*bool"),
        (["eval.canry=false"], "unknown option 'canry'; did you mean 'canary'"),
        (["eval.canary=false", "data.eval=null"], "eval: there is nothing held out to look at; name it in data.eval"),
        (["eval.early_stopping={patience: 2}"], "eval.early_stopping: nothing is evaluated before the end"),
        (["eval.early_stopping={}", *OFTEN], "option 'patience' is needed"),
        (["train.metric_for_best_model=wer"], "train.metric_for_best_model: nothing measures 'wer'"),
        (
            [ANSWER[0], "train.metric_for_best_model=wer", "train.greater_is_better=true"],
            "train.greater_is_better: of 'wer' the lower value is the better one",
        ),
        (["train.greater_is_better=true"], "train.greater_is_better: of a loss the lower value is the better one"),
    ],
)
def test_a_fault_in_what_is_evaluated_is_named(two_tasks, overrides, message):
    with pytest.raises((SpecError, ComponentError), match=message):
        read_run(two_tasks, *overrides)


def test_the_best_model_of_a_task_that_no_row_has_is_refused(two_tasks):
    best = [ANSWER[0], *OFTEN, "train.metric_for_best_model=wer_s2tt"]
    with pytest.raises(SpecError, match="no held-out row has the task 's2tt'; tasks: aac, asr"):
        train(asked(two_tasks, *best))


def test_a_run_with_an_evaluation_reads_back(two_tasks):
    run = asked(two_tasks, *ANSWER, "train.metric_for_best_model=wer_asr", *OFTEN)
    (two_tasks.parent / "again.yaml").write_text(run.to_yaml())
    assert read_run(two_tasks.parent / "again.yaml").eval == run.eval


def test_two_of_one_metric_have_names_of_their_own():
    tree = {"generate": {"metrics": {"wer": None, "wer_basic": {"type": "wer", "normalizer": "basic"}}}}
    found = held_out.metrics(held_out.evaluation(tree).generate)
    assert [metric.config.normalizer for metric in found.values()] == ["none", "basic"]
    assert held_out.measured_by("eval_wer_basic", found) is found["wer_basic"]
    assert held_out.measured_by("wer_asr", found) is found["wer"]


# Does it listen?


def sample(name, task, count):
    blocks = [{"type": "audio", "audio": f"{name}{i}.wav"} for i in range(count)]
    question = {"role": "user", "content": [*blocks, {"type": "text", "text": "what?"}]}
    return Sample(name, (question, {"role": "assistant", "content": "that"}), task)


def test_every_sample_hears_other_samples_and_every_clip_is_heard_once():
    samples = [sample(f"s{i}", "ab"[i % 2], count) for i, count in enumerate([1, 2, 0, 1, 3, 1, 1, 2])]
    others = deranged(samples)
    before = [[clip["audio"] for clip in clips(one)] for one in samples]
    after = [[clip["audio"] for clip in clips(one)] for one in others]
    assert [len(own) for own in after] == [len(own) for own in before]
    assert not any(set(a) & set(b) for a, b in zip(before, after, strict=True))
    assert sorted(chain(*before)) == sorted(chain(*after))
    assert [one.messages[0]["content"][-1] for one in others] == [one.messages[0]["content"][-1] for one in samples]
    assert deranged(samples) == others


def test_most_samples_hear_others_of_their_task():
    samples = [sample(f"{'ab'[i % 2]}{i}", "ab"[i % 2], 1) for i in range(20)]
    same = [clips(b)[0]["audio"][0] == a.task for a, b in zip(samples, deranged(samples), strict=True)]
    assert sum(same) == 18


def test_without_another_clip_nothing_can_be_swapped():
    assert deranged([sample("a", None, 0)]) == "no sample has audio"
    assert deranged([sample("a", None, 2), sample("b", None, 1)]) == "too few samples have audio to give each another's"


def hearing(tmp_path, answers):
    """A run over eight low and eight high tones."""
    rows = []
    for i in range(16):
        tone = 0.3 * np.sin(2 * np.pi * (220, 2500)[i % 2] * np.arange(8000) / 16000) + 0.01 * noise(0.5, seed=i)
        soundfile.write(tmp_path / f"{i}.wav", tone, 16000)
        rows.append({"audio": f"{i}.wav", "task": "asr", "answer": answers[i % 2]})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "run.yaml").write_text(
        "model: tiny\ndata: {train: train.jsonl, eval: train.jsonl}\n"
        f"train:\n  output_dir: {tmp_path}/out\n  max_steps: 60\n  per_device_train_batch_size: 8\n"
        "  learning_rate: 1e-2\n  use_cpu: true\n  save_strategy: 'no'\n  disable_tqdm: true\n"
    )
    return tmp_path / "run.yaml"


def test_a_model_that_listens_suffers_from_other_audio(tmp_path, warnings):
    (found,) = evaluations(train(read_run(hearing(tmp_path, ["low", "high"]), *SMALL)))
    assert found["eval_audio_gap"] > 0.3
    assert found["eval_audio_gap"] == pytest.approx(found["eval_loss_shuffled_audio"] - found["eval_loss"])
    assert "hardly listens" not in warnings.text


def test_a_model_that_does_not_listen_is_told_of(tmp_path, warnings):
    (found,) = evaluations(train(read_run(hearing(tmp_path, ["a tone", "a tone"]), *SMALL, "train.max_steps=3")))
    assert abs(found["eval_audio_gap"]) < 0.01 * found["eval_loss"]
    assert "step 3: the model hardly listens" in warnings.text


def test_text_alone_has_no_canary(two_tasks, warnings):
    rows = [{"prompt": "say a", "answer": "a"}, {"prompt": "say b", "answer": "b"}]
    (two_tasks.parent / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (found,) = evaluations(train(asked(two_tasks)))
    assert "eval_audio_gap" not in found
    assert "eval.canary: skipped, for no sample has audio" in warnings.text


def test_the_canary_may_be_left_out(two_tasks):
    (found,) = evaluations(train(asked(two_tasks, "eval.canary=false")))
    assert "eval_audio_gap" not in found


def test_from_python_an_evaluation_is_the_losses(two_tasks):
    assert "eval_audio_gap" not in trainer(two_tasks).evaluate()
    assert "eval_audio_gap" in trainer(two_tasks, Evaluation()).evaluate()
