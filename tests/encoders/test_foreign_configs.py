"""A config beside an encoder's weights is somebody else's: what is wrong in it is told with its file and key."""

import json

import pytest
import torch
from safetensors.torch import save_file

from usam import ComponentError, build_encoder


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("whisper", {"d_model": "wide"}, r"config\.json: .*'d_model' expected int, got str"),
        ("mert", {"hidden_size": "wide"}, r"config\.json: .*'hidden_size' expected int, got str"),
        (
            "ced",
            {"embed_dim": "wide", "depth": None, "num_heads": 1},
            r"config\.json: 'embed_dim': .*'wide'; 'depth': ",
        ),
        ("beats", {"encoder_layers": "many"}, "cfg: encoder_layers Input should be a valid integer"),
        ("timm", {"architecture": 3}, r"config\.json names no timm 'architecture'"),
        (
            "timm",
            {"architecture": "vit_tiny_patch16_224", "model_args": 3},
            r"config\.json: 'model_args': expected a map",
        ),
        (
            "timm",
            {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": "a"}},
            "'img_size': expected whole",
        ),
        (
            "transformers",
            {"model_type": "hubert", "hidden_size": "wide"},
            r"config\.json: .*'hidden_size' expected int",
        ),
        ("transformers", {"model_type": "clap", "audio_config": 3}, r"config\.json: .*not a mapping"),
    ],
)
def test_a_config_with_a_wrong_value(kind, config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    save_file({"model.encoder.a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ComponentError, match=message):
        build_encoder(kind, path=str(tmp_path))


def test_a_feature_extractor_with_a_wrong_value(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "hubert"}')
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": "fast"}')
    with pytest.raises(ComponentError, match=r"preprocessor_config\.json: .*'fast'"):
        build_encoder("transformers", path=str(tmp_path))


@pytest.mark.parametrize("kind", ["whisper", "mert", "ced", "transformers", "timm"])
@pytest.mark.parametrize("text", ["{", "[]", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_config_that_is_no_map(kind, text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ComponentError, match=r"config\.json: not (a JSON map|the file itself)"):
        build_encoder(kind, path=str(tmp_path))
