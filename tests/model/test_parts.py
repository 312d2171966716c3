"""Each part of a model has a place in its spec: its weights are drawn for that place, and its faults name it."""

import re
from pathlib import Path

import pytest
import torch

from usam import build_model, load_spec
from usam.cli.show import show
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.spec import SPECS

ORACLES = Path(__file__).parents[1] / "oracles"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 100,
}


# Weights


def tensors(spec, *overrides, **options):
    return build_model(spec, *overrides, **options).state_dict()


def of(state, prefix):
    found = {name: tensor for name, tensor in state.items() if name.startswith(prefix)}
    assert found, f"nothing begins with {prefix}"
    return found


@pytest.mark.parametrize("weights", [True, False], ids=["sources", "structure"])
def test_a_part_that_two_specs_share_starts_equal_in_both(weights):
    whole = tensors("mini_paper", seed=1, weights=weights)
    less = tensors("mini_paper", "encoders.whisper=null", "losses.semantic_contrastive=null", seed=1, weights=weights)
    for part in ("encoders.ced", "encoders.mert", "projector.stages.1", "language_model"):
        shared = of(whole, f"model.{part}.")
        assert shared.keys() == of(less, f"model.{part}.").keys()
        for name, tensor in shared.items():
            assert tensor.equal(less[name]), name
    assert whole["lm_head.weight"].equal(less["lm_head.weight"])


def test_a_module_starts_equal_beside_modules_of_another_width():
    whole, less = (tensors("mini_paper", *patch, seed=1) for patch in ((), ("encoders.whisper=null",)))
    stage = of(whole, "model.projector.stages.0.")
    wider = {name.rpartition(".")[0] for name, tensor in stage.items() if tensor.shape != less[name].shape}
    assert {name.rpartition(".")[2] for name in wider} == {"key", "value", "positions"}  # of the fused frames
    for name, tensor in stage.items():
        assert name.rpartition(".")[0] in wider or tensor.equal(less[name]), name


def test_without_a_seed_a_part_depends_on_those_before_it():
    torch.manual_seed(1)
    whole = tensors("mini_paper", weights=False)
    torch.manual_seed(1)
    less = tensors("mini_paper", "encoders.whisper=null", weights=False)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not whole[name].equal(less[name])


def test_another_seed_gives_every_part_other_weights():
    one, two = tensors("mini_paper", weights=False, seed=1), tensors("mini_paper", weights=False, seed=2)
    parts = [f"model.encoders.{name}." for name in ("ced", "mert", "whisper")]
    parts += [f"model.projector.stages.{i}." for i in (0, 1)]
    for part in (*parts, "model.language_model.", "lm_head.", "losses.semantic_contrastive."):
        assert any(not tensor.equal(two[name]) for name, tensor in of(one, part).items()), part


def test_a_seed_gives_the_same_with_and_without_sources():
    spec = ("tiny", "llm.lora={target_modules: [q_proj, v_proj], use_dora: true}")
    one, two = tensors(*spec, seed=1), tensors(*spec, seed=1, weights=False)
    assert [name for name, tensor in one.items() if not tensor.equal(two[name])] == []


@pytest.mark.parametrize("weights", [True, False], ids=["sources", "structure"])
def test_adapters_are_drawn_for_their_place(weights):
    lora = "llm.lora={target_modules: [q_proj, v_proj]}"
    one = tensors("tiny", lora, seed=1, weights=weights)
    wider = tensors("tiny", lora, "projector.0.hidden=7", seed=1, weights=weights)
    other = tensors("tiny", lora, seed=2, weights=weights)
    drawn = [name for name in one if "lora_A" in name]
    assert len(drawn) == 4
    assert all(one[name].equal(wider[name]) and not one[name].equal(other[name]) for name in drawn)
    assert len({one[name].sum().item() for name in drawn}) == 4  # no two layers share their draws
    assert all(not one[name].any() for name in one if "lora_B" in name)


def test_adapters_that_a_next_stage_brings_are_drawn_for_their_place(tmp_path):
    build_model("tiny", "llm.dim=16", "llm.heads=2", seed=1).save_pretrained(tmp_path)
    lora = "llm.lora={target_modules: [q_proj]}"
    one, same, other = (tensors(tmp_path, lora, seed=seed) for seed in (1, 1, 2))
    drawn = [name for name in one if "lora_A" in name]
    assert drawn
    assert all(one[name].equal(same[name]) and not one[name].equal(other[name]) for name in drawn)
    assert all(one[name].equal(other[name]) for name in one if "lora" not in name)


