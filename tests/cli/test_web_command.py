"""`usam web`: what it refuses before a page is there, and how it ends."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from held_out_rows import save_model

from usam.cli.web import _names

GRADIO = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="gradio is installed")
def test_without_gradio_it_says_what_to_install(usam, tmp_path):
    status, _, err = usam("web", tmp_path)
    assert status == 2
    assert "pip install 'usam[web]'" in err


@GRADIO
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["--root-path", "usam"], "--root-path usam: begins with /"),
        (["--device", "cupboard"], "--device cupboard"),
    ],
)
def test_what_cannot_be_served_is_an_error_of_one_paragraph(usam, tmp_path, arguments, says):
    status, _, err = usam("web", save_model(tmp_path / "model"), *arguments)
    assert status == 2
    assert says in err


def test_models_are_named_by_as_much_of_their_paths_as_tells_them_apart():
    assert _names(["runs/1/"]) == ["1"]
    assert _names(["/home/me/runs/1", "runs/2"]) == ["1", "2"]
    assert _names(["a/base", "b/base"]) == ["a/base", "b/base"]
    with pytest.raises(ValueError, match="named twice"):
        _names(["runs/1", "runs/1"])


@GRADIO
@pytest.mark.slow
def test_it_ends_with_a_signal_and_leaves_nothing(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "usam.cli", "web", str(save_model(tmp_path / "model")), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as page:
        assert page.stdout.readline().startswith("http://127.0.0.1:")
        assert list(Path(tmp_path).glob("usam-web-*"))
        page.send_signal(signal.SIGTERM)
        rest, _ = page.communicate(timeout=120)
    assert rest.endswith("ended\n")
    assert page.returncode == 0
    assert not list(Path(tmp_path).glob("usam-web-*"))
