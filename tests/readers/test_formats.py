"""Every format is read as the same samples, and written back where nothing is lost."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from usam.data.convert import convert
from usam.data.manifest import Manifest, ManifestError
from usam.readers import Layout, Source, registry

PROMPTS = {"asr": "Transcribe.", "aac": "Describe.", "QA": "Answer: {}", "ASR": "Transcribe."}


def clip(path, **part):
    return {"type": "audio", "audio": path, **part}


def said(text):
    return {"type": "text", "text": text}


def chat(*turns):
    return tuple({"role": role, "content": content} for role, content in turns)


def asked(content, answer):
    return chat(("user", content), ("assistant", answer))


ASR = asked([clip("a.wav"), said("Transcribe.")], "hello")
TWO = chat(
    ("system", "Be brief."),
    ("user", [clip("a.wav"), said("What?")]),
    ("assistant", "a dog"),
    ("user", [said("And "), clip("b.wav"), said("?")]),
    ("assistant", "a cat"),
)

# Format, its row, and the sample: messages and what else it says.
ROWS = [
    ("usam", {"audio": "a.wav", "task": "asr", "answer": "hello"}, ASR, {"task": "asr"}),
    (
        "u_sam",
        {"key": "u1", "wav": "a.wav", "label": "hello", "task": "asr", "dur": 1.5},
        ASR,
        {"id": "u1", "task": "asr", "extra": {"x_dur": 1.5}},
    ),
    (
        "u_sam",
        {"key": "u1", "wav": "a.wav", "label": "a dog\tdog", "task": "aac"},
        asked([clip("a.wav"), said("Describe.")], "a dog"),
        {"id": "u1", "task": "aac", "others": ("dog",)},
    ),
    ("slam_llm", {"key": "u1", "source": "a.wav", "target": "hello"}, ASR, {"id": "u1", "task": "asr"}),
    (
        "slam_llm",
        {"key": "u1", "source": "a.wav", "target": "a dog", "prompt": "What?"},
        asked([clip("a.wav"), said("What?")], "a dog"),
        {"id": "u1"},
    ),
    (
        "slam_llm_aispeech",
        {"key": "u1", "task": "asr", "path": "a.wav", "target": "hello"},
        ASR,
        {"id": "u1", "task": "asr"},
    ),
    ("nemo", {"audio_filepath": "a.wav", "text": "hello"}, ASR, {"task": "asr"}),
    (
        "nemo",
        {"audio_filepath": "a.wav", "text": "hello", "offset": 1.0, "duration": 2.0, "lang": "en"},
        asked([clip("a.wav", start=1.0, duration=2.0), said("Transcribe.")], "hello"),
        {"task": "asr", "extra": {"x_lang": "en"}},
    ),
    (
        "nemo",
        {"audio_filepath": "a.wav", "question": "What?", "answer": "a dog", "text": "woof", "duration": 2.0},
        asked([clip("a.wav", duration=2.0), said("What?")], "a dog"),
        {"extra": {"x_text": "woof"}},
    ),
    ("west", {"wav": "a.wav", "txt": "hello"}, ASR, {"task": "asr"}),
    (
        "west",
        {"key": "u1", "wav": "a.wav", "txt": "hello", "start": 1.0, "end": 3.0, "speaker": "f1"},
        asked([clip("a.wav", start=1.0, duration=2.0), said("Transcribe.")], "hello"),
        {"id": "u1", "task": "asr", "extra": {"x_speaker": "f1"}},
    ),
    (
        "west",
        {
            "key": "u1",
            "messages": [
                {"role": "user", "content": {"type": "audio", "audio": "a.wav"}},
                {"role": "assistant", "content": "hello"},
            ],
        },
        asked([clip("a.wav")], "hello"),
        {"id": "u1"},
    ),
    ("salmonn", {"path": "a.wav", "text": "hello", "task": "asr"}, ASR, {"task": "asr"}),
    (
        "salmonn",
        {"path": "a.wav", "text": "a dog", "task": "QA", "Q": "What?", "expand_wav": ["b.wav"]},
        asked([clip("a.wav"), clip("b.wav"), said("Answer: What?")], "a dog"),
        {"task": "QA"},
    ),
    (
        "nemo_conversation",
        {
            "id": "u1",
            "conversations": [
                {"from": "User", "value": "Listen: ", "type": "text"},
                {"from": "User", "value": "a.wav", "type": "audio", "offset": 1.0, "duration": 2.0},
                {"from": "Assistant", "value": "a dog", "type": "text"},
            ],
            "custom": {"snr": 3},
        },
        asked([said("Listen: "), clip("a.wav", start=1.0, duration=2.0)], "a dog"),
        {"id": "u1", "extra": {"x_custom": {"snr": 3}}},
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "<audio>What?"},
                {"from": "gpt", "value": "a dog"},
                {"from": "human", "value": "And <audio>?"},
                {"from": "gpt", "value": "a cat"},
            ],
            "audios": ["a.wav", "b.wav"],
        },
        TWO,
        {},
    ),
    (
        "sharegpt",
        {
            "id": "u1",
            "sound": "a.wav",
            "conversations": [{"from": "human", "value": "<sound>What?"}, {"from": "gpt", "value": "a dog"}],
        },
        asked([clip("a.wav"), said("What?")], "a dog"),
        {"id": "u1"},
    ),
    (
        "sharegpt",
        {"instruction": "What?", "input": "Now.", "output": "a dog", "audios": ["a.wav"]},
        asked([clip("a.wav"), said("What?\nNow.")], "a dog"),
        {},
    ),
    (
        "ms_swift",
        {
            "system": "Be brief.",
            "query": "And <audio>?",
            "response": "a cat",
            "history": [["<audio>What?", "a dog"]],
            "audios": ["a.wav", "b.wav"],
        },
        TWO,
        {},
    ),
    (
        "ms_swift",
        {
            "system": "Be brief.",
            "query": "And <audio>b.wav</audio>?",
            "response": "a cat",
            "history": [["<audio>What?", "a dog"]],
            "audios": ["a.wav"],
        },
        TWO,
        {},
    ),
    (
        "usam",  # ms-swift's messages are usam's own
        {
            "messages": [
                {"role": "user", "content": "<audio>What?"},
                {"role": "assistant", "content": "a dog"},
            ],
            "audios": ["a.wav"],
        },
        asked([clip("a.wav"), said("What?")], "a dog"),
        {},
    ),
    (
        "qwen2_audio",
        [
            {"role": "user", "content": [{"type": "audio", "audio_url": "a.wav"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "a dog"},
        ],
        asked([clip("a.wav"), said("What?")], "a dog"),
        {},
    ),
    (
        "columns",
        {"path": "a.wav", "sentence": "hello", "speaker": 3, "x_a": 1},
        ASR,
        {"task": "asr", "extra": {"x_speaker": 3, "x_a": 1}},
    ),
    (
        "columns",
        {"audio": "a.wav", "caption": "a dog", "start": 1},
        asked([clip("a.wav", start=1.0), said("Describe.")], "a dog"),
        {"task": "aac"},
    ),
]
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(ROWS)]


def plain(sample, folder):
    """A sample's messages, with paths as its rows have them and lists of blocks where there are clips."""
    turns = []
    for turn in sample.messages:
        content = turn["content"]
        if isinstance(content, list) and turn["role"] == "user":
            content = [
                {**block, "audio": block["audio"].removeprefix(f"{folder}/")} if block["type"] == "audio" else block
                for block in content
            ]
        turns.append({"role": turn["role"], "content": content})
    return tuple(turns)


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="rows.jsonl"):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def check(sample, folder, messages, also):
    assert plain(sample, folder) == messages
    for key, value in {"id": None, "task": None, "extra": {}, "others": (), **also}.items():
        assert getattr(sample, key) == value, key


