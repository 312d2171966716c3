"""A loss of one's own reads what stands beside an answer in the manifest: ids, tasks and columns."""

import json
from types import SimpleNamespace

import pytest
import soundfile
from conftest import noise

from usam import UsamProcessor, build_model, losses
from usam.data.collate import Collator, passed_along
from usam.data.manifest import Manifest
from usam.training.run import read_run
from usam.training.start import train
from usam.types import LossOutput

SEEN = []


@losses.register("columns_seen")
class Seen(losses.Loss):
    """Counts on a column that must be there, and remembers what it was given."""

    def forward(self, inputs):
        if "extra" not in inputs.batch:
            raise ValueError("columns_seen needs the column 'x_weight'")
        SEEN.append(inputs.batch)
        weight = sum(extra["x_weight"] for extra in inputs.batch["extra"])
        return LossOutput(inputs.hidden.square().mean() * weight)


@pytest.fixture
def run(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(0.3), 16000)
    row = {"audio": "a.wav", "task": "asr", "answer": "seven", "x_weight": 2.0}
    rows = [{**row, "id": "first", "meta": {"speaker": 3}}, row]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = {"base": "tiny", "llm": {"dim": 16, "heads": 2}, "losses": {"seen": {"type": "columns_seen"}}}
    options = {"output_dir": str(tmp_path / "out"), "max_steps": 1, "save_strategy": "no", "use_cpu": True}
    tree = {
        "model": model,
        "data": {"train": "d.jsonl", "eval": "d.jsonl"},
        "train": {**options, "eval_strategy": "steps"},
        "eval": {"canary": False},  # which would look once more
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    return read_run(tmp_path / "run.yaml")


def test_a_loss_reads_the_columns_in_training_and_in_evaluation(run, tmp_path):
    SEEN.clear()
    train(run)
    assert len(SEEN) == 2
    for batch in SEEN:
        assert sorted(batch["ids"]) == [f"{tmp_path}/d.jsonl:2", "first"]
        assert batch["tasks"] == ["asr", "asr"]
        assert {"x_weight": 2.0, "meta": {"speaker": 3}} in batch["extra"]


def test_a_collator_passes_nothing_along_unless_it_is_asked(run):
    samples = list(Manifest(run.data["train"], run.spec.prompts))
    processor = UsamProcessor.from_spec(run.spec)
    assert "batch" not in Collator(processor)(samples)
    assert Collator(processor, tasks=True)(samples)["batch"] == passed_along(samples)


def test_a_sample_without_an_id_is_called_by_its_line():
    sample = SimpleNamespace(origin="d.jsonl:7", id=None, task=None, source=None, extra={})
    assert passed_along([sample]) == {"ids": ["d.jsonl:7"], "tasks": [None], "sources": [None], "extra": [{}]}


def test_a_loss_that_misses_its_columns_says_so(run):
    model = build_model(run.spec).train()
    batch = Collator(UsamProcessor.from_spec(run.spec))(list(Manifest(run.data["train"], run.spec.prompts)))
    with pytest.raises(ValueError, match="needs the column 'x_weight'"):
        model(**batch)
