"""`usam data convert` writes one format in another."""

import json


def test_a_manifest_is_converted(usam, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"wav": "a.wav", "txt": "hello"}\n')
    status, out, _ = usam("data", "convert", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--to", "nemo")
    assert (status, out) == (0, f"wrote {tmp_path / 'out.jsonl'}: 1 rows\n")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"audio_filepath": "a.wav", "text": "hello"}


def test_a_row_that_would_lose_something_is_an_error(usam, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"wav": "a.wav", "txt": "hello"}\n')
    status, _, err = usam("data", "convert", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--to", "ms_swift")
    assert (status, "'ms_swift' has no place for the task" in err) == (2, True)


def test_a_kind_of_file_is_not_written(usam, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"wav": "a.wav", "txt": "hello"}\n')
    status, _, err = usam("data", "convert", tmp_path / "in.jsonl", tmp_path / "out.csv", "--to", "csv")
    assert status == 2
    assert "'csv' is a kind of file, which is only read; write one of columns, ms_swift, nemo" in err
