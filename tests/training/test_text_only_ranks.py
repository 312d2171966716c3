"""A process whose batch has no audio steps with the others, and all learn what one process does."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from short_runs import SMALL, logged

from usam.training.run import read_run
from usam.training.start import train

ARCH = "{d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 16, num_mel_bins: 80, "
HEARING = [
    f"model.encoders.other={{type: whisper, freeze: none, arch: {ARCH} max_source_positions: 50}}}}",
    "model.projector=[{type: linear, stack: 5}, {type: moe, experts: 2}]",
]
STEPS = ["train.max_steps=4", "train.logging_steps=1", "train.save_strategy=no", "data.eval=null", "train.optim=sgd"]
STEPS += ["train.learning_rate=0.1", "train.lr_scheduler_type=constant"]
SAMPLING = {
    "in turn": ["train.train_sampling_strategy=sequential", "train.per_device_train_batch_size=1"],
    "within a budget": ["data.batch_seconds=1.5", "train.per_device_train_batch_size=2"],
}


@pytest.fixture
def run_file(run_file):
    """Every second row is text alone."""
    manifest = run_file.parent / "train.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for i in range(1, 8, 2):
        asked = {"role": "user", "content": f"Count to {i}."}
        rows[i] = {"messages": [asked, {"role": "assistant", "content": "one two"}]}
    manifest.write_text("\n".join(map(json.dumps, rows)))
    return run_file


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLING.values(), ids=SAMPLING.keys())
def test_a_process_without_audio_steps_with_the_others(run_file, sampling):
    more = [*SMALL, *HEARING, *STEPS, *sampling]
    accumulated = ["train.gradient_accumulation_steps=2", f"train.output_dir={run_file.parent / 'one'}"]
    one = train(read_run(run_file, *more, *accumulated))
    folder = run_file.parent / "two"
    more += ["train.ddp_backend=gloo", f"train.output_dir={folder}"]
    words = [word for override in more for word in ("--set", override)]
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*many, "-m", "usam.cli", "train", run_file, *words], check=True, timeout=500)
    for ours, theirs in zip(logged(one), logged(folder), strict=True):
        if "loss" in ours:
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
    first, second = (load_file(place / "model.safetensors") for place in (one, folder))
    assert any("encoders.other" in name for name in first)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
