"""The demo writes over what it wrote, and over nothing else."""

import pytest

from usam import SpecError
from usam.training import demo


def test_the_demo_may_run_again_in_its_folder(tmp_path):
    assert not demo._is_own(tmp_path)
    (tmp_path / "run.yaml").write_text(demo._run_file(tmp_path, [tmp_path / "corpus" / "train.jsonl"]))
    assert demo._is_own(tmp_path)


@pytest.mark.parametrize("place", ["run.yaml", "model/run.yaml"])
def test_the_demo_leaves_the_runs_of_others(tmp_path, place):
    (tmp_path / "model").mkdir()
    (tmp_path / place).write_text("model: tiny\n")
    with pytest.raises(SpecError, match=rf"{place}: not of a demo, which would overwrite it"):
        demo.run(tmp_path, clips=1)
    assert (tmp_path / place).read_text() == "model: tiny\n"
    assert not (tmp_path / "corpus").exists()
