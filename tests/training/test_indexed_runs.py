"""A run over manifests that are indexed learns what it learns from those that are held, and measures them once."""

import json

import numpy as np
import pytest
import soundfile
from conftest import noise
from short_runs import SMALL, logged

from usam import SpecError, UsamProcessor
from usam.data.manifest import Indexed, Manifest
from usam.processor.audio import AudioError
from usam.training.rows import measured
from usam.training.run import read_run
from usam.training.start import train


@pytest.fixture
def indexed(monkeypatch):
    """Manifests of more than four rows are indexed."""
    monkeypatch.setattr("usam.data.manifest.SMALL", 4)


def opened(run_file):
    run = read_run(run_file, *SMALL)
    manifest = Manifest(run.data["train"], run.spec.prompts)
    assert [type(part) for part in manifest.parts] == [Indexed]
    return manifest, UsamProcessor.from_spec(run.spec)


def skipped(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def double(file):
    """Write a clip anew, twice as long."""
    soundfile.write(file, noise(2 * soundfile.info(str(file)).duration), 16000)


# Lengths are kept


def test_rows_that_were_measured_are_not_measured_again(run_file, indexed):
    first = measured(*opened(run_file))
    for i in range(8):
        double(run_file.parent / f"{i}.wav")
    assert np.array_equal(measured(*opened(run_file)), first)


def test_lengths_are_those_of_a_manifest_that_is_held(run_file, monkeypatch):
    run = read_run(run_file, *SMALL)
    held = measured(Manifest(run.data["train"], run.spec.prompts), UsamProcessor.from_spec(run.spec))
    monkeypatch.setattr("usam.data.manifest.SMALL", 4)
    manifest, processor = opened(run_file)
    assert np.array_equal(measured(manifest, processor), held)
    assert np.array_equal(measured(manifest.select([5, 2]), processor), held[[5, 2]])


def test_some_rows_are_measured_alone_and_kept(run_file, indexed):
    manifest, processor = opened(run_file)
    some = measured(manifest.select([1, 6]), processor)
    for i in range(8):
        double(run_file.parent / f"{i}.wav")
    every = measured(manifest, processor)
    assert np.array_equal(every[[1, 6]], some)
    assert every["seconds"][0] == pytest.approx(1.0)  # twice 0.5


def test_another_template_measures_anew(run_file, indexed):
    manifest, processor = opened(run_file)
    before = measured(manifest, processor)
    processor.template = "Listen well: {audio} {prompt} {answer}"
    assert (measured(manifest, processor)["tokens"] != before["tokens"]).all()


def test_another_prompt_measures_anew(run_file, indexed):
    manifest, processor = opened(run_file)
    before = measured(manifest, processor)
    longer = {task: f"{prompt} Now." for task, prompt in processor.prompts.items()}
    changed = Manifest(manifest.parts[0].path, longer)
    assert (measured(changed, processor)["tokens"] > before["tokens"]).all()


def test_a_row_that_could_not_be_read_is_measured_when_it_can_be(run_file, indexed):
    clip = run_file.parent / "3.wav"
    clip.rename(run_file.parent / "elsewhere")
    assert measured(*opened(run_file))["tokens"].astype(bool).tolist() == [True] * 3 + [False] + [True] * 4
    (run_file.parent / "elsewhere").rename(clip)
    assert measured(*opened(run_file))["tokens"].all()


def test_lengths_with_a_wrong_byte_are_measured_anew(run_file, indexed):
    first = measured(*opened(run_file))
    (kept,) = (run_file.parent / ".train.jsonl.usam").glob("lengths-*")
    data = bytearray(kept.read_bytes())
    data[-20] ^= 255
    kept.write_bytes(data)
    assert np.array_equal(measured(*opened(run_file)), first)


# Runs


@pytest.mark.parametrize("more", [[], ["data.batch_seconds=3"], ["train.train_sampling_strategy=group_by_length"]])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_is_the_same_whether_its_manifest_is_held_or_indexed(run_file, monkeypatch, more, workers):
    more = [*SMALL, *more, f"train.dataloader_num_workers={workers}"]
    held = logged(train(read_run(run_file, *more)))
    monkeypatch.setattr("usam.data.manifest.SMALL", 4)
    indexed = logged(train(read_run(run_file, *more), overwrite=True))
    assert (run_file.parent / ".train.jsonl.usam" / "index").is_file()
    assert indexed == held


@pytest.mark.parametrize("budget", [[], ["data.batch_seconds=3"]])
def test_rows_are_replaced_by_others_of_the_index(run_file, indexed, budget):
    (run_file.parent / "3.wav").write_bytes((run_file.parent / "3.wav").read_bytes()[:9000])
    share = ["data.bad_audio=skip", "data.bad_share=0.5", "data.eval=null"]
    (row,) = skipped(train(read_run(run_file, *SMALL, *share, *budget)))
    assert row["row"].endswith("train.jsonl:4")
    assert row["instead"].rpartition(":")[2] == ("3" if budget else "5")  # the next shorter one, or the next
    with pytest.raises(AudioError, match="1 of 8 rows cannot be read"):
        train(read_run(run_file, *SMALL, *share[:1], *share[2:], *budget), overwrite=True)


def test_a_manifest_that_changed_between_stop_and_resume_is_refused(run_file, indexed):
    run = read_run(run_file, *SMALL, "train.save_steps=1", "train.max_steps=2")
    folder = train(run)
    (folder / "config.json").unlink()
    lines = (run_file.parent / "train.jsonl").read_text().splitlines()
    (run_file.parent / "train.jsonl").write_text("\n".join([*lines[1:], lines[0]]))
    with pytest.raises(SpecError, match=r"data.train: the checkpoint was made with .*, and now it is"):
        train(run, resume=True)
