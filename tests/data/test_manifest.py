"""A manifest's rows become chats, and each fault names its line."""

import json

import pytest
from conftest import noise

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
    assert content(sample) == [{"type": "audio", "path": str(tmp_path / "a.wav"), "start": 1.0}]


def test_several_files_are_read_in_order(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n\n")
    data = Manifest([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], {})
    assert [content(s)[0]["text"] for s in data.samples] == ["a", "b"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"audio": "a.wav"', ""], r"rows.jsonl:1: not JSON"),
        (["[1, 2]"], r"rows.jsonl:1: expected a JSON map"),
        ([{"prompt": "x", "answer": "y"}, {"wav": "a.wav"}], r"rows.jsonl:2: no 'audio', 'prompt'"),
        ([{"audios_": ["a"], "answer": "y"}], r"it has 'audios_': did you mean 'audios'"),
        ([{"audio": "a.wav", "task": "arc"}], r"task 'arc' has no prompt .* did you mean 'asr'"),
        ([{"messages": [{"role": "user", "content": "<|audio|>"}]}], "more <|audio|> tags"),
        ([{"messages": [{"role": "user", "content": "hi"}], "audio": "a.wav"}], "1 more clips"),
        ([{"messages": [{"role": "robot", "content": "hi"}]}], "'role' .system, user, assistant."),
        ([""], "no rows"),
    ],
)
def test_a_fault_names_its_line(manifest, rows, message):
    with pytest.raises(ManifestError, match=message.replace("|", r"\|")):
        manifest(*rows)


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
    import soundfile

    soundfile.write(tmp_path / "a.wav", noise(1.0), 16000)
    data = manifest({"audio": "a.wav", "task": "asr", "answer": "seven three"})
    text = describe_batch(UsamProcessor.from_spec(load_spec("tiny")), [data[0]])
    assert "{Transcribe this audio.}\n<|audio|> x 13\n---\n[[seven three<|end|>]]" in text
    assert "13 of them audio, 12 supervised" in text  # eleven bytes and the end token
    assert "clips: 1.00 s" in text