@pytest.mark.parametrize(("name", "row", "messages", "also"), ROWS, ids=IDS)
def test_a_format_is_recognised_by_its_keys(name, row, messages, also, write, tmp_path):
    file = write(row, row)
    first, second = Manifest(file, PROMPTS, need_answer=True).samples
    check(first, tmp_path, messages, also)
    assert (first.origin, second.origin) == (f"{file}:1", f"{file}:2")


@pytest.mark.parametrize(("name", "row", "messages", "also"), ROWS, ids=IDS)
def test_a_format_may_be_named(name, row, messages, also, write, tmp_path):
    (sample,) = Manifest(write(row), PROMPTS, reader=name).samples
    check(sample, tmp_path, messages, also)


@pytest.mark.parametrize(("name", "row", "messages", "also"), ROWS, ids=IDS)
def test_an_array_is_read_as_lines_are(name, row, messages, also, tmp_path):
    file = tmp_path / "rows.json.gz"
    file.write_bytes(gzip.compress(json.dumps([row, row], indent=1).encode(), mtime=0))
    first, second = Manifest(file, PROMPTS).samples
    check(first, tmp_path, messages, also)
    assert first.origin == f"{file}:2, row 1"
    assert second.origin.endswith(", row 2")


@pytest.mark.parametrize(("name", "row", "messages", "also"), ROWS, ids=IDS)
def test_a_format_becomes_usams_own_and_goes_back(name, row, messages, also, write, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "back").mkdir()
    own, back = tmp_path / "own" / "own.jsonl", tmp_path / "back" / "back.jsonl"
    assert convert(write(row), own, prompts=PROMPTS) == 1
    (sample,) = Manifest(own, PROMPTS).samples
    check(sample, tmp_path / "own" / "..", messages, also)
    convert(own, back, name, prompts=PROMPTS)
    (again,) = Manifest(back, PROMPTS, reader=name).samples
    check(again, tmp_path / "back" / "..", messages, also)


