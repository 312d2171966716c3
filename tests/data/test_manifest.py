"""A manifest's rows become chats, and each fault names its line."""

import base64
import gzip
import json
import pickle
import random
import re
import tracemalloc

import numpy as np
import pytest
import soundfile
from conftest import noise
from torch.utils.data import DataLoader

from usam.data.collate import Collator
from usam.data.inspection import describe_batch
from usam.data.manifest import Manifest, ManifestError
from usam.processor.audio import AudioError
from usam.processor.processor import UsamProcessor
from usam.spec.spec import load_spec

PROMPTS = {"asr": "Transcribe this audio.", "aac": "Describe this audio."}


@pytest.fixture
def manifest(tmp_path):
    def write(*rows, **options):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        return Manifest(tmp_path / "rows.jsonl", PROMPTS, **options)

    return write


def content(sample, turn=0):
    return sample.messages[turn]["content"]


def test_a_task_names_its_prompt(manifest, tmp_path):
    (sample,) = manifest({"audio": "a.wav", "task": "aac", "answer": "a dog"})
    assert content(sample)[0] == {"type": "audio", "audio": str(tmp_path / "a.wav")}
    assert content(sample)[1] == {"type": "text", "text": "Describe this audio."}
    assert sample.answer == "a dog"


def test_a_row_has_its_own_prompt(manifest):
    (sample,) = manifest({"audio": ["a.wav", "b.wav"], "prompt": "Which is louder?"})
    assert [block["type"] for block in content(sample)] == ["audio", "audio", "text"]
    assert sample.answer is None
    assert sample.question == sample.messages


def test_absolute_paths_stay(manifest):
    (sample,) = manifest({"audio": "/data/a.wav", "task": "asr"})
    assert content(sample)[0]["audio"] == "/data/a.wav"


def test_tags_in_messages_take_the_clips_in_order(manifest, tmp_path):
    turns = [{"role": "user", "content": "first <|audio|> then <|audio|>"}, {"role": "assistant", "content": "ok"}]
    (sample,) = manifest({"messages": turns, "audios": ["a.wav", "b.wav"]})
    kinds = [block.get("audio", block.get("text")) for block in content(sample)]
    assert kinds == ["first ", str(tmp_path / "a.wav"), " then ", str(tmp_path / "b.wav")]


def test_blocks_in_messages_are_beside_the_manifest(manifest, tmp_path):
    turns = [{"role": "user", "content": [{"type": "audio", "path": "a.wav", "start": 1.0}]}]
    (sample,) = manifest({"messages": turns})
    assert content(sample) == [{"type": "audio", "audio": str(tmp_path / "a.wav"), "start": 1.0}]


