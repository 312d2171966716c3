"""CED: equal to the original where a clip is alone, and to the clip alone everywhere else."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import nudge
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from usam import ComponentError, SpecError, UsamForConditionalGeneration, build_encoder, build_model
from usam.encoders.ced import resized
from usam.testing import encoder_promises
from usam.types import prefix_mask

ORACLES = Path(__file__).parents[1] / "oracles" / "ced"
CHECKPOINT = ORACLES / "checkpoint.pt"
ARCH = json.loads((ORACLES / "config.json").read_text())
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4}
SECOND = 16000


def build(**options):
    return build_encoder("ced", path=str(CHECKPOINT), **options)


def sizes(**changes):
    return {name: ARCH[name] for name in ("embed_dim", "depth", "num_heads")} | changes


def audio(case):
    return torch.from_numpy(np.load(ORACLES / f"audio_{case}.npy"))


def expected(case):
    return {name: torch.from_numpy(array) for name, array in np.load(ORACLES / f"expected_{case}.npz").items()}


def in_time(tokens):
    """The original's tokens of each chunk, band by band, as ours: chunks one after another, in order of time."""
    return rearrange(tokens, "c (f t) d -> (c t f) d", f=4)


@torch.no_grad()
def encode(encoder, *clips, padding=0.0, size=0):
    """A batch of clips: the Frames, and each clip's own frames."""
    size = max(size, *(len(clip) for clip in clips))
    batch = torch.full((len(clips), size), float(padding))
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    frames = encoder(batch, prefix_mask(torch.tensor([len(clip) for clip in clips]), size))
    return frames, [x[mask] for x, mask in zip(frames.x, frames.mask, strict=True)]


def alone(encoder, clip):
    return encode(encoder, clip)[1][0]


def noise(samples, seed=0):
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def close(found, wanted, atol=1e-4):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def ced():
    return build()


@pytest.fixture(scope="module")
def short_chunks():
    """Chunks of half a second: three steps, and four mel frames that no patch covers, as at full size."""
    return build(arch=sizes(target_length=52))


# Equal to the original


@pytest.mark.parametrize("case", ["short", "long", "split"])
def test_features_are_the_originals(case, ced):
    wanted = expected(case)
    found = alone(ced, audio(case))
    assert len(found) == ced.config.length(len(audio(case)))
    close(found, in_time(wanted["chunk_features"])[: len(found)])
    if case != "split":  # there the original goes on into the zeros that fill the last chunk
        close(found, in_time(wanted["features"]))


@pytest.mark.parametrize("case", ["short", "long", "split"])
def test_the_front_end_is_the_originals(case, ced):
    clip, wanted = audio(case), expected(case)
    decibels = ced.mel(clip[None], torch.tensor([len(clip)]), 10_000)
    close(decibels, wanted["log_mel_db"])
    if "mel_normalised" in wanted:
        close(ced.init_bn(decibels), wanted["mel_normalised"])
        close(ced.patch_embed(wanted["mel_normalised"].unsqueeze(1)), wanted["patch_conv"])


def test_window_and_filters_are_the_originals_to_the_bit(ced):
    stored = torch.load(CHECKPOINT)
    assert torch.equal(ced.mel.window, stored["front_end.0.spectrogram.window"])
    assert torch.equal(ced.mel.filters, stored["front_end.0.mel_scale.fb"])


@pytest.mark.parametrize("case", ["short", "long"])
def test_hidden_states_are_the_originals(case, ced):
    wanted = expected(case)
    found = alone(build(layers=[0, 1, 2]), audio(case))
    last = ced.norm(wanted["hidden_2"])
    close(found, torch.cat([in_time(state) for state in (wanted["hidden_0"], wanted["hidden_1"], last)], -1))


@pytest.mark.parametrize("case", ["short", "long"])
def test_the_classifier_finds_the_same_classes(case, ced):
    stored = torch.load(CHECKPOINT)
    head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 11))
    head.load_state_dict({n.removeprefix("outputlayer."): t for n, t in stored.items() if n.startswith("outputlayer")})
    close(head(alone(ced, audio(case)).mean(0)).sigmoid(), expected(case)["class_probs"][0])


def test_written_out_attention_is_the_same(ced):
    eager = build(attn_implementation="eager")
    batch = [audio("long"), audio("short")]
    for found, wanted in zip(encode(eager, *batch)[1], encode(ced, *batch)[1], strict=True):
        close(found, wanted, 1e-5)


