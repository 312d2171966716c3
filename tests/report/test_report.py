"""A report of folders written by hand: its figures, and the numbers in its sentences."""

import json
import re

import pytest
from small_runs import LOG, Page, write_log, write_record, write_table

from usam.evaluation.record import RecordError
from usam.report import curves, scores
from usam.report.reading import ReportError, find
from usam.report.write import write_report

RIGHT = [("asr", "a b", "a b"), ("asr", "c d", "c d"), ("asr", "e f", "e f"), ("asr", "g h", "g h")]
WRONG = [(task, "x y", right) for task, _, right in RIGHT]


def drawn(tmp_path, *folders, **options):
    return Page(write_report(folders, tmp_path / "report.html", model=False, **options).read_text(encoding="utf-8"))


def labels(figure):
    return [panel.label for panel in figure.panels]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_log(folder / "first")
    write_record(folder / "scores" / "own", RIGHT)
    write_record(folder / "scores" / "shuffled", WRONG)
    write_table(folder / "grid")
    return drawn(folder, folder / "first", folder / "scores", folder / "grid")


def test_a_page_is_whole_and_needs_nothing_else(page):
    assert page.names.count("h1") == 1
    assert page.names.count("nav") == 1
    assert {"figure", "figcaption", "svg", "table"} <= set(page.names)


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ("losses", ["whole objective", "cross_entropy", "semantic_contrastive"]),
        ("tasks", ["training, cross_entropy", "held out, whole objective"]),
        ("listening", ["held-out loss"]),
        ("metrics", ["wer, all tasks", "wer, asr", "wer, aac"]),
        ("experts", ["asr: gate", "aac: gate"]),
        ("evaluations", ["wer: 2 values"]),
        ("ablation", ["wer of 2 variations"]),
    ],
)
def test_each_part_has_its_drawing(page, section, parts):
    assert len(page.drawings[section]) == len(parts)
    assert all(part in found for part, found in zip(parts, page.drawings[section], strict=True))


@pytest.mark.parametrize(
    "sentence",
    [
        "first: the training loss goes from 4 at step 10 to 1.5 at step 20; the held-out loss goes from 4.5 at step 10 "
        "to 2 at step 20, which is its lowest.",
        "first, at the end, each part unweighted: cross_entropy 2 (3 held out), semantic_contrastive 1.",
        "first, training, cross_entropy, at the end: asr is lowest with 1, aac highest with 3.",
        "first, held out, whole objective, at the end: asr is lowest with 1.5, aac highest with 2.5.",
        "at step 20 the loss is 2 with the right audio and 3 with another's: the right audio is worth 1, 50.0% of the "
        "loss.",
        "wer, asr: first goes from 0.9 at step 10 to 0.2 at step 20.",
        "the largest gate of task aac is that of expert 1, with 0.91 at the end, step 20; all alike would be 0.50, "
        "and the gates' entropy is 0.30 of at most 0.69 nats.",
        "tasks differ most in the gate of expert 0: from 0.09 (aac) to 0.80 (asr).",
        "wer, asr: own is best with 0 (0 to 0), whose interval meets no other's; shuffled 1 (1 to 1).",
        "wer: mlp is best of 2 with 0.25.",
        "wer, beside base, with p below 0.05: better mlp (-0.25, p 0.01); worse none.",
        "mlp, seed 2: failed: no room",
    ],
)
def test_sentences_say_what_the_data_says(page, sentence):
    assert sentence in page.text