def test_several_files_are_read_in_order(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n\n")
    data = Manifest([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], {})
    assert [content(s)[0]["text"] for s in data.samples] == ["a", "b"]


def test_a_row_has_an_id_and_columns_of_its_own(manifest):
    (sample,) = manifest(
        {"audio": "a.wav", "task": "asr", "id": "a-1", "x_voice": "f3", "meta": {"snr": 3, "of": None}}
    )
    assert (sample.id, sample.extra) == ("a-1", {"x_voice": "f3", "meta": {"snr": 3, "of": None}})


def test_several_answers_are_right_and_the_first_is_learned(manifest):
    (sample,) = manifest({"audio": "a.wav", "task": "aac", "answer": ["a dog barks", "dog"]}, need_answer=True)
    assert sample.answer == "a dog barks"
    assert sample.references == ("a dog barks", "dog")
    assert [turn["role"] for turn in sample.messages] == ["user", "assistant"]


def test_one_answer_is_the_only_reference(manifest):
    one, none = manifest({"prompt": "?", "answer": ""}, {"prompt": "?", "answer": None})
    assert (one.references, none.references) == (("",), ())


def test_an_assistants_blocks_of_text_are_its_answer(manifest):
    blocks = [{"type": "text", "text": "a "}, {"type": "text", "text": "dog"}]
    (sample,) = manifest({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": blocks}]})
    assert sample.answer == "a dog"


# Clips

TAGGED = [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "ok"}]
CLIP = {"type": "audio", "audio": "a.wav"}


def asked(*blocks, **row):
    return {"messages": [{"role": "user", "content": list(blocks)}, {"role": "assistant", "content": "ok"}], **row}


DATA = base64.b64encode(b"RIFF").decode()


@pytest.mark.parametrize(
    "row",
    [
        {"audio": "a.wav", "task": "asr"},
        {"audio": ["a.wav"], "task": "asr"},
        {"audios": {"path": "a.wav"}, "task": "asr"},
        {"audio": "a.wav", "prompt": "<audio>What?"},
        {"messages": TAGGED, "audio": "a.wav"},
        asked({"type": "text", "text": "<|audio|>"}, audio="a.wav"),
        asked({"type": "audio"}, audio="a.wav"),
        asked({"type": "audio", "audio": None}, audio="a.wav"),
        asked({"type": "audio", "url": "a.wav"}),
        asked({"type": "audio_url", "audio_url": {"url": "a.wav"}}),
        asked({"type": "audio_url", "audio_url": "a.wav"}),
        asked({"type": "audio", "audio": {"path": "a.wav"}}),
    ],
)
def test_every_way_to_write_a_clip_means_the_same(row, manifest, tmp_path):
    (sample,) = manifest(row)
    clips = [block for block in content(sample) if block["type"] == "audio"]
    assert clips == [{"type": "audio", "audio": str(tmp_path / "a.wav")}]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{DATA}"}},
        {"type": "audio", "data": DATA},
    ],
)
def test_sound_may_stand_in_the_row_itself(block, manifest):
    (sample,) = manifest(asked(block))
    assert content(sample) == [{"type": "audio", "audio": b"RIFF"}]


PART = {"type": "audio", "start": 3.0, "duration": 1.0, "channel": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"audio": "a.wav", "task": "asr", "start": 3, "duration": 1, "channel": 1},
        {"audio": ["a.wav"], "task": "asr", "offset": 3, "end": 4, "channel": 1},
        {"audio": {"path": "a.wav", "start": 3, "duration": 1}, "task": "asr", "channel": 1},
        {"messages": TAGGED, "audio": "a.wav", "start": 3, "end": 4, "channel": 1},
        asked({"type": "audio", "path": "a.wav", "offset": 3, "duration": 1, "channel": 1}),
        asked({"type": "audio", "audio": {"path": "a.wav", "start": 3, "duration": 1, "channel": 1}}),
        asked({"type": "audio", "start": 3, "duration": 1}, audio={"path": "a.wav", "channel": 1}),
        asked(CLIP, start=3, duration=1, channel=1),
    ],
)
def test_a_range_counts_for_row_clip_and_block(row, manifest, tmp_path):
    (sample,) = manifest(row)
    clips = [block for block in content(sample) if block["type"] == "audio"]
    assert clips == [{**PART, "audio": str(tmp_path / "a.wav")}]