def test_what_a_source_gives_is_the_same_under_any_seed():
    spec = load_spec("tiny").to_dict()
    spec["encoders"] = {"whisper": {"path": str(ORACLES / "whisper" / "hf")}}
    one, two = (tensors(spec, seed=seed) for seed in (1, 2))
    assert all(tensor.equal(two[name]) for name, tensor in of(one, "model.encoders.").items())
    assert any(not tensor.equal(two[name]) for name, tensor in of(one, "model.projector.").items())


def test_equal_parts_at_two_places_start_apart():
    spec = {
        "encoders": {"a": {"type": "ced", "arch": {"embed_dim": 16, "depth": 1, "num_heads": 2}}},
        "projector": [{"type": "linear", "dim": 16}, {"type": "linear", "dim": 16}],
        "llm": {"type": "tiny", "dim": 16, "heads": 2},
    }
    spec["encoders"]["b"] = spec["encoders"]["a"]
    state = tensors(spec, seed=1)
    one, two = of(state, "model.encoders.a."), of(state, "model.encoders.b.")
    assert any(not tensor.equal(two[name.replace(".a.", ".b.", 1)]) for name, tensor in one.items())


def test_the_head_does_not_start_as_the_token_table():
    state = tensors("tiny", seed=1)
    assert not state["lm_head.weight"].equal(state["model.language_model.embed_tokens.weight"])


@pytest.mark.parametrize("weights", [True, False], ids=["sources", "structure"])
def test_a_seed_leaves_the_global_generator_alone(weights):
    before = torch.get_rng_state()
    build_model("mini_paper", seed=1, weights=weights)
    assert torch.get_rng_state().equal(before)


# Faults


def fault(spec, *overrides):
    """What building says; the same from `build_model` and from `usam show`."""
    with pytest.raises((SpecError, ComponentError)) as built:
        build_model(load_spec(spec, *overrides), weights=False)
    with pytest.raises((SpecError, ComponentError)) as shown:
        show(spec, None, list(overrides))
    assert str(shown.value) == str(built.value)
    assert type(shown.value) in (SpecError, ComponentError)
    return str(built.value)


