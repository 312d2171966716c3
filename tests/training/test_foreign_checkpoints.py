"""What a Trainer finds in a checkpoint besides the model is not executed either."""

import os
from pathlib import Path

import pytest
import torch
import toys  # noqa: F401 (registers the toy encoder)
from transformers import TrainingArguments

from usam import ComponentError, build_model
from usam.training.trainer import UsamTrainer


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "executed"),)


@pytest.fixture
def trainer(tmp_path):
    model = build_model({"encoders": {"toy": {}}, "projector": "linear", "llm": "tiny"})
    found = UsamTrainer(model=model, args=TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    found.create_optimizer_and_scheduler(num_training_steps=1)
    torch.save(found.optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(found.lr_scheduler.state_dict(), tmp_path / "scheduler.pt")
    torch.save(found.args, tmp_path / "training_args.bin")  # which nothing reads
    return found


def test_an_optimizer_is_loaded(trainer, tmp_path):
    trainer._load_optimizer_and_scheduler(str(tmp_path))


OPTIMIZER, RANDOM = UsamTrainer._load_optimizer_and_scheduler, UsamTrainer._load_rng_state


@pytest.mark.parametrize(
    ("name", "load"), [("optimizer.pt", OPTIMIZER), ("scheduler.pt", OPTIMIZER), ("rng_state.pth", RANDOM)]
)
def test_a_file_that_would_execute_code(name, load, trainer, tmp_path):
    torch.save({"state": Evil(tmp_path)}, tmp_path / name)
    with pytest.raises(ComponentError, match=rf"{name.split('.')[0]}.*: refused, .* would execute code") as found:
        load(trainer, str(tmp_path))
    assert "weights_only" not in str(found.value)
    assert not (tmp_path / "executed").exists()


def test_a_truncated_optimizer(trainer, tmp_path):
    (tmp_path / "optimizer.pt").write_bytes((tmp_path / "optimizer.pt").read_bytes()[:500])
    with pytest.raises(ComponentError, match=r"optimizer\.pt: not a whole PyTorch checkpoint"):
        trainer._load_optimizer_and_scheduler(str(tmp_path))