def test_a_row_is_trained_on_the_part_it_names(manifest, tmp_path):
    steps = np.repeat(np.arange(5) / 8, 16000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", steps, 16000, subtype="FLOAT")
    row = {"audio": "a.wav", "task": "asr", "answer": "x", "offset": 3, "duration": 1}
    batch = Collator(UsamProcessor.from_spec("tiny"))(manifest(row).samples)
    assert batch["input_values"].tolist() == [[0.375] * 16000]


def test_no_way_to_write_a_clip_ends_the_data_early(manifest, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.5), 16000)
    data = base64.b64encode((tmp_path / "a.wav").read_bytes()).decode()
    blocks = [
        {"type": "audio", "path": "a.wav"},
        {"type": "audio_url", "audio_url": {"url": "a.wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "audio", "array": [0.0] * 8000, "sampling_rate": 16000},
    ]
    batches = DataLoader(manifest(*map(asked, blocks)), collate_fn=Collator(UsamProcessor.from_spec("tiny")))
    assert [batch["input_values"].shape for batch in batches] == [(1, 8000)] * len(blocks)


# Faults


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"audio": "a.wav"', ""], r"rows.jsonl:1: not JSON"),
        (["[", "{}", "]"], "rows.jsonl:2, row 1: no 'audio', 'prompt'"),
        (['[{"prompt": "x"},', '{"prompt": "y"'], "rows.jsonl:2, row 2: not JSON"),
        (['[{"prompt": "x"}', '{"prompt": "y"}]'], "rows.jsonl:2: not JSON: the array ends neither"),
        (["{", '"prompt": "x"', "}"], "rows.jsonl:1: not JSON: .*one JSON map a line is expected, each on one line"),
        (["[" * 100_000], "rows.jsonl:1: maps or lists are nested too deeply"),
        (['{"task": "asr", "audio": ' + '{"audio": ' * 100_000 + '"a.wav"' + "}" * 100_001], "nested too deeply"),
        (["[1, 2]"], r"rows.jsonl:1: expected a JSON map"),
        (['{"prompt": "x", "answer": "y", "answer": "z"}'], "rows.jsonl:1: the key 'answer' stands twice"),
        (['{"prompt": "x", "meta": {"a": 1, "a": 2}}'], "rows.jsonl:1: the key 'a' stands twice"),
        ([{"prompt": "x", "answer": "y"}, {"wav": "a.wav"}], r"rows.jsonl:2: no 'audio', 'prompt'"),
        ([{"audios_": ["a"], "answer": "y"}], r"it has 'audios_': did you mean 'audios'"),
        ([{"prompt": "x", "anwser": "y"}], r"rows.jsonl:1: a row has no key 'anwser' .*; did you mean 'answer'"),
        ([{"audio": "a.wav", "task": "asr", "voice": "f3"}], "a row has no key 'voice' .your own begin with 'x_'"),
        ([{"audio": "a.wav", "task": "arc"}], r"task 'arc' has no prompt .* did you mean 'asr'"),
        ([{"audio": "a.wav", "task": ["asr"]}], r"rows.jsonl:1: 'task' is text, found ..asr"),
        ([{"audio": "a.wav", "prompt": 3}], "'prompt' is text, found 3"),
        ([{"prompt": ""}], "nothing is asked"),
        ([{"prompt": "x", "id": 1.5}], "'id' is text or a whole number, found 1.5"),
        ([""], "no rows"),
    ],
)
def test_a_fault_names_its_line(manifest, rows, message):
    with pytest.raises(ManifestError, match=message.replace("|", r"\|")):
        manifest(*rows)


