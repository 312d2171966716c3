"""Rows of any format may lie in tables and archives."""

import gzip
import io
import json
import pickle
import sys
import tarfile

import pytest
import soundfile
from conftest import noise

from usam.data.collate import Collator
from usam.data.convert import convert
from usam.data.manifest import Manifest, ManifestError
from usam.processor.processor import UsamProcessor

PROMPTS = {"asr": "Transcribe.", "aac": "Describe."}


def first_clip(sample):
    return sample.messages[0]["content"][0]


def lengths(samples):
    """Samples of each clip as the model gets it."""
    return Collator(UsamProcessor.from_spec("tiny"))(samples)["input_values_mask"].sum(-1).tolist()


def wav(seconds):
    file = io.BytesIO()
    soundfile.write(file, noise(seconds), 16000, format="WAV")
    return file.getvalue()


# CSV and TSV


@pytest.fixture
def table(tmp_path):
    def write(text, name="rows.csv"):
        (tmp_path / name).write_bytes(gzip.compress(text.encode(), mtime=0) if name.endswith(".gz") else text.encode())
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("audio,task,answer,start,x_voice\na.wav,asr,hello,1.5,f3\n", "rows.csv"),
        ("audio,task,answer,start,x_voice\na.wav,asr,hello,1.5,f3\n", "rows.csv.gz"),
        ("\ufeffaudio;task;answer;start;x_voice\r\na.wav;asr;hello;1.5;f3\r\n", "rows.csv"),
        ("audio\ttask\tanswer\tstart\tx_voice\na.wav\tasr\thello\t1.5\tf3\n\n", "rows.tsv"),
    ],
)
def test_a_table_has_a_row_a_line(text, name, table, tmp_path):
    (sample,) = Manifest(table(text, name), PROMPTS).samples
    assert first_clip(sample) == {"type": "audio", "audio": str(tmp_path / "a.wav"), "start": 1.5}
    assert (sample.answer, sample.task, sample.extra) == ("hello", "asr", {"x_voice": "f3"})
    assert sample.origin == f"{tmp_path / name}:2"


def test_cells_may_hold_lines_quotes_and_lists(table, tmp_path):
    text = "audio,prompt,answer\n"
    text += '"[""a.wav"", ""b.wav""]","say ""what""\nnow","[""a"", ""b""]"\n'
    text += 'c.wav,?,"[laughs] no, [1]"\n'
    first, second = Manifest(table(text), PROMPTS).samples
    assert [block.get("audio", block.get("text")) for block in first.messages[0]["content"]] == [
        str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), 'say "what"\nnow'
    ]  # fmt: skip
    assert first.references == ("a", "b")
    assert second.answer == "[laughs] no, [1]"
    assert second.origin.endswith(":4")


def test_a_table_may_have_the_columns_of_another_format(table):
    nemo, common = (
        table("audio_filepath,duration,text\na.wav,2,hello\n"),
        table("path\tsentence\tage\na.mp3\thi\t30\n", "c.tsv"),
    )
    assert first_clip(Manifest(nemo, PROMPTS)[0])["duration"] == 2.0
    assert Manifest(common, PROMPTS)[0].extra == {"x_age": "30"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("audio,answer\na.wav,b,c\n", "rows.csv:2: 3 cells, and 2 columns: audio, answer"),
        ("audio,task,answer,start\na.wav,asr,x,soon\n", "rows.csv:2: 'start' is a number, found 'soon'"),
        ("audio,audio\na,b\n", "rows.csv:1: the first line names each column once"),
        ('audio,task,answer\na.wav,asr,x\nb.wav,asr,"y" z\n', "rows.csv:3: not CSV"),
        ("audio,task,answer\na.wav,arc,x\n", "rows.csv:2: task 'arc' has no prompt"),
        ("audio,task,answer\n", "rows.csv: no rows"),
        (
            "audio_filepath,duration\na.wav,1\n",
            "rows.csv:2: no reader knows .*nearest format is 'nemo': it lacks 'text'",
        ),
    ],
)
def test_a_fault_in_a_table_names_its_line(text, message, table):
    with pytest.raises(ManifestError, match=message):
        Manifest(table(text), PROMPTS)


# WebDataset


@pytest.fixture
def archive(tmp_path):
    def write(files, name="rows.tar"):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
            for path, data in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["rows.tar", "rows.tar.gz"])
