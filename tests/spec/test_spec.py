"""A spec says what it means, and every fault in one is told with its file, its line and what to write instead."""

import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import torch

from usam import UsamConfig, UsamProcessor, build_model
from usam.registry import ComponentError
from usam.spec import spec as spec_module
from usam.spec.page import Places, SpecError, parse_yaml, write_yaml
from usam.spec.spec import Spec, load_spec

PAGE = """\
encoders:
  whisper:
    arch: {d_model: 32, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 64, max_source_positions: 50}
projector:
  - {type: linear, stack: 5}
llm:
  type: tiny
  dim: 32
  lora: {r: 4}
"""
DEFAULTS = "fusion: {type: concat}\nlosses: {cross_entropy: {weight: 0.5}}\n"


@pytest.fixture
def page(tmp_path):
    """Writes a page of YAML and returns its path."""

    def write(text: str = PAGE, name: str = "spec.yaml") -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A folder that stands for the specs that come with usam."""
    monkeypatch.setattr(spec_module, "SPECS", tmp_path / "bundled")
    return tmp_path / "bundled"


def fault(source, *overrides) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(source, *overrides)
    return str(caught.value)


# Reading


def test_a_page_becomes_a_spec(page):
    spec = load_spec(page())
    assert list(spec.encoders) == ["whisper"]
    assert spec.encoders["whisper"].arch["d_model"] == 32
    assert [stage.stack for stage in spec.projector] == [5]
    assert spec.llm.lora.r == 4


def test_a_type_defaults_to_the_key(page):
    assert load_spec(page()).encoders["whisper"].type == "whisper"


def test_two_encoders_of_one_type(page):
    spec = load_spec(page(), "encoders.second={type: whisper, arch: {d_model: 64}}")
    assert {name: config.type for name, config in spec.encoders.items()} == {"whisper": "whisper", "second": "whisper"}


def test_a_spec_without_fusion_and_losses_concatenates_and_takes_cross_entropy(page):
    spec = load_spec(page())
    assert spec.fusion.type == "concat"
    assert list(spec.losses) == ["cross_entropy"]


def test_bare_strings_are_components(page):
    spec = load_spec(page("encoders: {whisper: whisper}\nprojector: linear\nfusion: concat\nllm: tiny\n"))
    assert [spec.encoders["whisper"].type, spec.fusion.type, spec.llm.type] == ["whisper", "concat", "tiny"]
    assert [stage.type for stage in spec.projector] == ["linear"]


def test_one_stage_is_a_list_of_one(page):
    spec = load_spec(page(), {"projector": [{"type": "linear", "stack": 2}, "linear"]})
    assert [stage.stack for stage in spec.projector] == [2, 1]
    assert [stage.stack for stage in load_spec(spec, "projector={type: linear, stack: 3}").projector] == [3]


def test_a_dict_and_a_spec_are_sources_too(page):
    spec = load_spec(page())
    assert load_spec(spec) == load_spec(spec.to_dict()) == spec


def test_a_saved_folder_is_a_source(page):
    assert load_spec(page(name="run/usam.yaml").parent) == load_spec(page())


def test_a_spec_round_trips_through_yaml(page):
    spec = load_spec(page(PAGE + DEFAULTS + "prompts: {asr: Schreib es auf.}\n"))
    assert load_spec(page(spec.to_yaml(), "again.yaml")) == spec


@pytest.mark.parametrize("text", ["1e-4", "08", "0o17", "no", "null", "2024-01-01", "a: b", "two\nlines", "é", "{x}"])
def test_text_that_looks_like_something_else_round_trips(text, page):
    spec = load_spec(load_spec(page()), {"prompts": {"asr": text}})
    assert load_spec(page(spec.to_yaml(), "again.yaml")).prompts == {"asr": text}


def test_null_in_arch_round_trips(page):
    spec = load_spec(page(), "encoders.whisper.arch.init_std=null")
    assert load_spec(page(spec.to_yaml(), "again.yaml")).encoders["whisper"].arch["init_std"] is None


def test_audio_tokens_are_counted_in_whole_numbers(page):
    spec = load_spec(page())  # 16000 Hz, one frame for 320 samples, five frames a token
    assert [spec.audio_tokens(n) for n in (1, 1600, 1601, 16000)] == [1, 1, 2, 10]


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), ("010", 10), ("08", 8), ("0o17", 15), ("0x1f", 31), ("-.inf", float("-inf"))],
)
def test_numbers_are_those_of_yaml_1_2(text, value):
    assert parse_yaml(text, "page", Places()) == value


@pytest.mark.parametrize("word", ["no", "on", "off", "yes", "y", "2024-01-01", "1:30", "1_000"])
def test_words_stay_words(word):
    assert parse_yaml(f"{{{word}: {word}}}", "page", Places()) == {word: word}


def test_a_number_of_thousands_of_digits(page):
    assert "spec.yaml:2: not a number that can be read" in fault(page(f"llm:\n  dim: {'9' * 5000}\n"))


def test_an_anchor_is_written_out():
    assert parse_yaml("a: &x {b: 1}\nc: *x", "page", Places()) == {"a": {"b": 1}, "c": {"b": 1}}


def test_an_anchor_that_holds_itself(page):
    assert "spec.yaml:2: this anchor holds itself" in fault(page("llm:\n  lora: &x\n    a: *x\n"))


def test_aliases_that_would_be_written_out_into_millions(page):
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert re.search(
        r"spec\.yaml:\d: aliases \(\*\) write this anchor out into more than 10,000", fault(page("\n".join(lines)))
    )


DEEP = "{a: " * 500 + "1" + "}" * 500
NESTED = 1
for _ in range(500):
    NESTED = {"a": NESTED}


def test_a_page_that_is_nested_too_deep(page):
    assert "spec.yaml:3: nested more than 64 levels deep" in fault(page(f"llm:\n  type: tiny\n  dim: {DEEP}"))
    assert fault(DEEP.replace("a", '"a"')) == "the spec given as text:1: nested more than 64 levels deep"
    assert "nested more than 64 levels deep" in fault(page("x:\n" + "".join(f"{' ' * i}- \n" for i in range(500))))


def test_data_that_is_nested_too_deep(page):
    assert fault({"llm": NESTED}) == "llm: nested more than 64 levels deep"
    assert fault(page(), {"llm": NESTED}) == "override: llm: nested more than 64 levels deep"
    assert "nested more than 64 levels deep" in fault(page(), ".".join(["llm"] * 500) + "=1")
    with pytest.raises(SpecError, match="llm: nested more than 64"):
        Spec.from_tree({"llm": NESTED})


def test_data_that_holds_itself():
    tree = {"llm": {}}
    tree["llm"]["lora"] = tree
    assert fault(tree) == "llm: nested more than 64 levels deep"


def test_a_duplicate_key_names_both_lines(page):
    message = fault(page(PAGE + "llm: tiny\n"))
    assert re.search(r"spec\.yaml:10: 'llm' is given twice; .* first given at .*spec\.yaml:6$", message)


def test_a_duplicate_key_deep_inside(page):
    message = fault(page("llm:\n  type: tiny\n  dim: 32\n  dim: 64\n"))
    assert "spec.yaml:4: 'dim' is given twice" in message
    assert message.endswith("spec.yaml:3")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [ls]", "!include other.yaml", "!!int 3"])
def test_a_tag_is_refused_with_its_line(tag, page):
    assert "spec.yaml:2: tags such as '" in fault(page(f"llm:\n  dim: {tag}\n"))


@pytest.mark.parametrize("text", ["llm: tiny\nprompts: {asr: x", "llm: tiny\n  dim: 3", "llm: tiny\n\tdim: 3"])
def test_what_is_not_yaml_is_told_with_its_line(text, page):
    assert "spec.yaml:2: this is not YAML: " in fault(page(text))


def test_a_key_that_is_a_list(page):
    assert "spec.yaml:1: a key is a word, not a list or a map" in fault(page("? [a, b]\n: 1\n"))


@pytest.mark.parametrize("text", ["", "- linear\n", "tiny\n"])
def test_a_page_that_is_no_map(text, page):
    assert "a spec is a map of 'encoders', 'projector', 'llm'" in fault(page(text))


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00")
    assert re.search(r"model\.bin: not a page of YAML, which is UTF-8 text", fault(tmp_path / "model.bin"))


# Faults of components and options


def test_an_unknown_component_suggests_the_closest(page):
    with pytest.raises(ComponentError) as caught:
        load_spec(page(PAGE.replace("type: linear", "type: liner")))
    assert re.search(r"spec\.yaml:5: projector\.0: .*no component 'liner'; did you mean 'linear'\?", str(caught.value))


def test_an_unknown_component_named_by_its_key(page):
    with pytest.raises(ComponentError) as caught:
        load_spec(page(PAGE.replace("whisper:", "wisper:")))
    assert re.search(r"spec\.yaml:2: encoders\.wisper: .* did you mean 'whisper'\?", str(caught.value))


def test_an_unknown_option_suggests_the_closest(page):
    message = fault(page(PAGE.replace("stack:", "stak:")))
    assert message.endswith("spec.yaml:5: projector.0.stak: unknown option 'stak'; did you mean 'stack'?")


def test_an_unknown_nested_option_suggests_the_closest(page):
    message = fault(page(PAGE.replace("{r: 4}", "{lora_alfa: 4}")))
    expected = "spec.yaml:9: llm.lora.lora_alfa: unknown option 'lora_alfa'; did you mean 'lora_alpha'?"
    assert message.endswith(expected)


def test_an_unknown_option_that_is_close_to_none_lists_them(page):
    assert re.search(r"unknown option 'xyz'; known: .*hidden.*stack", fault(page(), "projector.0.xyz=1"))


def test_all_unknown_options_are_told_at_once(page):
    message = fault(page(), "projector.0.stak=1", "projector.0.hiden=1")
    assert "did you mean 'stack'?" in message
    assert "did you mean 'hidden'?" in message


def test_a_value_of_the_wrong_type(page):
    message = fault(page(PAGE.replace("stack: 5", "stack: five")))
    assert re.search(r"spec\.yaml:5: projector\.0\.stack: .*valid integer.*; found 'five'", message)


@pytest.mark.parametrize("value", ["0", "-1", "1.5"])
def test_a_value_out_of_range(value, page):
    assert re.search(
        rf"projector\.0\.stack: .*; found {re.escape(value)}$", fault(page(), f"projector.0.stack={value}")
    )


def test_a_weight_that_is_not_finite(page):
    assert "losses.cross_entropy.weight: Input should be a finite number" in fault(
        page(), "losses.cross_entropy.weight=.inf"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fusion.rate=1.0e9", "fusion.rate: Input should be less than or equal to 1000"),
        ("fusion.rate=1.0e-9", "fusion.rate: Input should be greater than or equal to 0.1"),
        ("projector.0={type: pool, window: 1.0e9}", "projector.0.window: Input should be less than or equal to 600"),
        ("projector.0={type: window_qformer, window: 1.0e9}", "projector.0.window: Input should be less than"),
        ("projector.0={type: window_qformer, window: 60, stride: 0.01}", "would be read more than 64 times"),
        ("projector.0={type: conv, stride: 1000, kernel: 1000, layers: 9}", "9 convolutions with a stride of 1000"),
        (
            "projector.0={type: mlp, layers: 1000000000}",
            "projector.0.layers: Input should be less than or equal to 1000",
        ),
        ("projector.0={type: perceiver, latents: 1000000000}", "projector.0.latents: Input should be less than"),
        ("projector.0={type: moe, experts: 1000000000}", "projector.0.experts: Input should be less than"),
        ("projector.0.stack=1000000000", "projector.0.stack: Input should be less than or equal to 60000"),
        ("encoders.whisper={type: mert, chunk: 1.0e9}", "encoders.whisper.chunk: Input should be less than"),
        ("encoders.whisper={type: timm, frames: 1000000000}", "encoders.whisper.frames: Input should be less than"),
        ("losses.x={type: semantic_contrastive, queue: 1000000000}", "losses.x.queue: Input should be less than"),
        ("llm.layers=1000000000", "llm.layers: Input should be less than or equal to 1000"),
        ("llm.layers=-1", "llm.layers: Input should be greater than or equal to 1"),
        ("llm.lora.r=1000000000", "llm.lora.r: Input should be less than or equal to 4096"),
        ("llm.lr_scale=1.0e9", "llm.lr_scale: Input should be less than or equal to 1000"),
    ],
)
def test_a_size_that_would_hang_or_fill_the_memory(override, message, page):
    assert message in fault(page(), override)


@pytest.mark.parametrize("value", ["-1", "0", "1000000000"])
@pytest.mark.parametrize(
    ("part", "arch"),
    [
        ("encoders.whisper", "encoder_layers"),
        ("encoders.whisper", "max_source_positions"),
        ("encoders.whisper", "num_mel_bins"),
        ("llm", "num_hidden_layers"),
        ("llm", "num_attention_heads"),
        ("llm", "hidden_size"),
        ("llm", "vocab_size"),
    ],
)
def test_a_size_in_an_arch_that_no_model_has(part, arch, value, page):
    patch = {} if part != "llm" else {"llm": {"type": "transformers", "arch": {"model_type": "llama"}}}
    said = fault(page(), patch, f"{part}.arch.{arch}={value}")
    assert re.search(rf"': {part}\.arch\.{arch}: .*found {value}$", said)


def test_a_list_of_sizes_in_an_arch(page):
    said = fault(page(), "encoders.whisper={type: mert, arch: {conv_dim: [8, 0]}}")
    assert said.endswith("encoders.whisper.arch.conv_dim: a model has at least 1; found [8, 0]")


def test_a_fault_in_an_arch_is_told_with_its_line(page):
    said = fault(page(PAGE.replace("encoder_layers: 1", "encoder_layers: 0")))
    assert said.endswith("spec.yaml:3: encoders.whisper.arch.encoder_layers: a model has at least 1; found 0")


def test_an_unknown_part_suggests_the_closest(page):
    message = fault(page(PAGE.replace("projector:", "projektor:")))
    assert message.endswith("spec.yaml:4: projektor: no such part of a spec; did you mean 'projector'?")


@pytest.mark.parametrize("part", ["encoders", "projector", "llm"])
def test_a_part_that_is_needed(part, page):
    tree = load_spec(page()).to_dict()
    del tree[part]
    assert f"a spec needs '{part}'" in fault(tree)


def test_a_component_without_a_type_lists_the_known(page):
    message = fault(page(PAGE.replace("  type: tiny\n", "")))
    assert re.search(r"spec\.yaml:6: llm: say which one with 'type:'; known: .*tiny", message)


def test_a_component_that_is_none(page):
    assert "projector.0: expected a component ('name' or {type: name, ...}), found 3" in fault(page(), "projector=[3]")


def test_encoders_that_are_no_map(page):
    assert "encoders: expected a map of names to components" in fault(page(), {"encoders": ["whisper"]})


@pytest.mark.parametrize("name", ["a.b", "Whisper", "2nd", "my-encoder", ""])
def test_a_name_that_no_module_can_have(name, page):
    message = fault(page(f'encoders:\n  "{name}": {{type: whisper}}\nprojector: linear\nllm: tiny\n'))
    assert f"spec.yaml:2: encoders.{name}: a name is lower case letters, digits and '_'" in message


@pytest.mark.parametrize("version", ["2", "99"])
def test_a_newer_version_says_to_upgrade(version, page):
    message = fault(page(f"usam: {version}\nfrom_the_future: 1\n"))
    assert f"spec.yaml:1: usam: this spec has version {version}; this usam reads up to 1: pip install" in message


@pytest.mark.parametrize("version", ["0", "1.0", "one", "null"])
def test_a_version_that_is_none(version, page):
    assert "usam: expected the spec version, 1; found" in fault(page(f"usam: {version}\n" + PAGE))


# Sources


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    assert fault(tmp_path / "gone.yaml") == f"{tmp_path}/gone.yaml: no such file (looked in {tmp_path})"


def test_an_unknown_name_suggests_the_closest_bundled_spec(bundled, page):
    page(name="bundled/paper.yaml")
    assert fault("papper") == "'papper' is neither a file nor a bundled spec; did you mean 'paper'?"


def test_a_folder_that_usam_did_not_save(tmp_path):
    assert f"{tmp_path}: this folder has no usam.yaml" in fault(tmp_path)


def test_a_bundled_spec_by_its_name_and_by_its_path(bundled, page):
    page(name="bundled/ablations/one.yaml")
    assert load_spec("one") == load_spec("ablations/one") == load_spec(page())


def test_a_bundled_name_is_that_of_the_topmost_file(bundled, page):
    page(name="bundled/paper.yaml")
    page(PAGE.replace("stack: 5", "stack: 1"), "bundled/zoo/paper.yaml")
    assert load_spec("paper").projector[0].stack == 5


# Bases


def test_a_base_is_found_beside_the_file(page):
    page(name="paper.yaml")
    spec = load_spec(page("base: ../paper.yaml\nllm: {dim: 64}\n", "ablations/wide.yaml"))
    assert spec.llm.dim == 64
    assert spec.llm.lora.r == 4


def test_a_base_is_found_by_its_bundled_name(bundled, page):
    page(name="bundled/paper.yaml")
    assert load_spec(page("base: paper\nllm: {dim: 64}\n")).llm.dim == 64
    assert load_spec({"base": "paper", "llm": {"dim": 64}}).llm.dim == 64


def test_a_base_of_a_base(page):
    page(name="a.yaml")
    page("base: a.yaml\nllm: {dim: 64}\n", "b.yaml")
    spec = load_spec(page("base: b.yaml\nllm: {layers: 1}\n", "c.yaml"))
    assert (spec.llm.dim, spec.llm.layers, spec.llm.lora.r) == (64, 1, 4)


def test_a_missing_base_is_told_with_the_line_that_names_it(page):
    message = fault(page("llm: {dim: 64}\nbase: gone.yaml\n"))
    assert re.search(r"spec\.yaml:2: base: .*gone\.yaml: no such file \(looked in ", message)


def test_an_unknown_base_suggests_the_closest_bundled_spec(bundled, page):
    page(name="bundled/paper.yaml")
    message = fault(page("base: papper\n"))
    assert "spec.yaml:1: base: 'papper' is neither a file nor a bundled spec; did you mean 'paper'?" in message


def test_a_base_that_is_no_name(page):
    assert "spec.yaml:1: base: expected the name or path of a spec, found ['a', 'b']" in fault(page("base: [a, b]\n"))


def test_a_cycle_of_bases_is_shown(page):
    page("base: b.yaml\n", "a.yaml")
    page("base: c.yaml\n", "b.yaml")
    message = fault(page("base: a.yaml\n", "c.yaml"))
    assert re.search(r"'base' leads back to itself: .*c\.yaml -> .*a\.yaml -> .*b\.yaml -> .*c\.yaml$", message)


def test_a_spec_that_is_its_own_base(page):
    assert re.search(r"spec\.yaml -> .*spec\.yaml$", fault(page("base: spec.yaml\n")))


def test_a_fault_in_a_base_is_told_with_its_file(page):
    page(PAGE.replace("stack:", "stak:"), "paper.yaml")
    assert "paper.yaml:5: projector.0.stak:" in fault(page("base: paper.yaml\nllm: {dim: 64}\n", "wide.yaml"))


# Merging


def test_null_removes(page):
    page(PAGE + DEFAULTS, "paper.yaml")
    spec = load_spec(page("base: paper.yaml\nlosses: {cross_entropy: null}\nllm: {lora: null}\n"))
    assert spec.losses == {}
    assert spec.llm.lora is None


def test_null_removes_a_stage(page):
    spec = load_spec(page(), {"projector": ["linear", {"type": "linear", "stack": 2}]}, "projector.0=null")
    assert [stage.stack for stage in spec.projector] == [2]


def test_null_removes_a_default(page):
    assert load_spec(page(), "losses.cross_entropy=null").losses == {}


def test_removing_what_is_absent_without_a_base(page):
    message = fault(page(PAGE.replace("lora: {r: 4}", "lora: null")))
    assert message.endswith("spec.yaml:9: llm.lora: null removes, but there is no 'lora' to remove")


def test_removing_what_is_absent_with_a_base(page):
    page(name="paper.yaml")
    message = fault(page("base: paper.yaml\nencoders:\n  mert: null\n", "ablation.yaml"))
    assert message.endswith("ablation.yaml:3: encoders.mert: null removes, but there is no 'mert' to remove")


def test_removing_what_is_absent_by_an_override(page):
    message = fault(page(), "encoders.mert=null")
    assert message == "override 'encoders.mert=null': encoders.mert: null removes, but there is no 'mert' to remove"


def test_a_new_type_starts_afresh(page):
    spec = load_spec(page(), {"fusion": {"type": "concat", "rate": 25}}, "projector.0={type: linear}")
    assert spec.projector[0].stack == 5  # the same type: options are kept
    fresh = load_spec(spec, {"llm": {"type": "transformers", "path": "gpt2"}})
    assert (fresh.llm.type, fresh.llm.path, fresh.llm.lora) == ("transformers", "gpt2", None)


def test_a_bare_string_of_another_type_starts_afresh(page):
    tree = load_spec(page(), {"encoders": {"whisper": {"freeze": "none"}}}).to_dict()
    assert load_spec(tree, "encoders.whisper=whisper").encoders["whisper"].freeze == "none"
    tree["encoders"]["whisper"]["type"] = "mert"
    assert load_spec(tree, "encoders.whisper=whisper").encoders["whisper"].freeze == "all"


def test_a_list_is_patched_by_index(page):
    page(PAGE.replace("- {", "- linear\n  - {"), "paper.yaml")
    spec = load_spec(page("base: paper.yaml\nprojector:\n  1: {hidden: 16}\n"))
    assert [(stage.stack, stage.hidden) for stage in spec.projector] == [(1, None), (5, 16)]


def test_a_whole_list_replaces_a_list(page):
    assert [stage.stack for stage in load_spec(page(), {"projector": ["linear", "linear"]}).projector] == [1, 1]


def test_a_list_inside_a_component_is_patched_by_index(page):
    spec = load_spec(page(), "llm.lora.target_modules=[q_proj, k_proj]", "llm.lora.target_modules.1=v_proj")
    assert spec.llm.lora.target_modules == ["q_proj", "v_proj"]


@pytest.mark.parametrize("index", ["1", "-1", "last", "²"])
def test_an_index_out_of_range(index, page):
    page(name="paper.yaml")
    message = fault(page(f"base: paper.yaml\nprojector:\n  {index}: {{stack: 2}}\n"))
    assert (
        f"spec.yaml:3: projector.{index}: this is a list of 1: patch it by index (0 to 0), or give a whole" in message
    )


# Overrides


def test_overrides_apply_in_order(page):
    assert load_spec(page(), "llm.dim=64", "llm.dim=16").llm.dim == 16


@pytest.mark.parametrize(
    ("text", "value"), [("asr=no", "no"), ("asr=a=b", "a=b"), ("asr='1'", "1"), ("asr=", ""), (" asr = x ", "x")]
)
def test_the_value_of_an_override_is_yaml(text, value, page):
    assert load_spec(page(), "prompts." + text.strip()).prompts == {"asr": value}


def test_an_override_reaches_a_stage_and_a_nested_option(page):
    spec = load_spec(page(), "projector.0.stack=2", "llm.lora.r=16")
    assert spec.projector[0].stack == 2
    assert spec.llm.lora.r == 16


def test_an_override_makes_what_is_not_there(page):
    assert load_spec(page(), "projector.0.lora.r=2").projector[0].lora.r == 2


def test_a_fault_in_an_override_names_it(page):
    message = fault(page(), "projector.0.stak=2")
    assert message.startswith("override 'projector.0.stak=2': projector.0.stak: unknown option 'stak'")


@pytest.mark.parametrize("text", ["llm.dim", "=3", "llm..dim=3", ""])
def test_an_override_that_is_none(text, page):
    assert fault(page(), text) == f"override '{text}': write key.key=value, for example llm.lora.r=16"


def test_a_value_that_is_not_yaml(page):
    assert fault(page(), "llm.dim=[").startswith("override 'llm.dim=[':1: this is not YAML")


# The object


def test_a_spec_is_frozen_and_so_are_its_configs(page):
    spec = load_spec(page())
    for thing, name in [(spec, "llm"), (spec.llm, "dim")]:
        with pytest.raises(ValueError, match="frozen"):
            setattr(thing, name, None)


def test_a_spec_can_be_made_of_configs(page):
    spec = load_spec(page())
    assert Spec.from_tree({"encoders": spec.encoders, "projector": spec.projector, "llm": spec.llm}) == spec


def test_what_is_none_is_left_out_of_the_page(page):
    assert "null" not in load_spec(page()).to_yaml()


# What takes a spec takes any


@pytest.mark.parametrize("read", [UsamProcessor.from_spec, UsamConfig.from_spec, build_model, load_spec])
def test_a_spec_is_given_in_the_same_ways_everywhere(read, page, tmp_path):
    build_model("tiny").save_pretrained(tmp_path / "saved")
    tree = load_spec("tiny").to_dict()
    given = ["tiny", page(write_yaml(tree)), str(page()), tree, load_spec(tree), '{"base": "tiny"}', tmp_path / "saved"]
    for source in given:
        read(source, "llm.dim=32") if source != tmp_path / "saved" else read(source)


@pytest.mark.parametrize("name", ["paper", "salmonn", "qwen2_audio"])
def test_a_structure_is_built_without_a_network(name):
    with torch.device("meta"):
        assert build_model(name, weights=False).config.audio_token_id


@pytest.mark.parametrize(
    "family", ["encoders", "fusions", "projectors", "losses", "llm", "augmentations", "metrics", "suites"]
)
def test_null_is_no_value_that_differs_from_the_default(family):
    """For in a spec null removes, and what it would mean could not be written."""
    registry = import_module(f"usam.{family}").registry
    for name in [entry.name for entry in registry.entries() if entry.provider == "usam"]:
        fields = registry.get(f"usam:{name}").Config.model_fields
        nullable = [key for key, field in fields.items() if type(None) in get_args(field.annotation)]
        assert [key for key in nullable if fields[key].default is not None] == [], name


def test_an_option_of_several_forms_says_all_of_them_in_one_line(page):
    with pytest.raises(SpecError) as caught:
        load_spec(page(), "losses.ctc={negatives: 0}")
    (line,) = str(caught.value).splitlines()
    assert (
        "losses.ctc.negatives: Input should be greater than or equal to 1, or: Input should be 'all'; found 0" in line
    )