@pytest.mark.parametrize("answer", [True, 7, float("nan"), {"text": "dog"}, ["dog", None], [["dog"]]])
def test_an_answer_is_text(manifest, answer):
    with pytest.raises(ManifestError, match=r"rows.jsonl:1: 'answer' is text, found"):
        manifest({"prompt": "x", "answer": answer})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "'answer' is an empty list"),
        ("a <|audio|>", r"'answer' of the assistant holds <\|audio\|>"),
        ("\ud83d", r"'answer' holds half a character .'.ud83d', a lone surrogate. at position 0"),
    ],
)
def test_an_answer_that_cannot_be_learned(manifest, answer, message):
    with pytest.raises(ManifestError, match=f"rows.jsonl:1: {message}"):
        manifest({"prompt": "x", "answer": answer})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": [], "task": "asr"}, r"'audio' is \[\]: name a clip, or leave the key out"),
        ({"audio": None, "task": "asr"}, "'audio' is null: name a clip, or leave the key out"),
        ({"audio": "a.wav", "audios": "b.wav", "task": "asr"}, "'audio' and 'audios' both name clips"),
        ({"audio": [None], "task": "asr"}, "a clip is a path, sound, or a map that names one; found None"),
        ({"audio": [["a.wav"]], "task": "asr"}, "one clip was expected, found a list"),
        ({"audio": {"start": 1}, "task": "asr"}, "an audio clip names one source"),
        ({"audio": {"path": "a.wav", "durration": 1}, "task": "asr"}, "no key 'durration' .*; did you mean 'duration'"),
        ({"audio": "a.wav", "task": "asr", "start": -1}, "'start' is -1 s; expected 0 or more"),
        ({"audio": "a.wav", "task": "asr", "start": 2, "end": 1}, "'end' .1 s. lies before 'start'"),
        ({"audio": {"path": "a.wav", "start": 1}, "task": "asr", "start": 1}, "'start' a second time"),
        ({"audio": ["a.wav", "b.wav"], "task": "asr", "start": 1}, "'start' is said of the row, which has 2 clips"),
        ({"prompt": "x", "duration": 1}, "'duration' is said of the row, which has 0 clips"),
        ({"audio": "https://example.org/a.wav", "task": "asr"}, "nothing is fetched from a network"),
        ({"audio": "\ud83d.wav", "task": "asr"}, "a path to a file was expected, found"),
        ({"audio": "$NOWHERE/a.wav", "task": "asr"}, r"the environment variable \$NOWHERE is not set"),
        ({"audio": "data:audio/wav;base64,?", "task": "asr"}, "not base64"),
        ({"prompt": "<audio>What?", "answer": "x"}, "more <.audio.> tags in 'prompt' than clips"),
        ({"audio": ["a.wav", "b.wav"], "prompt": "<audio>What?"}, "1 more clips in 'audio' than"),
        ({"messages": TAGGED}, "more <.audio.> tags in 'messages' than clips"),
        ({"messages": [{"role": "user", "content": "hi"}], "audio": "a.wav"}, "1 more clips"),
        (asked({"type": "audio"}), "a block names no source .*'audio' has no clip left"),
        (asked({"type": "input_audio", "input_audio": {}}), "an audio clip names one source"),
        (asked({"type": "audio", "file": "a.wav"}), "a clip has no key 'file'"),
        (asked({"type": "image", "url": "a.png"}), "a content block has type 'text' or 'audio', found"),
    ],
)
def test_a_clip_that_is_none(manifest, row, message):
    with pytest.raises(ManifestError, match=f"rows.jsonl:1: .*{message}"):
        manifest(row)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "'messages' is a list of one or more messages, found None"),
        ([], "'messages' is a list of one or more messages, found"),
        ("hi", "'messages' is a list of one or more messages, found 'hi'"),
        ([3], "a message has 'role' .system, user, assistant. and 'content', found 3"),
        ([{"role": "robot", "content": "hi"}], "a message has 'role' .system, user, assistant."),
        ([{"role": ["user"], "content": "hi"}], "a message has 'role' .system, user, assistant."),
        ([{"role": "user"}], "a message has 'role' .system, user, assistant. and 'content'"),
        ([{"role": "user", "content": None}], "a message's 'content' is text or a list of blocks, found None"),
        ([{"role": "user", "content": []}], r"a message's 'content' is text or a list of blocks, found \[\]"),
        ([{"role": "user", "content": ["hi"]}], "a content block has type 'text' or 'audio', found 'hi'"),
        ([{"role": "user", "content": [{"text": "hi"}]}], "a content block has type 'text' or 'audio', found"),
        ([{"role": "user", "content": [{"type": "text"}]}], "'text' is text, found None"),
        ([{"role": "user", "content": "hi", "weight": 0}], "a message has no key 'weight'"),
        ([{"role": "assistant", "content": "hi"}], "'messages' must begin with a turn of the system or the user"),
        ([{"role": "user", "content": "hi"}], "'messages' must end with an assistant's turn to learn from"),
        ([*TAGGED, {"role": "assistant", "content": [CLIP]}], "an assistant's turn is text"),
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<|audio|>"}],
            "'content' of the assistant",
        ),
    ],
)
def test_messages_that_are_none(manifest, messages, message):
    row = {"messages": messages} | ({"audio": "a.wav"} if messages and messages[0] == TAGGED[0] else {})
    with pytest.raises(ManifestError, match=f"rows.jsonl:1: {message}"):
        manifest(row, need_answer=True)


