"""Bundled specs build without a download, and their numbers are the published ones."""

import pytest

from usam import load_spec
from usam.model.summary import table
from usam.spec.spec import SPECS

NAMES = [file.relative_to(SPECS).with_suffix("").as_posix() for file in sorted(SPECS.rglob("*.yaml"))]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_spec_builds_on_the_meta_device(name):
    rows = table(load_spec(name))
    assert rows[-1].parameters > 0
    assert load_spec(name).audio_tokens(10 * load_spec(name).sample_rate) > 1


def test_the_trios_have_the_published_numbers_of_parameters():
    sizes = {row.part: row.parameters for name in NAMES if "mert" in name for row in table(load_spec(name))}
    assert sizes["encoders.whisper"] == 636_784_640
    assert sizes["encoders.beats"] == pytest.approx(90.3e6, rel=1e-3)
    assert sizes["encoders.ced"] == 85_711_759 - 406_799  # without its head: LayerNorm and 527 classes
    # Without SpecAugment's embedding of 1024, with a learned weight for each of the 25 hidden states.
    assert sizes["encoders.mert"] == 315_428_992 - 1024 + 25
    assert sizes["llm"] + sizes["llm head"] == 8_030_261_248 + 3_407_872  # Llama 3.1, and LoRA of rank 8
