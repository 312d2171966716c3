"""The studies of routers and norms: what they compute, and that they run."""

import json
import math
import sys
from pathlib import Path

import pytest
import soundfile
import toys  # noqa: F401
import yaml
from conftest import noise

from usam.spec.spec import SPECS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _runs  # noqa: E402
import norms  # noqa: E402
import routing  # noqa: E402


@pytest.mark.parametrize(
    ("gates", "bits"),
    [
        ([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], 2.0),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], 1.5),
        ([[0.5, 0.5], [0.5, 0.5]], 0.0),
        ([[0.7, 0.1, 0.2]] * 4, 0.0),
        # 1 - H(1/4): the mean is even, and whoever sees the expert is right three times of four
        ([[0.75, 0.25], [0.25, 0.75]], 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)),
    ],
)
def test_information_is_how_many_bits_an_expert_tells_of_the_task(gates, bits):
    named = {str(i): row for i, row in enumerate(gates)}
    assert routing.information(named) == pytest.approx(bits, abs=1e-12)


def test_gates_that_do_not_sum_to_one_count_as_shares():
    assert routing.information({"a": [2.0, 0.0], "b": [0.0, 0.5]}) == pytest.approx(1)


def test_gates_are_read_from_a_line_of_the_log():
    line = {"step": 3, "router/asr/expert1": 0.3, "router/asr/expert0": 0.7, "router/asr/entropy": 0.6, "loss": 1.0}
    assert routing.by_task(line) == {"asr": [0.7, 0.3]}


@pytest.mark.parametrize("name", sorted(file.stem for file in SPECS.rglob("*.yaml")))
def test_every_bundled_spec_has_a_small_one(name):
    small = norms.small(name)
    assert small.llm.dim == 64
    assert not any(getattr(encoder, "path", None) for encoder in small.encoders.values())


SPEC = {
    "encoders": {"toy": {}},
    "projector": [
        {"type": "linear", "stack": 5, "dim": 10},
        {"type": "moe", "experts": 2, "hidden": 6, "router_hidden": 5},
    ],
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
    "losses": {"cross_entropy": {"weight": 0.5}, "load_balance": {"weight": 0.1}},
    "prompts": {"asr": "Transcribe this audio.", "aac": "What do you hear?"},
}


@pytest.fixture
def study(tmp_path):
    """Eight clips of two tasks, learned from in two steps."""
    rows = []
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", noise(0.2 + 0.1 * i, seed=i), 16000)
        rows.append({"audio": f"{i}.wav", "task": ["asr", "aac"][i % 2], "answer": "ab"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
    page = {"model": SPEC, "data": {"train": "rows.jsonl", "eval": "rows.jsonl"}, "train": train | {"use_cpu": True}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(page))
    return _runs.Study(tmp_path / "run.yaml", tmp_path / "runs", (0,), ())


def test_a_routers_study_measures_a_trained_run(study):
    out = study.trained("base", 0)
    when = (out / "config.json").stat().st_mtime_ns
    assert study.trained("base", 0) == out
    assert (out / "config.json").stat().st_mtime_ns == when
    found = routing.measured(study, out)
    assert [line["step"] for line in found["training"]] == [1, 2]
    assert found["most"] == 1.0
    assert 0 <= found["information"] < 1
    assert set(found["losses"]) == set(routing.GATES)
    own = {task: found["under the gates of"][task][task] for task in ("asr", "aac")}
    assert own == pytest.approx(found["losses"]["as learned"], rel=1e-4)
    assert found["losses"]["of another task"]["asr"] == found["under the gates of"]["aac"]["asr"]
    assert len(routing.rows("normalised", [found])) == 5


def test_the_study_of_norms_measures_a_run_that_matches(study):
    (found,) = norms.after_training(study, "matched", f"{study.place('last')}.{norms.MATCH}")
    assert found["start"] == pytest.approx(1, rel=1e-2)
    assert set(found["losses"]) == {"asr", "aac"}
