"""Streams: every row once in each pass, whoever shares them out, in an order that can be foretold."""

import gzip
import io
import json
import tarfile

import pytest
import soundfile
from conftest import noise
from torch.utils.data import DataLoader

from usam.data.manifest import ManifestError
from usam.data.mixture import entries
from usam.data.stream import PassedOver, Stream


def rows(source, count):
    return [{"prompt": "hm?", "answer": f"{source}{i}"} for i in range(count)]


def write(file, count, text=None):
    """A file of rows, each of which names it."""
    lines = "".join(json.dumps(row) + "\n" for row in rows(file.name[0], count)).encode()
    file.write_bytes(gzip.compress(lines, mtime=0) if file.suffix == ".gz" else lines)
    return str(file)


@pytest.fixture
def files(tmp_path):
    """Five and three and four rows."""
    return [write(tmp_path / "a.jsonl", 5), write(tmp_path / "b.jsonl", 3), write(tmp_path / "c.jsonl", 4)]


ALL = [f"{name}{i}" for name, count in (("a", 5), ("b", 3), ("c", 4)) for i in range(count)]


def first(samples, count):
    return [sample.answer for sample, _ in zip(samples, range(count), strict=False)]


def one_pass(stream, number=0):
    return first(stream, 12 * (number + 1))[12 * number :]


@pytest.mark.parametrize("buffer", [1, 2, 7, 100])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_pass_has_every_row_once(files, buffer, number):
    assert sorted(one_pass(Stream(files, {}, buffer=buffer), number)) == ALL


def test_a_buffer_of_one_leaves_everything_in_its_order(files):
    assert one_pass(Stream(files, {}, buffer=1), 1) == ALL


def test_rows_are_shuffled_as_far_as_the_buffer_reaches(files):
    order = one_pass(Stream(files[:1] * 3, {}, buffer=2))
    assert order != 3 * ALL[:5]
    assert all(order.index(f"a{i}") <= i + 4 for i in range(5))


def test_the_order_depends_on_seed_and_pass_alone(files):
    first, again = Stream(files, {}, seed=3), Stream(files, {}, seed=3)
    assert [one_pass(first, number) for number in (0, 1)] == [one_pass(again, number) for number in (0, 1)]
    assert one_pass(first, 0) != one_pass(first, 1)
    assert one_pass(first, 0) != one_pass(Stream(files, {}, seed=4), 0)


# Shared out


def collate(samples):
    return [sample.answer for sample in samples]


def batches(stream, count, batch, process=0, processes=1, workers=0):
    loader = DataLoader(
        stream.part(batch, process, processes), batch_size=batch, collate_fn=PassedOver(collate), num_workers=workers
    )
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_a_pass_and_no_row_is_lost_or_comes_to_two(files, processes):
    """Also of one source, and of more processes than sources."""
    for given, count in ((files, 60), (files[:1], 25)):
        dealt = [batches(Stream(given, {}), count // processes, 1, each, processes) for each in range(processes)]
        together = [row for step in zip(*dealt, strict=True) for batch in step for row in batch]
        assert together == first(Stream(given, {}), len(together))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing_of_the_order(files, workers):
    """Also where there are more of them than batches in a pass."""
    alone = batches(Stream(files, {}), 8, 2, process=1, processes=2)
    assert batches(Stream(files, {}), 8, 2, process=1, processes=2, workers=workers) == alone


def test_more_workers_than_rows_share_them(tmp_path):
    one = [write(tmp_path / "a.jsonl", 1)]
    assert batches(Stream(one, {}), 4, 2, workers=2) == 4 * [["a0", "a0"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_seen_is_passed_over_and_the_rest_is_the_undisturbed_one(files, workers):
    whole = batches(Stream(files, {}), 9, 2)
    stream = Stream(files, {})
    stream.seen = 7
    assert batches(stream, 9, 2, workers=workers) == [{}] * 7 + whole[7:]


# What can be streamed


def test_functions_that_give_rows_are_called_for_every_pass():
    def few():
        yield from rows("f", 3)

    assert sorted(first(Stream([few], {}), 9)) == sorted(3 * ["f0", "f1", "f2"])


def test_rows_of_a_function_are_of_any_format():
    def said():
        yield {"audio_filepath": "a.wav", "text": "hello"}

    (sample,) = (sample for sample, _ in zip(Stream([said], {"asr": "Transcribe."}), range(1), strict=False))
    assert (sample.answer, sample.task, sample.origin) == ("hello", "asr", "said, row 0")


def test_a_streamed_dataset():
    datasets = pytest.importorskip("datasets", reason="pip install 'usam[datasets]'")
    streamed = datasets.IterableDataset.from_generator(lambda: iter(rows("d", 4)))
    assert sorted(first(Stream([streamed], {}), 4)) == ["d0", "d1", "d2", "d3"]


def test_gzipped_lines_and_archives(tmp_path):
    packed = write(tmp_path / "z.jsonl.gz", 3)
    sound = io.BytesIO()
    soundfile.write(sound, noise(0.1), 16000, format="WAV")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, data in (("0.wav", sound.getvalue()), ("0.json", b'{"text": "t0", "task": "asr"}')):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    stream = Stream([packed, str(tmp_path / "t.tar")], {"asr": "Transcribe."})
    assert sorted(first(stream, 4)) == ["t0", "z0", "z1", "z2"]


def test_samples_know_the_sources_of_a_run_file(files):
    found = entries([files[0], {"file": files[1], "name": "other"}])
    assert {sample.source for sample, _ in zip(Stream(found, {}), range(8), strict=False)} == {"a", "other"}


# Faults


def test_a_row_that_is_wrong_is_told_with_its_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "hm?", "answer": "ok"}\n{"prompt": "hm?", "anser": "ok"}\n')
    with pytest.raises(ManifestError, match=r"bad\.jsonl:2: .*did you mean 'answer'\?"):
        first(Stream([str(tmp_path / "bad.jsonl")], {}, buffer=1), 2)


def test_a_source_without_rows_is_an_error(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ManifestError, match=r"none\.jsonl: no rows"):
        first(Stream([str(tmp_path / "none.jsonl")], {}), 1)


def test_a_function_without_rows_is_an_error():
    def none():
        return iter(())

    with pytest.raises(ManifestError, match="none: no rows to learn from"):
        first(Stream([none], {}), 1)


def test_what_audio_root_stands_for_may_be_a_variable(tmp_path, monkeypatch):
    """As it may for a Manifest."""
    monkeypatch.setenv("SOUNDS", "/sounds")
    (tmp_path / "a.jsonl").write_text('{"audio": "{audio_root}/a.wav", "prompt": "hm?", "answer": "a"}\n')
    sample = next(iter(Stream([str(tmp_path / "a.jsonl")], {}, audio_root="$SOUNDS/whole")))
    assert sample.messages[0]["content"][0]["audio"] == "/sounds/whole/a.wav"
