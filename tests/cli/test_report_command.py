"""`usam report`: the page that it writes, and what it refuses."""

import json
import sys

import pytest


@pytest.fixture
def run(tmp_path):
    log = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "trainer_state.json").write_text(
        json.dumps({"global_step": 2, "max_steps": 2, "log_history": log})
    )
    return tmp_path / "a"


def test_the_page_is_written_where_it_was_asked_for(usam, run, tmp_path):
    status, out, err = usam("report", run, "--output", tmp_path / "page.html", "--title", "Mine")
    assert status == 0, err
    assert out == f"{tmp_path / 'page.html'}\n"
    assert "<h1>Mine</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such folder; name the train.output_dir of a run"),
        (["{run}", "--clip", "none.wav"], "--clip none.wav: no such file"),
        (["{run}", "--clip", "{run}/trainer_state.json", "--no-model"], "leave one of them out"),
    ],
)
def test_what_cannot_be_drawn_is_one_paragraph(usam, run, arguments, said):
    status, _, err = usam("report", *(one.format(run=run) for one in arguments))
    assert status == 2
    assert said in err
    assert "Traceback" not in err


def test_without_matplotlib_it_says_what_to_install(usam, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = usam("report", run)
    assert status == 2
    assert "pip install 'usam[figures]'" in err
