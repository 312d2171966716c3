"""The encoder keeps usam's promises, reads LAION's checkpoints, and hears what transformers' CLAP hears."""

import numpy as np
import pytest
import torch
from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

from usam import ComponentError, build_encoder
from usam.testing import encoder_promises

ARCH = {"patch_embeds_hidden_size": 8, "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 2, 4], "mlp_ratio": 2.0}
WINDOW, STEP = 480_000, 15_000
EXTRACTOR = ClapFeatureExtractor(truncation="rand_trunc", padding="pad", frequency_min=50)


@pytest.mark.parametrize("promise", encoder_promises("clap", arch=ARCH, seconds=0.7), ids=str)
def test_it_keeps_its_promises(promise):
    promise()


@pytest.fixture(scope="module")
def tower():
    """transformers' own, its batch norm with statistics that decibels have."""
    torch.manual_seed(0)
    model = ClapAudioModel(ClapAudioConfig(**ARCH)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.audio_encoder.batch_norm.running_mean.fill_(-30)
        model.audio_encoder.batch_norm.running_var.fill_(200)
    return model.audio_encoder


def as_laion_wrote(tower):
    """A checkpoint in LAION's layout: names of its HTS-AT, one map for query, key and value, and what lies beside."""
    found = {}
    for name, tensor in tower.state_dict().items():
        for ours, theirs in {
            "attention.self.": "attn.",
            "attention.output.dense": "attn.proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "norm1",
            "layernorm_after": "norm2",
            "batch_norm": "bn0",
        }.items():
            name = name.replace(ours, theirs)
        if ".query." in name:
            parts = [tower.state_dict()[n] for n in _three(name, tower)]
            name, tensor = name.replace("query", "qkv"), torch.cat(parts)
        if ".key." not in name and ".value." not in name:
            found[f"module.audio_branch.{name}"] = tensor
    found |= {
        "module.audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.zeros(513, 1, 1024),
        "module.audio_branch.logmel_extractor.melW": torch.from_numpy(EXTRACTOR.mel_filters_slaney).float(),
        "module.audio_branch.layers.0.blocks.1.attn_mask": torch.zeros(64, 64, 64),
        "module.audio_branch.tscam_conv.weight": torch.zeros(5, 64, 2, 3),
        "module.audio_branch.head.weight": torch.zeros(5, 5),
        "module.text_branch.embeddings.word_embeddings.weight": torch.zeros(7, 3),
        "module.audio_projection.0.weight": torch.zeros(4, 64),
        "module.logit_scale_a": torch.tensor(1.0),
    }
    rates = {"param_groups": [{"lr": np.float64(1e-4)}], "state": {}}  # a cosine of numpy
    return {"epoch": 45, "name": "clap", "state_dict": found, "optimizer": rates}


def _three(name, tower):
    layer = name.split(".attn.")[0]
    return [f"{layer}.attention.self.{part}.{name.rpartition('.')[2]}" for part in ("query", "key", "value")]


@pytest.fixture(scope="module")
def laion(tower, tmp_path_factory):
    file = tmp_path_factory.mktemp("clap") / "630k-audioset-best.pt"
    torch.save(as_laion_wrote(tower), file)
    return file


def noise(samples):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@torch.no_grad()
def heard(encoder, clip):
    return encoder(clip[None], torch.ones(1, len(clip), dtype=torch.bool)).x[0]


@torch.no_grad()
def theirs(tower, clip):
    """The steps of transformers' tower on the features of transformers' extractor."""
    mel = EXTRACTOR(clip.numpy(), sampling_rate=48000, return_tensors="pt")["input_features"]
    return tower(mel).last_hidden_state[0].mean(1).mT


@pytest.mark.parametrize("samples", [WINDOW, 100_001])
def test_frames_from_laions_file_are_transformers_own(samples, laion, tower):
    found = heard(build_encoder("clap", path=str(laion), arch=ARCH), noise(samples))
    assert found.shape == (-(-samples // STEP), 64)
    torch.testing.assert_close(found, theirs(tower, noise(samples))[: len(found)], atol=1e-3, rtol=1e-3)
    assert found.std(0).min() > 1e-3


def test_a_file_of_older_numpy_is_read_too(laion, tower, tmp_path):
    """Before numpy 2 numbers were written as of another module."""
    torch.save(as_laion_wrote(tower), tmp_path / "new.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "new.pt").read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    (tmp_path / "old.pt").write_bytes(old)
    clip = noise(STEP)
    ours, wanted = (heard(build_encoder("clap", path=str(f), arch=ARCH), clip) for f in (tmp_path / "old.pt", laion))
    torch.testing.assert_close(ours, wanted, atol=0, rtol=0)


def test_long_audio_is_heard_in_windows_of_ten_seconds(laion, tower):
    clip = noise(WINDOW + 2 * STEP)
    parts = torch.cat([theirs(tower, part) for part in clip.split(WINDOW)])
    ours = heard(build_encoder("clap", path=str(laion), arch=ARCH), clip)
    torch.testing.assert_close(ours, parts[:34], atol=1e-3, rtol=1e-3)


def test_statistics_stay_while_it_trains(laion):
    encoder = build_encoder("clap", path=str(laion), arch=ARCH, freeze="none").train()
    heard(encoder, noise(STEP))
    assert (encoder.tower.batch_norm.running_mean == -30).all()


def test_the_published_sizes_are_laions():
    tiny, base = (build_encoder("clap", amodel=size, weights=False).dim for size in ("HTSAT-tiny", "HTSAT-base"))
    assert (tiny, base) == (768, 1024)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_embed.mel_conv2d.weight": torch.zeros(8, 1, 4, 12)}, "trained with feature fusion"),
        ({"logmel_extractor.melW": torch.ones(513, 64)}, "other mel filters than 64 from 50 to 14000 Hz"),
        ({"patch_embed.proj.weight": torch.zeros(128, 1, 4, 4)}, "begins 128 wide, this one 8: write amodel: HTSAT-b"),
    ],
)
def test_another_checkpoint_is_refused_by_what_is_other(change, said, tower, tmp_path):
    checkpoint = as_laion_wrote(tower)
    checkpoint["state_dict"] |= {f"module.audio_branch.{name}": tensor for name, tensor in change.items()}
    torch.save(checkpoint, tmp_path / "other.pt")
    with pytest.raises(ComponentError, match=said):
        build_encoder("clap", path=str(tmp_path / "other.pt"), arch=ARCH)


def test_a_file_without_an_audio_branch_is_refused(tmp_path):
    torch.save({"state_dict": {"conv.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(ComponentError, match="holds no audio branch of LAION's CLAP"):
        build_encoder("clap", path=str(tmp_path / "other.pt"), arch=ARCH)


def test_a_tower_of_another_shape_is_refused():
    with pytest.raises(ComponentError, match="only towers of four stages without fusion"):
        build_encoder("clap", arch={**ARCH, "spec_size": 128})
