"""What all families share: freezing, adapters, learning rates."""

import fnmatch

import pytest
import torch
from torch import nn

from usam import (
    ComponentError,
    SpecError,
    build_encoder,
    build_fusion,
    build_model,
    build_projector,
    encoders,
    fusions,
    llm,
    load_spec,
    projectors,
)
from usam.component import is_adapter

TINY = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 80,
    "max_source_positions": 50,
    "dropout": 0.5,
    "attention_dropout": 0.5,
}


def training(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_freeze_all_is_an_encoders_default():
    assert not training(build_encoder("whisper", arch=TINY))


def test_freeze_none_trains_all_but_the_sinusoids():
    encoder = build_encoder("whisper", arch=TINY, freeze="none")
    frozen = {name for name, _ in encoder.named_parameters()} - training(encoder)
    assert frozen == {"encoder.embed_positions.weight"}  # Whisper's own rule


def test_patterns_freeze_what_they_match():
    pattern = "encoder.layers.0.*"
    encoder = build_encoder("whisper", arch=TINY, freeze=[pattern])
    assert training(encoder)
    assert not fnmatch.filter(training(encoder), pattern)
    encoder.train()
    assert not encoder.encoder.layers[0].training
    assert encoder.encoder.layers[1].training


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(SpecError, match=r"no parameter matches \['layrs.*'\]; names look like"):
        build_encoder("whisper", arch=TINY, freeze=["layrs.*"])


@pytest.mark.parametrize(("pattern", "trains"), [("*", set()), ("lm_head*", {"backbone"}), ("layers.*", {"head"})])
def test_a_language_model_s_head_is_frozen_by_the_patterns_that_match_it(pattern, trains):
    model = build_model("tiny", {"llm": {"freeze": ["embed_tokens*", "norm*", pattern]}})
    halves = {"backbone": model.model.language_model, "head": model.lm_head}
    assert {name for name, half in halves.items() if training(half)} == trains


def test_a_misspelt_head_freezes_nothing():
    with pytest.raises(SpecError, match=r"no parameter matches \['lm_head.wieght'\]"):
        build_model("tiny", {"llm": {"freeze": ["lm_head.wieght"]}})


def test_adapters_train_whatever_is_frozen_and_start_as_a_no_op():
    plain = build_encoder("whisper", arch=TINY)
    adapted = build_encoder("whisper", arch=TINY, lora={"target_modules": ["q_proj"]})
    assert training(adapted)
    assert all(is_adapter(name) for name in training(adapted))
    base = {name.replace(".base_layer.", "."): t for name, t in adapted.state_dict().items() if not is_adapter(name)}
    plain.load_state_dict(base)
    audio, mask = torch.randn(1, 4000), torch.ones(1, 4000, dtype=torch.bool)
    assert torch.equal(plain(audio, mask).x, adapted(audio, mask).x)


def test_a_frozen_encoder_does_not_drop_out_while_its_adapters_may():
    encoder = build_encoder("whisper", arch=TINY, lora={"target_modules": ["q_proj"], "lora_dropout": 0.9}).train()
    assert not encoder.encoder.layers[0].training
    layer = encoder.encoder.layers[0].self_attn.q_proj
    assert layer.lora_dropout["usam"].training
    audio, mask = torch.randn(1, 4000), torch.ones(1, 4000, dtype=torch.bool)
    with torch.no_grad():
        nn.init.ones_(layer.lora_B["usam"].weight)
        assert not torch.equal(encoder(audio, mask).x, encoder(audio, mask).x)
        encoder.eval()
        assert torch.equal(encoder(audio, mask).x, encoder(audio, mask).x)


def test_target_modules_that_do_not_exist_are_an_error():
    with pytest.raises(SpecError, match=r"^lora\.target_modules: .*no_proj"):
        build_encoder("whisper", arch=TINY, lora={"target_modules": ["no_proj"]})


def test_each_target_module_has_to_exist():
    with pytest.raises(
        SpecError, match=r"^lora\.target_modules: no module is called 'v_porj', did you mean 'v_proj'\?$"
    ):
        build_encoder("whisper", arch=TINY, lora={"target_modules": ["q_proj", "v_porj"]})


@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj", "0.fc1", "encoder.conv1"])
def test_a_target_module_may_be_the_end_of_a_name(name):
    assert training(build_encoder("whisper", arch=TINY, lora={"target_modules": [name]}))


def test_a_target_that_is_a_text_says_what_it_is():
    with pytest.raises(SpecError, match=r"lora\.target_modules: .*a text is a regular expression of whole names"):
        build_encoder("whisper", arch=TINY, lora={"target_modules": "q_proj"})
    assert training(build_encoder("whisper", arch=TINY, lora={"target_modules": ".*q_proj"}))


def test_an_empty_list_of_targets():
    with pytest.raises(SpecError, match=r"^lora\.target_modules: an empty list names no layer"):
        build_encoder("whisper", arch=TINY, lora={"target_modules": []})


@pytest.mark.parametrize("part", ["encoder", "projector", "llm"])
def test_adapters_outside_a_language_model_need_their_targets(part):
    make = {
        "encoder": lambda: build_encoder("whisper", arch=TINY, lora={}),
        "projector": lambda: build_projector("mlp", in_dim=4, lora={}),
        "llm": lambda: build_model("tiny", "llm.lora={type: lora}"),
    }[part]
    with pytest.raises(SpecError, match=r"write target_modules, names such as|lora is one thing and has no type"):
        make()


def test_adapters_for_what_has_no_layer():
    with pytest.raises(SpecError, match="lora: this component has no linear layer"):
        build_fusion("concat", dims={"a": 4}, lora={})


def test_a_named_dtype_is_kept():
    assert build_projector("linear", in_dim=4, dtype="bfloat16").map[0].weight.dtype == torch.bfloat16


# What a component must say of itself


def offered(monkeypatch, family, cls):
    monkeypatch.setattr(family.registry, "_registered", {})
    family.registry.register("part")(cls)


@pytest.mark.parametrize("dim", [None, 0, "4", 2.5, True])
def test_a_part_without_a_width_says_what_is_missing(monkeypatch, dim):
    space = {"__module__": __name__, **({} if dim is None else {"dim": dim})}
    offered(monkeypatch, projectors, type("Stage", (projectors.Projector,), space))
    found = "none" if dim is None else repr(dim)
    with pytest.raises(ComponentError, match=f"^projector.0: Stage needs 'dim', the width of .*; found {found}$"):
        build_model("tiny", {"projector": [{"type": "part"}]})
    with pytest.raises(ComponentError, match="Stage needs 'dim'"):
        projectors.build_projector("part", in_dim=4)


@pytest.mark.parametrize("name", ["sample_rate", "frame_rate"])
@pytest.mark.parametrize("value", [None, 0, "16000"])
def test_an_encoder_without_its_rates_says_what_is_missing(monkeypatch, name, value):
    space = {"__module__": __name__, "sample_rate": 16000, "frame_rate": 50, "dim": 1, name: value}
    offered(monkeypatch, encoders, type("Ear", (encoders.Encoder,), space))
    with pytest.raises(ComponentError, match=f"Ear needs '{name}', .*: a positive number, of the class"):
        load_spec("tiny", {"encoders": {"part": {}}}).audio_tokens(16000)


@pytest.mark.parametrize(
    ("family", "build", "needs"),
    [
        (llm, lambda: build_model("tiny", {"llm": "part"}), "llm: Part has no tokenizer"),
        (llm, lambda: build_model("tiny", {"llm": "part"}, weights=False), "llm: .* Part has no text_config"),
        (fusions, lambda: build_model("tiny", {"fusion": "part"}), "fusion: Part needs 'dim'"),
    ],
)
def test_a_language_model_and_a_fusion_say_what_they_lack(monkeypatch, family, build, needs):
    offered(monkeypatch, family, type("Part", (family.registry.base,), {"__module__": __name__}))
    with pytest.raises(ComponentError, match=needs):
        build()


def test_options_below_a_component_without_any_of_its_own_are_described():
    class Plain(projectors.Projector):
        pass

    class Own(Plain):
        class Config(Plain.Config):
            size: int = 1
            """How large."""

    assert (
        Plain.Config.model_fields["freeze"].description
        == projectors.Projector.Config.model_fields["freeze"].description
    )
    assert Own.Config.model_fields["size"].description == "How large."
