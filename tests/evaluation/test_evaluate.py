"""A model's answers to whole files: the record of them, going on after a stop, and comparing two of them."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jiwer
import numpy as np
import pytest
import soundfile
from held_out_rows import ANSWERS, TASKS, change, lasting, save_model, write_rows

from usam.data.manifest import ManifestError
from usam.evaluation.compare import compare
from usam.evaluation.evaluate import evaluate
from usam.evaluation.journal import Journal
from usam.evaluation.record import Record, RecordError
from usam.evaluation.statistics import interval, paired
from usam.generate import Answerer
from usam.metrics import build_metric
from usam.registry import ComponentError
from usam.spec.page import SpecError

SHORT = {"max_new_tokens": 5, "batch_size": 2, "draws": 50}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    """A model, rows, and the record of its answers to them."""
    folder = tmp_path_factory.mktemp("done")
    return evaluate(model, write_rows(folder), metrics=["wer", "cer"], output=folder / "out", **SHORT)


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path)


# The record


def test_answers_are_those_of_the_model_in_the_order_of_the_data(model, done):
    answerer = Answerer.load(model)
    folder = done.folder.parent
    chats = [answerer.ask(str(folder / f"{i}.flac"), task=task) for i, task in enumerate(TASKS)]
    assert [answer["prediction"] for answer in done.answers] == list(answerer.answer(chats, max_new_tokens=5))
    assert [answer["id"] for answer in done.answers] == [f"row {i}" for i in range(7)]
    assert [answer["references"] for answer in done.answers] == [a if isinstance(a, list) else [a] for a in ANSWERS]


def test_a_record_is_read_as_it_was_written(done):
    assert lasting(Record.read(done.folder)) == lasting(done)
    assert sorted(file.name for file in done.folder.iterdir()) == ["answers.jsonl", "eval.json"]


def test_values_are_the_metrics_own_with_their_intervals(done):
    metric = build_metric("cer")
    predictions = [answer["prediction"] for answer in done.answers]
    statistics = metric.over(predictions, [answer["references"] for answer in done.answers])
    found = done.about["metrics"]["cer"]
    assert found["value"] == metric.value(statistics)
    assert (found["low"], found["high"]) == interval(metric, statistics, draws=50)
    music = [i for i, task in enumerate(TASKS) if task == "aac"]
    assert found["tasks"]["aac"]["value"] == metric.value(statistics[music])
    assert found["tasks"]["aac"]["samples"] == len(music)
    assert found["id"] == metric.id


def test_every_answer_has_its_scores(done):
    first = done.answers[0]
    assert first["scores"].keys() == {"wer", "cer"}
    assert first["scores"]["wer"] == pytest.approx(jiwer.wer(first["references"][0], first["prediction"]))


def test_a_record_says_what_was_asked_of_which_model(model, done):
    about, data = done.about, done.folder.parent / "test.jsonl"
    assert about["model"]["sha256"] == {
        "model.safetensors": hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    }
    assert about["data"] == [{"file": str(data), "sha256": hashlib.sha256(data.read_bytes()).hexdigest(), "rows": 7}]
    assert about["spec"]["llm"]["dim"] == 16
    assert about["asked"]["decoding"] == {"max_new_tokens": 5, "do_sample": False}
    assert {"usam", "torch", "transformers", "components"} <= about["versions"].keys()
    assert all(0 < answer["tokens"] <= 5 for answer in done.answers)
    assert about["time"]["tokens"] == sum(answer["tokens"] for answer in done.answers)
    assert "Describe it." in done.answers[1]["prompt"]
    assert "<|audio|>" in done.answers[1]["prompt"]


def test_answers_that_are_cut_off_are_counted(done):
    assert done.about["cut_off"] == sum(not answer["complete"] for answer in done.answers) > 0
    assert f"{done.about['cut_off']} cut off at 5 tokens" in done.table()


# What is asked


def test_rows_of_one_task(model, rows, tmp_path):
    record = evaluate(model, rows, task="aac", output=tmp_path / "out", **SHORT)
    assert [answer["id"] for answer in record.answers] == ["row 1", "row 4"]


def test_a_task_that_no_row_has(model, rows):
    with pytest.raises(ManifestError, match="no row has the task 'asd'; did you mean 'asr'"):
        evaluate(model, rows, task="asd")


def test_another_prompt_is_asked_of_every_row(model, rows, tmp_path):
    record = evaluate(model, rows, prompt="What is it?", output=tmp_path / "out", **SHORT)
    assert all("What is it?" in answer["prompt"] and "Describe" not in answer["prompt"] for answer in record.answers)
    assert all(answer["prompt"].count("<|audio|>") == 1 for answer in record.answers)


def test_a_chat_of_two_questions_keeps_its_own(model, rows):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows.write_text(json.dumps({"messages": turns * 2}))
    with pytest.raises(ManifestError, match=r"test.jsonl:1: asks 2 times"):
        evaluate(model, rows, prompt="What is it?")


def test_a_limit_draws_rows_once(model, rows, tmp_path):
    one, other = (evaluate(model, rows, limit=3, output=tmp_path / name, **SHORT) for name in "ab")
    assert [answer["id"] for answer in one.answers] == [answer["id"] for answer in other.answers]
    assert one.about["answered"] == 3


def test_options_of_generate(model, rows, tmp_path):
    record = evaluate(model, rows, options={"num_beams": 2}, limit=2, output=tmp_path / "out", **SHORT)
    assert record.about["asked"]["decoding"]["num_beams"] == 2


def test_several_files_are_one_set(model, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = write_rows(tmp_path / "a", "one.jsonl", id=None), write_rows(tmp_path / "b", "two.jsonl", id=None)
    record = evaluate(model, [one, other], output=tmp_path / "out", **SHORT)
    assert [answer["id"] for answer in record.answers][6:8] == ["one.jsonl:7", "two.jsonl:1"]


def test_without_ids_rows_are_called_by_their_lines_wherever_the_file_lies(model, tmp_path, done):
    file = write_rows(tmp_path, id=None)
    assert [answer["id"] for answer in evaluate(model, file, output=tmp_path / "out", **SHORT).answers] == [
        f"test.jsonl:{i}" for i in range(1, 8)
    ]


def test_without_a_folder_the_record_is_named_by_what_is_asked(model, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = evaluate(model, rows, limit=1, **SHORT)
    other = evaluate(model, rows, limit=1, **{**SHORT, "max_new_tokens": 4})
    assert one.folder.parent == other.folder.parent
    assert one.folder.name.startswith(f"{model.name}-")
    assert one.folder != other.folder


# What cannot be evaluated


def test_rows_without_answers_are_named(model, tmp_path):
    file = write_rows(tmp_path, answer=None)
    with pytest.raises(ManifestError, match=r"test.jsonl:1: has no answer to compare with, as 7 of 7 rows"):
        evaluate(model, file)


def test_an_id_that_two_rows_have(model, rows):
    change(rows, 5, id="row 1")
    with pytest.raises(RecordError, match=r"'row 1' in .*test.jsonl:2, .*test.jsonl:5"):
        evaluate(model, rows)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": ["were"]}, ComponentError, "did you mean 'wer'"),
        ({"metrics": []}, ValueError, "at least one"),
        ({"metrics": ["wer", {"type": "wer", "normalizer": "basic"}]}, SpecError, "'wer' stands here twice"),
        ({"metrics": [{"type": "bleu", "tokenize": "zn"}]}, SpecError, "tokenize: .*'13a', 'intl', 'zh'"),
        ({"options": {"num_beam": 2}}, SpecError, "did you mean 'num_beams'"),
        ({"options": {"num_return_sequences": 2}}, SpecError, "one answer"),
        ({"bad_audio": "ignore"}, ValueError, "neither stop nor skip"),
        ({"batch_size": 0}, ValueError, "batch_size: at least 1"),
        ({"max_new_tokens": 10**6}, ManifestError, "leaves no room for an answer of 1,000,000 tokens"),
    ],
)
def test_what_is_asked_wrongly(model, rows, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(model, rows, **options)


def test_a_folder_that_is_no_model(rows, tmp_path):
    with pytest.raises(ComponentError, match=r"no weights|no model|config\.json"):
        evaluate(tmp_path, rows)


def test_a_language_model_is_no_model_of_usam(llama, rows):
    with pytest.raises(ComponentError, match="not a model that usam saved"):
        evaluate(llama, rows)


def test_a_clip_that_cannot_be_read_stops_it(model, rows, tmp_path):
    (tmp_path / "3.flac").write_text("no sound")
    with pytest.raises(ManifestError, match=r"test.jsonl:4: .*3.flac.*skip leaves such rows out"):
        evaluate(model, rows, output=tmp_path / "out", **SHORT)


def test_or_its_row_is_left_out_and_named(model, rows, tmp_path):
    (tmp_path / "3.flac").write_text("no sound")
    (tmp_path / "5.flac").unlink()
    record = evaluate(model, rows, bad_audio="skip", output=tmp_path / "out", **SHORT)
    assert [row["id"] for row in record.about["skipped"]] == ["row 3", "row 5"]
    assert "3.flac" in record.about["skipped"][0]["why"]
    assert record.about["metrics"]["wer"]["samples"] == record.about["answered"] == len(record.answers) == 5
    assert "2 rows skipped" in record.table()


def test_nothing_that_can_be_read(model, rows, tmp_path):
    for i in range(7):
        (tmp_path / f"{i}.flac").unlink()
    with pytest.raises(RecordError, match="none of 7 rows could be answered"):
        evaluate(model, rows, bad_audio="skip", output=tmp_path / "out", **SHORT)


# Going on


@pytest.fixture
def stopped(model, rows, tmp_path):
    """An evaluation that stopped at a clip in the middle, which is whole again."""
    lengths = [soundfile.info(tmp_path / f"{i}.flac").duration for i in range(7)]
    middle = int(np.argsort(lengths)[3])
    sound = (tmp_path / f"{middle}.flac").read_bytes()
    (tmp_path / f"{middle}.flac").write_bytes(sound[: len(sound) // 2] + bytes(2000) + sound[len(sound) // 2 + 2000 :])
    with pytest.raises(ManifestError):
        evaluate(model, rows, output=tmp_path / "out", **SHORT)
    (tmp_path / f"{middle}.flac").write_bytes(sound)
    return tmp_path / "out"


def places(folder):
    return [json.loads(line)["place"] for line in (folder / "journal-0.jsonl").read_text().splitlines()]


def test_what_was_answered_is_not_answered_again(model, rows, tmp_path, stopped, monkeypatch):
    before, answered = places(stopped), []
    assert 0 < len(before) < 7
    add = Journal.add
    monkeypatch.setattr(Journal, "add", lambda self, found: add(self, answered.extend(rows := list(found)) or rows))
    record = evaluate(model, rows, output=stopped, **SHORT)
    assert sorted([*before, *(found["place"] for found in answered)]) == list(range(7))
    assert lasting(record) == lasting(evaluate(model, rows, output=tmp_path / "at once", **SHORT))


def test_a_line_that_a_killed_process_left_unfinished_is_no_answer(model, rows, tmp_path, stopped):
    with (stopped / "journal-0.jsonl").open("ab") as file:
        file.write(b'{"place": 6, "prediction": "half an ans')
    record = evaluate(model, rows, output=stopped, **SHORT)
    assert lasting(record) == lasting(evaluate(model, rows, output=tmp_path / "at once", **SHORT))


def test_answers_of_several_processes_are_taken_up_by_one(model, rows, tmp_path, stopped):
    (stopped / "journal-0.jsonl").rename(stopped / "journal-3.jsonl")
    record = evaluate(model, rows, output=stopped, **SHORT)
    assert lasting(record) == lasting(evaluate(model, rows, output=tmp_path / "at once", **SHORT))


def test_a_stopped_evaluation_is_no_record_yet(stopped):
    with pytest.raises(RecordError, match="not finished; give its command again"):
        Record.read(stopped)


def test_a_finished_one_is_scored_by_what_is_asked_now(model, done):
    again = evaluate(model, done.folder.parent / "test.jsonl", metrics="bleu", output=done.folder, **SHORT)
    assert again.about["metrics"].keys() == {"wer", "cer", "bleu"}
    assert again.about["time"] == done.about["time"]
    assert again.answers[0]["scores"].keys() == {"wer", "cer", "bleu"}


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("decoding", {"max_new_tokens": 4}),
        ("decoding", {"options": {"num_beams": 2}}),
        ("prompts", {"prompt": "What?"}),
        ("rows", {"limit": 2}),
        ("bad_audio", {"bad_audio": "skip"}),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_it_does_not_go_on_with_something_else(model, rows, stopped, finished, key, options):
    if finished:
        evaluate(model, rows, output=stopped, **SHORT)
    with pytest.raises(RecordError, match=rf"holds the evaluation of something else; .*{key}: .* then, .* now"):
        evaluate(model, rows, output=stopped, **{**SHORT, **options})


def test_nor_with_another_model_or_other_data(model, other_model, rows, stopped):
    with pytest.raises(RecordError, match=r"model: .*safetensors"):
        evaluate(other_model, rows, output=stopped, **SHORT)
    change(rows, 1, answer="else")
    with pytest.raises(RecordError, match="something else; data: "):
        evaluate(model, rows, output=stopped, **SHORT)


COMMAND = ["--max-new-tokens", "5", "--batch-size", "1", "--draws", "50"]


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_record(model, rows, tmp_path):
    command = [sys.executable, "-m", "usam.cli", "eval", model, rows, *COMMAND, "--output", tmp_path / "out"]
    process = subprocess.Popen(command)
    journal = tmp_path / "out" / "journal-0.jsonl"
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "eval.json").exists()
    subprocess.run(command, check=True)
    once = {**SHORT, "batch_size": 1}
    assert lasting(Record.read(tmp_path / "out")) == lasting(evaluate(model, rows, output=tmp_path / "once", **once))


@pytest.mark.slow
def test_two_processes_share_the_rows(model, rows, tmp_path):
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*many, "-m", "usam.cli", "eval", model, rows, *COMMAND, "--output", tmp_path / "out", "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    record = Record.read(tmp_path / "out")
    assert record.about["machine"]["processes"] == 2
    assert json.loads(run.stdout)["metrics"] == record.about["metrics"]  # printed once
    once = {**SHORT, "batch_size": 1}
    assert lasting(record) == lasting(evaluate(model, rows, output=tmp_path / "once", **once))
    assert sorted(file.name for file in record.folder.iterdir()) == ["answers.jsonl", "eval.json"]


# Scored again


def test_other_metrics_of_the_same_answers(done):
    metrics = {"wer_basic": build_metric("wer", normalizer="basic")}
    record = Record.read(done.folder).scored(metrics, draws=50)
    predictions = [answer["prediction"] for answer in done.answers]
    expected = metrics["wer_basic"](predictions, [answer["references"] for answer in done.answers])
    assert record.about["metrics"]["wer_basic"]["value"] == expected.value
    assert record.about["metrics"]["cer"] == done.about["metrics"]["cer"]
    assert [answer["scores"]["wer_basic"] for answer in record.answers] == list(expected.each)
    assert record.metrics["wer_basic"].id == metrics["wer_basic"].id


# Columns and details


CHOICES = ["a", "b a b a b", "c", "abcabc abc", "d", "d d", "ee", "f f f"]


@pytest.fixture(scope="module")
def chosen(model, tmp_path_factory):
    """A record of rows with choices, some answers to which are right, one of these a letter."""
    folder = tmp_path_factory.mktemp("chosen")
    rows = write_rows(folder, x_choices=CHOICES, meta={"speaker": 3})
    record = evaluate(model, rows, metrics=["multiple_choice"], output=folder / "out", **SHORT)
    said = {0: "(A)", 2: "c", 3: "I do not know"}
    answers = [{**answer, "prediction": said.get(i, answer["prediction"])} for i, answer in enumerate(record.answers)]
    return Record.read(edited(record, folder / "edited", answers=answers))


def test_rows_keep_their_columns_for_metrics(chosen):
    assert chosen.answers[1]["extra"] == {"x_choices": CHOICES, "meta": {"speaker": 3}}
    again = chosen.scored({"mc": build_metric("multiple_choice")}, draws=50)
    predictions, references = ([answer[key] for answer in chosen.answers] for key in ("prediction", "references"))
    expected = build_metric("multiple_choice", choices=CHOICES)(predictions, references)
    assert again.about["metrics"]["mc"]["value"] == expected.value >= 2 / 7
    assert again.about["metrics"]["mc"]["details"] == expected.details


def test_what_a_metric_says_beside_its_value_is_in_the_record_by_task_and_by_answer(chosen):
    record = chosen.scored({"mc": build_metric("multiple_choice")}, draws=50)
    unparsed = [answer["details"]["mc"]["unparsed"] for answer in record.answers]
    assert (unparsed[0], unparsed[2], unparsed[3]) == (0, 0, 1)
    assert record.about["metrics"]["mc"]["details"]["unparsed"] == pytest.approx(np.mean(unparsed))
    music = [share for share, task in zip(unparsed, TASKS, strict=True) if task == "aac"]
    assert record.about["metrics"]["mc"]["tasks"]["aac"]["details"]["unparsed"] == pytest.approx(np.mean(music))
    assert f"mc: {np.mean(unparsed):.4g} unparsed" in record.table()


def test_records_with_columns_are_compared_with_their_details(chosen):
    other = replace(chosen, answers=[{**answer, "prediction": "A"} for answer in chosen.answers])
    found = compare(chosen, other, {"mc": build_metric("multiple_choice")}, draws=50)
    assert found.rows[0].b == 1 / 7
    assert found.details["mc"]["unparsed"][1] == 0
    assert "mc: unparsed: A " in found.table()
    assert found.to_dict()["details"] == {"mc": {"unparsed": found.details["mc"]["unparsed"]}}


def test_a_row_without_the_column_is_named_before_anything_is_answered(model, tmp_path):
    rows = write_rows(tmp_path, x_choices=CHOICES)
    change(rows, 3, x_choices=["a", "b"])
    with pytest.raises(ManifestError, match=r"test.jsonl:3': its reference 'c' is none of the choices"):
        evaluate(model, rows, metrics="multiple_choice", output=tmp_path / "out", **SHORT)
    rows.write_text(rows.read_text().replace('"x_choices": ["a", "b"]', '"x_other": 1'))
    with pytest.raises(ManifestError, match=r"test.jsonl:3': multiple_choice reads its column 'x_choices'"):
        evaluate(model, rows, metrics="multiple_choice", output=tmp_path / "out", **SHORT)
    assert not (tmp_path / "out").exists()


def test_nor_can_answers_without_it_be_scored_again(done):
    with pytest.raises(ValueError, match=r"sample 'row 0': multiple_choice reads its column 'x_choices'"):
        done.scored({"mc": build_metric("multiple_choice")})
    with pytest.raises(ValueError, match=r"sample 'row 0': multiple_choice reads its column 'x_choices'"):
        compare(done, done, {"mc": build_metric("multiple_choice")})


# Where nothing is said


def answering(record, predictions, references=None):
    """The record with other answers, to other references."""
    right = references or [answer["references"] for answer in record.answers]
    pairs = zip(record.answers, predictions, right, strict=True)
    answers = [{**answer, "prediction": said, "references": list(own)} for answer, said, own in pairs]
    return replace(record, answers=answers)


def test_an_empty_answer_is_wrong_and_an_empty_reference_has_no_words(done):
    right = [answer["references"] for answer in done.answers]
    found = answering(done, [""] * 6 + ["two words"], [*right[:5], [""], [""]]).scored(done.metrics, draws=50)
    assert [answer["scores"]["wer"] for answer in found.answers] == [1, 1, 1, 1, 1, 0, 2]
    words = sum(len(own[0].split()) for own in right[:4]) + 1
    assert found.about["metrics"]["wer"]["value"] == (words + 2) / words


def test_a_row_whose_answer_is_empty_is_evaluated(model, rows, tmp_path):
    change(rows, 1, answer="")
    record = evaluate(model, rows, metrics=["wer", "accuracy", "bleu"], output=tmp_path / "out", **SHORT)
    assert record.answers[0]["references"] == [""]
    assert record.about["metrics"]["wer"]["samples"] == 7


def test_two_systems_that_are_right_of_as_many_rows_are_a_tie(done):
    right = [answer["references"][0] for answer in done.answers]
    one = answering(done, [*right[:2], "", "", *right[4:]])
    other = answering(done, ["", "", *right[2:]])
    found = compare(one, other, {"accuracy": build_metric("accuracy")}, draws=50).rows[0]
    assert (found.a, found.b) == (5 / 7, 5 / 7)
    assert (found.test.difference, found.test.p_permutation, found.test.exact) == (0, 1, True)
    assert found.test.low <= 0 <= found.test.high


def test_two_systems_that_say_nothing_are_a_tie(done):
    silent = answering(done, [""] * 7)
    found = compare(silent, silent, done.metrics, draws=50).rows
    assert {(row.test.difference, row.test.p_bootstrap, row.test.p_permutation) for row in found} == {(0, 1, 1)}


# Compared


def edited(record, folder, **changes):
    """A record with other answers or other words about them."""
    about = {**record.about, **changes.get("about", {})}
    answers = changes.get("answers", record.answers)
    return Record({**about, "answered": len(answers)}, answers).write(folder).folder


@pytest.fixture(scope="module")
def pair(done, other_model, tmp_path_factory):
    """Records of two models; the second one's answers to some rows are right."""
    folder = tmp_path_factory.mktemp("pair")
    data = done.folder.parent / "test.jsonl"
    record = evaluate(other_model, data, metrics=["wer", "cer"], output=folder / "b", **SHORT)
    answers = [
        {**answer, "prediction": answer["references"][0]} if i in (0, 3, 4) else answer
        for i, answer in enumerate(record.answers)
    ]
    return done.folder, edited(record, folder / "b", answers=answers)