def test_every_reader_has_a_fixture():
    layouts = {
        n for n in registry.names() if issubclass(registry.get(n), Layout) and registry.find(n).provider == "usam"
    }
    assert layouts - {name for name, *_ in ROWS} == set()
    sources = {
        n for n in registry.names() if issubclass(registry.get(n), Source) and registry.find(n).provider == "usam"
    }
    assert sources == {
        "audiofolder", "csv", "datasets", "iterables", "json", "memory", "parquet", "tables", "webdataset"
    }  # fmt: skip


def test_every_reader_is_in_the_page_of_formats():
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    own = {entry.name for entry in registry.entries() if entry.provider == "usam"}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == own


# What no reader knows


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "u1", "wav": "a.wav", "task": "asr"}, "nearest format is 'u_sam': it lacks 'label'; its keys are"),
        (
            {"key": "u1", "wav": "a.wav", "lable": "hello", "task": "asr"},
            r"'u_sam': it lacks 'label' and it has 'lable' too many \(did you mean 'label'",
        ),
        (
            {"key": "u1", "wav": "a.wav", "label": "hello", "task": "asr", "speaker": 3},
            "'u_sam': it has 'speaker' too many.*; your own keys begin with 'x_'",
        ),
        ({"audio_filepath": "a.wav", "duration": 1.0}, "nearest format is 'nemo': it lacks 'text'"),
        ({"conversation": [], "ids": 3}, "nearest format is 'qwen2_audio': it has 'ids' too many"),
        ({"source": "a.wav", "target": "hello"}, "nearest format is 'slam_llm': it lacks 'key'"),
    ],
)
def test_what_no_reader_knows_is_told_the_nearest_format(row, message, write):
    with pytest.raises(ManifestError, match=f"rows.jsonl:1: no reader knows a row with .*{message}"):
        Manifest(write(row), PROMPTS)


def test_a_later_row_of_another_format_is_named(write):
    file = write({"wav": "a.wav", "txt": "x"}, {"audio_filepath": "a.wav", "text": "x"})
    with pytest.raises(ManifestError, match=r"rows.jsonl:2: it lacks 'wav', 'txt' and .* \(read as 'west'\)"):
        Manifest(file, PROMPTS)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("u_sam", {"key": "u1", "wav": 3, "label": "x", "task": "asr"}, "a clip is a path, sound, or a map"),
        ("u_sam", {"key": "u1", "wav": "a.wav", "label": "x", "task": "arc"}, "task 'arc' has no prompt"),
        ("nemo", {"audio_filepath": "a.wav", "text": "x", "offset": -1}, "'offset' is -1 s; expected 0 or more"),
        ("salmonn", {"path": "a.wav", "text": 7}, "'answer' is text, found 7"),
        ("sharegpt", {"conversations": [{"from": "bird", "value": "x"}]}, "a turn has 'from' .human, user, gpt"),
        ("sharegpt", {"conversations": [], "images": ["a.png"]}, "'images' holds"),
        ("ms_swift", {"query": "<audio>", "response": "x"}, "more <.audio.> tags in 'messages' than clips"),
        (
            "slam_llm_aispeech",
            {"key": "u1", "task": "asr", "path": "a.ark:17", "target": "x"},
            "points into a Kaldi archive",
        ),
        (
            "nemo_conversation",
            {"conversations": [{"from": "User", "value": "x", "type": "video"}]},
            "a turn has 'from', 'value' and 'type'",
        ),
        ("west", {"wav": "a.wav", "messages": []}, "it lacks"),
        ("salmonn", {"path": "a.wav", "text": "x", "expand_wav": "b.wav"}, "'expand_wav' is a list of paths"),
        (
            "nemo",
            {"audio_filepath": "a", "text": "x", "question": "?", "context": "?"},
            "'question' and 'context' both",
        ),
        ("sharegpt", {"instruction": 3, "output": "x"}, "'instruction' is text, found 3"),
        ("ms_swift", {"query": "?", "response": "x", "history": ["?"]}, "'history' is a list of .question, answer."),
    ],
)
def test_rows_of_every_format_are_checked_as_usams_own_are(name, row, message, write):
    with pytest.raises(ManifestError, match=f"rows.jsonl:1: .*{message}.*read as '{name}'"):
        Manifest(write(row), PROMPTS, reader=name)


