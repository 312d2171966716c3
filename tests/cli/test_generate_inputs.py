"""`usam generate` on folders, manifests and standard input, and the file that it writes."""

import json
import os
import sys
from contextlib import suppress

import pytest
import soundfile
from conftest import noise
from held_out_rows import save_model, write_rows

ASR = "Transcribe this audio."
SHORT = ("--max-new-tokens", "4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of the tasks asr and aac that says anything."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def ask(usam, model):
    """Run `usam generate` on this model; returns (exit status, lines of standard output, standard error)."""

    def run(*arguments):
        status, out, err = usam("generate", model, *arguments, *SHORT)
        assert "Traceback" not in err
        return status, out.splitlines(), err

    return run


@pytest.fixture
def ask_json(ask):
    def run(*arguments):
        status, lines, err = ask(*arguments, "--json")
        return status, [json.loads(line) for line in lines], err

    return run


@pytest.fixture
def sounds(tmp_path):
    """A folder of three files of sound, one of them in a folder of its own, one without an ending."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("b.wav", "deep/a.flac")):
        soundfile.write(folder / name, noise(0.3 + 0.2 * i, seed=i), 16000)
    soundfile.write(folder / "c", noise(0.4), 16000, format="WAV")
    return folder


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


@pytest.fixture
def typed(monkeypatch):
    """Put text on standard input."""

    def put(text):
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        monkeypatch.setattr(sys, "stdin", os.fdopen(reading))

    return put


# Folders


def test_a_folder_is_asked_file_by_file(ask, sounds):
    status, lines, err = ask(sounds, "--task", "asr")
    assert status == 0, err
    assert [line.split("\t")[0] for line in lines] == [str(sounds / name) for name in ("b.wav", "c", "deep/a.flac")]


def test_what_is_no_sound_in_a_folder_is_told(ask, sounds):
    (sounds / "notes.txt").write_text("nothing to hear")
    (sounds / "deep" / "list.jsonl").write_text("{}")
    status, lines, err = ask(sounds, "--task", "asr")
    assert (status, len(lines)) == (0, 3)
    assert f"note: {sounds}: passed over, as no sound that can be read: 2 files (notes.txt, deep/list.jsonl)" in err


def test_a_broken_file_of_sound_in_a_folder_costs_one_line(ask_json, sounds):
    (sounds / "broken.wav").write_text("no sound")
    status, found, err = ask_json(sounds, "--task", "asr")
    assert status == 1
    assert ["error" in row for row in found] == [False, True, False, False]
    assert found[1]["audio"] == [str(sounds / "broken.wav")]
    assert "1 of 4 questions were not answered" in err


def test_a_folder_without_sound_is_an_error(ask, tmp_path):
    (tmp_path / "empty").mkdir()
    status, lines, err = ask(tmp_path / "empty", "--task", "asr")
    assert (status, lines) == (1, [])
    assert f"{tmp_path / 'empty'}: there is no file in it that can be read" in err


def test_a_link_to_a_folder_above_does_not_lead_round_and_round(ask, sounds):
    (sounds / "deep" / "up").symlink_to(sounds)
    assert len(ask(sounds, "--task", "asr")[1]) == 3


# Manifests


def test_rows_are_asked_what_they_ask_and_keep_their_references(ask_json, rows):
    status, found, err = ask_json(rows)
    assert status == 0, err
    assert [row["id"] for row in found] == [f"row {i}" for i in range(7)]
    assert found[1]["task"] == "aac"
    assert found[1]["prompt"] == "Describe it."
    assert found[4]["references"] == ["d", "d d"]
    assert found[0]["row"] == f"{rows}:1"
    assert found[0]["audio"] == [str(rows.parent / "0.flac")]


@pytest.mark.parametrize("batch_size", [2])
def test_answers_stand_in_the_order_of_the_rows(ask_json, rows, batch_size):
    _, found, _ = ask_json(rows, "--batch-size", batch_size)
    assert found == ask_json(rows)[1]


def test_a_prompt_goes_before_what_rows_ask(ask_json, rows):
    _, found, _ = ask_json(rows, "--prompt", "What is it?")
    assert {row["prompt"] for row in found} == {"What is it?"}
    assert not any("task" in row for row in found)
    assert len({row["prompt"] for row in ask_json(rows, "--task", "aac")[1]}) == 1


def test_a_row_of_an_unknown_task_costs_one_line_that_names_it_and_the_tasks(ask_json, rows):
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([lines[0], lines[1].replace('"aac"', '"acc"'), lines[2]]))
    status, found, err = ask_json(rows)
    assert status == 1
    assert ["error" in row for row in found] == [False, True, False]
    assert f"{rows}:2: task 'acc' has no prompt in the spec's 'prompts'; did you mean 'aac'?" in found[1]["error"]
    assert err.count("error: ") == 1
    assert "1 of 3 questions were not answered" in err


def test_a_prompt_serves_rows_of_tasks_that_the_model_does_not_know(ask_json, rows):
    rows.write_text(rows.read_text().replace('"aac"', '"acc"'))
    assert ask_json(rows, "--prompt", "What is it?")[0] == 0


def test_a_row_that_asks_nothing_needs_to_be_told_what(ask_json, rows):
    rows.write_text(json.dumps({"audio": "0.flac"}))
    status, found, _ = ask_json(rows)
    assert status == 1
    assert "asks nothing in words: give either a prompt or a task" in found[0]["error"]
    assert "asr" in found[0]["error"]
    assert ask_json(rows, "--task", "asr")[1][0]["prompt"] == ASR


def test_a_chat_is_asked_its_last_turn(ask_json, rows):
    clip = {"type": "audio", "path": "0.flac", "start": 0.1}
    turns = [
        {"role": "user", "content": [clip, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A"},
    ]
    rows.write_text(json.dumps({"messages": turns}))
    (found,) = ask_json(rows)[1]
    assert (found["prompt"], found["references"]) == ("What?", ["A"])
    assert found["audio"] == [{"audio": str(rows.parent / "0.flac"), "start": 0.1}]
    turns[0]["content"].append({"type": "text", "text": "Or what?"})
    rows.write_text(json.dumps({"messages": turns}))
    assert ask_json(rows, "--prompt", "Who?")[1][0]["prompt"] == "Who?"


def test_other_formats_are_read_too(ask_json, rows):
    (rows.parent / "rows.csv").write_text("audio,task,answer\n0.flac,asr,a\n1.flac,aac,b\n")
    _, found, _ = ask_json(rows.parent / "rows.csv")
    assert [(row["task"], row["references"]) for row in found] == [("asr", ["a"]), ("aac", ["b"])]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "no such manifest"), ("", "no rows"), ('{"sound": 1}\n', "no reader knows a row with 'sound'")],
)
def test_a_manifest_that_cannot_be_read_costs_one_line(ask_json, rows, text, message):
    other = rows.parent / "other.jsonl"
    if text is not None:
        other.write_text(text)
    status, found, _ = ask_json(other, rows)
    assert (status, len(found)) == (1, 8)
    assert message in found[0]["error"]
    assert str(other) in found[0]["error"]


def test_a_reader_can_be_named(ask, rows):
    other = rows.rename(rows.with_name("rows.list"))
    assert ask(other, "--reader", "usam")[0] == 0
    status, _, err = ask(other, "--reader", "usan")
    assert status == 2
    assert "did you mean 'usam'" in err


# Several clips


def test_a_prompt_with_two_tags_takes_two_files_each_time(ask_json, sounds):
    names = [str(sounds / name) for name in ("b.wav", "c", "deep/a.flac", "b.wav")]
    status, found, err = ask_json(*names, "--prompt", "Is <audio> louder than <audio>?")
    assert status == 0, err
    assert [row["audio"] for row in found] == [names[:2], names[2:]]
    status, found, _ = ask_json(*names[:3], "--prompt", "Is <audio> louder than <audio>?")
    assert status == 1
    assert found[1]["audio"] == names[2:3]
    assert "more <|audio|> tags in 'prompt' than clips" in found[1]["error"]


def test_files_together_stand_where_the_prompt_says(ask_json, sounds):
    status, found, _ = ask_json(sounds, "--together", "--prompt", "<audio>, then <audio>, then <audio>.")
    assert status == 0
    assert len(found[0]["audio"]) == 3
    (sounds / "c").unlink()
    assert ask_json(sounds, "--together", "--prompt", "<audio>, then <audio>, then <audio>.")[0] == 1


# Standard input


def test_standard_input_has_paths_and_rows_line_by_line(ask_json, sounds, typed):
    row = {"audio": str(sounds / "c"), "prompt": "What?", "id": 7, "answer": "noise"}
    typed(f"{sounds / 'b.wav'}\n\n{json.dumps(row)}\n{sounds / 'none.wav'}\n{{\n{sounds / 'deep' / 'a.flac'}")
    status, found, _ = ask_json("-", "--task", "asr")
    assert status == 1
    assert ["error" in line for line in found] == [False, False, True, True, False]
    assert found[1]["row"] == "-:3"
    assert (found[1]["prompt"], found[1]["references"], found[1]["id"]) == (ASR, ["noise"], 7)
    assert "-:5: not JSON" in found[3]["error"]
    assert found[4]["audio"] == [str(sounds / "deep" / "a.flac")]


def test_rows_on_standard_input_are_asked_what_they_ask(ask_json, rows, typed, monkeypatch):
    monkeypatch.chdir(rows.parent)
    typed(rows.read_text())
    status, found, _ = ask_json("-")
    assert status == 0
    assert [(row["id"], row["answer"]) for row in found] == [(row["id"], row["answer"]) for row in ask_json(rows)[1]]


def test_a_path_on_standard_input_needs_to_be_told_what_is_asked(ask_json, sounds, typed):
    typed(f"{sounds / 'b.wav'}\n")
    status, found, _ = ask_json("-")
    assert status == 1
    assert "give either a prompt or a task" in found[0]["error"]


# In pieces


def test_an_answer_in_pieces_is_the_answer(ask, sounds):
    _, lines, _ = ask(sounds, "--task", "asr")
    status, found, err = ask(sounds, "--task", "asr", "--stream")
    assert status == 0
    assert found == lines
    assert err.count("cut off at 4 tokens") == 3


def test_what_cannot_be_answered_has_no_pieces(ask, sounds):
    status, lines, err = ask(sounds / "none.wav", sounds / "b.wav", "--task", "asr", "--stream")
    assert status == 1
    assert [line.split("\t")[0] for line in lines] == [str(sounds / "b.wav")]
    assert "none.wav: no such file" in err


# The file that is written


@pytest.fixture
def out(tmp_path):
    return tmp_path / "answers.jsonl"


def test_a_line_for_each_question_is_written_into_a_file(ask, ask_json, rows, out):
    status, lines, _ = ask(rows, "--output", out)
    assert (status, lines) == (0, [])
    assert [json.loads(line) for line in out.read_text().splitlines()] == ask_json(rows)[1]


def test_a_file_that_is_there_is_not_written_over(ask, rows, out):
    out.write_text("mine\n")
    status, _, err = ask(rows, "--output", out)
    assert status == 2
    assert f"--output {out}: is there already; --resume goes on behind its last line, --overwrite" in err
    assert out.read_text() == "mine\n"
    assert ask(rows, "--output", out, "--overwrite")[0] == 0
    assert len(out.read_text().splitlines()) == 7


@pytest.mark.parametrize("kept", [0, 3])
def test_going_on_gives_the_same_file(ask, rows, out, kept):
    ask(rows, "--output", out)
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]) + whole[:20] * (kept < 7))
    status, _, err = ask(rows, "--output", out, "--resume")
    assert status == 0, err
    assert out.read_bytes() == whole


def test_going_on_counts_what_failed_before(ask, rows, out):
    (rows.parent / "0.flac").unlink()
    ask(rows, "--output", out)
    status, _, err = ask(rows, "--output", out, "--resume")
    assert status == 1
    assert "1 of 7 questions were not answered" in err


def test_it_does_not_go_on_with_other_questions(ask, rows, out):
    ask(rows, "--output", out)
    status, _, err = ask(rows, "--output", out, "--resume", "--prompt", "What?")
    assert status == 2
    assert f"{out}:1: is of another question than {rows}:1" in err
    rows.write_text("\n".join(rows.read_text().splitlines()[:5]))
    status, _, err = ask(rows, "--output", out, "--resume")
    assert status == 2
    assert "has 2 answers more than were asked for" in err
    out.write_text("mine\n")
    status, _, err = ask(rows, "--output", out, "--resume")
    assert status == 2
    assert f"{out}:1: no JSON" in err


def test_stopping_keeps_whole_lines_and_says_how_to_go_on(ask, sounds, out, typed, monkeypatch):
    typed(f"{sounds / 'b.wav'}\n")
    read = os.read
    monkeypatch.setattr(os, "read", lambda *given: read(*given) or (_ for _ in ()).throw(KeyboardInterrupt))
    status, _, err = ask("-", "--task", "asr", "--output", out)
    assert status == 130
    assert f"interrupted after 1 answers; --resume goes on with {out}" in err
    assert json.loads(out.read_text())["audio"] == [str(sounds / "b.wav")]


def test_nobody_who_reads_on_is_no_error(ask, sounds, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    broken = os.fdopen(writing, "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", broken)
    status, _, err = ask(sounds, "--task", "asr")
    with suppress(BrokenPipeError):
        broken.close()
    assert status == 1
    assert "BrokenPipe" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOUNDS", "--overwrite"], "name it with --output"),
        (["SOUNDS", "--json", "--output", "OUT"], "say one of them"),
        (["SOUNDS", "--stream", "--json"], "leave one out"),
        (["SOUNDS", "--stream", "--num-beams", "2"], "--stream needs --num-beams 1"),
        (["SOUNDS", "--stream", "--batch-size", "2"], "--batch-size does nothing with --stream"),
        (["SOUNDS", "--output", "OUT", "--overwrite", "--resume"], "say one of them"),
        (["SOUNDS", "--output", "SOUNDS"], "is a folder"),
        (["SOUNDS", "--output", "nowhere/a.jsonl"], "there is no folder"),
        (["SOUNDS", "--audio-root", "/"], "are about manifests, and none is named"),
        (["ROWS", "--together"], "each row of a manifest asks for itself"),
        (["-", "-"], "which is read once"),
        (["ROWS", "--output", "ROWS", "--overwrite"], "is read, too"),
        (["ROWS", "SOUNDS"], "give either a prompt or a task; tasks that this model knows: aac, asr"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(ask, sounds, rows, out, options, message):
    given = {"SOUNDS": sounds, "ROWS": rows, "OUT": out}
    before = rows.read_text()
    status, lines, err = ask(*(given.get(word, word) for word in options))
    assert (status, lines) == (2, [])
    assert message in err
    assert rows.read_text() == before
