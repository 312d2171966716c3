"""timm backbones on log-mel pictures."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file

from usam import ComponentError, SpecError, build_encoder
from usam.encoders._kaldi import KaldiFbank, fbank_frames
from usam.testing import encoder_promises

VIT = {"architecture": "vit_tiny_patch16_224", "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL = {"frames": 64, "mels": 32}

PROMISES = {
    "vit": encoder_promises("timm", arch=VIT, **SMALL),
    "vit flattened": encoder_promises("timm", arch=VIT, **SMALL, bands="flatten"),
    "vit in layers": encoder_promises("timm", arch=VIT, **SMALL, layers="weighted"),
    "convolutional": encoder_promises("timm", arch={"architecture": "resnet10t"}, **SMALL),
    "in channels": encoder_promises("timm", arch={"architecture": "convnext_atto"}, **SMALL, bands="concat"),
}
CASES = [pytest.param(p, id=f"{name}: {p}") for name, promises in PROMISES.items() for p in promises]


@pytest.mark.parametrize("promise", CASES)
def test_it_keeps_every_promise(promise):
    promise()


def test_a_vit_is_timms_own_on_the_same_picture():
    encoder = build_encoder("timm", arch=VIT, **SMALL)
    audio = torch.randn(1, 63 * 160 + 400) * 0.1  # 64 frames: one picture
    mel = KaldiFbank(32, "hann")(audio)
    picture = (mel + 4.2677393) / (2 * 4.5689974)
    with torch.no_grad():
        tokens = encoder.network.forward_features(picture[:, None])[:, 1:]
    frames = encoder(audio, torch.ones_like(audio, dtype=torch.bool))
    assert torch.allclose(frames.x, tokens.view(1, 4, 2, 24).mean(2), atol=1e-5)


def test_the_last_layer_by_number_is_the_last_layer():
    audio = torch.randn(1, 20000) * 0.1
    mask = torch.ones_like(audio, dtype=torch.bool)
    encoders = [build_encoder("timm", arch=VIT, **SMALL, layers=layers) for layers in ("last", [0, -1])]
    encoders[1].load_state_dict(encoders[0].state_dict())
    last, both = (encoder(audio, mask).x for encoder in encoders)
    assert torch.allclose(both[..., 24:], last, atol=1e-6)
    assert not torch.allclose(both[..., :24], last, atol=1e-2)


def test_layers_of_a_convolutional_network_are_refused():
    with pytest.raises(SpecError, match="layers of 'resnet10t' have no common width"):
        build_encoder("timm", arch={"architecture": "resnet10t"}, **SMALL, layers=[0, 1])


def test_tokens_are_in_time_order():
    encoder = build_encoder("timm", arch=VIT, **SMALL, bands="flatten")
    audio = torch.zeros(1, 64 * 160 * 2)
    audio[:, -3200:] = torch.randn(1, 3200)  # only the end sounds
    mask = torch.ones_like(audio, dtype=torch.bool)
    silence = encoder(torch.zeros_like(audio), mask)
    change = (encoder(audio, mask).x - silence.x).norm(dim=-1)[0]
    assert change[: len(change) // 2].max() < 1e-4  # the first picture
    assert change[len(change) // 2 :].max() > 0.1


@pytest.mark.parametrize("bands", ["mean", "flatten", "concat"])
def test_rate_and_width_are_found(bands):
    config = build_encoder("timm", arch=VIT, **SMALL, bands=bands).config
    assert config.rate == {"mean": 6.25, "flatten": 12.5, "concat": 6.25}[bands]
    assert [int(config.length(n)) for n in (399, 400, 400 + 16 * 160)] == [
        n * (2 if bands == "flatten" else 1) for n in (0, 1, 2)
    ]


def test_a_hub_folder_loads_with_the_size_of_its_own_pictures(tmp_path):
    """AudioMAE's layout on the hub: timm's config.json beside model.safetensors."""
    args = {"img_size": [64, 32], "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5, **args)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": args}
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = build_encoder("timm", path=str(tmp_path))
    assert encoder.config.arch == VIT
    assert (encoder.config.frames, encoder.config.mels) == (64, 32)
    assert torch.equal(encoder.network.pos_embed, network.pos_embed)
    with pytest.raises(ComponentError, match="does not fit"):
        build_encoder("timm", path=str(tmp_path), frames=128, mels=32)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    with pytest.raises(ComponentError, match="does not fit"):
        build_encoder("timm", path=str(tmp_path), **SMALL)


def test_faults_say_what_to_write(tmp_path):
    with pytest.raises(ComponentError, match="timm has no model 'vit_huge_nonsense'; it has vit_"):
        build_encoder("timm", arch={"architecture": "vit_huge_nonsense"})
    with pytest.raises(ComponentError, match=r"'vit_tiny_patch16_224' has no such option: .*embed_dimm"):
        build_encoder("timm", arch={"architecture": "vit_tiny_patch16_224", "embed_dimm": 8}, **SMALL)
    with pytest.raises(SpecError, match="needs 'path'"):
        build_encoder("timm")
    with pytest.raises(ComponentError, match="steps by 16 frames, of which 60 are no multiple"):
        build_encoder("timm", arch=VIT, frames=60, mels=32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ComponentError, match="names no timm 'architecture'"):
        build_encoder("timm", path=str(tmp_path))


def test_kaldi_frames_are_counted_alike_in_ints_and_tensors():
    counts = torch.arange(0, 3000, 7)
    assert fbank_frames(counts).tolist() == [int(fbank_frames(int(n))) for n in counts]