def test_two_records_are_compared_by_metric_and_task(pair):
    found = compare(*pair, draws=100)
    assert {(row.metric, row.task) for row in found.rows} >= {
        (metric, task) for metric in ("wer", "cer") for task in (None, "asr", "aac")
    }
    cer = build_metric("cer")
    a, b = (
        cer.over([x["prediction"] for x in r.answers], [x["references"] for x in r.answers])
        for r in map(Record.read, pair)
    )
    first = next(row for row in found.rows if row.metric == "cer")
    assert (first.task, first.samples) == (None, 7)
    assert (first.a, first.b) == (cer.value(a), cer.value(b))
    assert first.a != first.b
    assert first.test == paired(cer, a, b, draws=100)


def test_a_model_is_no_better_than_itself(pair):
    assert {(row.test.difference, row.test.p_permutation) for row in compare(pair[0], pair[0]).rows} == {(0, 1)}


def test_records_in_another_order_are_compared_row_by_row(pair, tmp_path):
    shutil.copytree(pair[1], tmp_path / "b")
    lines = (tmp_path / "b" / "answers.jsonl").read_text().splitlines()
    (tmp_path / "b" / "answers.jsonl").write_text("\n".join(lines[::-1]))
    assert compare(pair[0], tmp_path / "b").rows == compare(*pair).rows


