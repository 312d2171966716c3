"""The specs in docs/coming_from.md are sound, and change what they say."""

import re
from pathlib import Path

import pytest

from usam import load_spec
from usam.readers import registry

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from.md").read_text(encoding="utf-8")
SPECS = dict(re.findall(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_is_sound(name, tmp_path):
    (tmp_path / name).write_text(SPECS[name])
    assert load_spec(tmp_path / name).to_dict() != load_spec(re.search(r"base: (\w+)", SPECS[name])[1]).to_dict()


def test_readers_that_are_named_are_there():
    named = re.findall(r"(?:the reader|aispeech's is) `(\w+)`", PAGE)
    assert len(named) == 7
    assert set(named) <= set(registry.names())