def test_bfloat16_stays_near():
    found = alone(build(dtype="bfloat16"), audio("long")).float()
    wanted = in_time(expected("long")["features"])
    assert (found - wanted).norm() / wanted.norm() < 0.03


# Better behaved than the original


def test_a_quiet_clip_beside_a_loud_one_is_what_it_is_alone(ced):
    loud, quiet = audio("short"), audio("short") * 1e-7
    wanted = expected("loud_and_quiet_batch")["features"]
    _, (first, second) = encode(ced, loud, quiet)
    close(first, in_time(wanted[:1]))
    close(second, alone(ced, quiet))
    assert (second - in_time(wanted[1:])).abs().max() > 0.1  # the original takes its floor from the batch


def test_the_last_chunk_is_not_lost(ced):
    two_chunks = (2 * 1012 - 1) * 160
    clip = noise(two_chunks + 3 * SECOND)
    found = alone(ced, clip[:two_chunks])
    assert len(found) == 2 * 252
    close(found, alone(ced, clip)[: 2 * 252])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=2, max_size=3), st.integers(0, 9000))
def test_a_clip_is_the_same_alone_and_in_a_batch(lengths, more):
    encoder = build(arch=sizes(target_length=52))
    clips = [noise(n, seed) * 10 ** (-2 * seed) for seed, n in enumerate(lengths)]
    _, together = encode(encoder, *clips, padding=9.0, size=max(lengths) + more)
    for clip, found in zip(clips, together, strict=True):
        close(found, alone(encoder, clip))


def test_a_clip_is_the_same_alone_and_beside_one_of_two_chunks(ced):
    batch = [audio(case) for case in ("short", "split", "long")]
    for found, clip in zip(encode(ced, *batch, padding=9.0)[1], batch, strict=True):
        close(found, alone(ced, clip))


@pytest.mark.parametrize("samples", [0, 1, 256, 257, 2399])
def test_a_clip_without_a_whole_patch_has_no_frames(samples, ced):
    assert encode(ced, noise(samples))[0].x.shape == (1, 0, 48)
    _, (nothing, found) = encode(ced, noise(samples), audio("short"))
    assert nothing.shape == (0, 48)
    close(found, alone(ced, audio("short")))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_clip_without_a_whole_patch_still_gives_every_parameter_a_gradient(attention):
    encoder = build(freeze="none", attn_implementation=attention)
    clip = noise(1600)[None]
    encoder(clip, torch.ones_like(clip, dtype=torch.bool)).x.sum().backward()
    assert all(parameter.grad.eq(0).all() for parameter in encoder.parameters())


def test_what_lies_behind_a_clip_does_not_raise_its_floor(ced):
    click = torch.zeros(8000)
    click[0] = 1
    close(encode(ced, click, noise(20_000))[1][0], alone(ced, click))


@pytest.mark.parametrize("freeze", ["all", "none"])
def test_the_batch_norm_keeps_to_its_statistics(freeze, ced):
    encoder = build(freeze=freeze).train()
    close(alone(encoder, audio("short")), alone(ced, audio("short")))
    for name, tensor in ced.init_bn.state_dict().items():
        assert torch.equal(encoder.init_bn.state_dict()[name], tensor), name


# Long audio


def test_memory_is_bounded_without_changing_the_features(short_chunks):
    whole = build(arch=sizes(target_length=52), chunks_at_once=1000)
    piecewise = build(arch=sizes(target_length=52), chunks_at_once=1)
    clip = noise(12 * SECOND)
    close(alone(piecewise, clip), alone(whole, clip), 1e-5)
    close(alone(short_chunks, clip), alone(whole, clip), 1e-5)


def test_the_spectrogram_in_pieces_is_the_same(ced):
    clip, samples = audio("long")[None], torch.tensor([59200])
    close(ced.mel(clip, samples, 50), ced.mel(clip, samples, 10_000), 1e-5)


def test_chunks_do_not_see_each_other(short_chunks):
    clip = noise(4 * SECOND)
    found = alone(short_chunks, torch.cat([clip[: 2 * SECOND], -clip[2 * SECOND :]]))
    whole = 2 * SECOND // (52 * 160) * 12
    close(found[:whole], alone(short_chunks, clip)[:whole])


