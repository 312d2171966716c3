"""A file with a fault that files often have is told which, and where."""

import gzip
import io
import json
import tarfile

import pytest

from usam.data.manifest import Manifest, ManifestError

PROMPTS = {"asr": "Transcribe."}
ROW = json.dumps({"wav": "a.wav", "txt": "hello é"}, ensure_ascii=False)


def read(folder, name, data):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return Manifest(folder / name, PROMPTS).samples


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.jsonl", f"\ufeff{ROW}\n{ROW}\n"),
        ("rows.jsonl", f"\r\n{ROW}\r\n\r\n{ROW}\r\n \r\n"),
        ("rows.json", f"\ufeff[{ROW},\r\n{ROW}\r\n]\r\n"),
        ("rows.csv", "\ufeffwav,txt\r\na.wav,hello é\r\n\r\na.wav,hello é"),
        ("rows.csv", "wav|txt\na.wav|hello é\na.wav|hello é\n"),
        ("rows.csv", "wav, txt\na.wav, hello é\na.wav, hello é\n"),
    ],
)
def test_marks_line_ends_and_empty_lines_do_no_harm(name, data, tmp_path):
    assert [sample.answer for sample in read(tmp_path, name, data)] == ["hello é"] * 2


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.jsonl", f"{ROW}\n".encode("latin-1"), "rows.jsonl:1: not UTF-8: byte 0xe9 .*iconv -f WINDOWS-1252"),
        ("rows.csv", "wav,txt\na.wav,é\n".encode("latin-1"), "rows.csv:2: not UTF-8: byte 0xe9"),
        ("rows.json", f"[{ROW},\n{ROW},\n]", "rows.json:3, row 3: not JSON: .*a comma too many"),
        ("rows.json", f"[{ROW},\n{ROW}", "rows.json:2: not JSON: .*nothing: the file breaks off"),
        ("rows.jsonl", f"{ROW},\n{ROW},\n", "rows.jsonl:1: not JSON: .*have no commas between them"),
        ("rows.jsonl", "{'wav': 'a.wav'}\n", "rows.jsonl:1: not JSON: .*write it with json.dumps"),
        ("rows.json", f'{{"data": [{ROW}]}}', "rows.json:1: no reader knows .*if the rows lie under 'data'"),
        ("rows.json", f'{{"u1": {ROW}}}', "rows.json:1: no reader knows .*if each value is a row"),
        ("rows.txt", "a.wav hello\n", "rows.txt:1: not JSON: .*one JSON map a line is expected"),
        ("rows.jsonl", b"RIFF....WAVE", "rows.jsonl:1: a WAV file; a manifest names such files"),
        (
            "rows.jsonl.gz",
            gzip.compress(f"{ROW}\n".encode() * 999, mtime=0)[:40],
            "rows.jsonl.gz:1: gzip breaks off here",
        ),
        ("rows.tsv", "wav,txt\na.wav,x\n", "rows.tsv:1: has no tabs, but ',' between its cells: name it .csv"),
        ("rows.csv", "a.wav,hello\nb.wav,hi\n", "rows.csv:1: the first line names the columns, .*found 'a.wav'"),
        ("rows.csv", ",wav,txt\n0,a.wav,x\n", "rows.csv:1: .*pandas writes its index so"),
        ("rows.csv", 'wav,"txt\na.wav,x\n', "rows.csv:1: not CSV"),
        ("rows.csv", "wav txt\na.wav x\n", "rows.csv:2: no reader knows a row with 'wav txt'; the nearest format"),
        ("rows.csv", 'wav,txt\na.wav,"x\n', "rows.csv:2: not CSV"),
        ("rows.csv", "path,label\na.wav,x\n", "rows.csv:2: .* 'columns': it lacks a column of text: one of 'text'"),
        ("rows.csv", "path,text,caption\na.wav,x,y\n", "rows.csv:2: .*'text' and 'caption' both say the answer"),
    ],
)
def test_a_fault_is_told_with_its_place(name, data, message, tmp_path):
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, name, data)


def archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("1.wav", "1.txt", "2.wav", "2.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 700
            tar.addfile(entry, io.BytesIO(b"x" * 700))
    return file.getvalue()[: 4 * (512 + 1024) + 512]  # what pads it behind its end may be lost


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("rows.json", f"[{ROW},\n{ROW}]".encode()),
        ("rows.jsonl.gz", gzip.compress(f"{ROW}\n{ROW}\n".encode(), mtime=0)),
        ("rows.csv.gz", gzip.compress(b"wav,txt\na.wav,hello\n", mtime=0)),
        ("rows.tar", archive()),
        ("rows.tar.gz", gzip.compress(archive(), mtime=0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_may_break_off_anywhere(name, whole, tmp_path):
    assert read(tmp_path, name, whole)
    for size in range(0, len(whole), 1 + len(whole) // 100):
        with pytest.raises(ManifestError, match=name):
            read(tmp_path, name, whole[:size])


def test_quoted_line_ends_belong_to_a_cell(tmp_path):
    first, second = read(tmp_path, "rows.csv", 'wav,txt\r\na.wav,"hello\nyou"\r\nb.wav,hi\r\n')
    assert (first.answer, second.answer, second.origin) == ("hello\nyou", "hi", f"{tmp_path / 'rows.csv'}:4")


@pytest.mark.parametrize("key", ["Wav", "wave", "txt_"])
def test_the_nearest_format_is_that_of_the_misspelt_key(key, tmp_path):
    meant = "txt" if key == "txt_" else "wav"
    row = {key if k == meant else k: "a.wav" for k in ("wav", "txt")}
    with pytest.raises(
        ManifestError, match=rf"nearest format is 'west': it lacks '{meant}' and it has '{key}' too many"
    ):
        read(tmp_path, "rows.jsonl", json.dumps(row))
