"""docs/benchmark_suites.md tells of every suite what it is, and nothing else; its example runs."""

import json
import pkgutil
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_files import sound

import usam.suites
from usam.suites import build_suite, registry
from usam.testing import check_suite

DOCS = (Path(__file__).parents[2] / "docs/benchmark_suites.md").read_text(encoding="utf-8")
NAMES = [module.name for module in pkgutil.iter_modules(usam.suites.__path__) if not module.name.startswith("_")]


def rows():
    """The table's cells, by suite."""
    lines = DOCS.partition("| Benchmark |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {own[0].strip("`"): own[1:] for own in cells}


def test_every_suite_has_a_row_in_order():
    assert list(rows()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_what_its_suite_is(name):
    _, splits, asked, scored, by = rows()[name]
    suite = build_suite(name)
    assert re.findall(r"`([^`]+)`", splits) == list(suite.splits)
    assert re.findall(r"`([^`]+)`", scored) == list(suite.metrics)
    assert (f"`prompts.{suite.task}`" in asked) == (suite.asks is None)
    assert bool(by) == bool(suite.by)


def test_the_example_keeps_what_suites_promise(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    module = ModuleType("birds")
    monkeypatch.setitem(sys.modules, "birds", module)
    exec(DOCS.rpartition("```python\n")[2].partition("```")[0], vars(module))
    birds = ["wren", "robin"]
    songs = [{"id": f"song {i}", "song": f"{i}.wav", "bird": bird, "birds": birds} for i, bird in enumerate(birds)]
    (tmp_path / "birds.json").write_text(json.dumps(songs))
    sound(*(tmp_path / song["song"] for song in songs))
    assert "is_scored_by_its_metrics" in check_suite("birds", root=tmp_path).kept
    assert build_suite("birds").load(tmp_path).rows[0]["prompt"] == "Which bird? wren\nrobin"