@pytest.mark.parametrize("key", ["prompt", "answer"])
def test_messages_stand_alone(manifest, key):
    with pytest.raises(ManifestError, match=f"'messages' and '{key}' contradict each other"):
        manifest({"messages": TAGGED, "audio": "a.wav", key: "x"})


def test_every_row_is_checked_and_the_first_faults_are_listed(manifest):
    rows = [{"prompt": "x", "anser": str(i)} for i in range(12)]
    with pytest.raises(ManifestError) as caught:
        manifest({"prompt": "fine"}, *rows)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("rows.jsonl: 12 rows are wrong; the first 10:")
    assert [line.partition(": ")[0].rpartition(":")[2] for line in lines[1:]] == [str(i) for i in range(2, 12)]


THINGS = [
    None,
    True,
    -1,
    0.5,
    float("nan"),
    "",
    "a.wav",
    "\ud83d",
    "<|audio|>",
    [],
    {},
    ["a.wav"],
    [[1]],
    {"url": 1},
    "$X",
]
NAMES = [
    "audio",
    "prompt",
    "task",
    "answer",
    "messages",
    "id",
    "start",
    "end",
    "channel",
    "type",
    "data",
    "url",
    "content",
]


def changed(thing, draw):
    """JSON with one thing in it replaced, left out, or put beside it under another name."""
    if draw.random() < 0.2 or not isinstance(thing, (dict, list)) or not thing:
        return draw.choice(THINGS)
    thing = dict(enumerate(thing)) if (is_list := isinstance(thing, list)) else dict(thing)
    key = draw.choice(list(thing))
    how = draw.random()
    if how < 0.2:
        del thing[key]
    elif how < 0.4 and not is_list:
        thing[draw.choice(NAMES)] = draw.choice(THINGS)
    else:
        thing[key] = changed(thing[key], draw)
    return list(thing.values()) if is_list else thing


def test_whatever_a_row_holds_is_taken_or_named(manifest):
    rows = [
        {"audio": [{"path": "a.wav", "start": 1, "end": 2}, "b.wav"], "task": "asr", "answer": ["x", "y"], "id": 1},
        asked(CLIP, {"type": "audio"}, {"type": "text", "text": "?"}, audio="b.wav"),
        asked({"type": "input_audio", "input_audio": {"data": DATA, "format": "wav"}}, start=1, x_a=0),
    ]
    draw = random.Random(0)
    answers, faults = [], []
    for _ in range(600):
        try:
            (sample,) = manifest(json.dumps(changed(draw.choice(rows), draw)), need_answer=True)
            answers += sample.references
        except ManifestError as error:
            faults.append(str(error))
    assert all(isinstance(answer, str) for answer in answers)
    assert all(re.search("rows.jsonl(:1: |:1, row 1: |: no rows)", fault) for fault in faults)  # a list is an array
    assert min(len(answers), len(faults)) > 100


# Files