def test_a_comparison_says_what_else_differs(model, done, tmp_path):
    data = done.folder.parent / "test.jsonl"
    evaluate(model, data, output=tmp_path / "b", **{**SHORT, "max_new_tokens": 4})
    found = compare(done.folder, tmp_path / "b")
    assert list(found.differs) == ["decoding"]
    assert found.differs["decoding"][1]["max_new_tokens"] == 4
    assert list(found.ids) == ["wer"]
    assert "note: A and B also differ in decoding" in found.table()


def test_rows_that_one_record_lacks_are_named(done, tmp_path):
    fewer = edited(done, tmp_path / "b", answers=done.answers[2:])
    with pytest.raises(RecordError, match=r"2 of 7 rows of .*out are not in .*b: 'row 0', 'row 1'"):
        compare(done.folder, fewer)
    with pytest.raises(RecordError, match=r"2 of 7 rows of .*out are not in .*b: 'row 0', 'row 1'"):
        compare(fewer, done.folder)


def test_rows_that_a_record_has_twice_are_named(done, tmp_path):
    twice = edited(done, tmp_path / "b", answers=[*done.answers, done.answers[2]])
    with pytest.raises(RecordError, match=r"'row 2' in .*answers.jsonl:3, .*answers.jsonl:8"):
        compare(done.folder, twice)


