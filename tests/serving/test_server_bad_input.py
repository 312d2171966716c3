"""What strangers send is answered with the right status, in bounded memory, and the next request is served."""

import base64
import io
import json
import socket
import struct
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from held_out_rows import save_model

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

import httpx
from running import NAME, block, question, running, sound

from usam.serving.server_limits import Limits

CHAT, TRANSCRIPT = "/v1/chat/completions", "/v1/audio/transcriptions"
LIMITS = Limits(body=2**20, seconds=2.0, clips=2, tokens=64, text=1000, messages=8, reading=2.0)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with running(save_model(tmp_path_factory.mktemp("model")), LIMITS) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(autouse=True)
def the_next_request_is_served(client):
    yield
    assert client.post(CHAT, json=question("Hello?", max_tokens=1)).status_code == 200


def refused(response, status=400, param=None, code=None):
    """The error of a response, in the format of OpenAI's API."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"].endswith("_error")
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error


def wave(rate=16000, declared=None, samples=8000):
    """A WAV file whose header says what it is told to."""
    data = bytes(2 * samples)
    size = len(data) if declared is None else declared
    head = (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate % 2**32, 2, 16)
    )
    return head + b"data" + struct.pack("<I", size) + data


def floats(*values):
    """A WAV file of floats."""
    file = io.BytesIO()
    soundfile.write(file, np.array([*values, *[0.0] * 8000], np.float32), 16000, "FLOAT", format="WAV")
    return file.getvalue()


WHERE = "messages.0.content.0.input_audio.data"


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"model": "/etc/passwd"}, 404, "model"),
        ({"model": "\ud800"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"model": 7}, 400, "model"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": 2.1}, 400, "temperature"),
        ({"temperature": 1e-30}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"top_p": 0.5}, 400, "top_p"),
        ({"top_p": 0, "temperature": 1}, 400, "top_p"),
        ({"n": 2}, 400, "n"),
        ({"stop": [""]}, 400, "stop.0"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": 7}, 400, "stop"),
        ({"seed": 0.5}, 400, "seed"),
        ({"seed": 2**70}, 400, "seed"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format.type"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"max_completion_tokens": 3}, 400, "max_tokens"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"generation_config": "{}"}, 400, "generation_config"),
        ({"user": "me"}, 400, "user"),
        ({"x" * 5000: 1}, 400, "x" * 100),
        ({"messages": []}, 400, "messages"),
        ({"messages": "Hello?"}, 400, "messages"),
        ({"messages": [7]}, 400, "messages.0"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 7}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, 400, "messages.0.name"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 9}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 1001}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "<|audio|>"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages"),
    ],
)
def test_a_field_that_is_wrong_or_unknown_is_named(client, given, status, param):
    body = json.dumps({**question("Hello?"), **given})
    refused(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}), status, param)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "audio_url", "audio_url": {"url": "file:///etc/hosts"}},
        {"type": "audio_url", "audio_url": {"url": "http://127.0.0.1:1/a.wav"}},
        {"type": "audio", "path": "/etc/hosts"},
        {"type": "audio", "url": "file:///etc/hosts"},
        {"type": "image_url", "image_url": {"url": "file:///etc/hosts"}},
        {"type": "input_audio", "input_audio": "/etc/hosts"},
        {"type": "input_audio", "input_audio": {"path": "/etc/hosts", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "/etc/hosts", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "/etc/resolv.", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "file:///etc/hosts", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "https://example.org/a.wav", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": {"path": "/etc/hosts"}, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav", "path": "/etc/hosts"}},
        {},
        None,
        [],
    ],
)
def test_nothing_is_fetched_or_read_from_a_disk(client, given):
    error = refused(client.post(CHAT, json=question(given)))
    assert error["param"].startswith("messages.0.content")


def a_clip_that_really_is_there(folder):
    soundfile.write(folder / "real.wav", np.zeros(8000, np.float32), 16000)
    return folder / "real.wav"


def test_not_even_a_path_to_sound_is_read(client, tmp_path):
    file = a_clip_that_really_is_there(tmp_path)
    for data in (str(file), file.as_uri()):
        refused(
            client.post(CHAT, json=question({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}))
        )
        refused(client.post(TRANSCRIPT, data={"model": NAME, "file": data}, files={"other": b""}))
        refused(client.post(CHAT, json={**question("Hello?"), "audio": data}), 400, "audio")


@pytest.mark.parametrize(
    ("data", "format", "code"),
    [
        (b"", "wav", "invalid_audio"),
        (b"not sound at all" * 99, "wav", "invalid_audio"),
        (b"RIFF", "wav", "invalid_audio"),
        (b"fLaC" + bytes(99), "flac", "invalid_audio"),
        (wave(samples=0), "wav", "invalid_audio"),
        (wave(declared=2 * 10**9), "wav", "invalid_audio"),
        (wave(declared=2**32 - 37), "wav", "invalid_audio"),
        (wave(rate=1), "wav", "invalid_audio"),
        (wave(rate=0), "wav", "invalid_audio"),
        (wave(rate=2**32 - 1), "wav", "invalid_audio"),
        (wave(rate=2000), "wav", "invalid_sample_rate"),
        (wave(samples=2 * 16000 + 1), "wav", "audio_too_long"),
        (wave(samples=8000)[:-999], "wav", "invalid_audio"),
        (sound(kind="FLAC"), "wav", "wrong_format"),
        (sound(kind="FLAC")[:-999], "flac", "invalid_audio"),
        (floats(float("nan")), "wav", "invalid_audio"),
        (floats(1e30), "wav", "invalid_audio"),
        (b"\x1f\x8b\x08" + bytes(99), "wav", "invalid_audio"),
        (b"\x80\x04\x95cposix\nsystem\n", "wav", "invalid_audio"),
    ],
)
def test_what_is_no_sound_is_said_to_be_none(client, data, format, code):
    refused(client.post(CHAT, json=question(block(data, format))), 400, code=code)
    if code != "wrong_format":
        refused(client.post(TRANSCRIPT, data={"model": NAME}, files={"file": ("a.wav", data)}), 400, code=code)


def test_a_size_that_programs_write_when_they_know_none_is_that_of_what_is_there(client):
    assert client.post(CHAT, json=question(block(wave(declared=2**31)))).status_code == 200


@pytest.mark.parametrize(
    ("text", "format", "param"),
    [
        ("!!!!", "wav", WHERE),
        ("A", "wav", WHERE),
        ("data:audio/wav;base64,AAAA", "wav", WHERE),
        ("ÄÄÄÄ", "wav", WHERE),
        ("AAAA", "m4a", WHERE.replace("data", "format")),
        ("AAAA", 7, WHERE.replace("data", "format")),
    ],
)
def test_what_is_not_base64_or_of_no_known_format_is_named(client, text, format, param):
    given = {"type": "input_audio", "input_audio": {"data": text, "format": format}}
    refused(client.post(CHAT, json=question(given)), 400, param)


def test_clips_are_counted_and_their_time_is_added_up(client):
    refused(client.post(CHAT, json=question(*[block(sound(0.1))] * 3)), 400, code="too_many_clips")
    refused(client.post(CHAT, json=question(*[block(sound(1.5))] * 2)), 400, code="audio_too_long")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe\xfd",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"model": "small", "model": "small"}',
        b'{"temperature": NaN}',
        b'{"temperature": ' + b"9" * 9999 + b"}",
        b"[" + b"{}," * 300_000 + b"{}]",
        json.dumps(question("Hello?", temperature=1.0)).replace("1.0", "1e999").encode(),
    ],
)
def test_what_is_no_json_is_said_to_be_none(client, body):
    refused(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}))


def test_a_form_has_one_file_and_known_fields(client):
    def post(data, files=None):
        return client.post(TRANSCRIPT, data=data, files=files or {"file": ("a.wav", sound())})

    refused(post({}), 400, "model")
    refused(post({"model": "other"}), 404, "model")
    for name, value in [("language", "en"), ("prompt", "Hi"), ("timestamp_granularities[]", "word"), ("x", "y")]:
        refused(post({"model": NAME, name: value}), 400, name)
    for name, value in [("temperature", "nan"), ("temperature", "hot"), ("response_format", "srt"), ("stream", "7")]:
        refused(post({"model": NAME, name: value}), 400, name)
    refused(post({"model": [NAME, NAME]}), 400, "model")
    refused(post({"model": NAME}, {"other": sound()}), 400, "file")
    refused(post({"model": NAME}, [("file", sound()), ("file", sound())]), 400, "file")
    refused(post({"model": NAME}, [("file", sound()), ("more", sound())]), 400, "more")
    refused(post({"model": NAME}, [("file", sound()), ("model", sound())]), 400)
    refused(post({"model": NAME}, [("file", sound())] * 3), 400)
    refused(post({"model": NAME, "stream": "true", "response_format": "text"}), 400, "response_format")


@pytest.mark.parametrize(
    ("kind", "status"),
    [("application/json", 415), ("multipart/form-data", 400), ("multipart/form-data; boundary=a", 400)],
)
def test_what_is_no_form_is_refused(client, kind, status):
    refused(client.post(TRANSCRIPT, content=b"abc", headers={"Content-Type": kind}), status)


def test_only_json_is_read_as_a_chat(client):
    body = json.dumps(question("Hello?"))
    refused(client.post(CHAT, content=body, headers={"Content-Type": "text/plain"}), 415)


def test_there_are_no_other_routes(client):
    for path in ("/", "/v1/completions", "/v1/responses", "/load_model", "/reset", "/v1/audio/translations", "/docs"):
        refused(client.post(path, json={"model": "/etc"}), 404)
    refused(client.get(CHAT), 405)
    refused(client.get("/v1/models/..%2f..%2fetc"), 404)


def raw(client, head, *parts):
    """The status line that answers what is sent over a bare connection, and what came after it."""
    at = urlsplit(str(client.base_url))
    with socket.create_connection((at.hostname, at.port), timeout=60) as connection:
        connection.sendall(head)
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:  # the server has said no, and reads no further
            pass
        return connection.recv(65536).decode()


HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_a_declared_length_beyond_the_limit_is_refused_before_it_comes(client):
    assert " 413 " in raw(client, f"{HEAD}Content-Length: {2**31}\r\n\r\n".encode()).splitlines()[0]
    assert " 400 " in raw(client, f"{HEAD}Content-Length: {10**30}\r\n\r\n".encode()).splitlines()[0]  # no number


def test_a_length_that_is_not_declared_is_counted(client):
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    assert " 413 " in raw(client, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), *[chunk] * 40).splitlines()[0]


def test_a_request_that_does_not_come_is_not_waited_for(client):
    assert " 408 " in raw(client, f"{HEAD}Content-Length: 100\r\n\r\n".encode(), b"{").splitlines()[0]


def test_a_client_that_leaves_while_it_sends_is_forgotten(client):
    at = urlsplit(str(client.base_url))
    for _ in range(20):  # more than may wait
        with socket.create_connection((at.hostname, at.port)) as connection:
            connection.sendall(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
    while client.post(CHAT, json=question("Hello?", max_tokens=1)).status_code == 429:
        time.sleep(0.05)  # the server has not seen all of them leave


@pytest.mark.slow
@pytest.mark.parametrize(("hours", "rate", "kind"), [(24, 4000, "FLAC"), (1, 16000, "OGG"), (1, 8000, "FLAC")])
def test_hours_in_a_small_file_are_refused_without_being_decoded(tmp_path_factory, hours, rate, kind, client):
    import resource

    file, silence = io.BytesIO(), np.zeros(10 * rate, np.float32)
    with soundfile.SoundFile(file, "w", rate, 1, format=kind) as written:
        for _ in range(360 * hours):
            written.write(silence)
    data = file.getvalue()
    assert len(data) < 6 * 2**20
    with (
        running(save_model(tmp_path_factory.mktemp("model")), Limits()) as url,
        httpx.Client(base_url=url, timeout=60) as other,
    ):
        body = json.dumps(question(block(data, kind.lower())))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(other.post(CHAT, content=body, headers={"Content-Type": "application/json"}), code="audio_too_long")
        refused(other.post(TRANSCRIPT, data={"model": NAME}, files={"file": data}), code="audio_too_long")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * 1024 < 20 * len(data) + 50 * 2**20
        assert other.post(CHAT, json=question(block(sound()))).status_code == 200


def test_base64_is_the_only_way_in(client):
    data = base64.b64encode(sound()).decode()
    assert client.post(CHAT, json=question({"type": "input_audio", "input_audio": {"data": data}})).status_code == 200
