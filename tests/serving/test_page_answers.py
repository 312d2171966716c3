"""What a visitor asks: answered in pieces, looked at, or refused in a sentence."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import noise
from heard_models import BAD, save_model

from usam.generate import Answerer
from usam.serving.page_answers import OWN_WORDS, Known, Limits, Listener

ASKED = "Transcribe this audio."


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    answerer = Answerer.load(save_model(tmp_path_factory.mktemp("model")))
    return Listener("tiny", answerer, Limits(seconds=5, clips=2, megabytes=9, tokens=8))


@pytest.fixture
def clip(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.2), 16000)
    return str(tmp_path / "a.wav")


def last(listener, files, prompt=ASKED):
    return list(listener.told(files, prompt))[-1]


def test_pieces_add_up_to_the_models_answer(listener, clip):
    told = list(listener.told([clip], ASKED))
    answerer = listener.answerer
    expected = next(answerer.answer([answerer.ask(clip, task="asr")], max_new_tokens=8))
    assert told[-1].text == expected
    assert len(told) > 2
    assert all(expected.startswith(one.text) for one in told)


def test_an_answer_has_its_time_and_its_length(listener, clip):
    told = last(listener, [clip])
    assert told.timing.audio == pytest.approx(1.2)
    assert told.timing.tokens == 8
    assert 0 < told.timing.first <= told.timing.total
    assert told.notes == ("The answer was cut off at 8 tokens.",)


def test_the_models_look_at_a_clip_comes_last(listener, clip):
    (look,) = last(listener, [clip]).looks
    assert (look.name, look.task, look.own) == ("clip", "asr", True)
    assert look.wave == pytest.approx(soundfile.read(clip, dtype="float32")[0])
    assert [routed.stage for routed in look.routed] == ["0"]
    assert [scored.loss for scored in look.scored] == ["semantic_contrastive"]


def test_each_of_several_clips_is_looked_at(listener, clip, tmp_path):
    soundfile.write(tmp_path / "b.flac", noise(0.7, seed=1), 16000)
    told = last(listener, [clip, None, str(tmp_path / "b.flac")], "Which is louder, <audio> or <audio>?")
    assert [look.name for look in told.looks] == ["clip 1", "clip 2"]
    assert {look.task for look in told.looks} == {OWN_WORDS}
    assert [len(look.wave) for look in told.looks] == [19200, 11200]
    for look in told.looks:
        assert len(look.scored[0].scores) == pytest.approx(len(look.wave) / 16000 * look.scored[0].rate, abs=1.5)
    assert told.timing.audio == pytest.approx(1.9)


def test_what_is_known_of_an_example_stands_beside_its_answer(listener, clip):
    content = Path(clip).read_bytes()
    events = [{"name": "dog", "onset": 0.1, "offset": 0.5}]
    known = {hashlib.sha256(content).hexdigest(): Known(("a dog barks",), events)}
    told = last(Listener("tiny", listener.answerer, listener.limits, known), [clip])
    assert told.reference == "a dog barks"
    assert told.looks[0].events == events


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_clip_is_refused_in_a_sentence(listener, clip, tmp_path, kind):
    write, says = BAD[kind]
    file = tmp_path / "given.bin"
    write(file)
    told = last(listener, [str(file)])
    assert told.fault.startswith("given.bin: ")
    assert says in told.fault
    assert str(tmp_path) not in told.fault
    assert "\n" not in told.fault
    assert last(listener, [clip]).fault == ""  # the next question is answered


def test_what_is_too_large_is_not_read(listener, tmp_path):
    file = tmp_path / "large.wav"
    soundfile.write(file, np.zeros(5_000_000, np.int16), 8000)
    assert last(listener, [str(file)]).fault == "large.wav: is larger than 9 MB."


@pytest.mark.parametrize(
    ("files", "prompt", "says"),
    [
        (0, ASKED, "Give a clip first"),
        (1, "  ", "Choose a task"),
        (1, "a" * 2001, "2,001 characters; at most 2,000"),
        (3, ASKED, "These are 3 clips; at most 2"),
        (1, "Is <audio> louder than <audio>?", "<audio> 2 times, and clips are 1"),
        (2, "Is <audio> loud?", "<audio> 1 times, and clips are 2"),
    ],
)
def test_what_is_no_question_is_refused_in_a_sentence(listener, clip, files, prompt, says):
    assert says in last(listener, [clip] * files, prompt).fault


def test_a_clip_that_was_removed_meanwhile_is_asked_for_again(listener, tmp_path):
    assert last(listener, [str(tmp_path / "gone.wav")]).fault == "gone.wav: is no longer here; give it again."


class Broken(Answerer):
    """Fails in a way that no visitor can mend."""

    def stream(self, chat, **kwargs):
        raise TypeError("ours")


def test_a_fault_of_ours_is_told_without_its_words_and_printed(listener, clip, capsys):
    broken = Broken(listener.answerer.model, listener.answerer.processor)
    told = last(Listener("tiny", broken, listener.limits), [clip])
    assert told.fault.startswith("This failed on the server")
    assert "TypeError: ours" in capsys.readouterr().err


def test_answers_at_once_are_those_of_one_after_the_other(listener, clip, tmp_path):
    soundfile.write(tmp_path / "b.wav", noise(0.7, seed=1), 16000)
    files = [clip, str(tmp_path / "b.wav")] * 2
    alone = [last(listener, [file]) for file in files]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda file: last(listener, [file]), files))
    for one, other in zip(alone, at_once, strict=True):
        assert one.text == other.text
        assert one.looks[0].routed[0].weights == pytest.approx(other.looks[0].routed[0].weights, abs=1e-5)


def test_who_leaves_ends_the_generation(listener, clip):
    told = listener.told([clip], ASKED)
    next(told)
    told.close()
    assert last(listener, [clip]).timing is not None
