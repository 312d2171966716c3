"""A server in a thread of this process, on a port of its own, and clients of it."""

from __future__ import annotations

import base64
import io
import threading
from contextlib import contextmanager

import soundfile
from conftest import noise

from usam.generate import Answerer
from usam.serving.server import api, bound

NAME = "small"


def sound(seconds=0.5, rate=16000, kind="WAV", seed=0):
    """The bytes of a file of noise."""
    file = io.BytesIO()
    soundfile.write(file, noise(seconds, seed, rate), rate, format=kind)
    return file.getvalue()


def block(data, kind="wav"):
    """A clip in a message."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}


def question(*blocks, **more):
    """A request for a completion; text may stand as it is."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in blocks]
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}


@contextmanager
def running(model, limits=None):
    """The address of a server of a folder's model, or of a loaded one."""
    answerer = model if isinstance(model, Answerer) else Answerer.load(model)
    server, held = bound(api(answerer, NAME, limits), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        held.close()
