"""`usam eval`: what it prints, what it writes, and what it refuses."""

import json

import pytest
from benchmark_files import librispeech
from held_out_rows import save_model, write_rows

from usam.evaluation.record import Record

SHORT = ["--max-new-tokens", "4", "--draws", "50"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


@pytest.fixture
def ask(usam):
    def run(*arguments):
        return usam("eval", *arguments)

    return run


def test_a_table_and_where_the_record_lies(ask, model, rows, tmp_path):
    status, out, err = ask(model, rows, *SHORT, "--metrics", "wer,bleu", "--output", tmp_path / "out")
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("7 answers")
    assert lines[1].split()[:3] == ["metric", "task", "value"]
    assert [line.split()[:2] for line in lines[2:8]] == [
        [metric, task] for metric in ("wer", "bleu") for task in ("all", "aac", "asr")
    ]
    assert lines[-1] == str(tmp_path / "out" / "eval.json")
    value = Record.read(tmp_path / "out").about["metrics"]["wer"]["value"]
    assert lines[2].split()[2] == f"{value:.4g}"


def test_json_is_the_record_without_the_answers(ask, model, rows, tmp_path):
    status, out, _ = ask(
        model, rows, *SHORT, "--json", "--output", tmp_path / "out", "--num-beams", "2", "--limit", "3"
    )
    assert status == 0
    found = json.loads(out)
    assert found == {"folder": str(tmp_path / "out"), **Record.read(tmp_path / "out").about}
    assert found["asked"]["decoding"] == {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    assert found["answered"] == 3


def test_metrics_have_options_and_names(ask, model, rows, tmp_path):
    metrics = "wer, basic: {type: wer, normalizer: basic}, {type: bleu, tokenize: zh}"
    status, _, err = ask(model, rows, *SHORT, "--metrics", metrics, "--output", tmp_path / "out")
    assert status == 0, err
    found = Record.read(tmp_path / "out").about["metrics"]
    assert list(found) == ["wer", "basic", "bleu"]
    assert found["basic"]["component"]["normalizer"] == "basic"
    assert found["bleu"]["component"]["tokenize"] == "zh"


def test_rows_that_are_skipped_are_told(ask, model, rows, tmp_path):
    (tmp_path / "2.flac").write_text("no sound")
    status, out, err = ask(model, rows, *SHORT, "--bad-audio", "skip", "--output", tmp_path / "out")
    assert status == 0
    assert f"note: {rows}:3: skipped: " in err
    assert "1 rows skipped" in out


def test_two_records_are_compared(ask, model, rows, tmp_path):
    for name, prompt in (("a", "Say it."), ("b", "What?")):
        ask(model, rows, *SHORT, "--metrics", "wer,cer", "--prompt", prompt, "--output", tmp_path / name)
    status, out, err = ask("--compare", tmp_path / "a", tmp_path / "b", "--metrics", "cer")
    assert status == 0, err
    assert f"A: {tmp_path / 'a'}\nB: {tmp_path / 'b'}\n" in out
    assert "note: A and B also differ in rows, prompts" in out
    assert next(line.split()[:2] for line in out.splitlines() if line.startswith("cer ")) == ["cer", "all"]
    assert "\nwer" not in out
    _, out, _ = ask("--compare", tmp_path / "a", tmp_path / "b", "--json")
    found = json.loads(out)
    keys = {"metric", "task", "samples", "a", "b", "difference", "low", "high", "p_bootstrap", "p_permutation", "exact"}
    assert [row["metric"] for row in found["metrics"] if row["task"] is None] == ["wer", "cer"]
    assert all(row.keys() == keys for row in found["metrics"])


def test_a_record_is_scored_again_without_its_model(ask, model, rows, tmp_path):
    ask(model, rows, *SHORT, "--output", tmp_path / "out")
    for file in tmp_path.glob("*.flac"):
        file.unlink()
    status, out, err = ask("--rescore", tmp_path / "out", "--metrics", "chrf")
    assert status == 0, err
    assert "chrf" in out
    record = Record.read(tmp_path / "out")
    assert list(record.about["metrics"]) == ["wer", "chrf"]
    assert record.answers[0]["scores"].keys() == {"wer", "chrf"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL", "ROWS", "--metrics", "were"], "did you mean 'wer'"),
        (["MODEL", "ROWS", "--metrics", "{type: wer, normaliser: basic}"], "did you mean 'normalizer'"),
        (["MODEL", "ROWS", "--metrics", "{type: bleu, tokenize: zn}"], "tokenize: "),
        (["--compare", "HERE", "HERE", "--metrics", "{type: bleu, tokenize: zn}"], "tokenize: "),
        (
            ["MODEL", "ROWS", "--metrics", "multiple_choice"],
            "multiple_choice reads its column 'x_choices'",
        ),
        (["MODEL", "ROWS", "--metrics", "wer,wer"], "'wer' stands here twice"),
        (["MODEL", "ROWS", "--metrics", "wer, {"], "--metrics"),
        (["MODEL", "ROWS", "--metrics", ""], "at least one"),
        (["MODEL"], "usam eval MODEL test.jsonl"),
        (["MODEL", "librispeech"], "a benchmark: say where it lies with --root"),
        (["MODEL", "librispeach", "--root", "HERE"], "did you mean 'librispeech'"),
        (["MODEL", "librispeech", "--root", "HERE", "--split", "test"], "librispeech has no 'test'"),
        (["MODEL", "librispeech", "--root", "HERE"], "openslr.org/12"),
        (["MODEL", "librispeech", "--root", "HERE", "--reader", "json"], "leave out --reader"),
        (["MODEL", "mmau", "mmar", "--root", "HERE"], "ask for each by itself"),
        (["MODEL", "{type: covost2, pear: en_de}", "--root", "HERE"], "did you mean 'pair'"),
        (["MODEL", "ROWS", "--split", "test"], "leave out --split"),
        ([], "usam eval MODEL test.jsonl"),
        (["HERE", "ROWS"], "HERE"),
        (["MODEL", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--rescore", "HERE", "--metrics", "wer"], "no eval.json in it"),
        (["--rescore", "HERE"], "say by which --metrics"),
        (["--rescore", "HERE", "--compare", "HERE", "HERE"], "ask one at a time"),
        (["--compare", "HERE", "HERE"], "no eval.json in it"),
        (["MODEL", "ROWS", "--compare", "HERE", "HERE"], "leave out MODEL, DATA"),
        (["--compare", "HERE", "HERE", "--batch-size", "8"], "leave out --batch-size"),
        (["--rescore", "HERE", "--metrics", "wer", "--prompt", "a"], "leave out --prompt"),
    ],
)
def test_what_is_refused(ask, model, rows, tmp_path, arguments, message):
    given = {"MODEL": model, "ROWS": rows, "HERE": tmp_path}
    status, _, err = ask(*(given.get(word, word) for word in arguments))
    assert status == 2
    assert str(tmp_path) in err if message == "HERE" else message in err


def test_a_benchmark_is_named_and_said_where_it_lies(ask, model, tmp_path):
    root = librispeech(tmp_path)
    (root / "test-clean/121/9/121-9-0000.flac").unlink()
    asked = [model, "{type: librispeech, split: dev-clean}", "--root", root, "--split", "test-clean"]
    status, out, err = ask(*asked, "--missing", "skip", *SHORT, "--output", tmp_path / "out")
    assert status == 0, err
    assert "note: 1 of 3 items left out" in out
    assert Record.read(tmp_path / "out").about["metrics"]["wer"]["samples"] == 2
