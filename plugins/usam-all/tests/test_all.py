"""Every component keeps the promises of its family, and all of them make one model."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import usam_all

from usam import build_model, load_spec, testing
from usam.data.manifest import Manifest
from usam.registry import GROUPS, discover

PROMISES = {
    "encoder": testing.encoder_promises("power"),
    "fusion": testing.fusion_promises("mean"),
    "projector": testing.projector_promises("gated"),
    "loss": testing.loss_promises("nearness"),
    "llm": testing.llm_promises("primer", dim=32),
    "augmentation": testing.augmentation_promises("flip"),
    "metric": testing.metric_promises("exact"),
}
CASES = [pytest.param(promise, id=f"{family}-{promise}") for family, found in PROMISES.items() for promise in found]


@pytest.mark.parametrize("promise", CASES)
def test_they_keep_their_promises(promise):
    promise()


def test_the_suite_keeps_its_promises(tmp_path):
    rows = [{"sound": f"{i}.wav", "question": f"Which number is {i}?", "answer": str(i)} for i in range(3)]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        soundfile.write(tmp_path / row["sound"], np.zeros(160), 16000)
    testing.check_suite("quiz", root=tmp_path)


def test_the_reader_is_recognised_by_the_keys_of_a_row():
    (sample,) = Manifest.of([{"song": "a.wav", "bird": "a wren"}], {})
    assert sample.messages[0]["content"][0] == {"type": "audio", "audio": "a.wav"}
    assert sample.answer == "a wren"


def test_every_family_has_one():
    assert all("usam-all" in {entry.provider for entry in discover(group)} for group in GROUPS)


def test_it_is_short():
    assert len(Path(usam_all.__file__).read_text().splitlines()) <= 120


def test_they_make_one_model():
    spec = load_spec(
        {
            "encoders": {"left": "power", "right": {"type": "power", "parts": 16}},
            "fusion": "mean",
            "projector": "gated",
            "llm": {"type": "primer", "dim": 32},
            "losses": {"cross_entropy": {}, "nearness": {"weight": 0.1}},
        }
    )
    assert spec.audio_tokens(16000) == 50
    model = build_model(spec, seed=0)
    ids = torch.tensor([[65] * 3 + [model.config.audio_token_id] * 50 + [66] * 4])
    labels = ids.clone().index_fill(1, torch.arange(53), -100)
    clip = {"input_values": 0.1 * torch.randn(1, 16000), "input_values_mask": torch.ones(1, 16000, dtype=torch.bool)}
    out = model(input_ids=ids, labels=labels, **clip)
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
