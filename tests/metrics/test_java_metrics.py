"""Metrics that need Java say what is missing, and run where it is there."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from usam.metrics import build_metric
from usam.registry import ComponentError
from usam.testing import check_metric

ORACLE = json.loads((Path(__file__).parents[1] / "oracles/metrics/captions.json").read_text(encoding="utf-8"))
SAID = [answer for answer, _ in ORACLE["samples"]]
RIGHT = [right for _, right in ORACLE["samples"]]
JARS = ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"]

there = pytest.mark.skipif(
    shutil.which("java") is None or find_spec("pycocoevalcap") is None, reason="java or pycocoevalcap is not installed"
)

# Speaks as SPICE's jar does: it reads a file of captions, and writes one of scores.
SPICE = """#!{python}
import json, sys
if "edu.stanford.nlp.process.PTBTokenizer" in sys.argv:
    sys.stdout.write(sys.stdin.read().lower())
    sys.exit()
assert sys.argv[3] == "-jar" and sys.argv[4].endswith("spice-1.0.jar"), sys.argv
given = json.load(open(sys.argv[5]))
f = lambda item: float(item["test"] in item["refs"])
found = [{{"image_id": item["image_id"], "scores": {{"All": {{"f": f(item)}}}}}} for item in reversed(given)]
json.dump(found, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of a pycocoevalcap that has its jars, and a java that speaks as SPICE does."""
    for name in ["meteor/meteor-1.5.jar", "meteor/data/paraphrase-en.gz", "spice/spice-1.0.jar"]:
        file = tmp_path / "pycocoevalcap" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name in ["spice/lib", "tokenizer"]:
        (tmp_path / "pycocoevalcap" / name).mkdir()
    (tmp_path / "pycocoevalcap/tokenizer/stanford-corenlp-3.4.1.jar").touch()
    (tmp_path / "pycocoevalcap/__init__.py").touch()
    (tmp_path / "pycocoevalcap-1.2.dist-info").mkdir()
    (tmp_path / "pycocoevalcap-1.2.dist-info/METADATA").write_text("Name: pycocoevalcap\nVersion: 1.2\n")
    java = tmp_path / "bin/java"
    java.parent.mkdir()
    java.write_text(SPICE.format(python=sys.executable))
    java.chmod(0o755)
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(java.parent))
    return tmp_path / "pycocoevalcap"


@pytest.mark.parametrize("name", ["meteor", "spice", "spider"])
def test_without_java_it_says_what_to_install(name, package, monkeypatch):
    for file in JARS:
        (package / "spice/lib" / file).touch()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        ComponentError, match=r"no java on PATH: install Java 8 or later \(Debian.*default-jre-headless"
    ):
        build_metric(name)


@pytest.mark.parametrize(
    ("name", "options"),
    [("meteor", {}), ("spice", {}), ("spider", {}), ("cider_d", {"tokenizer": "ptb_java"})],
)
def test_without_pycocoevalcap_it_says_what_to_install(name, options, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(ComponentError, match=r"pycocoevalcap, which is not installed: pip install 'usam\[captions\]'"):
        build_metric(name, **options)


def test_a_jar_that_is_gone_is_named(package):
    (package / "meteor/meteor-1.5.jar").unlink()
    with pytest.raises(ComponentError, match=r"METEOR: .*meteor/meteor-1.5.jar is missing"):
        build_metric("meteor")


@pytest.mark.parametrize("name", ["spice", "spider"])
def test_spice_says_which_files_are_missing_and_where_they_go(name, package):
    with pytest.raises(ComponentError) as error:
        build_metric(name)
    for part in (*JARS, "https://nlp.stanford.edu/", str(package / "spice/lib")):
        assert part in str(error.value)


def test_spice_and_spider_run_where_their_files_are(package):
    for file in JARS:
        (package / "spice/lib" / file).touch()
    said, right = ["a dog barks at night", "rain"], [["a cat", "A dog barks at night"], "snow falls"]
    spice = build_metric("spice")(said, right)
    assert spice.each == (1, 0)
    assert spice.value == 1 / 2
    assert spice.id == "spice|tokenizer:ptb_java|pycocoevalcap:1.2"
    cider = build_metric("cider_d")(said, right)
    spider = build_metric("spider")(said, right)
    assert spider.each == ((cider.each[0] + 1) / 2, cider.each[1] / 2)
    assert not build_metric("spider").decomposes


def test_a_program_that_fails_says_what_it_said(package):
    for file in JARS:
        (package / "spice/lib" / file).touch()
    metric = build_metric("spice", tokenizer="ptb_like")
    (package.parent / "bin/java").write_text(f"#!{sys.executable}\nraise SystemExit('out of memory')\n")
    with pytest.raises(RuntimeError, match=r"spice-1.0.jar .* ended with 1: out of memory"):
        metric(["a"], ["a"])


def test_meteor_that_dies_says_what_it_said(package):
    metric = build_metric("meteor", tokenizer="ptb_like")
    (package.parent / "bin/java").write_text(f"#!{sys.executable}\nraise SystemExit('no heap')\n")
    with pytest.raises(RuntimeError, match="METEOR ended with 1: no heap"):
        metric(["a"], ["a"])


# For real, where it is installed


@there
@pytest.mark.slow
def test_meteor_is_pycocoevalcaps():
    found = build_metric("meteor")(SAID, RIGHT)
    assert found.value == pytest.approx(ORACLE["scores"]["meteor"]["value"], rel=1e-12)
    assert found.each == pytest.approx(ORACLE["scores"]["meteor"]["each"], rel=1e-12)


@there
@pytest.mark.slow
def test_meteor_keeps_the_promises():
    assert check_metric("meteor", tokenizer="ptb_like")


@there
@pytest.mark.parametrize("name", ["cider_d", "coco_rouge_l"])
def test_stanfords_own_tokenizer_gives_the_same_values(name):
    found = build_metric(name, tokenizer="ptb_java")(SAID, RIGHT)
    assert found.each == pytest.approx(ORACLE["scores"][name]["each"], rel=1e-12)
    assert found.id == f"{name}|tokenizer:ptb_java|pycocoevalcap:{ORACLE['packages']['pycocoevalcap']}"


@there
@pytest.mark.slow
def test_meteor_tells_characters_apart_whatever_the_locale_is(monkeypatch):
    monkeypatch.setenv("LC_ALL", "C")
    assert build_metric("meteor", tokenizer="ptb_like")(["二百", "二百"], ["三千", "二百"]).each == (0, 1)
