"""Many ask at once, some leave in the middle, some want too much: all are answered, and the next one is served."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from held_out_rows import save_model

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

import httpx
from running import block, question, running, sound

from usam.generate import Answerer, Reply
from usam.serving.server_limits import Limits
from usam.serving.server_turns import until

CHAT = "/v1/chat/completions"
LONG = 4000  # tokens: more than any test waits for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


class Steps:
    """How many steps a model has made, and a way to wait for one."""

    def __init__(self, model):
        self.count, self._made = 0, threading.Event()
        model.register_forward_hook(self._step)

    def _step(self, *_):
        self.count += 1
        self._made.set()

    def wait(self):
        """For the next step."""
        self._made.clear()
        assert self._made.wait(60)


@contextmanager
def serving(folder, **limits):
    """A client of a server, and the steps of its model."""
    answerer = Answerer.load(folder)
    answerer.model.generation_config.eos_token_id = None  # random weights would end anywhere
    steps = Steps(answerer.model)
    with running(answerer, Limits(tokens=LONG, **limits)) as url, httpx.Client(base_url=url, timeout=100) as client:
        yield client, steps


def served(client):
    return client.post(CHAT, json=question("Hello?", max_tokens=1)).status_code == 200


def test_who_comes_when_all_places_are_taken_is_told_to_come_again(folder):
    with serving(folder, waiting=0, timeout=2.0) as (client, steps), ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.post, CHAT, json=question("Hello?", max_tokens=LONG))
        steps.wait()
        response = client.post(CHAT, content=bytes(2**22))
        assert response.status_code == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
        assert client.get("/health").status_code == client.get("/v1/models").status_code == 200
        assert first.result().status_code == 504
        assert served(client)


def hang_up(client, steps, body, pieces=0):
    """Ask over a connection of its own, and close it after some steps."""
    at = urlsplit(str(client.base_url))
    data = json.dumps(body).encode()
    with socket.create_connection((at.hostname, at.port)) as connection:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        steps.wait()
        if pieces:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            steps.wait()


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_in_the_middle_ends_the_generation(folder, stream):
    with serving(folder) as (client, steps):
        asked = question(block(sound()), "What?", max_tokens=LONG, stream=stream)
        hang_up(client, steps, asked, pieces=int(stream))
        assert served(client)  # which waits for the other's end
        assert steps.count < LONG / 2


def test_who_hangs_up_while_waiting_gives_the_place_to_another(folder):
    with serving(folder, waiting=1, timeout=3.0) as (client, steps), ThreadPoolExecutor(1) as threads:
        first = threads.submit(client.post, CHAT, json=question("Hello?", max_tokens=LONG))
        steps.wait()
        for _ in range(3):
            hang_up(client, steps, question("Hello?", max_tokens=LONG))
        assert first.result().status_code == 504
        assert served(client)


def test_an_answer_that_takes_too_long_is_stopped(folder):
    with serving(folder, timeout=0.7) as (client, steps):
        response = client.post(CHAT, json=question("Hello?", max_tokens=LONG))
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "timeout"
        made = steps.count
        assert made < LONG
        events = client.post(CHAT, json=question("Hello?", max_tokens=LONG, stream=True)).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"


@pytest.mark.slow
def test_three_hundred_at_once_are_answered_or_told_to_come_again(folder):
    with serving(folder, waiting=8) as (client, _), ThreadPoolExecutor(300) as threads:
        url = f"{client.base_url}{CHAT}"
        body = question(block(sound(2.0)), "What do you hear?", max_tokens=32)
        asked = [threads.submit(httpx.post, url, json=body, timeout=300) for _ in range(300)]
        found = [one.result() for one in asked]
        counts = {status: sum(one.status_code == status for one in found) for status in (200, 429)}
        assert sum(counts.values()) == 300
        assert counts[200] >= 9
        assert counts[429] > 0
        assert len({one.json()["choices"][0]["message"]["content"] for one in found if one.status_code == 200}) == 1
        assert served(client)


def told(pieces, stop):
    """What comes of pieces, and the reply."""

    def given():
        yield from pieces
        return Reply("".join(pieces), complete=False)

    cut, found = until(given(), stop), []
    while True:
        try:
            found.append(next(cut))
        except StopIteration as end:
            return found, end.value


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "complete"),
    [
        (["ab", "cd"], [], "abcd", False),
        (["ab", "cd"], ["x"], "abcd", False),
        (["ab", "cd"], ["bc"], "a", True),
        (["ab", "cd"], ["ab"], "", True),
        (["a", "a", "b"], ["ab"], "a", True),
        (["ab", "cd"], ["d", "c"], "ab", True),
        (["ab", "cd"], ["cde"], "abcd", False),
        (["a", "b", "c"], ["abd", "bc"], "a", True),
    ],
)
def test_an_answer_ends_before_the_first_stop_word(pieces, stop, text, complete):
    found, reply = told(pieces, stop)
    assert ("".join(found), reply.complete) == (text, complete)
    assert all(found)
