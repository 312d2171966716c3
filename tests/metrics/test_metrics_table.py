"""docs/metrics.md tells of every metric what it is, and nothing else."""

import pkgutil
from pathlib import Path

import pytest

import usam.metrics
from usam.metrics import build_metric, registry

DOCS = Path(__file__).parents[2] / "docs/metrics.md"
NAMES = [module.name for module in pkgutil.iter_modules(usam.metrics.__path__) if not module.name.startswith("_")]


def rows():
    """The table's cells, by metric."""
    lines = DOCS.read_text(encoding="utf-8").partition("| Metric |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {own[0].strip("`"): own[1:] for own in cells}


def test_every_metric_has_a_row_in_order():
    assert list(rows()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_says_what_its_metric_is(name):
    what, options, unit, decomposes, needs, _ = rows()[name]
    metric = registry.get(name)
    assert what
    assert [option.strip("`") for option in options.split()] == [
        key for key in metric.Config.model_fields if key != "type"
    ]
    assert unit == metric.unit
    assert decomposes == ("yes" if metric.decomposes else "no")
    for package in metric.packages:
        assert package in needs


# The docs' table of parsers, with the choices `a dog` and `rain`.
@pytest.mark.parametrize(
    ("parser", "read"),
    [
        ("strict", [None, None, "B"]),
        ("letter", ["B", None, "B"]),
        ("first_mention", [None, "A", "B"]),
        ("words", [None, "A", "B"]),
    ],
)
def test_parsers_read_what_the_docs_say(parser, read):
    metric = build_metric("multiple_choice", parser=parser, choices=["a dog", "rain"])
    for answer, letter in zip(["The answer is B.", "A dog barks", "(B) rain"], read, strict=True):
        found = metric([answer], [letter or "A"])
        assert (found.value, found.details["unparsed"]) == ((0, 1) if letter is None else (1, 0))
