"""docs/kit.md is what the kit says of itself, and no promise is left out."""

import importlib
import sys
from pathlib import Path

import pytest

from usam.registry import GROUPS

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))

import write_kit  # noqa: E402

FAMILIES = [group.removeprefix("usam.") for group in GROUPS if group != "usam.readers"]


def claims(family):
    return importlib.import_module(f"usam.testing.{family}").CLAIMS


def test_the_page_is_what_the_kit_says():
    assert (DOCS / "kit.md").read_text(encoding="utf-8") == write_kit.page(), "run python docs/write_kit.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_promise_says_what_it_is_and_why(family):
    rows = [line for line in write_kit.section(f"usam.{family}").splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [claim.__name__ for claim in claims(family)]
    assert all(len(cell.strip()) > 10 for row in rows for cell in row.strip("|").split(" | ")[1:])


def test_what_a_check_needs_is_said():
    assert dict(write_kit.arguments(importlib.import_module("usam.testing").check_suite))["root"].endswith("given)")


def test_a_promise_that_does_not_say_why_is_refused():
    def silent(case):
        """It is silent."""

    with pytest.raises(ValueError, match="silent: a paragraph that begins with 'Else' says why it matters"):
        write_kit.why(silent)
