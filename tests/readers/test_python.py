"""Whatever holds rows in Python is a manifest."""

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from usam.data.manifest import Manifest, ManifestError

PROMPTS = {"asr": "Transcribe."}
ROW = {"audio": "a.wav", "text": "hello"}


class Clips(Dataset):
    def __init__(self, row=ROW):
        self.row = row

    def __len__(self):
        return 2

    def __getitem__(self, index):  # raises no IndexError, as many do not
        return self.row


class Stream(IterableDataset):
    def __iter__(self):
        return iter([ROW, ROW])


def check(given, name, **extra):
    first, second = Manifest.of(given, PROMPTS).samples
    assert (first.answer, first.messages[0]["content"][0]["audio"], second.extra) == ("hello", "a.wav", extra)
    assert second.origin == f"{name}row 1"


def test_rows_may_come_one_by_one():
    check([ROW, ROW], "")
    check((dict(ROW) for _ in range(2)), "generator, ")
    check(map(dict, (ROW, ROW)), "map, ")
    check(Clips(), "Clips, ")
    check(Stream(), "Stream, ")


def test_a_dataframe_is_a_table():
    pandas = pytest.importorskip("pandas", reason="pip install 'usam[datasets]'")
    rows = pandas.DataFrame([{**ROW, "n": 1, "start": 0.5}, {**ROW, "n": 2}])
    check(rows, "DataFrame, ", x_n=2)
    check(rows.set_index("audio"), "DataFrame, ", x_n=2)
    assert [sample.messages[0]["content"][0].get("start") for sample in Manifest.of(rows, PROMPTS)] == [0.5, None]
    with pytest.raises(ManifestError, match="DataFrame: the column 'text' stands there twice"):
        Manifest.of(pandas.concat([rows, rows[["text"]]], axis=1), PROMPTS)
    with pytest.raises(
        ManifestError, match=r"DataFrame, row 0: no reader knows .* 'columns': it lacks a column of text"
    ):
        Manifest.of(rows[["audio"]].rename(columns={"audio": "path"}), PROMPTS)


def test_an_arrow_table_is_one_too():
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'usam[datasets]'")
    table = pyarrow.Table.from_pylist([{**ROW, "n": None}, {**ROW, "n": 2}])
    check(table, "Table, ", x_n=2)
    check(table.to_batches()[0], "RecordBatch, ", x_n=2)
    check(table.to_reader(), "RecordBatchReader, ", x_n=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "a int is no manifest: give a path, rows"),
        (None, "a NoneType is no manifest"),
        (ROW, r"a dict is no manifest: .*; a single row is put into a list: \[row\]"),
        ([ROW, 3], "a list is no manifest: .*; its item 1 is a int, and a row is a map"),
        ([], "no manifest was given"),
        (torch.zeros(3), "a Tensor is no manifest"),
        (iter([]), "list_iterator: no rows"),
        (Clips((torch.zeros(3), "hello")), "Clips, row 0: a tuple is no row: give a map, such as"),
        ("no.jsonl", r"no.jsonl: no such manifest"),
    ],
)
def test_what_is_no_manifest_is_told(given, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.of(given, PROMPTS)