THINGS = [None, True, -1, 0.5, "", "a.wav", "<audio>", [], {}, ["a.wav"], [[1]], {"path": "b.wav"}]


def changed(thing, draw):
    """JSON with one thing in it replaced, left out, or put beside it under another name."""
    if draw.random() < 0.2 or not isinstance(thing, (dict, list)) or not thing:
        return draw.choice(THINGS)
    is_list, thing = isinstance(thing, list), dict(enumerate(thing)) if isinstance(thing, list) else dict(thing)
    key = draw.choice(list(thing))
    if draw.random() < 0.2:
        del thing[key]
    else:
        thing[key] = changed(thing[key], draw)
    return list(thing.values()) if is_list else thing


def test_whatever_a_row_of_any_format_holds_is_taken_or_named():
    draw = random.Random(0)
    answers, faults = [], []
    for _ in range(2000):
        name, row, *_ = draw.choice(ROWS)
        key = draw.choice(list(row) if isinstance(row, dict) else range(len(row)))
        row = dict(row) if isinstance(row, dict) else list(row)
        row[key] = changed(row[key], draw)
        try:
            answers += Manifest.of([row], PROMPTS, reader=draw.choice([None, name]))[0].references
        except ManifestError as error:
            faults.append(str(error))
    assert all(isinstance(answer, str) for answer in answers)
    assert all(fault.startswith("row 0: ") for fault in faults)
    assert min(len(answers), len(faults)) > 300


MISSPELT = [
    pytest.param(name, row, key, id=f"{name}-{i}-{key}")
    for i, (name, row, *_) in enumerate(ROWS)
    for key in row
    if name != "columns" and isinstance(row, dict)  # in `columns` any others may stand
]


@pytest.mark.parametrize(("name", "row", "key"), MISSPELT)
def test_a_misspelt_key_is_named(name, row, key, write):
    wrong = key[:-1] + "_" if len(key) > 3 else key + "_"
    with pytest.raises(ManifestError, match=rf"rows.jsonl:1: [\s\S]*\b{wrong}\b"):
        Manifest(write({wrong if k == key else k: value for k, value in row.items()}), PROMPTS)


# Particulars


@pytest.mark.parametrize(("indent", "line"), [(None, 1), (1, 7)])
def test_salmonns_annotation_is_a_map_of_its_rows(indent, line, tmp_path):
    file = tmp_path / "train.json"
    rows = [{"path": "a.wav", "text": "x"}, {"path": "b.wav", "text": "y"}]
    file.write_text(json.dumps({"annotation": rows}, indent=indent))
    samples = Manifest(file, PROMPTS).samples
    assert [s.answer for s in samples] == ["x", "y"]
    assert samples[1].origin == f"{file}:{line}, row 2"


def test_a_question_without_a_place_for_it_is_the_prompt(write):
    (sample,) = Manifest(write({"path": "a.wav", "text": "x", "task": "vqa", "Q": "Why?"}), PROMPTS).samples
    assert sample.messages[0]["content"][1] == said("Why?")


def test_an_array_may_be_one_chat(tmp_path):
    file = tmp_path / "chat.json"
    turns = [
        {"role": "user", "content": [{"type": "audio", "audio_url": "a.wav"}]},
        {"role": "assistant", "content": "x"},
    ]
    file.write_text(json.dumps(turns, indent=2))
    (sample,) = Manifest(file, PROMPTS).samples
    assert sample.answer == "x"


