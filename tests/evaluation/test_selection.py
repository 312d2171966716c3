"""What a loss keeps of a clip, held against what is known to sound: by hand-made cases."""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise

from usam import UsamProcessor, build_model, load_spec, losses
from usam.data.manifest import Manifest, ManifestError
from usam.evaluation.selection import Choice, Kept, dealt, listen, measured, measured_by_task, spans
from usam.types import LossOutput

RATE = 16000


@losses.register("toy_keeper")
class Keeper(losses.Loss):
    """Keeps the audio tokens whose places stand in a row's column `x_keep`."""

    def forward(self, inputs):
        kept = torch.zeros(inputs.audio.mask.shape)
        for row, extra in zip(kept, inputs.batch["extra"], strict=True):
            row[extra["x_keep"]] = 1
        return LossOutput(self.nothing(inputs), {"kept": kept})


# When a token listens


def test_a_token_listens_from_its_first_frame_to_that_of_the_next():
    found = spans(load_spec("tiny"), round(0.2 * RATE))  # 50 frames a second, four to a token
    np.testing.assert_allclose(found, [[0, 0.08], [0.08, 0.16], [0.16, 0.2]], atol=1e-9)


def test_the_tokens_of_a_window_listen_together():
    spec = load_spec("mini_paper")  # windows of 0.32 s, four tokens each
    found = spans(spec, spec.sample_rate // 2)
    np.testing.assert_allclose(found, [[0, 0.32]] * 4 + [[0.32, 0.5]] * 4, atol=1e-9)


def test_windows_that_overlap_count_up_to_the_next_one():
    spec = load_spec("mini_paper", "projector.0.stride=0.16", "projector.0.queries=1")
    found = spans(spec, spec.sample_rate // 2)
    np.testing.assert_allclose(found, [[0, 0.16], [0.16, 0.32], [0.32, 0.48], [0.48, 0.5]], atol=1e-9)


@pytest.mark.parametrize("samples", [1, 500, 7777, 48000])
def test_there_is_a_stretch_for_each_token(samples):
    for name in ("tiny", "mini_paper"):
        found = spans(load_spec(name), samples)
        assert len(found) == load_spec(name).audio_tokens(samples)
        assert (found[:, 0] < found[:, 1]).all()


def test_tokens_that_do_not_follow_time_have_no_stretch():
    spec = load_spec("tiny", "projector={type: perceiver, latents: 2, dim: 8, heads: 2}")
    with pytest.raises(ValueError, match=r"projector 'perceiver'.*do not follow time"):
        spans(spec, RATE)


# Precision and recall


def row(sounding, kept, energy=None, scores=None, task=None):
    arrays = (np.array(x, float) for x in (sounding, energy or sounding, scores or kept, kept))
    return Kept("rows.jsonl:1", task, *arrays)


A = row([1, 1, 0, 0], kept=[1, 0, 1, 0], energy=[0.1, 0.9, 0.5, 0.2], scores=[0.9, 0.4, 0.8, 0.1])


def test_a_row_by_hand():
    found = measured([A])
    assert (found.sounding, found.keep_rate, found.single) == (0.5, 0.5, 0)
    assert found.kept == Choice(0.5, 0.5)  # one of two kept sounds, one of two that sound is kept
    assert found.random == Choice(0.5, 0.5)
    assert found.loudest == Choice(0.5, 0.5)  # the second and the third
    assert found.best == Choice(1, 1)


def test_the_order_of_scores_is_asked_without_a_threshold():
    found = measured([A])
    assert found.ranking == 3 / 4  # 0.9 is above 0.8 and 0.1; 0.4 above 0.1 alone
    assert found.ranking_of_energy == 2 / 4


def test_as_many_are_chosen_of_each_row_at_random():
    """Of three tokens of which all sound one is kept, of two of which none sounds both are."""
    found = measured([row([1, 1, 1], kept=[1, 0, 0]), row([0, 0], kept=[1, 1])])
    assert found.random == Choice(pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found.random == found.kept


def test_a_token_that_sounds_for_a_part_counts_for_it():
    found = measured([row([0.25, 0.75], kept=[0, 1])])
    assert found.kept == Choice(0.75, 0.75)
    assert found.best == found.kept


def test_a_row_of_which_one_token_is_kept_is_told():
    assert measured([row([1, 0], kept=[1, 0]), row([1, 0], kept=[1, 1])]).single == 0.5


def test_weights_are_dealt_by_rank():
    assert dealt(np.array([0.2, 0.9, 0.0]), np.array([1.0, 5, 7])).tolist() == [0, 0.2, 0.9]


def test_where_nothing_sounds_there_is_nothing_to_find():
    found = measured([row([0, 0], kept=[1, 0])])
    assert found.kept.precision == 0
    assert math.isnan(found.kept.recall)
    assert math.isnan(found.ranking)


def test_each_task_is_measured_by_itself():
    found = measured_by_task([row([1, 0], kept=[1, 0], task="asr"), row([1, 0], kept=[0, 1], task="aac")])
    assert {task: one.kept.precision for task, one in found.items()} == {"asr": 1, "aac": 0}


# A model's own


@pytest.fixture(scope="module")
def listener():
    """A model whose tokens of 80 ms are kept as rows say, and its processor."""
    model = build_model("tiny", "llm.dim=16", "llm.layers=1", "llm.heads=2", "losses.toy_keeper={}", seed=0)
    return model, UsamProcessor.from_spec(model.config.parsed)


def write(folder, *rows):
    """Rows of clips, each silent but for a noise from 80 to 160 ms, of which `meta` tells unless it is given."""
    for i, given in enumerate(rows):
        for name, seconds in given.pop("clips").items():
            wave = np.zeros(round(seconds * RATE), np.float32)
            wave[1280:2560] = noise(0.08, seed=i)
            soundfile.write(folder / name, wave, RATE)
            given["audio"] = [*given.get("audio", []), name]
        given |= {"task": "asr", "answer": "a", **given}
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(given) + "\n" for given in rows))
    return Manifest(file, {"asr": "Transcribe."})


def event(**more):
    return {"name": "dog", "onset": 0.08, "offset": 0.16, **more}


def test_what_a_loss_keeps_is_found_at_its_place_in_rows_of_any_length(listener, tmp_path):
    rows = write(
        tmp_path,
        {"clips": {"a.wav": 0.24}, "x_keep": [1], "meta": {"events": [event()]}},
        {"clips": {"b.wav": 0.4}, "x_keep": [0, 1], "meta": {"events": [event()]}},
    )
    first, second = listen(*listener, rows)
    assert (first.sounding.tolist(), first.kept.tolist()) == ([0, 1, 0], [0, 1, 0])
    assert (second.sounding.tolist(), second.kept.tolist()) == ([0, 1, 0, 0, 0], [1, 1, 0, 0, 0])
    found = measured([first, second])
    assert found.kept == Choice(pytest.approx(2 / 3), 1)
    assert first.energy.argmax() == second.energy.argmax() == 1


def test_clips_of_a_row_stand_one_after_the_other(listener, tmp_path):
    rows = write(
        tmp_path,
        {"clips": {"a.wav": 0.16, "b.wav": 0.24}, "x_keep": [3], "meta": {"events": [event(clip=1)]}},
    )
    (found,) = listen(*listener, rows)
    assert found.sounding.tolist() == [0, 0, 0, 1, 0]  # the noise of the first clip is not told of
    assert found.kept.tolist() == [0, 0, 0, 1, 0]
    assert (found.energy > 0).tolist() == [False, True, False, True, False]


def test_the_strokes_of_a_thing_count_and_not_the_pauses(listener, tmp_path):
    clock = {"name": "clock", "onset": 0.0, "offset": 0.24, "spans": [[0, 0.04], [0.16, 0.24]]}
    (found,) = listen(*listener, write(tmp_path, {"clips": {"a.wav": 0.24}, "x_keep": [], "meta": {"events": [clock]}}))
    np.testing.assert_allclose(found.sounding, [0.5, 0, 1])


def test_a_contrast_that_keeps_all_has_the_precision_of_chance(tmp_path):
    spec = ["llm.dim=16", "llm.layers=1", "llm.heads=2", "losses.semantic_contrastive.threshold=1e-6"]
    model = build_model("tiny", *spec, seed=0).train()
    rows = write(tmp_path, *({"clips": {f"{i}.wav": 0.32}, "meta": {"events": [event()]}, "answer": i} for i in "ab"))
    found = measured(listen(model, UsamProcessor.from_spec(model.config.parsed), rows, batch_size=2))
    assert found.keep_rate == 1
    assert found.kept == found.random == found.loudest == Choice(0.25, 1)
    assert model.training  # as it was


def test_rows_without_audio_are_none(listener, tmp_path):
    rows = Manifest.of([{"prompt": "Say a.", "answer": "a"}])
    assert listen(*listener, rows) == []
    with pytest.raises(ValueError, match="no row has audio"):
        measured([])


def test_a_model_whose_losses_keep_nothing_is_refused(tmp_path):
    model = build_model("tiny", "llm.dim=16", "llm.layers=1", "llm.heads=2", seed=0)
    rows = write(tmp_path, {"clips": {"a.wav": 0.2}, "meta": {"events": [event()]}})
    with pytest.raises(ValueError, match=r"no loss of this model keeps tokens.*semantic_contrastive"):
        listen(model, UsamProcessor.from_spec(model.config.parsed), rows)


def test_a_loss_that_keeps_nothing_is_not_taken_for_another(listener, tmp_path):
    rows = write(tmp_path, {"clips": {"a.wav": 0.2}, "x_keep": [0], "meta": {"events": [event()]}})
    with pytest.raises(ValueError, match=r"no loss 'keeper' keeps tokens.*toy_keeper"):
        listen(*listener, rows, loss="keeper")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta": {"seconds": 1}}, r"rows\.jsonl:1: its meta has no list of 'events'"),
        (
            {"meta": {"events": [{"name": "dog", "onset": 0.1}]}},
            r"rows\.jsonl:1: .*no event with an onset",
        ),
        ({"meta": {"events": [event(clip=1)]}}, r"rows\.jsonl:1: an event is of clip 1; the row has clips 0 to 0"),
        (
            {"clips": {"a.wav": 0.2, "b.wav": 0.2}, "meta": {"events": [event()]}},
            "each event says of which",
        ),
    ],
)
def test_a_row_that_does_not_say_when_something_sounds_is_named(listener, tmp_path, changes, message):
    rows = write(tmp_path, {"clips": {"a.wav": 0.2}, "x_keep": [], **changes})
    with pytest.raises(ManifestError, match=message):
        listen(*listener, rows)