def test_other_data_are_named(model, done, rows, tmp_path):
    change(rows, 1, answer="else")
    evaluate(model, rows, output=tmp_path / "b", **SHORT)
    with pytest.raises(RecordError, match=r"data are not the same.*out has .*test.jsonl \(sha256 .*b has"):
        compare(done.folder, tmp_path / "b")


def test_metrics_with_other_options_are_not_compared(done, tmp_path):
    wer = {"wer": build_metric("wer", normalizer="basic")}
    basic = edited(done, tmp_path / "b", about={"metrics": {}})
    Record.read(basic).scored(wer, draws=50).write(basic)
    with pytest.raises(RecordError, match=r"no metric was taken of both .*:none.*:basic.*--metrics"):
        compare(done.folder, basic)
    assert [row.metric for row in compare(done.folder, basic, wer).rows if row.task is None] == ["wer"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("eval.json", "{", r"eval.json: no JSON"),
        ("eval.json", '{"format": 9}', "format 9 is not 1"),
        ("answers.jsonl", '{"id": 1}\n[1]\n', "answers.jsonl:2: expected a JSON map"),
        ("answers.jsonl", '{"id": 1}\n', "1 answers, and eval.json says 7"),
        ("answers.jsonl", '{"task": "asr"}\n' * 7, "answers.jsonl:1: has no 'id'"),
        ("answers.jsonl", '{"id": 1}\n' * 7, "answers.jsonl:1: has no 'task'"),
        (
            "answers.jsonl",
            '{"id": [1], "task": null, "prediction": "", "references": [""]}\n' * 7,
            r"answers.jsonl:1: its 'id' is \[1\]",
        ),
        ("eval.json", '{"format": 1}', "eval.json: has no 'asked'"),
        ("answers.jsonl", None, "answers.jsonl: is missing"),
        ("eval.json", None, "no eval.json in it"),
    ],
)
def test_a_broken_record_is_named(done, tmp_path, file, text, message):
    shutil.copytree(done.folder, tmp_path / "broken")
    (tmp_path / "broken" / file).unlink()
    if text is not None:
        (tmp_path / "broken" / file).write_text(text)
    with pytest.raises(RecordError, match=message):
        Record.read(tmp_path / "broken")
