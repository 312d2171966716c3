"""The command line as its users see it."""

import importlib
import json
import re
import subprocess
import sys

import jsonschema
import pytest
import soundfile
import yaml
from conftest import noise

from usam import __version__
from usam.registry import FAMILIES, GROUPS, discover
from usam.spec.options import options
from usam.spec.spec import SPECS, Config

EVERY = [f"{f.removeprefix('usam.')}.{e.name}" for f in FAMILIES for e in discover(f) if e.provider == "usam"]


def test_list_names_every_family_and_component(usam):
    status, out, _ = usam("list")
    assert status == 0
    for name in ("usam.encoders", "whisper", "concat", "linear", "cross_entropy", "transformers", "tiny"):
        assert name in out


def test_list_says_what_each_component_is_within_120_columns(usam, monkeypatch):
    for group in GROUPS:  # other tests register components with long names
        monkeypatch.setattr(importlib.import_module(group).registry, "_registered", {})
    _, out, _ = usam("list")
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    built_in = [line for line in lines if f" usam {__version__}" in line]
    assert len(built_in) == len(EVERY) + sum(len(list(discover(group))) for group in GROUPS if group not in FAMILIES)
    assert all(re.search(r"usam \S+ +[A-Z].{20}", line) for line in built_in)
    assert all(len(line) <= 120 for line in lines)
    assert re.search(r"^  pool +usam \S+ +The mean or the maximum of each window of frames\.$", out, re.MULTILINE)


def test_list_imports_no_component_and_no_torch():
    code = "import sys; from usam.cli.list import list_components as go; go(); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1]
    assert "'usam.registry'" in imported
    for module in ("torch", "transformers", "pydantic", "usam.encoders", "usam.projectors.moe"):
        assert f"'{module}'" not in imported


def test_list_check_loads_each(usam):
    status, out, _ = usam("list", "--check")
    assert status == 0, out
    assert "whisper" in out
    assert "FAILS" not in out


def test_show_knows_a_benchmark_its_splits_and_where_it_comes_from(usam):
    status, out, _ = usam("show", "mmau")
    assert status == 0
    assert "\nsplits: test-mini\n" in out
    assert "issues/3" in out
    assert "\nfiles: https://github.com/Sakshi113/MMAU" in out
    assert "missing: stop" in out


def test_show_knows_a_metric_and_its_options(usam):
    status, out, _ = usam("show", "wer")
    assert status == 0
    assert "metrics.wer, of usam" in out
    assert "normalizer: none" in out
    assert "spelling: null" in out


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


@pytest.mark.parametrize("name", EVERY)
def test_every_component_can_be_shown_and_describes_each_option(usam, name):
    status, out, _ = usam("show", name)
    assert status == 0
    head, code, *_ = out.splitlines()
    assert head == f"{name}, of usam {__version__}"
    assert code.startswith(f"usam.{name}.")
    family, _, component = name.partition(".")
    registry = importlib.import_module(f"usam.{family}").registry
    config = registry.get(component).Config
    for option in options(config):
        assert f"\n  {option.name}: {option.default} " in out
        assert option.description.strip(), f"{name}: {option.name} has no docstring below it"
    own, shared = out.split(f"options of every component in {family}")
    for field in config.model_fields.keys() - {"type"}:
        assert f"\n  {field}: " in (shared if field in registry.base.Config.model_fields else own)


def test_an_option_is_shown_with_type_bounds_and_default(usam):
    _, out, _ = usam("show", "moe")
    lines = [re.sub(r" {2,}", "  ", line).strip() for line in out.splitlines()]
    assert "experts: 3  int >= 1 <= 4096" in lines
    assert "top_k: null  int >= 1 | null" in lines
    assert "jitter: 0.0  float >= 0 < 1" in lines
    assert "gates: null  list[float >= 0] | null" in lines
    assert "router: prompt  prompt | audio | prompt_audio" in lines
    assert "lora.r: 8  int > 0 <= 4096" in lines
    assert lines[lines.index("experts: 3  int >= 1 <= 4096") + 1] == "Number of experts."


def test_a_needed_option_is_shown_as_needed():
    class Needy(Config):
        size: int
        """How large."""

    assert [(o.name, o.default, o.type) for o in options(Needy)] == [("size", "(needed)", "int")]


def test_cross_attention_is_shown_inside_injection(usam):
    _, out, _ = usam("show", "llm.tiny")
    assert "injection.head_dim: 64" in out


@pytest.mark.parametrize("name", ["moe", "projectors.moe", "projector.moe", "usam.projectors:moe", "usam:moe"])
def test_a_component_has_several_names(usam, name):
    _, out, _ = usam("show", name)
    assert out.startswith("projectors.moe, of usam")


def test_a_name_of_two_families_shows_both(usam):
    _, out, _ = usam("show", "transformers")
    assert out.startswith("'transformers' is the name of 2 components: encoders.transformers and llm.transformers\n")
    assert "\nencoders.transformers, of usam" in out
    assert "\nllm.transformers, of usam" in out
    _, out, _ = usam("show", "llm.transformers")
    assert "encoders.transformers" not in out


def test_a_spec_goes_before_a_component_of_its_name_and_says_so(usam, tmp_path, monkeypatch):
    _, out, _ = usam("show", "tiny")
    assert out.startswith("#") or "encoders:" in out
    assert out.splitlines()[-1] == "'tiny' is also a component: usam show llm.tiny"
    (tmp_path / "moe").write_text("base: tiny\n")
    monkeypatch.chdir(tmp_path)
    _, out, _ = usam("show", "moe")
    assert "tokens a second" in out
    assert out.splitlines()[-1] == "'moe' is also a component: usam show projectors.moe"


def test_a_spec_given_as_text_can_be_shown(usam):
    status, out, _ = usam("show", "{base: tiny, projector: {0: {stack: 5}}}")
    assert status == 0
    assert "10 tokens a second" in out


def test_set_overrides(usam):
    _, out, _ = usam("show", "tiny", "--set", "projector.0.stack=5", "--set", "prompts.aac=Describe it.")
    assert "10 tokens a second" in out
    assert "aac: Describe it." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "tinny"], "did you mean 'tiny'"),
        (["show", "moee"], "it is no component either: did you mean 'moe'?"),
        (["show", "encoders.whispr"], "did you mean 'whisper'?"),
        (["show", "moe", "--set", "experts=4"], "'moe' is a component, and --set goes with specs: `usam show moe`"),
        (["show", "moe", "tiny"], "'moe' is a component, and a second argument goes with specs"),
        (["show", "tiny", "moe"], "it is a component: usam show projectors.moe"),
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
