"""What a report draws of a model's look at clips, and of the data that a run learns from."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import noise
from small_runs import Page, write_log

from usam import UsamProcessor, build_model
from usam.data.collate import Collator
from usam.data.sampling import LENGTH
from usam.generate import Answerer
from usam.readers import Sample
from usam.report.clips import Look, Looked, Routed, Scored, look, routers, seen, selection, spectrogram, unscored
from usam.report.lengths import Split, batches_of, padded
from usam.report.reading import find
from usam.report.write import write_report
from usam.training.run import Run

SPEC = {
    "base": "tiny",
    "encoders": {
        "whisper": {
            "arch": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
                     "num_mel_bins": 80, "max_source_positions": 50},
        }
    },
    "projector": [{"type": "moe", "experts": 2, "hidden": 4, "router": "audio", "top_k": 1},
                  {"type": "linear", "stack": 4}, {"type": "moe", "experts": 3, "hidden": 4}],
    "llm": {"dim": 16, "layers": 1, "heads": 2},
    "losses": {"cross_entropy": {}, "semantic_contrastive": {"hidden": 4}},
    "prompts": {"asr": "Transcribe this audio.", "aac": "Describe the sounds."},
}  # fmt: skip
EVENTS = [{"name": "dog", "onset": 0.0, "offset": 0.5, "spans": [[0.0, 0.25], [0.3, 0.5]]}]


def write_trained(folder, spec=SPEC):
    """A run as it is saved, though nothing was learned in it."""
    rows = []
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", noise(0.5 + 0.1 * i, seed=i), 16000)
        task = ("asr", "aac")[i % 2]
        rows.append({"audio": f"{i}.wav", "task": task, "answer": "a" * (i + 1), "id": f"clip {i}"})
        rows[-1] |= {"meta": {"events": EVENTS}} if task == "aac" else {}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = write_log(folder / "out", [{"step": 1, "loss": 1.0}])
    model = build_model(spec, seed=0)
    model.save_pretrained(out)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(out)
    data = {"train": str(folder / "rows.jsonl"), "eval": str(folder / "rows.jsonl")}
    train = {"per_device_train_batch_size": 2, "max_steps": 20}
    (out / "run.yaml").write_text(
        yaml.safe_dump({"model": model.config.parsed.to_dict(), "data": data, "train": train})
    )
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def looked(trained):
    (run,) = find([trained]).runs
    return look(run, rows=1)


def test_held_out_rows_of_each_task_are_looked_at(looked):
    assert looked.notes == []
    assert [one.task for one in looked.looks] == ["aac", "asr"]
    assert [len(one.events) for one in looked.looks] == [1, 0]


def test_weights_are_those_that_experts_have(trained, looked):
    answerer = Answerer.load(trained)
    rows = [json.loads(line) for line in (trained.parent / "rows.jsonl").read_text().splitlines()]
    for one in looked.looks:
        frames, prompt = one.routed
        assert (frames.stage, frames.whole, prompt.stage, prompt.whole) == ("0", False, "2", True)
        assert ((frames.weights > 0).sum(1) == 1).all()  # top_k of 1
        assert prompt.weights.sum() == pytest.approx(1)
        row = next(row for row in rows if row["id"] == one.name)
        audio = str(trained.parent / row["audio"])
        chat = answerer.ask(audio, task=one.task)
        batch = answerer.processor.encode([answerer.processor.render(chat, add_generation_prompt=True)])
        with torch.no_grad():
            aux = answerer.model(**batch).aux
        assert prompt.weights[0] == pytest.approx(aux["2.router_probs"][0].numpy(), abs=1e-6)
        assert len(frames.weights) == int(aux["0.router_rows"][0])


def test_scores_are_those_of_the_loss_at_the_audio_tokens_times(trained, looked):
    for one in looked.looks:
        (scored,) = one.scored
        assert scored.loss == "semantic_contrastive"
        assert len(scored.scores) == pytest.approx(len(one.wave) / 16000 * scored.rate, abs=1.5)
        assert scored.kept[scored.scores > 0.5].all()
        assert 1 <= scored.kept.sum() <= len(scored.kept)


def test_each_clip_of_a_row_has_its_own_frames(trained):
    answerer = Answerer.load(trained)
    files = [str(trained.parent / f"{i}.wav") for i in (0, 3)]
    said = {"role": "assistant", "content": "ab"}
    alone = [seen(answerer, [Sample("a", (*answerer.ask(file, task="asr"), said), "asr")])[0] for file in files]
    both = seen(answerer, [Sample("a", (*answerer.ask(files, task="asr"), said), "asr")])
    assert [look.name for look in both] == ["a, clip 1", "a, clip 2"]
    for one, found in zip(alone, both, strict=True):
        assert found.wave == pytest.approx(one.wave)
        assert found.routed[0].weights == pytest.approx(one.routed[0].weights, abs=1e-5)
        assert len(found.scored[0].scores) == len(one.scored[0].scores)
    batch = Collator(answerer.processor)([Sample("a", (*answerer.ask(files, task="asr"), said), "asr")])
    with torch.no_grad():
        aux = answerer.model(**batch).aux
    together = np.concatenate([look.scored[0].scores for look in both])
    assert together == pytest.approx(aux["semantic_contrastive.scores"][0].numpy(), abs=1e-6)


def test_a_clip_of_ones_own_is_asked_under_each_task(trained):
    (run,) = find([trained]).runs
    found = look(run, files=[trained.parent / "0.wav"])
    assert [one.task for one in found.looks] + [note.split(", ")[1].split(":")[0] for note in found.notes] == [
        "aac",
        "asr",
    ]
    assert all(one.own and one.name == "0.wav" for one in found.looks)


def test_a_whole_page_has_every_figure(trained, tmp_path):
    text = write_report([trained], tmp_path / "report.html", rows=1).read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.drawings) == {"losses", "routers", "selection", "data", "padding"}
    assert len(page.drawings["selection"]) == 2
    assert "out, training: 6 rows of 0.5 to 1 s" in page.text
    assert "data:image/png;base64" in text  # a spectrogram is one picture, not thousands of rectangles
    assert len(text) < 600_000


def test_a_model_without_router_and_scores_says_so(tmp_path):
    out = write_trained(
        tmp_path, {**SPEC, "projector": {"type": "linear", "stack": 4}, "losses": {"cross_entropy": {}}}
    )
    page = Page(write_report([out], tmp_path / "r.html").read_text())
    assert "out: it has no router: its projector is linear." in page.text
    assert "out: its projector has no router." in page.text
    assert "out: no loss of it scores frames, as semantic_contrastive does." in page.text


def test_data_that_moved_away_is_said_and_the_rest_drawn(tmp_path):
    out = write_trained(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    page = Page(write_report([out], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "out: its data cannot be read:" in page.text
    assert "out: its model could not look at clips:" in page.text
    assert "losses" in page.drawings


# What is said of a look


def test_kept_frames_are_compared_with_what_sounds():
    scored = Scored("sc", 4.0, np.array([0.9, 0.2, 0.8, 0.1]), np.array([1.0, 0.0, 1.0, 0.0]))
    one = Look(
        "clip", "aac", "a dog", False, noise(1.0), 16000, [{"name": "dog", "onset": 0.0, "offset": 0.25}], (), [scored]
    )
    (panel,) = selection({"run": Looked([one])}).panels
    assert panel.says == (
        "aac, clip: answer “a dog”; scores lie between 0.10 and 0.90, and 2 of 4 frames are kept (50%); something "
        "sounds in 50% of these, and in 25% of all; 100% of those in which something sounds are kept."
    )


def test_frames_that_are_weighed_are_not_called_kept():
    scored = Scored("sc", 4.0, np.array([0.9, 0.2]), np.array([0.9, 0.2]))
    (panel,) = selection({"run": Looked([Look("c", "aac", "a", False, noise(0.5), 16000, (), (), [scored])])}).panels
    assert "nothing is dropped, frames are weighed by their scores" in panel.says


def test_frames_that_follow_no_time_stand_under_no_spectrogram():
    scored = Scored("sc", 0.0, np.array([0.9, 0.2]), np.array([1.0, 0.0]))
    found = selection({"run": Looked([Look("c", "aac", "a", False, noise(0.5), 16000, (), (), [scored])])})
    assert not found.panels
    assert found.missing == ["aac, c: its frames follow no time, so that they stand under no spectrogram."]


def test_a_clip_without_scores_is_drawn_alone():
    events = [{"name": "dog", "onset": 0.1, "offset": 0.2}]
    panel = unscored(Look("c", "aac", "", True, noise(0.5), 16000, events))
    assert "dog" in panel.svg
    assert "score" not in panel.svg


def test_a_router_of_instructions_is_one_bar_a_clip():
    looks = [
        Look(name, task, "", False, noise(0.5), 16000, (), [Routed("1", 10.0, np.array([weights]), True)])
        for name, task, weights in (("a", "asr", [0.9, 0.1]), ("b", "aac", [0.2, 0.8]))
    ]
    found = routers({"run": Looked(looks)})
    assert len(found.panels) == 1
    assert "task asr has expert 0 first, with 0.90; task aac has expert 1 first, with 0.80" in found.panels[0].says


def test_a_router_of_frames_is_followed_through_the_clip():
    weights = np.array([[0.9, 0.1], [0.3, 0.7], [0.9, 0.1]])
    one = Look("a", "asr", "", False, noise(0.5), 16000, (), [Routed("1", 10.0, weights, False)])
    (panel,) = routers({"run": Looked([one])}).panels
    assert (
        "expert 0 weighs most, 0.70 on average and between 0.30 and 0.90; the first place changes 2 times in 3"
        in panel.says
    )


def test_a_tone_is_dark_at_its_own_height():
    wave = np.sin(2 * np.pi * 2000 * np.arange(16000) / 16000).astype(np.float32)
    picture = spectrogram(wave)
    assert picture.max() == 31
    assert (picture.argmax(0)[5:-5] == 2000 * len(picture) // 8000).all()


# Batches


def lengths(*tokens):
    found = np.zeros(len(tokens), LENGTH)
    found["tokens"], found["seconds"], found["clips"], found["rows"] = tokens, np.array(tokens) / 10, 1, 1
    return found


def test_a_batch_is_as_long_as_its_longest_row():
    each, whole = padded(lengths(10, 10, 2, 6), [[0, 1], [2, 3]], "tokens")
    assert each == pytest.approx([0, 1 / 3])
    assert whole == pytest.approx(4 / 32)


@pytest.mark.parametrize(
    ("data", "train", "most"),
    [({}, {}, 0.4), ({}, {"train_sampling_strategy": "group_by_length"}, 0.3), ({"batch_tokens": 400}, {}, 0.1)],
)
def test_batches_are_made_as_the_run_makes_them(data, train, most):
    found = lengths(*range(20, 100))
    run = Run(build_model("tiny", weights=False).config.parsed, data, {"per_device_train_batch_size": 8, **train})
    batches, _ = batches_of(run, Split(found, ("asr",) * 80, 80, 0, None))
    assert sorted(row for batch in batches for row in batch) == list(range(80))
    assert all(len(batch) <= 8 for batch in batches)
    assert padded(found, batches, "tokens")[1] < most
