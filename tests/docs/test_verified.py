"""What docs/faithfulness.md says is verified: the tests that it names are there, with the bounds that it gives."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faithfulness.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.*?) \| (.*) \| `(tests/[\w/]+\.py)(?:::(\w+))?` \|$", PAGE, re.MULTILINE)


def test_most_rows_name_a_test():
    assert len(ROWS) > 20


@pytest.mark.parametrize(("what", "bound", "file", "name"), ROWS, ids=[f"{row[2]}-{row[3]}" for row in ROWS])
def test_a_row_is_tested_with_its_bound(what, bound, file, name):
    code = (ROOT / file).read_text(encoding="utf-8")
    assert f"def {name}(" in code or not name, what
    assert [number for number in re.findall(r"\d+e-\d+", bound) if number not in code] == []
