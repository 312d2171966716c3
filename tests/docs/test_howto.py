"""The pages of YAML in docs/howto.md are read by what reads a user's: specs by `load_spec`, run files by `read_run`."""

import re
from pathlib import Path

import pytest

from usam import load_spec
from usam.training.run import read_run

PAGE = (Path(__file__).parents[2] / "docs" / "howto.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def test_most_questions_have_an_answer_in_yaml():
    assert len(BLOCKS) >= 10
    assert PAGE.count("```yaml") == len(BLOCKS)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_page_is_sound(name, tmp_path):
    file = tmp_path / name
    file.write_text(BLOCKS[name])
    if "\ntrain:" in BLOCKS[name]:
        assert read_run(file).train["output_dir"]
    else:
        assert load_spec(file)


def test_thinking_is_off_and_the_encoder_has_its_weights(tmp_path):
    for name in BLOCKS:
        (tmp_path / name).write_text(BLOCKS[name])
    assert load_spec(tmp_path / "thinking.yaml").llm.template_options == {"enable_thinking": False}
    assert load_spec(tmp_path / "encoder.yaml").encoders["whisper"].resolved().arch["d_model"] == 96