def test_an_archive_has_a_sample_a_name(name, archive, tmp_path):
    file = archive(
        {"a/1.wav": wav(0.5), "a/1.txt": b"hello\n", "a/2.wav": wav(0.25), "a/2.json": b'{"text": "hi"}'}, name
    )
    samples = Manifest(file, PROMPTS).samples
    assert [(s.id, s.answer, s.task) for s in samples] == [("a/1", "hello", "asr"), ("a/2", "hi", "asr")]
    assert samples[0].origin == f"{file}:a/1"
    assert lengths(pickle.loads(pickle.dumps(samples))) == [8000, 4000]
    assert lengths(samples) == [8000, 4000]  # it can be read again


def test_an_archives_json_may_be_of_another_format(archive):
    row = json.dumps({"task": "aac", "answer": ["a dog", "dog"], "start": 0.25}).encode()
    samples = Manifest(archive({"1.flac": wav(0.5), "1.json": row}), PROMPTS).samples
    assert samples[0].references == ("a dog", "dog")
    assert lengths(samples) == [4000]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.wav": b"x", "1.png": b"x"}, "rows.tar:1: '.png' is neither sound"),
        ({"1.wav": b"x", "1.json": b"{"}, "rows.tar:1: its .json or .txt cannot be read"),
        ({"1.wav": b"x", "1.json": b'{"audio": "a.wav"}'}, "rows.tar:1: it has 'audio' twice"),
        ({"1.wav": b"x", "1.flac": b"x", "1.txt": b"x"}, "rows.tar:1: it has 'audio' twice"),
        ({"1": b"x"}, "rows.tar: 1: files in it are named sample.kind"),
    ],
)
def test_a_fault_in_an_archive_names_its_sample(files, message, archive):
    with pytest.raises(ManifestError, match=message):
        Manifest(archive(files), PROMPTS)


def test_an_archive_that_breaks_off_is_an_error(archive):
    file = archive({"1.wav": wav(0.5), "1.txt": b"x", "2.wav": wav(0.5)})
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(ManifestError, match=r"rows.tar: the archive breaks off after '2'"):
        Manifest(file, PROMPTS)


@pytest.mark.parametrize("rest", [b"", b"\1" * 1024])
def test_an_archive_has_an_end(rest, archive):
    whole = archive({"1.wav": b"x" * 512, "1.txt": b"x", "2.wav": wav(0.5)}).read_bytes()
    file = archive({})
    file.write_bytes(whole[:2048] + rest)  # tarfile takes it for the end
    with pytest.raises(ManifestError, match=r"rows.tar: the archive breaks off after '1': neither a file nor"):
        Manifest(file, PROMPTS)


