"""Manifests of many rows: indexed once, mapped by every process, checked in full, and never trusted when stale."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
import tarfile
from io import BytesIO

import numpy as np
import pytest

from usam.data.index import known
from usam.data.manifest import Held, Indexed, Manifest, ManifestError
from usam.readers import source_of

PROMPTS = {"asr": "Transcribe."}
SMALL, ROWS = 100, 150  # the most rows that are held, and those of a manifest that is indexed


def row(i, **more):
    return {"audio": f"{i}.wav", "task": "asr", "answer": f"number {i}", **more}


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def large(tmp_path):
    return write(tmp_path / "rows.jsonl", map(row, range(ROWS)))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("usam.data.manifest.SMALL", SMALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def home(file):
    return file.with_name(f".{file.name}.usam")


def index_of(file):
    return known(file, source_of(file, PROMPTS))


def is_indexed(manifest):
    return [type(part) for part in manifest.parts] == [Indexed]


# What is indexed, and where


def test_rows_of_an_index_are_those_of_the_file(large):
    manifest = Manifest(large, PROMPTS)
    assert is_indexed(manifest)
    assert len(manifest) == ROWS
    assert [s.answer for s in manifest[ROWS - 3 :]] == [f"number {i}" for i in range(ROWS - 3, ROWS)]
    assert manifest[7].origin == f"{large}:8"
    assert manifest[7].messages[0]["content"][0]["audio"] == str(large.parent / "7.wav")
    assert manifest[-1] == list(manifest)[-1]
    with pytest.raises(IndexError):
        manifest[ROWS]


def test_lines_that_hold_nothing_are_no_rows(tmp_path):
    lines = [json.dumps(row(i)) for i in range(ROWS)]
    lines[3:3] = ["", "  ", "\u00a0"]
    (tmp_path / "rows.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    manifest = Manifest(tmp_path / "rows.jsonl", PROMPTS)
    assert is_indexed(manifest)
    assert (len(manifest), manifest[3].origin) == (ROWS, f"{tmp_path / 'rows.jsonl'}:7")


def test_nothing_is_left_beside_a_small_manifest(tmp_path):
    manifest = Manifest(write(tmp_path / "rows.jsonl", map(row, range(SMALL))), PROMPTS)
    assert [type(part) for part in manifest.parts] == [Held]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_where_the_folder_cannot_be_written_the_index_is_in_the_users_cache(large, cache):
    home(large).write_text("in the way, as a folder without permission is")
    assert is_indexed(Manifest(large, PROMPTS))
    assert list(cache.glob("usam/manifests/*-rows.jsonl/index"))
    assert index_of(large) is not None


def test_where_nothing_can_be_written_the_index_is_in_memory(large, cache):
    for place in (home(large), cache):
        place.write_text("in the way")
    manifest = Manifest(large, PROMPTS)
    assert is_indexed(manifest)
    assert pickle.loads(pickle.dumps(manifest))[ROWS - 1].answer == f"number {ROWS - 1}"


def packed(folder, rows):
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode(), mtime=0))
    return folder / "rows.jsonl.gz"


def table(folder, rows):
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(lines))
    return folder / "rows.csv"


def listed(folder, rows):
    (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return folder / "rows.json"


def archive(folder, rows):
    with tarfile.open(folder / "rows.tar", "w") as tar:
        for i, row in enumerate(rows):
            text = {key: value for key, value in row.items() if key != "audio"}
            for name, data in ((f"{i}.wav", f"sound {i}".encode()), (f"{i}.json", json.dumps(text).encode())):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, BytesIO(data))
    return folder / "rows.tar"


@pytest.mark.parametrize("kind", [packed, table, listed, archive])
def test_files_that_cannot_be_read_from_the_middle_are_indexed_too(kind, tmp_path):
    rows = [row(i) for i in range(ROWS)]
    first = list(Manifest(kind(tmp_path, rows[:3]), PROMPTS))
    file = kind(tmp_path, rows)
    for manifest in (Manifest(file, PROMPTS), Manifest(file, PROMPTS)):
        assert is_indexed(manifest)
        assert len(manifest) == ROWS
        assert [s.messages for s in manifest[:2]] == [s.messages for s in first[:2]]
        assert manifest.find(manifest[ROWS - 2].origin) == ROWS - 2


def test_rows_that_hold_sound_stay_in_memory(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'usam[datasets]'")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'usam[datasets]'")
    rows = [{"audio": {"bytes": b"sound", "path": None}, "text": "x"}] * ROWS
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert not is_indexed(Manifest(tmp_path / "rows.parquet", PROMPTS))


# Every row is checked


@pytest.mark.parametrize(
    "broken", [b'{"audio": "a.wav", "tusk": "asr", "answer": "x"}', b'{"audio": "a.wav"', b'"\xff"']
)
def test_a_broken_row_far_below_is_named_with_its_line(large, broken):
    lines = large.read_bytes().split(b"\n")
    lines[ROWS - 100] = broken
    large.write_bytes(b"\n".join(lines))
    with pytest.raises(ManifestError, match=rf"^{large}:{ROWS - 99}: (a row has no key 'tusk'|not JSON|not UTF-8)"):
        Manifest(large, PROMPTS)


@pytest.mark.slow
def test_line_700001_of_a_million_is_named(tmp_path):
    good, broken = json.dumps(row(1)), json.dumps(row(1, answer=7))
    lines = [good] * 1_000_000
    lines[700_000] = broken
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    with pytest.raises(ManifestError, match=r"rows.jsonl:700001: "):
        Manifest(tmp_path / "rows.jsonl", PROMPTS)


def test_of_many_broken_rows_the_first_are_told_and_all_are_counted(large):
    write(large, (row(i, answer=i if i % 2 else "x") for i in range(ROWS)))
    with pytest.raises(ManifestError) as caught:
        Manifest(large, PROMPTS)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{large}: {ROWS // 2} rows are wrong; the first 10:"
    assert [line.split(": ")[0] for line in lines[1:]] == [f"{large}:{2 * i}" for i in range(1, 11)]


def test_a_row_that_is_broken_later_is_named_when_the_manifest_is_opened_again(large):
    Manifest(large, PROMPTS)
    lines = large.read_text().splitlines()
    lines[ROWS - 10] = lines[ROWS - 10].replace("answer", "anwser")
    large.write_text("\n".join(lines) + "\n")
    with pytest.raises(ManifestError, match=rf"^{large}:{ROWS - 9}: "):
        Manifest(large, PROMPTS)


def test_rows_are_checked_anew_when_what_is_asked_of_them_changes(large):
    Manifest(large, PROMPTS)
    with pytest.raises(ManifestError, match="task 'asr' has no prompt"):
        Manifest(large, {"aac": "Describe."})
    write(large, (row(i) | ({"answer": None} if i == ROWS - 1 else {}) for i in range(ROWS)))
    Manifest(large, PROMPTS)
    with pytest.raises(ManifestError, match=rf"^{large}:{ROWS}: no 'answer' to learn from"):
        Manifest(large, PROMPTS, need_answer=True)


def test_prompts_are_those_of_today(large):
    Manifest(large, PROMPTS)
    assert Manifest(large, {"asr": "Write it down."})[ROWS - 1].messages[0]["content"][1]["text"] == "Write it down."


# An index is of the file as it is


def test_an_index_is_used_again_and_not_made_again(large):
    Manifest(large, PROMPTS)
    before = (home(large) / "index").stat().st_mtime_ns
    assert len(Manifest(large, PROMPTS)) == ROWS
    assert (home(large) / "index").stat().st_mtime_ns == before


def test_rows_that_are_added_are_there(large):
    Manifest(large, PROMPTS)
    with large.open("a") as file:
        file.write(json.dumps(row("more")) + "\n")
    assert Manifest(large, PROMPTS)[ROWS].answer == "number more"


def test_rows_of_the_same_size_and_time_are_those_of_the_file(large):
    Manifest(large, PROMPTS)
    about = large.stat()
    large.write_text(large.read_text().replace("number", "nummer"))
    os.utime(large, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert Manifest(large, PROMPTS)[ROWS - 1].answer == f"nummer {ROWS - 1}"


def test_a_manifest_that_was_only_touched_keeps_its_index(large):
    Manifest(large, PROMPTS)
    os.utime(large)
    assert index_of(large) is not None


@pytest.mark.parametrize("place", [0, 40, -1, -1000])
def test_an_index_with_a_wrong_byte_is_made_anew(large, place):
    Manifest(large, PROMPTS)
    data = bytearray((home(large) / "index").read_bytes())
    data[place] ^= 255
    (home(large) / "index").write_bytes(data)
    assert index_of(large) is None
    assert Manifest(large, PROMPTS)[ROWS - 1].answer == f"number {ROWS - 1}"


@pytest.mark.parametrize("size", [0, 10, 1000])
def test_an_index_that_is_cut_short_is_made_anew(large, size):
    Manifest(large, PROMPTS)
    os.truncate(home(large) / "index", size)
    assert Manifest(large, PROMPTS)[ROWS - 1].answer == f"number {ROWS - 1}"


def test_a_copy_of_rows_that_is_cut_short_is_made_anew(tmp_path):
    file = packed(tmp_path, [row(i) for i in range(ROWS)])
    Manifest(file, PROMPTS)
    os.truncate(home(file) / "rows", 1000)
    assert Manifest(file, PROMPTS)[ROWS - 1].answer == f"number {ROWS - 1}"


@pytest.mark.parametrize("how", ["in its place", "another file", "gone", "cut short"])
def test_a_manifest_that_changes_while_it_is_read_is_an_error_with_its_line(large, how):
    manifest = pickle.loads(pickle.dumps(Manifest(large, PROMPTS)))  # as a process that reads has it
    changed = large.read_text().replace("number", "nummer")
    if how == "in its place":
        large.write_text(changed)
    elif how == "another file":
        (large.parent / "new").write_text(changed)
        (large.parent / "new").replace(large)
    elif how == "gone":
        large.unlink()
    else:
        os.truncate(large, 1000)
    with pytest.raises(ManifestError, match=rf"^{large}:{ROWS - 4}: the manifest is not what it was"):
        manifest[ROWS - 5]


def test_the_hash_is_that_of_the_bytes(large, tmp_path):
    small = write(tmp_path / "small.jsonl", [row(1)])
    assert Manifest([large, small], PROMPTS).hashes == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in (large, small)
    ]


def test_what_was_held_and_is_changed_has_no_hash(tmp_path):
    file = write(tmp_path / "small.jsonl", [row(1)])
    manifest = Manifest(file, PROMPTS)
    write(file, [row(2), row(3)])
    with pytest.raises(ManifestError, match="changed after it was read"):
        assert manifest.hashes


# Many processes


def _last(manifest, answers):
    answers.put(manifest[len(manifest) - 1].answer)


def _open(file, answers):
    answers.put(Manifest(file, PROMPTS)[ROWS - 1].answer)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_manifest_travels_to_another_process_without_its_rows(large, method):
    manifest = Manifest(large, PROMPTS)
    assert len(pickle.dumps(manifest)) < 8192
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    process = context.Process(target=_last, args=(manifest, answers))
    process.start()
    assert answers.get() == f"number {ROWS - 1}"
    process.join()


def test_processes_that_index_at_once_read_the_same(large):
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [context.Process(target=_open, args=(large, answers)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [answers.get() for _ in processes] == [f"number {ROWS - 1}"] * 3
    for process in processes:
        process.join()
    assert sorted(path.name for path in home(large).iterdir()) == ["index"]


# Some of the rows


def test_some_of_the_rows_are_a_manifest(large, tmp_path):
    manifest = Manifest([large, write(tmp_path / "small.jsonl", map(row, range(5)))], PROMPTS)
    some = manifest.select([ROWS + 1, 3, 5])
    assert [s.origin.rpartition("/")[2] for s in some] == ["small.jsonl:2", "rows.jsonl:4", "rows.jsonl:6"]
    assert [some.find(s.origin) for s in some] == [0, 1, 2]
    assert some.find(manifest[4].origin) is None
    assert [s.origin for s in Manifest.joined([some, manifest])[2:4]] == [some[2].origin, manifest[0].origin]
    assert [s.origin for s in some[::-2]] == [some[2].origin, some[0].origin]


def test_lengths_follow_their_rows(large):
    manifest = Manifest(large, PROMPTS)
    manifest.lengths = np.arange(ROWS)
    assert manifest.select([7, 3]).select([1]).lengths.tolist() == [3]
    assert manifest[5:7].lengths.tolist() == [5, 6]


def test_the_last_place_of_a_row_is_found(large):
    manifest = Manifest(large, PROMPTS)
    assert manifest.select([4, 8, 4]).find(manifest[4].origin) == 2