def llm(**arch):
    return f"llm={{type: transformers, arch: { ({**LLAMA, **arch}) }}}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (llm(hidden_size="x"), r"^llm\.arch\.hidden_size: .*expected int, got str \(value: 'x'\)"),
        (llm(num_attention_heads=3), r"^llm: .* from llm\.arch: .*not a multiple of .* attention heads \(3\)"),
        (llm(num_attention_heads=0), r": llm\.arch\.num_attention_heads: a model has at least 1; found 0"),
        (llm(hidden_act="foo"), r"^llm: .* from llm\.arch: KeyError: 'foo'"),
        (llm(vocab_size=-5), r": llm\.arch\.vocab_size: a model has at least 1; found -5"),
        (llm(dtype="floot"), r"^llm: .* from llm\.arch: .*floot"),
        ("llm.heads=3", r"^llm: 'tiny' cannot be built from llm\.heads: .*heads \(3\)"),
        ("llm.attn_implementation=foo", r"^llm: 'tiny' cannot be built from llm\.attn_implementation: .*foo"),
        ("llm.lora={target_modules: '(('}", r"^llm\.lora\.target_modules: .*unterminated subpattern"),
        ("llm.lora={target_modules: [zz]}", r"^llm\.lora\.target_modules: no .* 'zz', names look like k_proj"),
        ("llm.freeze=[zz]", r"^llm\.freeze: no parameter matches \['zz'\]"),
        ("llm.injection={type: cross_attention, every: 9}", r"^llm\.injection: 'every' is 9, but .* 2 decoder layers"),
        ("llm.injection={type: cross_attention, freeze: [zz]}", r"^llm\.injection\.freeze: no parameter matches"),
        ("llm={type: transformers, path: /no/such}", r"^llm: no config of a language model at '/no/such'"),
        ("llm={type: transformers}", r"^llm: transformers needs 'path'"),
        ("encoders={ear: {type: whisper}}", r"^encoders\.ear: whisper needs 'path'"),
        ("encoders={ear: {type: ced}}", r"^encoders\.ear: ced needs 'path'"),
        ("encoders={ear: {type: mert, path: /no/such}}", r"^encoders\.ear: '/no/such' is no file or folder here"),
        (
            "encoders={ear: {type: whisper, arch: {d_model: 15, encoder_attention_heads: 4}}}",
            r"^encoders\.ear: 'whisper' cannot be built from encoders\.ear\.arch: ValueError: embed_dim must be",
        ),
        ("encoders={ear: {type: mert, arch: {hidden_size: x}}}", r"^encoders\.ear\.arch\.hidden_size: .* got str"),
        ("encoders={ear: {type: timm, arch: {depth: 1}}}", r"^encoders\.ear: timm: 'arch' needs the 'architecture'"),
        ("projector.0.freeze=[zz]", r"^projector\.0\.freeze: no parameter matches \['zz'\]; names look like map"),
        ("projector.0.lora={r: 2}", r"^projector\.0\.lora: .* write target_modules, names such as map"),
        ("projector.0.hidden=100000000000000000000", r": projector\.0\.hidden: .* less than or equal to 131072"),
        ("fusion={type: sum, dim: 100000000000000000000}", r": fusion\.dim: .* less than or equal to 131072"),
        ("losses.info_nce={freeze: [zz]}", r"^losses\.info_nce\.freeze: no parameter matches"),
        ("projector.0.type=lineal", r"projector\.0: .*no component 'lineal'; did you mean 'linear'"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_be_built_names_its_place_and_the_cause(override, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = fault("tiny", override)
    assert re.search(message, said), said
    assert "Exception raised from" not in said


def test_a_language_model_that_is_not_here_names_its_place(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fault("tiny", "llm={type: transformers, path: no-one/no-model}").startswith("llm: ")


def test_memory_that_runs_out_is_not_blamed_on_the_spec(monkeypatch):
    def full(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr("usam.projectors.linear.Linear.__init__", full)
    with pytest.raises(MemoryError, match="no room"):
        build_model("tiny")


@pytest.mark.parametrize("name", sorted(file.stem for file in SPECS.rglob("*.yaml")))
def test_every_bundled_spec_can_be_shown(name, capsys):
    show(name)
    assert re.search(r"^total .*[1-9]", capsys.readouterr().out, re.MULTILINE)


def test_a_saved_folder_can_be_shown(tmp_path, capsys):
    build_model("tiny", "llm.dim=16", "llm.heads=2").save_pretrained(tmp_path)
    show(str(tmp_path))
    assert re.search(r"^llm +tiny \(llama\) +16 ", capsys.readouterr().out, re.MULTILINE)


# Names


TAKEN = ["keys", "pop", "train", "type", "items", "forward", "parts", "half"]


@pytest.mark.parametrize("fusion", ["sum", "{type: concat, layer_norm: true}"])
def test_a_part_may_have_the_name_of_a_method(fusion, tmp_path):
    arch = {"embed_dim": 16, "depth": 1, "num_heads": 2}
    spec = {
        "encoders": {name: {"type": "ced", "arch": arch} for name in [*TAKEN, "other"]},
        "projector": "linear",
        "llm": {"type": "tiny", "dim": 16, "heads": 2},
        "losses": {name: {"type": "cross_entropy"} for name in TAKEN},
    }
    model = build_model(spec, f"fusion={fusion}", seed=0)
    inputs = {
        "input_ids": torch.tensor([[1] * 9 + [model.config.audio_token_id] * 25]),
        "labels": torch.ones(1, 34).long(),
    }
    given = model(**inputs, input_values=torch.zeros(1, 16000))
    assert given.losses.keys() == set(TAKEN)
    model.save_pretrained(tmp_path)
    again = build_model(tmp_path)
    assert again(**inputs, input_values=torch.zeros(1, 16000)).loss == given.loss
    assert [name for name in again.state_dict() if name.startswith("model.encoders.other.norm.")]


def test_a_part_of_any_other_name_has_that_in_the_names_of_its_tensors():
    names = build_model("mini_paper", weights=False).state_dict()
    assert not [name for name in names if "-" in name]
    assert {name.split(".")[2] for name in names if name.startswith("model.encoders.")} == {"ced", "mert", "whisper"}


def test_a_seed_fills_a_language_model_by_its_own_rules():
    arch = {
        "model_type": "gpt2",
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 320,
    }  # its layers are no Linear
    one, two = (
        tensors("tiny", {"llm": {"type": "transformers", "arch": arch}}, seed=1, weights=w) for w in (True, False)
    )
    name = "model.language_model.h.0.attn.c_attn.weight"
    assert one[name].std().item() == pytest.approx(0.02, rel=0.1)
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
