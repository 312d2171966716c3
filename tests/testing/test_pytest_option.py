"""`pytest --usam` tries what installed packages offer, and says what was kept."""

import os
import re
import subprocess
import sys

import pytest

from usam.providers import registry_of
from usam.pytest import WITHOUT, promises_of
from usam.registry import GROUPS

GOOD = '''
from usam.metrics import Metric

class Exact(Metric):
    """The share of right answers."""
    higher_is_better, unit, bounds = True, "share", (0.0, 1.0)
    def statistics(self, prediction, references):
        return [float(prediction.split() in [text.split() for text in references]), 1.0]
    def of(self, total):
        return float(total[0] / total[1])
'''
BAD = GOOD.replace("bounds = True", "bounds = False")  # says that the least is best
READER = '''
from usam.readers import Form, Layout

class Exact(Layout):
    """Rows of a bird watcher."""
    forms = (Form(("song", "bird")),)
    def said(self, row):
        return {"audio": row["song"], "prompt": "Which bird?", "answer": row["bird"]}
'''


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs a package with one component."""
    monkeypatch.syspath_prepend(tmp_path)
    # Only this plugin, whether or not it was installed as one: a test must not load it twice.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def offer(module, code, group="usam.metrics"):
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{module}_part = {module}:Exact\n")
        for family in GROUPS:
            registry_of(family).refresh()

    yield offer
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.startswith("birds_")]:
        sys.modules.pop(name)
    for family in GROUPS:
        registry_of(family).refresh()


@pytest.fixture
def run(tmp_path, capfd):
    """Run pytest in an empty folder; returns (status, what it printed)."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*options):
        own = [
            "-p",
            "usam.pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            f"--rootdir={empty}",
            str(empty),
            "-k",
            "birds_",
        ]
        status = pytest.main([*own, *map(str, options)])
        out, err = capfd.readouterr()
        return status, out + err

    return run


def test_what_is_kept_is_reported(offer, run):
    offer("birds_good", GOOD)
    status, said = run("--usam")
    assert status == pytest.ExitCode.OK, said
    assert re.search(r"\| `metrics\.birds_good_part` \| birds_good 1\.5 \| defaults \| \d\d kept \|", said)
    assert re.search(r"usam \S+, torch \S+, transformers \S+, pydantic \S+, Python \d", said)


def test_what_is_broken_is_told_in_the_kits_words(offer, run):
    offer("birds_bad", BAD)
    status, said = run("--usam")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert re.search(r"\| `metrics\.birds_bad_part` \| birds_bad 1\.5 \| defaults \| \d+ kept, 1 broken \|", said)
    assert (
        "**metrics.birds_bad_part: a_perfect_answer_is_best** broken: usam.metrics:birds_bad:birds_bad_part breaks"
        in said
    )
    assert "Traceback" not in said


def test_what_does_not_load_says_why_once(offer, run):
    offer("birds_broken", "raise ImportError('libsound.so is missing')")
    status, said = run("--usam")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "| birds_broken 1.5 | defaults | 1 broken |" in said
    assert "libsound.so is missing" in said


def test_a_reader_is_loaded(offer, run):
    offer("birds_read", READER, "usam.readers")
    assert "| `readers.birds_read_part` | birds_read 1.5 | defaults | 1 kept |" in run("--usam")[1]


def test_options_come_from_a_file(offer, run, tmp_path):
    offer("birds_good", GOOD)
    (tmp_path / "small.yaml").write_text("metrics.birds_good_part: {case: lower}\n")
    status, said = run("--usam", "--usam-options", tmp_path / "small.yaml")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "unknown option 'case'" in said
    assert '| birds_good 1.5 | `{"case": "lower"}` | ' in said


def test_the_report_is_written_to_a_file_whole(offer, run, tmp_path):
    offer("birds_bad", BAD)
    _, said = run("--usam", "--usam-report", tmp_path / "report.md")
    report = (tmp_path / "report.md").read_text()
    assert report in said
    for part in ("usam ", "metrics.birds_bad_part", "birds_bad 1.5", "defaults", "the promise: Answers that are their"):
        assert part in report


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--usam-report", "report.md"], "--usam-report is of what --usam tests: give both"),
        (["--usam", "--usam-report", "nowhere/report.md"], "nowhere/report.md: name a file in a folder that there is"),
    ],
)
def test_a_report_that_cannot_be_is_refused(options, fault, offer, run):
    offer("birds_good", GOOD)
    status, said = run(*options)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert fault in said


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("metrics.birds_god_part: {}", "no package offers 'metrics.birds_god_part'; did you mean 'metrics.birds_good"),
        ("metrics.birds_good_part: 3", "expected a map of options, found 3"),
        ("a: [", "this is not YAML"),
    ],
)
def test_a_wrong_file_of_options_is_refused(text, fault, offer, run, tmp_path):
    offer("birds_good", GOOD)
    (tmp_path / "small.yaml").write_text(text)
    status, said = run("--usam", "--usam-options", tmp_path / "small.yaml")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert fault in said


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in WITHOUT])
def test_every_family_has_promises_but_those_that_are_named(group):
    assert callable(promises_of(group))


def test_nothing_is_tried_unless_it_is_asked_for(offer, run):
    offer("birds_good", GOOD)
    status, said = run()
    assert status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "birds_good" not in said
    assert run("--usam-options", "x.yaml")[0] == pytest.ExitCode.USAGE_ERROR


def test_whoever_does_not_ask_for_it_waits_for_no_torch():
    code = (
        "import sys, usam.pytest; assert not {'torch', 'transformers', 'pydantic', 'usam.testing'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
