"""What a run does with rows that cannot be learned from: it stops, or says which it skipped."""

import json

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise
from short_runs import SMALL, logged
from transformers import TrainingArguments

from usam import UsamProcessor, build_model, load_spec
from usam.data.collate import Collator
from usam.data.manifest import Manifest, ManifestError
from usam.processor.audio import AudioError
from usam.training.resuming import IncompleteRun
from usam.training.rows import fitting, tokens
from usam.training.run import read_run
from usam.training.start import train
from usam.training.trainer import UsamTrainer

SKIP = ["data.bad_audio=skip", "data.bad_share=0.5"]


def rows(folder):
    file = folder / "skipped.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def steps(folder):
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


def break_off(file):
    file.write_bytes(file.read_bytes()[:9000])


# Clips that cannot be read


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_cannot_be_read_stops_the_run_and_names_its_row(run_file, workers):
    break_off(run_file.parent / "3.wav")
    with pytest.raises(AudioError, match=r"^\S+train.jsonl:4: \S+3.wav: truncated.*again$"):
        train(read_run(run_file, *SMALL, "data.eval=null", f"train.dataloader_num_workers={workers}"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_read_gives_its_place_to_the_next(run_file, workers):
    break_off(run_file.parent / "3.wav")
    workers = f"train.dataloader_num_workers={workers}"
    folder = train(read_run(run_file, *SMALL, *SKIP, "data.eval=null", workers))
    assert steps(folder) == 4
    (row,) = rows(folder)
    assert row["row"].endswith("train.jsonl:4")
    assert row["instead"].endswith("train.jsonl:5")
    assert "3.wav: truncated" in row["why"]


def test_a_batch_that_loses_all_its_clips_is_filled_with_others(run_file):
    for i in range(4):
        (run_file.parent / f"{i}.wav").unlink()
    run = read_run(run_file, *SMALL)
    data = Manifest(run.data["train"], run.spec.prompts)
    processor = UsamProcessor.from_spec(run.spec)
    batch = Collator(processor, spares=data.samples, share=0.5)([data[i] for i in range(4)])
    expected = Collator(processor)([data[4]] * 4)
    assert torch.equal(batch["input_values"], expected["input_values"])
    assert [row.instead for row in batch["skipped"]] == [data[4].origin] * 10


def test_too_many_rows_that_cannot_be_read_stop_the_run(run_file):
    run = read_run(run_file, *SMALL, "data.bad_audio=skip", "data.bad_share=0.2", "data.eval=null")
    break_off(run_file.parent / "2.wav")
    for second in (6, 3):  # apart from the first, and its neighbour
        break_off(run_file.parent / f"{second}.wav")
        with pytest.raises(
            AudioError, match=r"^[23] of 8 rows cannot be read, more than data.bad_share \(0.2\) allows"
        ):
            train(run)


def test_one_row_in_a_hundred_may_be_skipped_unless_it_is_said_otherwise(run_file):
    break_off(run_file.parent / "3.wav")
    lines = (run_file.parent / "train.jsonl").read_text().splitlines()
    run = read_run(run_file, *SMALL, "data.bad_audio=skip", "data.eval=null", "train.max_steps=25")
    good = [line for i, line in enumerate(lines) if i != 3]
    (run_file.parent / "train.jsonl").write_text("\n".join([*(good * 15)[:99], lines[3]]))
    assert len(rows(train(run))) == 1
    (run_file.parent / "train.jsonl").write_text("\n".join([*(good * 15)[:98], lines[3]]))
    with pytest.raises(AudioError, match="1 of 99 rows cannot be read"):
        train(run, overwrite=True)


def test_what_is_held_out_and_cannot_be_read_is_in_no_evaluation(run_file):
    text = (run_file.parent / "train.jsonl").read_text()
    (run_file.parent / "eval.jsonl").write_text(text.replace("3.wav", "gone.wav"))
    folder = train(read_run(run_file, *SMALL, *SKIP, "data.eval=" + str(run_file.parent / "eval.jsonl")))
    (row,) = rows(folder)
    assert row["row"].endswith("eval.jsonl:4")
    assert row["instead"] is None
    with pytest.raises(AudioError, match=r"gone\.wav"):
        train(read_run(run_file, *SMALL, "data.eval=" + str(run_file.parent / "eval.jsonl")), overwrite=True)


def test_rows_skipped_before_a_stop_are_listed_in_the_end(run_file):
    break_off(run_file.parent / "3.wav")
    run = read_run(run_file, *SMALL, *SKIP, "data.eval=null", "train.num_train_epochs=1", "train.max_steps=2")
    folder = train(run)
    before = rows(folder)
    (folder / "config.json").unlink()
    assert len(before) == 1
    assert rows(train(run, resume=True)) == before


# Rows that are too long


@pytest.fixture
def short(run_file, gpt2):
    """A run with a language model of 20 positions, which the longer rows do not fit."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config.from_pretrained(gpt2)
    config.n_positions = 60
    folder = run_file.parent / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(folder)
    UsamProcessor.from_spec(
        load_spec("tiny", {"llm": {"type": "transformers", "path": gpt2}})
    ).tokenizer.save_pretrained(folder)
    long = json.loads((run_file.parent / "train.jsonl").read_text().splitlines()[-1])
    with (run_file.parent / "train.jsonl").open("a") as lines:
        lines.write("\n" + json.dumps({**long, "answer": "What do you hear? " * 20}))
    return [run_file, SMALL[0], f"model.llm={{type: transformers, path: {folder}, freeze: none}}", "data.eval=null"]


def test_a_row_is_as_many_tokens_as_its_batch(run_file):
    run = read_run(run_file, *SMALL)
    processor = UsamProcessor.from_spec(run.spec)
    for sample in Manifest(run.data["train"], run.spec.prompts).samples:
        batch = Collator(processor)([sample])
        whole, asked = tokens(sample, processor)
        assert whole == batch["input_ids"].shape[1]
        assert asked == int((batch["labels"][0] != -100).nonzero()[0]) + 1


def test_clips_at_other_rates_are_counted_as_they_are_heard(run_file):
    run = read_run(run_file, *SMALL)
    processor = UsamProcessor.from_spec(run.spec)
    for rate, seconds in ((8000, 1.23), (44100, 0.777), (22050, 2.0)):
        soundfile.write(run_file.parent / "0.wav", noise(seconds, rate=rate), rate)
        sample = Manifest(run.data["train"], run.spec.prompts)[0]
        assert tokens(sample, processor)[0] == Collator(processor)([sample])["input_ids"].shape[1]


def test_a_row_that_is_too_long_stops_the_run_before_it_starts(short):
    with pytest.raises(ManifestError, match=r"train.jsonl:9: \d+ tokens, and the language model has 60 positions"):
        train(read_run(*short))
    assert not (short[0].parent / "out" / "checkpoint-2").exists()


def test_rows_that_are_too_long_are_left_out(short):
    folder = train(read_run(*short, "data.too_long=skip"))
    (row,) = rows(folder)
    assert row["row"].endswith("train.jsonl:9")
    assert "60 positions" in row["why"]


def test_an_answer_that_is_too_long_is_cut_and_has_no_end(short):
    run = read_run(*short, "data.too_long=truncate_answer")
    (row,) = rows(train(run))
    assert row["row"].endswith("train.jsonl:9")
    assert "its answer is cut" in row["why"]
    processor = UsamProcessor.from_spec(run.spec)
    sample = Manifest(run.data["train"], run.spec.prompts)[8]
    batch = Collator(processor, context=60, cut=True)([sample])
    whole = Collator(processor)([sample])
    assert batch["input_ids"].shape[1] <= 60
    kept = batch["input_ids"].shape[1]
    assert torch.equal(batch["labels"][0, : kept - 1], whole["labels"][0, : kept - 1])
    assert batch["labels"][0, -1] not in (-100, processor.tokenizer.eos_token_id)


def test_a_row_that_is_too_long_without_its_answer_cannot_be_cut(short):
    soundfile.write(short[0].parent / "0.wav", noise(9.0), 16000)
    with pytest.raises(ManifestError, match=r"train.jsonl:1: .*\n1 of 9 rows are too long even without their answers"):
        train(read_run(*short, "data.too_long=truncate_answer"))


def test_nothing_is_left_of_rows_that_are_all_too_long(run_file):
    run = read_run(run_file, *SMALL)
    data = Manifest(run.data["train"], run.spec.prompts).samples
    with pytest.raises(ManifestError, match="8 of 8 rows are too long"):
        fitting(data, UsamProcessor.from_spec(run.spec), 10, "skip")


# A planned amount of work is done, or it is an error


def trainer(run_file, **arguments):
    run = read_run(run_file, *SMALL)
    data = Manifest(run.data["train"], run.spec.prompts)
    options = {
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 4,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    return UsamTrainer(
        model=build_model(run.spec),
        args=TrainingArguments(str(run_file.parent / "out"), **{**options, **arguments}),
        train_dataset=data,
        eval_dataset=data,
        data_collator=Collator(UsamProcessor.from_spec(run.spec)),
    )


class EndsEarly(Collator):
    """As a `next()` without a default does on what it does not know."""

    def __call__(self, samples):
        if any(sample.origin.endswith(":6") for sample in samples):
            raise StopIteration
        return super().__call__(samples)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_end_early_are_an_error(run_file, workers):
    short = trainer(run_file, per_device_train_batch_size=2, dataloader_num_workers=workers)
    short.data_collator = EndsEarly(short.data_collator.processor)
    with pytest.raises(IncompleteRun, match=r"the data ended at step \d of 4"):
        short.train()


def test_an_evaluation_that_ends_early_is_an_error(run_file):
    short = trainer(run_file, per_device_eval_batch_size=2)
    short.data_collator = EndsEarly(short.data_collator.processor)
    with pytest.raises(IncompleteRun, match="eval: 4 of 8 samples were looked at"):
        short.evaluate()


def test_fewer_rows_than_a_batch_are_an_error_when_they_are_dropped(run_file):
    run = read_run(run_file, *SMALL, "train.dataloader_drop_last=true", "train.per_device_train_batch_size=9")
    with pytest.raises(IncompleteRun, match="no step would be made: 8 rows are fewer than a batch of 9"):
        train(run)
    assert not (run_file.parent / "out" / "config.json").exists()


def test_every_sample_is_evaluated_also_where_training_drops_the_last(run_file):
    every = trainer(run_file, dataloader_drop_last=True, per_device_eval_batch_size=3).evaluate()
    assert every["eval_loss"] == pytest.approx(trainer(run_file, per_device_eval_batch_size=3).evaluate()["eval_loss"])


def test_evaluation_gives_the_unweighted_parts_of_the_loss(run_file):
    losses = "model.losses={cross_entropy: {weight: 0.5}, semantic_contrastive: {weight: 0.1}}"
    folder = train(read_run(run_file, *SMALL, losses, "train.per_device_eval_batch_size=3"))
    (found,) = [line for line in logged(folder) if "eval_loss" in line]
    parts = 0.5 * found["eval_loss_cross_entropy"] + 0.1 * found["eval_loss_semantic_contrastive"]
    assert found["eval_loss"] == pytest.approx(parts, rel=1e-5)
    assert np.isfinite(parts)
