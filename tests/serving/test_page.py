"""`usam web` as its visitors meet it: a question in, an answer and figures out, and nothing else of the server."""

import importlib.util
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import noise
from heard_models import BAD, save_model

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed: pip install 'usam[web]'", allow_module_level=True)

from visitors import Visitor, sound

from usam.generate import Answerer
from usam.serving.page import served
from usam.serving.page_answers import Limits, Listener
from usam.serving.page_door import SPEECH, sweep

ASKED = "Transcribe this audio."
LIMITS = Limits(seconds=5, clips=2, megabytes=9, tokens=4)


@pytest.fixture(scope="module")
def listeners(tmp_path_factory):
    folders = [save_model(tmp_path_factory.mktemp("model"), seed) for seed in (0, 1)]
    return [Listener(f"model {i}", Answerer.load(folder), LIMITS) for i, folder in enumerate(folders)]


@pytest.fixture(scope="module")
def url(listeners):
    with served(listeners, queue=1, with_examples=False) as address:
        yield address
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert any(uploads.iterdir())
    assert not uploads.exists()  # what visitors gave is gone
    assert "GRADIO_TEMP_DIR" not in os.environ


@pytest.fixture
def visitor(url):
    return Visitor(url)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    file = tmp_path_factory.mktemp("clip") / "a.wav"
    soundfile.write(file, noise(1.2), 16000)
    return file.read_bytes()


@pytest.fixture(scope="module")
def expected(listeners, clip):
    asked = [listener.answerer.ask(clip, task="asr") for listener in listeners]
    return [next(one.answerer.answer([chat], max_new_tokens=4)) for one, chat in zip(listeners, asked, strict=True)]


def test_an_answer_comes_with_its_figures_and_its_time(visitor, clip, expected):
    text, message, timing, figures = visitor.ask("model 0", ASKED, sound(visitor.upload("a.wav", clip)), None)
    assert text == expected[0]
    assert "cut off at 4 tokens" in message
    assert "1.20 s" in timing
    assert figures.count("<svg") == 2
    assert "kept" in figures
    assert "model 0" in figures or "expert" in figures


def test_two_models_are_asked_the_same(visitor, clip, expected):
    shown = visitor.ask("model 0", "model 1", ASKED, sound(visitor.upload("a.wav", clip)), None)
    assert [shown[0], shown[4]] == expected
    ids = [part.split('"')[0] for figures in (shown[3], shown[7]) for part in figures.split(' id="')[1:]]
    assert len(ids) == len(set(ids)) > 0


def test_a_bad_clip_is_a_sentence_and_the_next_question_is_answered(visitor, clip, expected, tmp_path):
    for write, says in (BAD["text"], BAD["2 GB"]):
        write(tmp_path / "given.wav")
        bad = visitor.upload("given.wav", (tmp_path / "given.wav").read_bytes())
        text, message, *_ = visitor.ask("model 0", ASKED, sound(bad), None)
        assert text == ""
        assert 'role="alert"' in message
        assert says in message
    good = visitor.ask("model 0", ASKED, sound(visitor.upload("a.wav", clip)), None)
    assert good[0] == expected[0]


def test_a_name_is_no_markup(visitor):
    bad = visitor.upload("<b>bold</b>.wav", b"no sound")
    _, message, *_ = visitor.ask("model 0", "<i>what</i>", sound(bad), None)
    assert "not audio" in message
    assert "<b>" not in message


def test_a_file_that_is_too_large_is_not_taken(visitor):
    assert visitor.upload("a.wav", bytes(9_000_001)).status_code == 413
    assert visitor.upload("a.wav", bytes(12_000_000)).status_code == 413


def test_a_question_that_is_too_large_is_not_taken(visitor):
    assert visitor.join(["model 0", "a" * SPEECH, None, None]).status_code == 413


def test_no_file_of_the_server_is_read_on_a_visitors_word(visitor, tmp_path):
    soundfile.write(tmp_path / "secret.wav", np.zeros(1600), 16000)
    assert visitor.http.get(f"gradio_api/file={tmp_path}/secret.wav").status_code == 403
    assert visitor.ask("model 0", ASKED, sound(str(tmp_path / "secret.wav")), None) is None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_no_address_is_fetched_on_a_visitors_word(visitor, place):
    data = ["model 0", ASKED, None, None]
    data[place] = sound("http://127.0.0.1:9/a.wav")
    assert visitor.join(data).status_code == 400
    assert visitor.http.get("gradio_api/file=http://127.0.0.1:9/a.wav").status_code == 404


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b'{"data": "a"}', b"[]"])
def test_what_is_no_question_has_a_status_of_its_own(visitor, body):
    answer = visitor.http.post("gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500


@pytest.mark.parametrize("path", ["monitoring", "gradio_api/runs", "gradio_api/vibe-code", "docs", "openapi.json"])
def test_what_the_page_does_not_need_is_not_there(visitor, path):
    assert visitor.http.get(path).status_code == 404


def test_a_model_is_one_of_those_named_at_the_start(visitor, clip, tmp_path):
    file = sound(visitor.upload("a.wav", clip))
    assert visitor.ask(str(tmp_path), ASKED, file, None) is None


def test_browsers_are_told_to_ask_nobody_else(visitor):
    answer = visitor.http.get("")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis" not in answer.text + visitor.http.get("theme.css").text


def test_questions_beyond_the_queue_are_refused(visitor, url, clip):
    question = ["model 0", ASKED, sound(visitor.upload("a.wav", clip)), None]
    statuses = [visitor.join(question).status_code for _ in range(6)]
    assert set(statuses) == {200, 503}
    assert Visitor(url).http.get("").status_code == 200


def test_a_port_that_is_taken_is_named(listeners):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be listened to"),
            served(listeners, port=port, with_examples=False),
        ):
            pass


def test_files_are_removed_when_they_are_old(tmp_path):
    for name, age in (("old", 4000), ("new", 10)):
        (tmp_path / name).write_text("")
        then = os.stat(tmp_path / name).st_mtime - age
        os.utime(tmp_path / name, (then, then))
    sweep(tmp_path, 3600)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_uploads_wait_for_room(visitor, clip, monkeypatch):
    monkeypatch.setattr("usam.serving.page_door.FULL", -1)
    assert visitor.upload("a.wav", clip).status_code == 507