@pytest.mark.parametrize(
    ("samples", "frames"),
    [
        (0, 0),
        (2399, 0),
        (2400, 4),  # 16 mel frames
        (10 * SECOND, 248),
        (1011 * 160, 252),  # 1012 mel frames: a chunk
        (1026 * 160, 252),  # 15 more
        (1027 * 160, 256),
        (3600 * SECOND, (355 * 63 + 46) * 4),  # 360001 mel frames: 355 chunks and 741
    ],
)
def test_the_length_is_the_whole_patches_of_every_chunk(samples, frames, ced):
    assert ced.config.length(samples) == frames
    assert ced.config.length(torch.tensor([samples])).tolist() == [frames]


def test_the_rate_counts_what_chunks_leave_out(ced):
    day = 24 * 3600
    assert ced.config.rate == pytest.approx(ced.config.length(day * SECOND) / day, rel=1e-5)
    assert build(arch=sizes(target_length=1008)).config.rate == 25
    assert build(arch=sizes(target_length=1008), bands="mean").config.rate == 6.25


# What the frames are made of


def test_bands_as_mean_or_side_by_side(ced):
    steps = rearrange(alone(ced, audio("split")), "(t f) d -> t f d", f=4)
    mean, concat = build(bands="mean"), build(bands="concat")
    assert mean.config.rate == concat.config.rate == ced.config.rate / 4
    assert (mean.dim, concat.dim) == (48, 192)
    close(alone(mean, audio("split")), steps.mean(1), 1e-5)
    close(alone(concat, audio("split")), rearrange(steps, "t f d -> t (f d)"), 1e-5)


def test_an_untrained_mix_is_the_mean_of_all_states():
    wanted = expected("short")
    states = [in_time(wanted[name]) for name in ("hidden_0", "hidden_1", "chunk_features")]
    close(alone(build(layers="weighted"), audio("short")), sum(states) / 3)


# Weights