def test_nothing_of_an_archive_is_unpacked(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with tarfile.open("a.tar", "w") as written:
        for name in ("../out.wav", "../out.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            written.addfile(member, io.BytesIO(b"one"))
        link = tarfile.TarInfo("link.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        written.addfile(link)
    (sample,) = Manifest.of(["a.tar"], {"asr": "Transcribe."})
    assert sample.answer == "one"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar", "here"]


def test_sound_in_an_archive_is_converted_with_its_row(archive, tmp_path):
    convert(archive({"1.wav": wav(0.5), "1.txt": b"x"}), tmp_path / "out.jsonl.gz")
    assert lengths(Manifest(tmp_path / "out.jsonl.gz", PROMPTS).samples) == [8000]


# Parquet and Hugging Face datasets


@pytest.fixture
def spoken(tmp_path):
    """A datasets.Dataset of two clips: one held as bytes, one by its path."""
    datasets = pytest.importorskip("datasets", reason="pip install 'usam[datasets]'")
    (tmp_path / "b.wav").write_bytes(wav(0.25))
    sounds = [{"bytes": wav(0.5), "path": "a.wav"}, {"bytes": None, "path": str(tmp_path / "b.wav")}]
    rows = datasets.Dataset.from_dict({"audio": sounds, "text": ["hello", "hi"], "n": [1, None]})
    return rows.cast_column("audio", datasets.Audio(16000))


def check(samples):
    assert [(s.answer, s.extra) for s in samples] == [("hello", {"x_n": 1}), ("hi", {})]
    assert lengths(samples) == [8000, 4000]


def test_a_dataset_is_read_without_its_decoders(spoken):
    check(Manifest.of(spoken, PROMPTS).samples)
    check(Manifest.of(spoken.to_iterable_dataset(), PROMPTS).samples)
    assert Manifest.of(spoken, PROMPTS)[1].origin == "Dataset, row 1"


def test_a_saved_dataset_and_parquet_are_read(spoken, tmp_path):
    spoken.save_to_disk(tmp_path / "saved")
    spoken.to_parquet(tmp_path / "parts" / "0.parquet")
    for path in ("saved", "parts", "parts/0.parquet"):
        check(Manifest(tmp_path / path, PROMPTS).samples)
    assert Manifest(tmp_path / "parts", PROMPTS)[1].origin.endswith("0.parquet:2")


def test_a_folder_of_parquet_files_holds_one_split(spoken, tmp_path):
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        spoken.to_parquet(tmp_path / f"{name}.parquet")
    assert len(Manifest(tmp_path, PROMPTS)) == 4
    spoken.to_parquet(tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(ManifestError, match="holds the splits test, train: name the files of one"):
        Manifest(tmp_path, PROMPTS)


def test_splits_are_to_be_chosen(spoken, tmp_path):
    import datasets

    splits = datasets.DatasetDict(train=spoken)
    with pytest.raises(
        ManifestError, match=r"DatasetDict: holds the splits train: give one of them, such as data.'train'"
    ):
        Manifest.of(splits, PROMPTS)
    splits.save_to_disk(tmp_path / "saved")
    with pytest.raises(ManifestError, match=r"saved: holds the splits train: .*, such as .*saved/train"):
        Manifest.of(tmp_path / "saved", PROMPTS)
    check(Manifest(tmp_path / "saved" / "train", PROMPTS).samples)


def test_rows_come_in_pythons_types_whatever_the_format(spoken):
    check(Manifest.of(spoken.with_format("numpy"), PROMPTS).samples)
    check(Manifest.of(spoken.to_iterable_dataset().with_format("torch"), PROMPTS).samples)


def test_audio_in_lists_is_not_decoded_either(spoken):
    import datasets

    sounds = [[{"bytes": wav(0.5), "path": None}, {"bytes": wav(0.25), "path": None}]]
    both = datasets.Dataset.from_dict({"audio": sounds, "text": ["hello"]})
    both = both.cast_column("audio", datasets.List(datasets.Audio(16000)))
    for rows in (both, both.to_iterable_dataset()):
        assert lengths(Manifest.of(rows, PROMPTS).samples) == [8000, 4000]


def test_a_stream_of_unknown_features_is_read():
    datasets = pytest.importorskip("datasets", reason="pip install 'usam[datasets]'")
    stream = datasets.IterableDataset.from_generator(lambda: iter([{"audio": wav(0.5), "text": "hello"}]))
    assert lengths(Manifest.of(stream, PROMPTS).samples) == [8000]


def test_an_arrow_file_is_read_and_a_broken_one_named(spoken, tmp_path):
    spoken.save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    check(Manifest(file, PROMPTS).samples)
    file.write_bytes(file.read_bytes()[:200])
    for broken in (file, file.parent):
        with pytest.raises(ManifestError, match=r"saved.*arrow: cannot be read with datasets: it breaks off"):
            Manifest(broken, PROMPTS)


# Folders of sound


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,transcription\na.wav,hello\n"),
        ("metadata.jsonl", '{"file_name": "a.wav", "transcription": "hello"}\n'),
    ],
)
def test_a_folder_with_metadata_is_a_manifest(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    (tmp_path / "a.wav").write_bytes(wav(0.5))
    samples = Manifest(tmp_path, PROMPTS).samples
    assert lengths(samples) == [8000]
    assert samples[0].answer == "hello"


def test_a_folder_that_is_no_manifest_tells_what_it_holds(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ManifestError, match=r"name the manifest in it; it holds train/metadata.csv"):
        Manifest(tmp_path, PROMPTS)


def test_a_broken_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install 'usam[datasets]'")
    (tmp_path / "a.parquet").write_bytes(b"PAR1....")
    with pytest.raises(ManifestError, match=r"a.parquet: cannot be read as Parquet after row 0"):
        Manifest(tmp_path / "a.parquet", PROMPTS)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1....")
    with pytest.raises(ManifestError, match=r"a.parquet: Parquet is read with pyarrow: pip install 'usam\[datasets\]'"):
        Manifest(tmp_path / "a.parquet", PROMPTS)