def test_a_loss_that_rises_again_says_where_it_was_lowest(tmp_path):
    log = [{"step": step, "loss": 1.0, "eval_loss": value} for step, value in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert "to 2 at step 3, and was lowest, 1, at step 2." in drawn(tmp_path, write_log(tmp_path / "a", log)).text


def test_runs_lie_over_each_other_under_their_names(tmp_path):
    folders = [write_log(tmp_path / "one" / "out"), write_log(tmp_path / "two" / "out")]
    found = curves.losses(find(folders).runs)
    names = "one/out, training, one/out, held out, two/out, training, two/out, held out"
    assert names in found.panels[0].label
    assert [said.partition(":")[0] for said in found.says[::2]] == ["one/out", "two/out"]


def test_runs_may_be_given_names(tmp_path):
    folders = {"small": write_log(tmp_path / "a"), "large": write_log(tmp_path / "b")}
    assert [run.name for run in find(folders).runs] == ["small", "large"]


def test_a_task_of_several_metrics_is_told_apart(tmp_path):
    log = [*LOG, {"step": 20, "eval_wer_basic": 0.3, "eval_wer_basic_asr": 0.1, "eval_wer_basic_id": "wer|basic"}]
    found = curves.metrics(find([write_log(tmp_path / "a", log)]).runs)
    assert [label.partition(" over")[0] for label in labels(found)] == [
        "wer, all tasks", "wer, asr", "wer, aac", "wer_basic, all tasks", "wer_basic, asr"
    ]  # fmt: skip


def test_experts_that_are_chosen_have_their_shares_drawn_too(tmp_path):
    log = [{"step": 1, "loss": 1.0, **{f"router/asr/{k}{e}": 0.5 for k in ("expert", "load") for e in range(2)}}]
    found = curves.experts(find([write_log(tmp_path / "a", log)]).runs)
    assert [label.rpartition(", ")[2] for label in labels(found)] == ["asr: gate", "asr: share of choices"]


def test_mixtures_of_several_stages_stand_apart(tmp_path):
    log = [{"step": 1, "loss": 1.0, **{f"router{s}/asr/expert{e}": 0.5 for s in (0, 2) for e in range(2)}}]
    found = curves.experts(find([write_log(tmp_path / "a", log)]).runs)
    assert [label.rpartition(", ")[2] for label in labels(found)] == ["asr: gate of stage 0", "asr: gate of stage 2"]


def test_long_logs_are_drawn_small(tmp_path):
    log = [{"step": i, "loss": 1 + i % 7} for i in range(20_000)]
    write_report([write_log(tmp_path / "a", log)], tmp_path / "report.html", model=False)
    assert (tmp_path / "report.html").stat().st_size < 60_000


# What a run lacks is said, and the rest is drawn


def test_what_is_missing_is_said(tmp_path):
    page = drawn(tmp_path, write_log(tmp_path / "bare", [{"step": 5, "loss": 2.0}]))
    for said in (
        "bare: nothing was evaluated while it trained",
        "bare: the log has no training loss by task",
        "bare: the log has no held-out loss by task",
        "bare: what the right audio is worth was not measured",
        "bare: no answers were measured while it trained",
        "bare: the log says nothing of routers",
        "bare: its model was not loaded (--no-model)",
        "bare: its folder has no run.yaml",
        "bare: its folder holds no model's config.json",
        "No record of usam eval is among the folders",
        "No output of usam ablate is among the folders",
    ):
        assert said in page.text
    assert list(page.drawings) == ["losses"]


def test_a_run_without_a_line_of_its_loss_says_so(tmp_path):
    page = drawn(tmp_path, write_log(tmp_path / "short", [{"step": 4, "train_loss": 4.0}], steps=4))
    assert "the log has no line of the training loss: the run of 4 steps ended before the first one" in page.text


def test_a_run_that_is_not_done_is_drawn_from_its_newest_checkpoint(tmp_path):
    for step in (10, 20):
        write_log(tmp_path / "a" / f"checkpoint-{step}", [{"step": 1, "loss": 1.0}], step, planned=30)
    page = drawn(tmp_path, tmp_path / "a")
    assert "a: it is not done; what is drawn is its newest checkpoint, checkpoint-20." in page.text
    assert "20 of 30" in page.text


def test_values_that_are_no_numbers_are_named(tmp_path):
    log = [{"step": 1, "loss": 2.0, "grad_norm": float("nan")}, {"step": 2, "loss": 1.0}]
    assert "no finite numbers and are not drawn: grad_norm" in drawn(tmp_path, write_log(tmp_path / "a", log)).text


def test_metrics_with_other_options_are_not_compared(tmp_path):
    write_record(tmp_path / "a", RIGHT)
    other = write_record(tmp_path / "b", RIGHT).folder / "eval.json"
    other.write_text(re.sub(r'("id": ")[^"]*wer', r"\1another wer", other.read_text()))
    found = scores.evaluations(find([tmp_path / "a", tmp_path / "b"]).records)
    assert len(found.panels) == 2
    assert found.missing == ["wer: records have it with different options or versions (ids); they are not compared."]


# Folders


def test_the_records_in_a_runs_folder_are_its_own(tmp_path):
    write_log(tmp_path / "a")
    write_record(tmp_path / "a" / "eval" / "shuffled", RIGHT)
    write_record(tmp_path / "a" / "test", RIGHT)
    assert set(find([tmp_path / "a"]).records) == {"test", "shuffled"}
    assert set(find({"mine": tmp_path / "a"}).records) == {"mine/test", "mine/eval/shuffled"}


def test_a_pattern_names_several_folders(tmp_path):
    for name in ("asr-own", "asr-shuffled"):
        write_record(tmp_path / name, RIGHT)
    assert set(find([f"{tmp_path}/asr-*"]).records) == {"asr-own", "asr-shuffled"}


def test_a_folder_that_is_named_twice_counts_once(tmp_path):
    write_log(tmp_path / "a")
    assert len(find([tmp_path / "a", tmp_path]).runs) == 1


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("trainer_state.json", "{", "trainer_state.json: no JSON"),
        ("trainer_state.json", "[1]", "expected a JSON map, found [1]"),
        ("trainer_state.json", '{"log_history": 3}', "'log_history' is no list of maps"),
        ("table.json", '{"columns": []}', "table.json: not what usam ablate writes: 'rows' is missing"),
    ],
)
def test_a_broken_file_is_named(tmp_path, file, text, said):
    (tmp_path / file).write_text(text)
    with pytest.raises(ReportError) as caught:
        find([tmp_path])
    assert said in str(caught.value)


def test_a_broken_record_is_named(tmp_path):
    (write_record(tmp_path / "a", RIGHT).folder / "answers.jsonl").write_text("{\n")
    with pytest.raises(RecordError, match=r"answers\.jsonl:1: no JSON"):
        find([tmp_path / "a"])


def test_folders_without_anything_to_draw_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("nowhere", "no such folder"),
        ("file", "is a file"),
        ("empty", "neither a run"),
        ("x*", "no such"),
    ):
        with pytest.raises(ReportError, match=said):
            find([tmp_path / place])


def test_no_number_of_a_table_is_invented(tmp_path):
    file = write_table(tmp_path / "grid") / "table.json"
    tree = json.loads(file.read_text())
    tree["rows"][1]["scores"]["wer"]["value"] = None  # no finite number
    file.write_text(json.dumps(tree))
    page = drawn(tmp_path, tmp_path / "grid")
    assert "wer: base is best of 1 with 0.5." in page.text
    assert "mlp: wer is no finite number, and has no bar." in page.text
