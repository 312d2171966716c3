"""The command line as its users see it."""

import json
import subprocess
import sys

import jsonschema
import pytest
import soundfile
import yaml
from conftest import noise

from usam.cli import main
from usam.spec.spec import SPECS


@pytest.fixture
def usam(monkeypatch, capfd):
    """Run a command; returns (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["usam", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_list_names_every_family_and_component(usam):
    status, out, _ = usam("list")
    assert status == 0
    for name in ("usam.encoders", "whisper", "concat", "linear", "cross_entropy", "transformers", "tiny"):
        assert name in out


def test_list_check_loads_each(usam):
    status, out, _ = usam("list", "--check")
    assert status == 0, out
    assert "whisper" in out
    assert "FAILS" not in out


def test_show_prints_widths_rates_counts_and_tokens(usam):
    status, out, _ = usam("show", "tiny")
    assert status == 0
    assert "12.5 tokens a second; 1 s = 13, 10 s = 125, 1 h = 45,000 tokens" in out
    assert "128 -> 128" in out  # projector
    assert "65,664     65,664" in out  # 512 * 128 + 128


def test_show_prints_what_differs(usam, tmp_path):
    (tmp_path / "other.yaml").write_text("base: tiny\nprojector: {0: {stack: 5}}\n")
    _, out, _ = usam("show", "tiny", tmp_path / "other.yaml")
    assert out.splitlines() == ["- projector.0.stack = 4", "+ projector.0.stack = 5"]


def test_set_overrides(usam):
    _, out, _ = usam("show", "tiny", "--set", "projector.0.stack=5", "--set", "prompts.aac=Describe it.")
    assert "10 tokens a second" in out
    assert "aac: Describe it." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "tinny"], "did you mean 'tiny'"),
        (["show", "tiny", "--set", "llm.dm=3"], "unknown option 'dm'; did you mean 'dim'"),
        (["check", "none.yaml"], "none.yaml: no such file"),
        (["generate", "no/such/folder"], "no/such/folder"),
        (["train", "none.yaml"], "no such run file"),
    ],
)
def test_a_fault_is_one_paragraph_and_status_2(usam, arguments, message):
    status, out, err = usam(*arguments)
    assert status == 2, out
    assert message in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err


def test_check_with_data_shows_a_batch(usam, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1.0), 16000)
    row = {"audio": "a.wav", "task": "asr", "answer": "seven"}
    (tmp_path / "d.jsonl").write_text(json.dumps(row))
    status, out, _ = usam("check", "tiny", tmp_path / "d.jsonl")
    assert status == 0
    assert "the spec is sound" in out
    assert "<|audio|> x 13" in out
    assert "[[seven<|end|>]]" in out


def test_the_schema_accepts_bundled_specs_and_refuses_typos(usam, tmp_path):
    usam("schema", "--out", tmp_path / "schema.json")
    schema = json.loads((tmp_path / "schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validate = jsonschema.Draft202012Validator(schema).is_valid
    for file in SPECS.rglob("*.yaml"):
        assert validate(yaml.safe_load(file.read_text())), file
    good = {"encoders": {"whisper": {"path": "x"}}, "projector": ["linear"], "llm": {"type": "tiny", "dim": 8}}
    assert validate(good)
    assert validate({"base": "tiny", "llm": {"dim": 64}, "projector": {"0": {"stack": 5}}, "losses": {"x": None}})
    assert not validate({**good, "encoders": {"whisper": {"pth": "x"}}})
    assert not validate({**good, "llm": {"type": "tiny", "dm": 8}})
    assert not validate({**good, "projector": [{"type": "linear", "stack": "many"}]})
    assert not validate({**good, "encodrs": {}})


def test_generate_and_export_from_a_saved_folder(usam, tmp_path):
    from usam import UsamProcessor, build_model

    model = build_model("tiny", "llm.dim=16", "llm.heads=2", "llm.lora={target_modules: [q_proj]}")
    model.save_pretrained(tmp_path / "m")
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(tmp_path / "m")
    for name, seconds in (("a", 0.4), ("b", 1.1)):
        soundfile.write(tmp_path / f"{name}.wav", noise(seconds), 16000)
    files = [tmp_path / "a.wav", tmp_path / "b.wav"]
    status, out, err = usam("generate", tmp_path / "m", *files, "--max-new-tokens", 4)
    assert status == 0, err
    assert out.count("\t") == 2
    status, _, err = usam("export", tmp_path / "m", tmp_path / "x")
    assert status == 0, err
    _, again, _ = usam("generate", tmp_path / "x", *files, "--max-new-tokens", 4)
    assert [line for line in again.splitlines() if "\t" in line] == [line for line in out.splitlines() if "\t" in line]


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "usam.cli", "--help"], capture_output=True, text=True, check=True)
    for command in ("list", "doctor", "show", "check", "schema", "train", "generate", "export", "demo"):
        assert command in done.stdout