def written(layout, folder):
    """The same weights in another layout: the path to give."""
    tensors = torch.load(CHECKPOINT)
    if layout == "hub":
        kept = {n: t.clone() for n, t in tensors.items() if not n.startswith("front_end")}
        named = {n if n.startswith("outputlayer") else f"encoder.{n}": t for n, t in kept.items()}
        save_file({n.replace("init_bn.1.", "init_bn."): t for n, t in named.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({**ARCH, "model_type": "ced", "n_mels": 64, "pooling": "mean"}))
        return str(folder)
    if layout == "usam":
        for name in [name for name in tensors if ".qkv." in name]:
            for part, tensor in zip("qkv", tensors.pop(name).chunk(3), strict=True):
                tensors[name.replace(".qkv.", f".{part}_proj.")] = tensor.clone()
    if layout == "nested":
        tensors = {"model": tensors, "epoch": 3}
    torch.save(tensors, folder / "some.pt")
    (folder / "config.json").write_text(json.dumps(ARCH))
    return str(folder / "some.pt")


@pytest.mark.parametrize("layout", ["nested", "hub", "usam"])
def test_every_layout_gives_the_same_weights(layout, ced, tmp_path):
    found = build_encoder("ced", path=written(layout, tmp_path)).state_dict()
    for name, tensor in ced.state_dict().items():
        assert torch.equal(found.pop(name), tensor), name
    assert not found


def test_a_lone_file_tells_its_sizes(tmp_path):
    arch = {"embed_dim": 128, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "qkv_bias": True, "target_length": 1012}
    saved = build_encoder("ced", arch=arch).state_dict()
    saved = {
        n.replace("init_bn.", "init_bn.1.").replace("patch_embed.", "patch_embed.proj."): t for n, t in saved.items()
    }
    torch.save(saved, tmp_path / "audiotransformer_some.pt")
    assert build_encoder("ced", path=str(tmp_path / "audiotransformer_some.pt")).config.arch == arch


def test_heads_that_shapes_do_not_tell(tmp_path):
    torch.save(torch.load(CHECKPOINT), tmp_path / "some.pt")
    with pytest.raises(ComponentError, match="width of 48 does not tell the number of heads; give the sizes as 'arch'"):
        build_encoder("ced", path=str(tmp_path / "some.pt"))
    build_encoder("ced", path=str(tmp_path / "some.pt"), arch=sizes())


def test_positions_are_cut_for_shorter_chunks(ced, short_chunks):
    assert torch.equal(short_chunks.time_pos_embed, ced.time_pos_embed[..., :3])


def test_positions_are_stretched_for_longer_chunks():
    ramp = torch.arange(4.0).expand(1, 2, 1, 4)
    middle = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    close(resized(ramp, 8), middle.expand(1, 2, 1, 8), 1e-6)
    assert build(arch=sizes(target_length=2024)).config.length(20 * SECOND) == 500


def broken(change):
    tensors = torch.load(CHECKPOINT)
    change(tensors)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (broken(lambda t: t.pop("norm.bias")), r"does not fit: missing norm.bias \(48,\)"),
        (broken(lambda t: t.update(cls_token=torch.ones(1, 1, 48))), r"unexpected cls_token \(1, 1, 48\)"),
        (broken(lambda t: t.update({"norm.bias": torch.ones(3)})), r"norm.bias is \(3,\), expected \(48,\)"),
        (broken(lambda t: t.pop("time_pos_embed")), "missing time_pos_embed"),
        ({"model.encoder.conv1.weight": torch.ones(2)}, r"missing blocks.0.*unexpected model.encoder.conv1.weight"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tensors, message, tmp_path):
    torch.save(tensors, tmp_path / "some.pt")
    with pytest.raises(ComponentError, match=message):
        build_encoder("ced", path=str(tmp_path / "some.pt"), arch=sizes())


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_files_that_are_no_checkpoint_of_ced(tmp_path, capsys):
    file = tmp_path / "some.pt"
    torch.save({"model.encoder.conv1.weight": torch.ones(2)}, file)
    with pytest.raises(
        ComponentError, match=r"no checkpoint of CED: it has model.encoder.conv1.weight .*no patch_embed"
    ):
        build_encoder("ced", path=str(file))
    file.write_bytes(CHECKPOINT.read_bytes()[:100_000])
    with pytest.raises(ComponentError, match="not a whole PyTorch checkpoint"):
        build_encoder("ced", path=str(file), arch=sizes())
    file.write_bytes(pickle.dumps({"norm.bias": Evil()}, protocol=2))
    with pytest.raises(ComponentError, match="would execute code"):
        build_encoder("ced", path=str(file), arch=sizes())
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d_model": 768}, "the config.json there is not CED's; give the sizes as 'arch'"),
        ({**ARCH, "patch_stride": 10}, "has patch_stride 10; usam's ced has patch_size 16, patch_stride 16"),
    ],
)
def test_a_config_of_something_else(config, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ComponentError, match=message):
        build_encoder("ced", path=str(tmp_path), weights=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": {"embed_dims": 768}}, "ced has no 'embed_dims'; did you mean 'embed_dim'?"),
        ({"arch": {"embed_dim": 100}}, "embed_dim 100 is no multiple of num_heads 12"),
        ({"arch": SMALL, "layers": [3]}, r"layers: \[3\] names no states"),
        ({"arch": SMALL, "bands": "sum"}, "'flatten', 'mean' or 'concat'"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(SpecError, match=message):
        build_encoder("ced", **options)


def test_base_has_as_many_parameters_as_the_original():
    with torch.device("meta"):
        encoder = build_encoder("ced", arch={}, weights=False)
        # The classifier, which is not loaded: a layer norm of 2 x 768 and a linear map to 527 classes.
        head = nn.Sequential(nn.LayerNorm(768), nn.Linear(768, 527))
    assert sum(p.numel() for module in (encoder, head) for p in module.parameters()) == 85_711_759


# In a model


def test_a_saved_model_comes_back_to_the_bit(tmp_path):
    encoder = {"path": str(CHECKPOINT), "layers": "weighted", "lora": {"target_modules": ["qkv"]}}
    spec = {"encoders": {"ced": encoder}, "projector": "linear", "llm": {"type": "tiny", "dim": 16, "heads": 2}}
    model = nudge(build_model(spec)).eval()
    model.save_pretrained(tmp_path)
    again = UsamForConditionalGeneration.from_pretrained(tmp_path)
    clip = audio("short")[None]
    with torch.no_grad():
        assert torch.equal(again.get_audio_features(clip).pooler_output, model.get_audio_features(clip).pooler_output)
    assert torch.equal(again.model.encoders["ced"].mel.filters, model.model.encoders["ced"].mel.filters)


PROMISES = {
    "in time order": encoder_promises("ced", arch={**SMALL, "target_length": 52}),
    "mean of bands": encoder_promises("ced", arch={**SMALL, "target_length": 52}, bands="mean", layers="weighted"),
    "one chunk": encoder_promises("ced", arch=SMALL, bands="concat", layers=[0, -1], attn_implementation="eager"),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, found in PROMISES.items() for promise in found]


@pytest.mark.parametrize("promise", CASES)
def test_ced_keeps_its_promises(promise):
    promise()
