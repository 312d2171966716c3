"""LLaMA-Factory's `dataset_info.json` says which columns and tags a file has."""

import json

import pytest

from usam.data.manifest import Manifest, ManifestError

SHAREGPT = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk", "audios": "sounds"}}
ME = {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "bot"}
TALK = {"talk": [{"who": "me", "what": "<audio>What?"}, {"who": "bot", "what": "a dog"}], "sounds": ["a.wav"], "snr": 3}


@pytest.fixture
def read(tmp_path):
    """Reads a row from a file that a folder's dataset_info.json describes."""

    def read(entries, row, name="rows.jsonl"):
        (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        return Manifest(tmp_path / name, {})[0]

    return read


def plain(sample, folder):
    (asked, said) = sample.messages
    return [block.get("text", block.get("audio")).removeprefix(f"{folder}/") for block in asked["content"]], said[
        "content"
    ]


def test_it_names_columns_and_tags(read, tmp_path):
    sample = read({"other": {"file_name": "other.json"}, "mine": {**SHAREGPT, "tags": ME}}, TALK)
    assert plain(sample, tmp_path) == (["a.wav", "What?"], "a dog")
    assert sample.extra == {"x_snr": 3}


def test_without_a_formatting_it_is_alpaca(read, tmp_path):
    columns = {"prompt": "q", "response": "a", "system": "rule", "history": "before"}
    row = {"q": "What?", "a": "a dog", "audios": ["a.wav"]}
    assert plain(read({"mine": {"file_name": "rows.jsonl", "columns": columns}}, row), tmp_path) == (
        ["a.wav", "What?"], "a dog"
    )  # fmt: skip
    row |= {"rule": "Be brief.", "before": [["Hm?", "hm"]]}
    sample = read({"mine": {"file_name": "rows.jsonl", "columns": columns}}, row)
    assert [turn["role"] for turn in sample.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_openais_tags_are_known(read, tmp_path):
    row = {"messages": [{"role": "user", "content": "<audio>What?"}, {"role": "assistant", "content": "a dog"}]}
    entry = {"file_name": "rows.jsonl", "formatting": "openai"}
    assert plain(read({"mine": entry}, {**row, "audios": ["a.wav"]}), tmp_path) == (["a.wav", "What?"], "a dog")


@pytest.mark.parametrize("named", ["sub/rows.jsonl", "sub"])
def test_it_may_stand_in_the_folder_above(named, read, tmp_path):
    sample = read({"mine": {**SHAREGPT, "file_name": named, "tags": ME}}, TALK, "sub/rows.jsonl")
    assert plain(sample, tmp_path / "sub") == (["a.wav", "What?"], "a dog")


def test_what_says_nothing_of_the_file_concerns_nobody(read, tmp_path):
    row = {"audio": "a.wav", "prompt": "What?", "answer": "a dog"}
    for info in ({"other": {"file_name": "other.jsonl"}}, {"splits": {"train": {"num_examples": 3}}}, []):
        assert plain(read(info, row), tmp_path) == (["a.wav", "What?"], "a dog")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"columns": {"messages": "tell"}},
            r"rows.jsonl:1: it lacks the columns .* names: 'tell' \(messages\); the row",
        ),
        ({"columns": {"mesages": "talk"}}, "dataset_info.json: 'mine': 'columns' has no 'mesages'; did you mean"),
        ({"columns": ["talk"]}, "'columns' is a map of names"),
        ({"tags": {"role": "who"}}, "'tags' has no 'role'; did you mean 'role_tag'"),
        ({"tags": {}}, "rows.jsonl:1: a turn has 'from'"),
        ({"formatting": "chatml"}, "'formatting' is alpaca, sharegpt or openai, found 'chatml'"),
        ({"formating": "alpaca"}, "unknown key 'formating'; did you mean 'formatting'"),
        ({"num_samples": 10}, "'num_samples' is not followed here"),
        ({"ranking": True}, "'ranking' is not followed here"),
    ],
)
def test_a_fault_in_it_is_named(change, message, read):
    with pytest.raises(ManifestError, match=message):
        read({"mine": {**SHAREGPT, "tags": ME, **change}}, TALK)


def test_two_that_name_one_file_must_say_the_same(read, tmp_path):
    mine = {**SHAREGPT, "tags": ME}
    assert plain(read({"mine": mine, "again": mine}, TALK), tmp_path)[1] == "a dog"
    with pytest.raises(ManifestError, match=r"'mine' and 'other' both name rows.jsonl, and say different things"):
        read({"mine": mine, "other": SHAREGPT}, TALK)


def test_it_is_no_manifest_itself(read, tmp_path):
    read({"mine": {**SHAREGPT, "tags": ME}}, TALK)
    with pytest.raises(ManifestError, match=r"holds no rows; give the file of one: rows.jsonl \(mine\)"):
        Manifest(tmp_path / "dataset_info.json", {})


def test_one_that_is_no_json_is_named(read, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(TALK))
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(ManifestError, match=r"dataset_info.json: not JSON"):
        Manifest(tmp_path / "rows.jsonl", {})
