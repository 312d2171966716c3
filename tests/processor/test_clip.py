"""A clip's source and its range are read in one place, and mean the same wherever they are written."""

import base64

import numpy as np
import pytest
import soundfile

from usam import UsamProcessor
from usam.data.collate import Collator, with_sound
from usam.data.manifest import Sample
from usam.processor.audio import AudioError
from usam.processor.clip import Clip

RATE = 16000
STEPS = np.repeat(np.arange(5) / 8, RATE).astype(np.float32)  # second i holds i / 8 all through


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Five seconds in a file, whose folder is the working directory; the right channel is inverted."""
    soundfile.write(tmp_path / "steps.wav", np.stack([STEPS, -STEPS], 1), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "mono.wav", STEPS, RATE, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def processor():
    return UsamProcessor.from_spec("tiny")


THIRD = np.full(RATE, 3 / 8, np.float32)


# Ranges


@pytest.mark.parametrize(
    "part",
    [
        {"start": 3, "duration": 1},
        {"offset": 3.0, "duration": 1.0},
        {"start": 3, "end": 4},
        {"offset": 3, "end": 4, "channel": None},
        {"start": np.float32(3), "duration": np.int64(1)},
    ],
)
def test_a_range_is_written_in_one_of_four_ways(part, steps):
    np.testing.assert_array_equal(Clip.of({"path": "mono.wav", **part}).read(RATE), THIRD)


@pytest.mark.parametrize(
    "given",
    [
        {"audio": {"path": "mono.wav", "start": 3, "duration": 1}},
        {"audio": {"path": "mono.wav"}, "start": 3, "duration": 1},
        {"type": "audio", "audio": {"path": "mono.wav", "duration": 1}, "start": 3},
        {"type": "audio_url", "audio_url": {"url": "mono.wav"}, "start": 3, "end": 4},
        {"array": STEPS, "sampling_rate": RATE, "start": 3, "duration": 1},
        Clip("mono.wav", 3, 1),
        {"type": "audio", "audio": Clip("mono.wav", 3, 1)},
        {"audio": Clip("mono.wav", 3), "duration": 1},
    ],
)
def test_a_range_counts_at_every_level(given, steps):
    np.testing.assert_array_equal(Clip.of(given).read(RATE), THIRD)


def test_null_is_not_given(steps):
    given = {"path": "mono.wav", "start": None, "duration": None, "end": None, "channel": None, "sampling_rate": None}
    np.testing.assert_array_equal(Clip.of(given).read(RATE), STEPS)


def test_a_channel_is_chosen(steps):
    heard = [Clip.of({"path": "steps.wav", "start": 3, "end": 4, "channel": i}).read(RATE) for i in (0, 1)]
    np.testing.assert_array_equal(heard, [THIRD, -THIRD])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"start": 1, "offset": 1}, "'offset' says a clip's 'start' a second time"),
        ({"duration": 1, "end": 1}, "'duration' and 'end' say the same"),
        ({"start": 2, "end": 2}, r"'end' \(2 s\) lies before 'start' \(2 s\), or at it"),
        ({"start": "1"}, "'start' is in seconds, 0 or more; found '1'"),
        ({"start": 10**400}, "'start' is in seconds, 0 or more; found 1000"),
        ({"start": True}, "'start' is in seconds"),
        ({"start": -1}, "'start' is -1 s; expected 0 or more"),
        ({"duration": 0}, "'duration' is 0 s; expected more than 0"),
        ({"duration": float("nan")}, "'duration' is in seconds, more than 0; found nan"),
        ({"end": float("inf")}, "'end' is in seconds"),
        ({"channel": 1.0}, "'channel' is a whole number from 0 on, found 1.0"),
        ({"channel": -1}, "'channel' is a whole number from 0 on"),
        ({"durration": 1}, "a clip has no key 'durration' .*; did you mean 'duration'"),
    ],
)
def test_a_range_that_is_none(part, message):
    with pytest.raises(ValueError, match=message):
        Clip.of({"path": "a.wav", **part})


def test_a_range_at_two_levels_is_refused_where_it_contradicts():
    with pytest.raises(ValueError, match="says a clip's 'start' a second time"):
        Clip.of({"audio": {"path": "a.wav", "start": 1}, "start": 2})
    with pytest.raises(ValueError, match="'duration' and 'end'"):
        Clip.of({"audio": {"path": "a.wav", "end": 3}, "duration": 2})


# Sources


def test_every_way_to_name_a_source_means_the_same(steps):
    data = base64.b64encode((steps / "mono.wav").read_bytes()).decode()
    for given in (
        "mono.wav",
        steps / "mono.wav",
        (steps / "mono.wav").as_uri(),
        (steps / "mono.wav").read_bytes(),
        STEPS,
        f"data:audio/wav;base64,{data}",
        {"path": "mono.wav"},
        {"url": f"data:;base64,{data}"},
        {"data": data, "format": "wav"},
        {"bytes": (steps / "mono.wav").read_bytes(), "path": "elsewhere.wav"},
        {"array": STEPS, "sampling_rate": RATE, "path": "elsewhere.wav"},
        {"type": "audio_url", "audio_url": "mono.wav"},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "audio", "audio": {"array": STEPS, "sampling_rate": RATE}, "meta": {"who": "me"}, "x_id": 1},
    ):
        np.testing.assert_array_equal(Clip.of(given).read(RATE), STEPS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"type": "audio"}, "names one source .*, found none"),
        ({"path": "a.wav", "url": "b.wav"}, "names one source .*, found path and url"),
        ({"type": "image", "url": "a.wav"}, "a clip's type is one of audio, audio_url, input_audio; found 'image'"),
        ({"path": 3}, "'path' is text, found 3"),
        ({"audio": ["a.wav", "b.wav"]}, "one clip was expected, found a list"),
        ({"audio": []}, "one clip was expected, found a list"),
        ({"audio": [[["a.wav"]]]}, "one clip was expected, found a list"),
        ({"bytes": "UklGRg=="}, "'bytes' holds bytes, found str; base64 text goes under 'data'"),
        ({"data": b"UklGRg=="}, "'data' is base64 text, found bytes"),
        ({"data": "not base64!"}, r"not base64 \(.*\): 'not base64!'"),
        ({"array": "a.wav", "sampling_rate": 16000}, "'array' holds samples, found 'a.wav'; a file goes under 'path'"),
        ({"path": "a.wav", "sampling_rate": 8000}, "'sampling_rate' goes with an array of samples"),
        ({"data": "UklGRg==", "sampling_rate": 8000}, "'sampling_rate' goes with an array of samples"),
        ({"audio": b"RIFF", "sampling_rate": 8000}, "'sampling_rate' goes with an array of samples"),
        ({"audio": (16000, [0.0]), "sampling_rate": 8000}, "'sampling_rate' goes with an array of samples"),
        ({"path": "a.wav", "format": "wav"}, "'format' is text and goes with 'data'"),
        ({"data": "UklGRg==", "format": 3}, "'format' is text and goes with 'data'"),
        ({"url": "UklGR" * 1000}, "'UklGR.*'... of 5,000 characters is no path; base64 text goes under 'data'"),
        ({"path": ""}, "a path to a file was expected, found ''"),
        ("data:audio/wav;base64,", "no sound: the base64 text is empty"),
        ("data:audio/wav,abc", "a data: URI begins like 'data:audio/wav;base64,'"),
        ("https://example.org/a.wav", "nothing is fetched from a network"),
        (None, "a clip is a path, sound, or a map that names one; found None"),
        (3, "a clip is a path"),
    ],
)
def test_a_source_that_is_none(given, message):
    with pytest.raises(ValueError, match=message):
        Clip.of(given)


def test_a_faulty_data_uri_is_not_printed_whole():
    with pytest.raises(ValueError) as caught:
        Clip.of({"type": "audio", "audio": "data:audio/wav;base64," + "?" * 100_000})
    assert len(str(caught.value)) < 300


def test_paths_are_beside_a_folder_unless_absolute(tmp_path):
    assert Clip.of("a.wav", tmp_path).source == str(tmp_path / "a.wav")
    assert Clip.of({"audio_url": {"url": "a.wav"}}, tmp_path).source == str(tmp_path / "a.wav")
    assert Clip.of("/data/a.wav", tmp_path).source == "/data/a.wav"
    assert Clip.of("file:///data/a.wav", tmp_path).source == "file:///data/a.wav"


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("CLIPS", "/data")
    assert Clip.of("~/a.wav", tmp_path).source == "/home/me/a.wav"
    assert Clip.of("$CLIPS/a.wav", tmp_path).source == "/data/a.wav"
    assert Clip.of("${CLIPS}/a.wav", tmp_path).source == "/data/a.wav"
    with pytest.raises(ValueError, match=r"\$NOWHERE/a.wav: .*the environment variable \$NOWHERE is not set"):
        Clip.of("$NOWHERE/a.wav", tmp_path)


def test_a_file_of_that_very_name_goes_before_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("FIVE", "5")
    (tmp_path / "$FIVE.wav").touch()
    assert Clip.of("$FIVE.wav", tmp_path).source == str(tmp_path / "$FIVE.wav")


def test_a_clip_is_its_block_again():
    clip = Clip("a.wav", 1.5, 2.0, 1)
    assert Clip.of(clip.block()) == clip
    assert Clip("a.wav").block() == {"type": "audio", "audio": "a.wav"}


# Wherever a clip is read

WORD = {"type": "text", "text": "What?"}


@pytest.mark.parametrize("clip", [{"path": "mono.wav", "start": 3, "duration": 1}, Clip("mono.wav", 3, 1)])
def test_the_processor_itself_keeps_to_the_range(clip, steps, processor):
    for audio in (clip, [clip]):
        batch = processor(text="<|audio|>", audio=audio)
        np.testing.assert_array_equal(batch["input_values"], THIRD[None])


BLOCKS = [
    {"type": "audio", "path": "mono.wav", "offset": 3, "duration": 1},
    {"type": "audio", "audio": {"path": "mono.wav", "start": 3, "end": 4}},
    {"type": "audio_url", "audio_url": {"url": "mono.wav"}, "start": 3, "duration": 1},
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_chat_keeps_to_the_range(block, steps, processor):
    chat = [{"role": "user", "content": [block, WORD]}]
    np.testing.assert_array_equal(processor.apply_chat_template(chat, tokenize=True)["input_values"], THIRD[None])


@pytest.mark.parametrize("block", BLOCKS)
def test_training_keeps_to_the_range(block, steps, processor):
    chat = ({"role": "user", "content": [block, WORD]}, {"role": "assistant", "content": "3"})
    np.testing.assert_array_equal(Collator(processor)([Sample("rows:1", chat)])["input_values"], THIRD[None])


@pytest.mark.parametrize("block", BLOCKS)
def test_generation_keeps_to_the_range(block, steps, processor):
    (message,) = with_sound([{"role": "user", "content": [block, WORD]}], processor.feature_extractor)
    np.testing.assert_array_equal(message["content"][0]["audio"], THIRD)
    assert message["content"][1] == WORD


def test_training_and_generation_keep_to_the_longest_clip_that_is_read(steps, processor, monkeypatch):
    monkeypatch.setattr(processor.feature_extractor, "max_seconds", 0.01)
    with pytest.raises(AudioError, match=r"max_seconds"):
        with_sound([{"role": "user", "content": [BLOCKS[0], WORD]}], processor.feature_extractor)


def test_a_chat_refuses_a_misspelt_range(steps, processor):
    chat = [{"role": "user", "content": [{"type": "audio", "path": "mono.wav", "ofset": 3}]}]
    with pytest.raises(ValueError, match=r"a clip has no key 'ofset' .*; did you mean 'offset'"):
        processor.apply_chat_template(chat, tokenize=True)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "user", "content": [{"type": "text"}]}, "'text' is text, found None"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "'text' is text, found 3"),
        ({"role": "user", "content": [{"type": "text", "txt": "a"}]}, "a block of text has no key 'txt'"),
        ({"role": "user", "content": [{"text": "a"}]}, "a content block has type 'text' or 'audio'"),
        ({"role": "user", "content": 3}, "'content' is text or a list of blocks, found 3"),
        ({"role": "user", "content": [{"type": "audio", "file": "a.wav"}]}, "a clip has no key 'file'"),
        ({"role": "user", "content": [{"type": "audio", "start": 1}]}, "'start' stands in a block without a source"),
        ({"role": "user"}, "'content' is text or a list of blocks, found None"),
        ({"role": "user", "content": "\ud800"}, "'content' holds half a character"),
    ],
)
def test_a_message_that_is_none(message, fault, processor):
    with pytest.raises(ValueError, match=fault):
        processor.apply_chat_template([message], tokenize=True)


def test_a_chat_that_is_text(processor):
    with pytest.raises(ValueError, match="a message is a map of 'role' and 'content', found 'h'"):
        processor.apply_chat_template(["hi"], tokenize=True)