def test_aispeech_draws_a_prompt_from_the_file_beside(write, tmp_path):
    write(
        {"task": "hotword", "prompt": "Mind {}."}, {"task": "hotword", "prompt": "With {}:"}, name="multiprompt.jsonl"
    )
    rows = [{"key": f"u{i}", "task": "hotword", "path": "a.wav", "target": "x", "hotword": "cat"} for i in range(20)]
    first, again = (Manifest(write(*rows), {}).samples for _ in range(2))
    prompts = [sample.messages[0]["content"][1]["text"] for sample in first]
    assert set(prompts) == {"Mind cat.", "With cat:"}
    assert list(first) == list(again)


def test_a_task_without_a_prompt_beside_is_named(write):
    write({"task": "ASR", "prompt": "Transcribe."}, name="multiprompt.jsonl")
    with pytest.raises(ManifestError, match=r"task 'AAC' has no prompt in multiprompt.jsonl; it has ASR"):
        Manifest(write({"key": "u", "task": "AAC", "path": "a.wav", "target": "x"}), {})


def test_audio_root_stands_for_a_folder(write):
    file = write({"wav": "{audio_root}/a.wav", "txt": "x"})
    (sample,) = Manifest(file, PROMPTS, audio_root="/data").samples
    assert sample.messages[0]["content"][0] == clip("/data/a.wav")
    with pytest.raises(ManifestError, match=r"{audio_root}/a.wav: say what {audio_root} is"):
        Manifest(file, PROMPTS)


def test_a_clip_that_only_the_text_names_is_not_taken_for_text(write):
    row = {"messages": [{"role": "user", "content": "<audio>a.wav</audio>?"}, {"role": "assistant", "content": "x"}]}
    with pytest.raises(
        ManifestError, match=r"'messages' names a clip in its text, <audio>a.wav</audio>: write <audio>"
    ):
        Manifest(write(row), PROMPTS)
    (sample,) = Manifest(write(row), PROMPTS, reader="ms_swift").samples
    assert len(sample.messages[0]["content"]) == 2


def test_a_reader_that_does_not_exist_is_named(write):
    from usam import ComponentError

    with pytest.raises(ComponentError, match=r"usam.readers: no component 'nemmo'; did you mean 'nemo'"):
        Manifest(write({}), PROMPTS, reader="nemmo")


# From Python


def test_a_manifest_is_made_of_rows_files_and_manifests(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write({"wav": "a.wav", "txt": "hello"})
    from_rows = Manifest.of([{"wav": "a.wav", "txt": "hello"}], PROMPTS)
    assert from_rows[0].messages == ASR
    assert from_rows[0].origin == "row 0"
    for given in (file, str(file), [file], Manifest(file, PROMPTS)):
        assert Manifest.of(given, PROMPTS)[0].answer == "hello"


# Conversion


@pytest.mark.parametrize(
    ("row", "to", "message"),
    [
        ({"audio": "a.wav", "task": "aac", "answer": "x"}, "nemo", "'nemo' has no place for the task"),
        ({"audio": "a.wav", "task": "asr", "answer": ["x", "y"]}, "west", "one answer in a row, and there are 2"),
        ({"audio": ["a.wav", "b.wav"], "task": "asr", "answer": "x"}, "west", "one clip in a row, and there are 2"),
        ({"audio": "a.wav", "prompt": "What?", "task": "asr", "answer": "x", "id": 1}, "u_sam", "what is asked"),
        ({"audio": "a.wav", "task": "asr", "answer": "x", "id": 1, "start": 1}, "u_sam", "what is asked"),
        ({"audio": "a.wav", "task": "asr", "answer": "x"}, "u_sam", "it lacks 'key'"),
        ({"audio": "a.wav", "task": "asr"}, "west", "an answer in every row"),
        ({"audio": "a.wav", "task": "asr", "answer": "x", "id": 1}, "salmonn", "no place for the id"),
    ],
)
def test_what_a_format_has_no_place_for_is_an_error(row, to, message, write, tmp_path):
    with pytest.raises(ManifestError, match=f"rows.jsonl:1: .*{message}"):
        convert(write(row), tmp_path / "out.jsonl", to)
    assert not (tmp_path / "out.jsonl").exists()


def test_columns_of_ones_own_go_along(write, tmp_path):
    row = {"audio": "a.wav", "task": "asr", "answer": "x", "id": "u1", "x_snr": 3, "meta": {"a": [1]}}
    convert(write(row), tmp_path / "out.jsonl", "u_sam")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "key": "u1", "wav": "a.wav", "label": "x", "task": "asr", "x_snr": 3, "meta": {"a": [1]}
    }  # fmt: skip
