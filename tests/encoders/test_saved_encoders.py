"""A folder that usam saved is a source of encoders: what was trained in one model is frozen in another."""

import pytest
import torch

from usam import ComponentError, build_encoder, build_model
from usam.config import UsamConfig
from usam.model.checkpoint import export

NEW = {  # tiny ones
    "whisper": {
        "path": None,
        "freeze": "none",
        "arch": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32},
    },
    "ced": {"path": None, "freeze": "none", "arch": {"embed_dim": 16, "depth": 1, "num_heads": 2}},
    "mert": {
        "path": None,
        "freeze": "none",
        "do_normalize": True,
        "arch": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_dim": [8] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    },
}


@pytest.fixture(scope="module")
def specialist(tmp_path_factory):
    """A model of three encoders that train, and have no source."""
    folder = tmp_path_factory.mktemp("specialist")
    build_model({"base": "mini_paper", "encoders": NEW}, seed=7).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["whisper", "ced", "mert", "usam:ced"])
def test_an_encoder_has_the_weights_that_were_trained(specialist, kind):
    trained = build_model(specialist).model.encoders[kind.removeprefix("usam:")].state_dict()
    encoder = build_encoder(kind, path=str(specialist))
    assert encoder.state_dict().keys() == trained.keys()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in encoder.state_dict().items())


def test_what_the_options_leave_open_is_read_there(specialist):
    encoder = build_encoder("mert", path=str(specialist))
    assert encoder.config.do_normalize is True
    assert encoder.config.arch["hidden_size"] == 16


def test_a_model_names_its_specialist_and_keeps_nothing_of_it(specialist, tmp_path):
    model = build_model("mini_paper", {"encoders": {"ced": {"path": str(specialist), "freeze": "all"}}}, seed=0)
    trained = build_model(specialist).model.encoders["ced"].state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in model.model.encoders["ced"].state_dict().items())
    model.save_pretrained(tmp_path / "model")
    config = UsamConfig.from_pretrained(tmp_path / "model")
    assert config.provenance["sources"]["model.encoders.ced"]["path"] == str(specialist)
    again = build_model(tmp_path / "model")
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in model.state_dict().items())


def test_an_encoder_that_trained_in_part_has_to_be_exported(tmp_path):
    build_model("mini_paper", "encoders.whisper.freeze=[encoder.layers.0.*]").save_pretrained(tmp_path / "part")
    with pytest.raises(ComponentError, match=r"encoders.whisper is not whole there.*usam export"):
        build_encoder("whisper", path=str(tmp_path / "part"))
    export(tmp_path / "part", tmp_path / "whole")
    trained = build_model(tmp_path / "part").model.encoders["whisper"].state_dict()
    encoder = build_encoder("whisper", path=str(tmp_path / "whole"))
    assert all(torch.equal(tensor, trained[key]) for key, tensor in encoder.state_dict().items())


def test_adapters_have_to_be_merged_first(tmp_path):
    lora = {"r": 2, "target_modules": ["q_proj"]}
    build_model("tiny", {"encoders": {"whisper": {"lora": lora, "freeze": "none"}}}).save_pretrained(tmp_path / "lora")
    with pytest.raises(ComponentError, match="usam export"):
        build_encoder("whisper", path=str(tmp_path / "lora"))


def test_a_model_without_such_an_encoder_says_what_it_has(tmp_path):
    build_model("tiny").save_pretrained(tmp_path / "model")
    with pytest.raises(ComponentError, match=r"one encoder of type 'ced'.*whisper \(whisper\)"):
        build_encoder("ced", path=str(tmp_path / "model"))


def test_a_specialist_that_was_trained_anew_is_another_source(tmp_path):
    train = {"base": "mini_paper", "encoders": {**NEW, "whisper": None, "mert": None}}
    build_model(train, seed=1).save_pretrained(tmp_path / "specialist")
    patch = {"encoders": {"ced": {"path": str(tmp_path / "specialist"), "freeze": "all"}}}
    build_model("mini_paper", patch).save_pretrained(tmp_path / "model")
    build_model(train, seed=2).save_pretrained(tmp_path / "specialist")
    with pytest.raises(ComponentError, match="not those this model was trained on"):
        build_model(tmp_path / "model")


def test_weights_that_come_with_the_package_are_named():
    encoder = build_encoder("mert", path="usam:mini_mert")
    assert encoder.source().path == "usam:mini_mert"
    with pytest.raises(ComponentError, match=r"usam:mini_mart: usam carries no such weights; did you mean .*mini_mert"):
        build_encoder("mert", path="usam:mini_mart", arch=encoder.config.arch, do_normalize=True)
