"""`import usam` is enough: in a fresh process, before or after transformers, the Auto classes know its models."""

import subprocess
import sys

import pytest
from conftest import needs_transformers

from usam import UsamProcessor, build_model

USES = {
    "AutoConfig": "UsamConfig",
    "AutoModelForMultimodalLM": "UsamForConditionalGeneration",
    "AutoProcessor": "UsamProcessor",
    "AutoFeatureExtractor": "UsamFeatureExtractor",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with its processor."""
    path = tmp_path_factory.mktemp("saved")
    build_model("tiny", "llm.dim=16", "llm.heads=2").save_pretrained(path)
    UsamProcessor.from_spec("tiny").save_pretrained(path)
    return str(path)


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("first", ["usam", "transformers"])
def test_auto_classes_know_the_model_and_other_models_load_as_before(first, folder, whisper):
    imports = [f"from transformers import {', '.join(USES)}", "import usam"]
    lines = sorted(imports, key=lambda line: first not in line.split()[1])
    lines += [f"print(type({name}.from_pretrained({folder!r})).__name__)" for name in USES]
    lines.append(f"print(AutoConfig.from_pretrained({whisper!r}).model_type)")
    assert run("\n".join(lines)).split() == [*USES.values(), "whisper"]


@needs_transformers(23, "its pipeline wants librosa")
@pytest.mark.parametrize("first", ["usam", pytest.param("transformers", marks=pytest.mark.slow)])
def test_a_pipeline_knows_the_model(first, folder):
    lines = sorted(["from transformers import pipeline", "import usam"], key=lambda line: first not in line.split()[1])
    lines.append(f"print(type(pipeline('any-to-any', model={folder!r}).model).__name__)")
    assert run("\n".join(lines)) == "UsamForConditionalGeneration"


@pytest.mark.slow
def test_other_models_load_when_ours_were_not_asked_for(whisper):
    code = (
        f"import usam\nfrom transformers import AutoConfig\nprint(AutoConfig.from_pretrained({whisper!r}).model_type)"
    )
    assert run(code) == "whisper"
