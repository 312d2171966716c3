"""Runs of an ablation: paired by construction, and known to be done, begun, failed or another's."""

import json
import os

import pytest
import torch
from small_grids import RUN, VARIED, ablation_of, pretend, write_grid

from usam.evaluation.ablate import ablate, make_room, slurm_options, state
from usam.evaluation.grid import read_ablation
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.training.caching import built
from usam.training.start import train

SPY = '''
import os
import torch
from usam.losses import Loss, register
from usam.types import LossOutput

@register("spy")
class Spy(Loss):
    """Writes down which samples a step learns from."""

    def forward(self, inputs):
        if torch.is_grad_enabled():
            with open(os.environ["SPY"], "a") as file:
                print(sorted(inputs.batch["ids"]), file=file)
        return LossOutput(torch.zeros(()))
'''
SAID = [("a", "a"), ("b", "b")]


def test_variations_of_a_seed_learn_from_the_same_batches_in_the_same_order(tmp_path, monkeypatch):
    (tmp_path / "spy_of_batches.py").write_text(SPY)
    write_grid(tmp_path, VARIED.replace("steps: 2", "steps: 5"))
    spying = RUN.replace("  prompts:", "  losses: {spy: {}, cross_entropy: {}}\n  prompts:")
    (tmp_path / "run.yaml").write_text(spying + "plugins: [spy_of_batches.py]\n")
    seen = []
    for cell in read_ablation(tmp_path / "grid.yaml").cells:
        monkeypatch.setenv("SPY", str(tmp_path / cell.variation.name))
        train(cell.run)
        seen.append((tmp_path / cell.variation.name).read_text())
    assert len(seen[0].splitlines()) == 5
    assert seen[0] == seen[1]


def test_parts_that_variations_share_start_equal(tmp_path):
    found = ablation_of(tmp_path, VARIED + "seeds: [7]")
    base, mlp = (built(cell.run, cell.seed)[0].state_dict() for cell in found.cells)
    shared = [name for name in base if "projector" not in name]
    assert len(shared) > 10
    assert all(torch.equal(base[name], mlp[name]) for name in shared)


def test_seeds_start_apart(tmp_path):
    found = ablation_of(tmp_path, VARIED + "seeds: [7, 8]")
    one, other = (built(cell.run, cell.seed)[0].lm_head.weight for cell in found.cells[:2])
    assert not torch.equal(one, other)


# How far runs are


def kinds(ablation):
    return [state(cell).kind for cell in ablation.cells]


def test_a_run_is_done_when_its_model_is_saved(tmp_path):
    found = ablation_of(tmp_path)
    assert kinds(found) == ["to do", "to do"]
    pretend(found.cells[0], SAID)
    pretend(found.cells[1], SAID)
    (found.cells[1].folder / "config.json").unlink()
    assert kinds(found) == ["done", "begun"]


def test_what_is_done_is_not_done_again(tmp_path):
    found = ablation_of(tmp_path)
    for cell in found.cells:
        pretend(cell, SAID)
    lines = []
    assert ablate(found, say=lines.append) == {}
    assert lines == ["2 of 2 runs are done already"]


def test_another_metric_is_computed_from_the_answers_that_are_there(tmp_path):
    for cell in ablation_of(tmp_path).cells:
        pretend(cell, SAID)
    (tmp_path / "grid.yaml").write_text(VARIED.replace("[wer]", "[wer, chrf]"))
    assert kinds(read_ablation(tmp_path / "grid.yaml")) == ["done", "done"]


def test_another_base_is_another_run_and_nothing_is_removed_unasked(tmp_path):
    for cell in ablation_of(tmp_path).cells:
        pretend(cell, SAID)
    (tmp_path / "run.yaml").write_text(RUN.replace("learning_rate: 1e-2", "learning_rate: 1e-3"))
    changed = read_ablation(tmp_path / "grid.yaml")
    told = (
        r"2 of 2 folders hold another run(?s:.)*base, seed 0: train.learning_rate: was 0.01, now 0.001(?s:.)*overwrite"
    )
    with pytest.raises(SpecError, match=told):
        ablate(changed)
    assert all((cell.folder / "trainer_state.json").is_file() for cell in changed.cells)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    found = ablation_of(tmp_path)
    found.cells[0].folder.mkdir(parents=True)
    (found.cells[0].folder / "thesis.txt").write_text("years")
    with pytest.raises(SpecError, match="holds something that no ablation began"):
        ablate(found, overwrite=True)
    assert (found.cells[0].folder / "thesis.txt").read_text() == "years"


def test_other_runs_are_removed_when_that_is_asked_for(tmp_path):
    for cell in ablation_of(tmp_path).cells:
        pretend(cell, SAID)
    (tmp_path / "run.yaml").write_text(RUN.replace("learning_rate: 1e-2", "learning_rate: 1e-3"))
    changed = read_ablation(tmp_path / "grid.yaml")
    make_room({cell: state(cell) for cell in changed.cells}, overwrite=True)
    assert kinds(changed) == ["to do", "to do"]


def test_only_some_variations_are_looked_at(tmp_path):
    found = ablation_of(tmp_path)
    pretend(found.cells[1], SAID)
    assert ablate(found, only=["mlp"]) == {}
    assert not found.cells[0].folder.exists()
    with pytest.raises(SpecError, match="--only mpl: no such variation; did you mean 'mlp'"):
        ablate(found, only=["mpl"])


def test_two_runners_do_not_share_an_output(tmp_path, monkeypatch):
    import fcntl

    found = ablation_of(tmp_path)
    monkeypatch.setattr("usam.evaluation.ablate.PATIENCE", 0.1)
    found.output.mkdir()
    with (found.output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SpecError, match="another `usam ablate` is at work here"):
            ablate(found)


def test_a_failed_run_says_why_and_is_tried_again(tmp_path):
    found = ablation_of(tmp_path)
    pretend(found.cells[0], SAID, failed="the roof fell in")
    (found.cells[0].folder / "config.json").unlink()
    assert str(state(found.cells[0])) == "failed: the roof fell in"


# Slurm


def test_options_of_slurm_are_yaml():
    assert slurm_options("timeout_min=60,slurm_partition=gpu,gpus_per_node=1") == {
        "timeout_min": 60, "slurm_partition": "gpu", "gpus_per_node": 1,
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"override 'gpu': write key.key=value"):
        slurm_options("gpu")


def test_submitit_is_asked_for_where_it_is_needed(tmp_path):
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ComponentError, match=r"pip install 'usam\[slurm\]'"):
            ablate(ablation_of(tmp_path), slurm={"cluster": "local"})
    else:
        with pytest.raises(SpecError, match=r"--slurm: .*gpus"):
            ablate(ablation_of(tmp_path), slurm={"cluster": "local", "gpus": 1})


@pytest.mark.slow
def test_runs_go_through_submitit(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed: pip install 'usam[slurm]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    found = ablation_of(tmp_path)
    assert ablate(found, slurm={"cluster": "local", "timeout_min": 10}) == {}
    assert kinds(found) == ["done", "done"]
    assert "job" in json.loads((found.cells[0].folder / "ablation.json").read_text())
