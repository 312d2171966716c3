"""A benchmark is evaluated from its own files: what is asked, what is scored, what is said of the rest."""

import json

import benchmark_files
import pytest
from held_out_rows import save_model, write_rows

from usam.evaluation.benchmark import benchmark
from usam.evaluation.compare import compare
from usam.evaluation.evaluate import evaluate
from usam.evaluation.record import Record
from usam.metrics import build_metric
from usam.readers import ManifestError

SHORT = {"max_new_tokens": 4, "draws": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def mmau(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mmau")
    (folder / "data").mkdir()
    return benchmark(model, "mmau", benchmark_files.mmau(folder / "data"), output=folder / "out" / "a", **SHORT)


def test_the_official_question_is_asked_and_the_official_parser_scores(mmau):
    assert "Select one option from the provided choices." in mmau.answers[0]["prompt"]
    found = mmau.about["metrics"]["accuracy"]
    assert found["id"] == "benchmark_choice|rule:mmau"
    metric = build_metric("benchmark_choice")
    extra = [{"x_choices": answer["extra"]["x_choices"]} for answer in mmau.answers]
    score = metric([a["prediction"] for a in mmau.answers], [a["references"] for a in mmau.answers], extra=extra)
    assert found["value"] == score.value
    assert found["details"] == score.details


def test_scores_are_told_by_task_and_difficulty(mmau):
    by = mmau.about["metrics"]["accuracy"]["by"]
    assert {value: one["samples"] for value, one in by["x_task"].items()} == {"music": 1, "sound": 1, "speech": 1}
    assert {value: one["samples"] for value, one in by["x_difficulty"].items()} == {"easy": 2, "hard": 1}
    assert "accuracy  difficulty=easy" in mmau.table()


def test_the_record_says_what_was_asked_and_where_it_comes_from(mmau):
    said = mmau.about["benchmark"]
    assert said["suite"] == {"type": "mmau", "missing": "stop"}
    assert said["split"] == "test-mini"
    assert said["prompt"] == "{question}  Select one option from the provided choices.\n{choices}."
    assert "issues/3" in said["source"]
    assert Record.read(mmau.folder).about == mmau.about


def test_other_metrics_of_the_same_answers_need_no_model(mmau):
    again = Record.read(mmau.folder).scored({"strict": build_metric("multiple_choice")}, draws=20)
    assert again.about["metrics"]["strict"]["by"].keys() == {"x_task", "x_difficulty", "x_category", "x_sub_category"}


def test_records_can_be_compared_wherever_the_files_lie(model, mmau, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    other = benchmark(model, "mmau", benchmark_files.mmau(tmp_path / "elsewhere"), output=tmp_path / "b", **SHORT)
    found = compare(mmau, other, draws=20)
    assert [row.test.difference for row in found.rows] == [0, 0]


def test_a_benchmark_without_a_prompt_asks_what_the_model_was_taught(model, tmp_path):
    root = benchmark_files.librispeech(tmp_path)
    record = benchmark(model, "librispeech", root, output=tmp_path / "out", **SHORT)
    assert "Transcribe this audio." in record.answers[0]["prompt"]
    assert record.about["benchmark"]["prompt"] is None
    assert record.about["metrics"]["wer"]["id"].startswith("wer|normalizer:english")


def test_what_the_model_was_not_taught_must_be_asked(model, tmp_path):
    root = benchmark_files.covost2(tmp_path)
    with pytest.raises(ManifestError, match="task 's2tt' has no prompt"):
        benchmark(model, "covost2", root, output=tmp_path / "out", **SHORT)
    record = benchmark(model, "covost2", root, prompt="Translate into Chinese.", output=tmp_path / "out", **SHORT)
    assert "Translate into Chinese." in record.answers[0]["prompt"]


def test_items_that_are_left_out_are_counted(model, tmp_path):
    root = benchmark_files.audiocaps(tmp_path)
    (root / "test" / "-AbCdEf_1_0.wav").unlink()
    record = benchmark(model, "audiocaps", root, missing="skip", output=tmp_path / "out", **SHORT)
    assert record.about["benchmark"]["left_out"] == ["-AbCdEf_1_0"]
    assert "note: 1 of 2 items left out, their clips are missing" in record.table()
    assert "METEOR, SPICE" in record.table()


@pytest.mark.parametrize(("suite", "split"), [("air_bench", "chat"), ("mmau_pro", "instruction_following")])
def test_what_a_judge_scores_is_answered_and_not_scored(model, tmp_path, suite, split):
    root = getattr(benchmark_files, suite)(tmp_path)
    record = benchmark(model, suite, root, split=split, output=tmp_path / "out", **SHORT)
    assert record.about["metrics"] == {}
    assert record.about["answered"] == 2
    assert "note: not computed: the official scoring" in record.table()
    assert "metric" not in record.table()
    line = json.loads((tmp_path / "out" / "answers.jsonl").read_text().splitlines()[0])
    assert {"prediction", "extra"} <= line.keys()


def test_rows_that_nothing_scores_need_no_answers(model, tmp_path):
    record = evaluate(model, write_rows(tmp_path, answer=None), metrics=None, output=tmp_path / "out", **SHORT)
    assert record.answers[0]["references"] == []


def test_another_metric_is_said_to_be_another(model, tmp_path):
    root = benchmark_files.librispeech(tmp_path)
    record = benchmark(model, "librispeech", root, metrics="cer", output=tmp_path / "out", **SHORT)
    assert list(record.about["metrics"]) == ["cer"]
    assert "note: scored by other metrics than librispeech's own" in record.table()


def test_a_killed_evaluation_goes_on(model, tmp_path):
    root = benchmark_files.librispeech(tmp_path)
    first = benchmark(model, "librispeech", root, output=tmp_path / "out", **SHORT)
    assert benchmark(model, "librispeech", root, output=tmp_path / "out", **SHORT).about == first.about


def test_a_column_of_lists_counts_for_each_of_its_values(model, tmp_path):
    rows = write_rows(tmp_path, x_skills=["a", "b"])
    record = evaluate(model, rows, metrics="cer", by=["x_skills", "x_none"], output=tmp_path / "out", **SHORT)
    by = record.about["metrics"]["cer"]["by"]
    assert {value: one["samples"] for value, one in by["x_skills"].items()} == {"a": 7, "b": 7}
    assert by["x_none"] == {}
