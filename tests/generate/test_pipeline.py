"""`usam.pipeline(model)`: whatever holds sound goes in, answers come out."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise
from held_out_rows import TASKS, save_model, write_rows

import usam
from usam.generate import Answerer
from usam.registry import ComponentError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def pipe(folder):
    return usam.pipeline(folder, task="asr", quiet=True, max_new_tokens=6)


@pytest.fixture(scope="module")
def clip(rows):
    """A file of sound, its samples, and what the model says to it."""
    file = rows.parent / "3.flac"
    samples, _ = soundfile.read(file, dtype="float32")
    return file, samples


@pytest.fixture(scope="module")
def expected(folder, clip):
    answerer = Answerer.load(folder)
    return next(answerer.answer([answerer.ask(str(clip[0]), task="asr")], max_new_tokens=6))


def test_one_thing_has_one_answer(pipe, clip, expected):
    file, samples = clip
    things = [file, str(file), samples, torch.from_numpy(samples), (samples, 16000), file.read_bytes()]
    things += [{"path": str(file)}, {"array": samples, "sampling_rate": 16000}, {"audio": str(file), "task": "asr"}]
    for thing in things:
        assert str(pipe(thing)) == expected, type(thing)


def test_a_chat_is_one_question(pipe, clip, expected):
    content = [{"type": "audio", "path": str(clip[0])}, {"type": "text", "text": "Transcribe this audio."}]
    assert pipe([{"role": "user", "content": content}], task="asr").text == expected


def test_a_row_may_have_several_clips(pipe, clip):
    row = {"audio": [str(clip[0]), clip[1]], "prompt": "Is <audio> <audio>?"}
    answer = usam.pipeline(pipe.answerer)(row, max_new_tokens=2)
    assert answer.question.prompt == "Is <|audio|> <|audio|>?"
    assert answer.question.audio == (str(clip[0]), None)


def test_a_call_says_what_is_asked(pipe, clip):
    assert pipe(clip[1], prompt="What?").question.prompt == "What?"
    assert pipe(clip[1], task="aac").question.task == "aac"
    assert pipe(clip[1], max_new_tokens=1).complete is False


def test_a_list_has_a_list_of_answers(pipe, clip, expected):
    found = pipe([clip[1], noise(0.2), str(clip[0]), {"audio": str(clip[0]), "answer": "c"}])
    assert [found[i].text for i in (0, 2, 3)] == [expected] * 3
    assert found[3].question.references == ("c",)


def test_a_folder_and_a_manifest_have_lists_of_answers(folder, rows):
    asked = usam.pipeline(folder, quiet=True, max_new_tokens=6)
    found = asked(rows)
    assert [answer.question.task for answer in found] == TASKS
    with pytest.warns(UserWarning, match=r"passed over, as no sound that can be read: 1 files \(test.jsonl\)"):
        every = asked(rows.parent, task="asr")
    assert [Path(answer.question.audio[0]).name for answer in every] == [f"{i}.flac" for i in range(7)]
    assert [every[i].text for i, task in enumerate(TASKS) if task == "asr"] == [
        answer.text for answer in found if answer.question.task == "asr"
    ]


def test_objects_with_rows_are_manifests(pipe, rows):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            if i > 1:
                raise IndexError
            return {"audio": noise(0.2, seed=i), "prompt": "What?"}

    assert [answer.error for answer in pipe(Rows())] == [None, None]


def test_an_iterator_is_answered_as_it_gives(pipe):
    given = []

    def clips():
        for i in range(100):
            given.append(i)
            yield noise(0.1, seed=i)

    found = pipe(clips(), max_new_tokens=1)
    assert given == []
    next(found)
    assert 0 < len(given) < 100 + 1
    assert len(list(found)) == 99


def test_what_an_answer_is_as_a_line_of_json(pipe, rows):
    (first, *_) = pipe(rows)
    assert json.loads(json.dumps(first.to_dict())) == {
        "id": "row 0",
        "row": f"{rows}:1",
        "task": "asr",
        "prompt": "Transcribe this audio.",
        "audio": [str(rows.parent / "0.flac")],
        "answer": first.text,
        "complete": first.complete,
        "references": ["a"],
    }


# In pieces


@pytest.mark.parametrize("seed", range(4))
def test_pieces_add_up_to_the_answer(pipe, seed):
    """Of random weights, whose tokens are halves of characters more often than not."""
    clip = noise(0.4, seed=seed)
    pieces = list(pipe(clip, stream=True, max_new_tokens=40))
    assert "".join(pieces) == pipe(clip, max_new_tokens=40).text
    assert len(pieces) > 3


def test_who_leaves_off_ends_the_generation(pipe):
    steps = []
    hook = pipe.answerer.model.lm_head.register_forward_pre_hook(lambda *_: steps.append(1))
    pieces = pipe(noise(0.4), stream=True, max_new_tokens=400)
    next(pieces)
    pieces.close()
    hook.remove()
    assert len(steps) < 400


def test_pieces_are_of_one_answer(pipe, rows):
    with pytest.raises(ValueError, match="one thing at a time"):
        pipe([noise(0.1), noise(0.1)], stream=True)
    with pytest.raises(ValueError, match="num_beams=1"):
        next(pipe(noise(0.1), stream=True, num_beams=2))
    with pytest.raises(ValueError, match=r"none\.wav: no such file"):
        next(pipe("none.wav", stream=True))


# What goes wrong


@pytest.mark.parametrize("thing", ["none.wav", "none.jsonl", 5, None, {"sound": "a.wav"}, np.zeros(0)])
def test_one_thing_that_cannot_be_answered_is_an_error(pipe, thing):
    with pytest.raises(ValueError, match=r"."):
        pipe(thing)


def test_one_of_several_that_cannot_is_an_answer_without_text(pipe, clip, expected):
    with pytest.warns(UserWarning, match=r"none\.wav: no such file"):
        bad, good = pipe(["none.wav", clip[1]])
    assert (bad.text, good.text) == (None, expected)
    assert "no such file" in bad.to_dict()["error"]
    with pytest.raises(ValueError, match=r"there is no answer to none\.wav"):
        str(bad)


def test_what_is_asked_must_be_known(folder, pipe):
    with pytest.raises(ValueError, match="no prompt for task 'asd'; did you mean 'asr'"):
        usam.pipeline(folder, task="asd")
    with pytest.raises(ValueError, match="tasks that this model knows: aac, asr"):
        usam.pipeline(pipe.answerer)(noise(0.1))
    with pytest.raises(ValueError, match="either a prompt or a task"):
        pipe(noise(0.1), task="asr", prompt="What?")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ComponentError):
        usam.pipeline(tmp_path)


# The model


def test_a_loaded_model_is_taken_as_it_is(pipe, clip, expected):
    model = pipe.answerer.model
    assert usam.pipeline(model, task="asr", max_new_tokens=6)(clip[1]).text == expected
    assert usam.pipeline(model, processor=pipe.answerer.processor).answerer.model is model


def test_a_bar_counts_answers_unless_it_shall_not(pipe, capsys):
    clips = [noise(0.1), noise(0.1)]
    pipe(clips, max_new_tokens=1)
    assert capsys.readouterr().err == ""
    usam.pipeline(pipe.answerer, task="asr", max_new_tokens=1)(clips)
    assert "answering: 100%" in capsys.readouterr().err
