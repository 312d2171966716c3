"""`usam data show` prints exactly what a model is given: text, audio, what is supervised, and padding."""

import json
import re

import pytest
import soundfile
from conftest import noise

ANSI = re.compile(r"\x1b\[([\d;]*)m(.*?)\x1b\[0m")


@pytest.fixture
def data(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(2.0), 16000)
    rows = [
        {"audio": {"path": "a.wav", "start": 0.5, "duration": 1}, "task": "asr", "answer": "seven three"},
        {"audio": ["a.wav", {"path": "a.wav", "end": 0.25}], "prompt": "A<|audio|><|audio|>B", "answer": "x\x1b[31m"},
        {"prompt": "Say hello.", "answer": "hello"},
        {"prompt": "Not shown.", "answer": "no"},
    ]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "d.jsonl"


def shown(usam, *arguments):
    status, out, err = usam("data", "show", *arguments)
    assert (status, err) == (0, "")
    return out


def test_a_row_is_shown_with_marks_where_there_are_no_colours(usam, data):
    assert shown(usam, data, "--spec", "tiny", "--rows", 1) == (
        f"--- {data}:1  task asr\n"
        "{Transcribe this audio.}\n<|audio|> x 13\n---\n[[seven three<|end|>]]\n"
        "    53 tokens, 13 of them audio, 12 supervised\n"
        "    audio at 23 to 35: 0.50 to 1.50 s of a.wav, 13.0 tokens a second\n"
        "clips: 1.00 s\n"
    )


def test_clips_that_follow_each_other_are_told_apart(usam, data):
    out = shown(usam, data, "--spec", "tiny")
    assert "{A}<|audio|> x 25<|audio|> x 4{B}" in out
    assert "audio at 1 to 25: 0.00 to 2.00 s of a.wav, 12.5 tokens a second" in out
    assert "audio at 26 to 29: 0.00 to 0.25 s of a.wav, 16.0 tokens a second" in out


def test_rows_alone_have_no_padding_and_a_batch_has(usam, data):
    alone, batch = (shown(usam, data, "--spec", "tiny", *options) for options in ([], ["--batch"]))
    assert "<pad>" not in alone
    assert f"--- {data}:3\n<pad> x 32\n{{Say hello.}}\n---\n[[hello<|end|>]]\n" in batch
    assert "21 tokens, 0 of them audio, 6 supervised, and 32 of padding" in batch
    assert "Not shown" not in alone + batch


def test_colours_say_what_the_marks_say(usam, data):
    marked = shown(usam, data, "--spec", "tiny", "--batch", "--rows", 3)
    painted = shown(usam, data, "--spec", "tiny", "--batch", "--rows", 3, "--color", "always")
    legend, _, rest = painted.partition("\n")
    styles = {kind: style for style, kind in ANSI.findall(legend)}
    assert sorted(styles) == ["audio", "instruction", "learned", "padding"]
    for kind, mark in (("learned", r"\[\[(.*?)\]\]"), ("instruction", r"\{(.*?)\}"), ("padding", r"(<pad> x \d+)")):
        assert [text for style, text in ANSI.findall(rest) if style == styles[kind]] == re.findall(mark, marked)
    assert ANSI.sub(r"\2", rest) == re.sub(r"\[\[|\]\]|[{}]", "", marked)


def test_colours_are_for_terminals_that_want_them(usam, data, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b[" in shown(usam, data, "--spec", "tiny")
    assert "\x1b[" not in shown(usam, data, "--spec", "tiny", "--color", "never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown(usam, data, "--spec", "tiny")
    assert "\x1b[" in shown(usam, data, "--spec", "tiny", "--color", "always")


def test_what_would_move_the_terminal_is_written_as_an_escape(usam, data):
    assert r"[[x\x1b[31m<|end|>]]" in shown(usam, data, "--spec", "tiny")


def test_every_token_is_told_with_its_id_in_lines_that_fit(usam, data):
    out = shown(usam, data, "--spec", "tiny", "--tokens", "--batch")
    assert "258 x 13 198'\\n' 12'-'" in out
    assert "257'<|end|>']]" in out
    assert max(len(line) for line in out.splitlines() if "'" in line) <= 80


def test_a_run_shows_its_own_rows_with_its_own_model(usam, run_file):
    out = shown(usam, run_file, "--rows", 2)
    assert out.count("train.jsonl:") == 2
    assert "{Transcribe this audio.}" in out


def test_a_row_whose_clip_cannot_be_read_is_an_error_that_names_it(usam, data):
    (data.parent / "a.wav").unlink()
    status, _, err = usam("data", "show", data, "--spec", "tiny")
    assert (status, f"{data}:1: {data.parent}/a.wav: no such file" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d.jsonl"], "name one with --spec, or give a run file"),
        (["run.yaml", "--spec", "tiny"], "a run has its own model"),
        (["d.jsonl", "--spec", "tiny", "--reader", "nemo"], "d.jsonl:1: it lacks 'audio_filepath'"),
        (["tasks.jsonl", "--spec", "tiny"], "tasks.jsonl:1: task 'arr' has no prompt in the spec's 'prompts'; did you"),
        (["empty.jsonl", "--spec", "tiny"], "empty.jsonl: no rows"),
    ],
)
def test_what_cannot_be_shown_is_an_error(usam, data, monkeypatch, arguments, message):
    monkeypatch.chdir(data.parent)
    (data.parent / "tasks.jsonl").write_text('{"audio": "a.wav", "task": "arr", "answer": "x"}')
    (data.parent / "empty.jsonl").write_text("")
    status, out, err = usam("data", "show", *arguments)
    assert (status, out, message in err) == (2, "", True)
