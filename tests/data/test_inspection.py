"""What is printed of a batch is what the model did with it."""

import json

import pytest
import torch

from usam import UsamProcessor, build_model
from usam.data.collate import Collator
from usam.data.inspection import describe_parts
from usam.data.manifest import Manifest
from usam.data.spoken import write_corpus

PROMPTS = {"asr": "Transcribe this audio.", "count": "How many words are said?"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two clips, each asked two things."""
    folder = tmp_path_factory.mktemp("spoken")
    manifest = write_corpus(folder / "corpus", train=2, test=1)["train"]
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    asked = manifest.with_name("count.jsonl")
    asked.write_text("".join(json.dumps({**row, "task": "count", "answer": "2"}) + "\n" for row in rows))
    return [*Manifest(manifest, PROMPTS).samples, *Manifest(asked, PROMPTS).samples]


def test_gates_are_printed_by_task_and_scores_by_clip(samples):
    torch.manual_seed(0)
    model = build_model("mini_paper")
    processor = UsamProcessor.from_spec(model.config.parsed)
    lines = describe_parts(model, processor, samples, clips=1).splitlines()
    aux = model(**Collator(processor)(samples)).aux
    gates = [f"{gate:.2f}" for gate in aux["1.router_probs"][2].tolist()]
    assert lines[0].split()[-1] == "entropy"
    assert lines[2].split()[:4] == ["count", *gates]
    kept = aux["semantic_contrastive.kept"]
    assert f"{float(kept.sum() / len(samples)):.1f} frames kept a clip" in lines[3]
    bars, marks = lines[4].split()[-1], lines[5]
    assert len(bars) == model.config.parsed.audio_tokens(
        int(Collator(processor)(samples[:1])["input_values_mask"].sum())
    )
    assert marks.count("^") == int(kept[0].sum())


def test_nothing_is_printed_of_a_model_that_has_neither(samples):
    model = build_model("tiny")
    assert describe_parts(model, UsamProcessor.from_spec(model.config.parsed), samples) == ""