ROW = json.dumps({"prompt": "höre", "answer": "ja"}, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    "data",
    [
        ROW.encode(),
        ROW.encode("utf-8-sig"),
        gzip.compress(ROW.encode(), mtime=0),
        gzip.compress(ROW.encode("utf-8-sig"), mtime=0),
        ROW.replace("\n", "\r\n").encode(),
    ],
)
def test_a_byte_order_mark_and_gzip_are_read(data, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(data)
    (sample,) = Manifest(tmp_path / "rows.jsonl", {}).samples
    assert (content(sample)[0]["text"], sample.origin) == ("höre", f"{tmp_path / 'rows.jsonl'}:1")


def test_files_with_marks_may_be_joined(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(2 * ROW.encode("utf-8-sig"))
    assert len(Manifest(tmp_path / "rows.jsonl", {})) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"prompt": "x"}\n' + ROW.encode("latin-1"), "rows.jsonl:2: not UTF-8: byte 0xf6 .*iconv -f WINDOWS-1252"),
        (ROW.encode("utf-16"), "rows.jsonl:1: UTF-16; write it as UTF-8: iconv"),
        (ROW.encode("utf-16-be"), "rows.jsonl:1: holds zero bytes, as UTF-16 and UTF-32 do"),
        (gzip.compress(ROW.encode("utf-16"), mtime=0), "rows.jsonl:1: UTF-16"),
        (gzip.compress(ROW.encode() * 2, mtime=0)[:-12], "rows.jsonl:[123]: gzip breaks off here"),
        (b"BZh91AY", "rows.jsonl:1: packed with bzip2; unpack it, or pack it with gzip"),
        (b"PAR1....", "rows.jsonl:1: a Parquet file"),
    ],
)
def test_other_encodings_are_named(data, message, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        Manifest(tmp_path / "rows.jsonl", {})


def test_a_manifests_own_path_is_expanded(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(ROW)
    monkeypatch.setenv("DATA", str(tmp_path))
    assert len(Manifest("$DATA/rows.jsonl", {})) == 1


def test_no_manifest_is_no_data():
    with pytest.raises(ManifestError, match="no manifest was given"):
        Manifest([], PROMPTS)


def test_checking_holds_nothing_but_the_samples(tmp_path):
    row = {"audio": "a.wav", "task": "asr", "answer": "x", "messages": None}  # wrong, so that no sample is kept
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for _ in range(20_000))
    tracemalloc.start()
    with pytest.raises(ManifestError, match="20000 rows are wrong"):
        Manifest(tmp_path / "rows.jsonl", PROMPTS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_learning_needs_answers(manifest):
    with pytest.raises(ManifestError, match=r"rows.jsonl:1: no 'answer'"):
        manifest({"audio": "a.wav", "task": "asr"}, need_answer=True)


def test_a_missing_manifest_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ManifestError, match=f"no such manifest .looked in {tmp_path}"):
        Manifest(tmp_path / "none.jsonl", PROMPTS)


def test_a_batch_with_a_missing_file_names_row_and_file(manifest):
    data = manifest({"audio": "none.wav", "task": "asr", "answer": "x"})
    collate = Collator(UsamProcessor.from_spec(load_spec("tiny")))
    with pytest.raises(AudioError, match=r"rows.jsonl:1: .*none.wav"):
        collate([data[0]])


def test_a_described_batch_shows_text_audio_and_supervision(manifest, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16000)
    data = manifest({"audio": "a.wav", "task": "asr", "answer": "seven three"})
    text = describe_batch(UsamProcessor.from_spec(load_spec("tiny")), [data[0]])
    assert "{Transcribe this audio.}\n<|audio|> x 13\n---\n[[seven three<|end|>]]" in text
    assert "13 of them audio, 12 supervised" in text  # eleven bytes and the end token
    assert "clips: 1.00 s" in text


def test_a_described_batch_shows_the_part_that_is_heard(manifest, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(3.0), 16000)
    data = manifest({"audio": "a.wav", "task": "asr", "answer": "x", "offset": 0.5, "end": 2})
    assert "clips: 1.50 s" in describe_batch(UsamProcessor.from_spec(load_spec("tiny")), [data[0]])


def test_a_sample_goes_to_another_process(manifest):
    (sample,) = manifest({"audio": "a.wav", "task": "asr", "answer": ["x", "y"], "id": 1, "x_a": [1]})
    assert pickle.loads(pickle.dumps(sample)) == sample
