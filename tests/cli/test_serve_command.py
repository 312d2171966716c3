"""`usam serve`: a model answers over HTTP until it is told to stop."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from held_out_rows import save_model

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")


@pytest.mark.slow
def test_a_model_is_served_until_it_is_told_to_stop(tmp_path):
    command = [sys.executable, "-m", "usam.cli", "serve", str(save_model(tmp_path / "mine")), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("'mine' is served at http://127.0.0.1:")
            chat = {"model": "mine", "messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 2}
            request = urllib.request.Request(
                f"{line.split()[-1]}/chat/completions",
                json.dumps(chat).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                assert json.load(response)["usage"]["completion_tokens"] == 2
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, -signal.SIGINT, 130)


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(usam):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        status, _, err = usam("serve", "no such model", "--port", other.getsockname()[1])
    assert status == 2
    assert "cannot be had" in err
    assert "--port" in err


def test_options_that_contradict_each_other_are_an_error(usam):
    status, _, err = usam("serve", "no such model", "--port", 0, "--min-rate", 9000, "--max-rate", 8000)
    assert (status, err.splitlines()[0]) == (2, "error: --min-rate 9000 is above --max-rate 8000")
