"""Frames from a cache are those of the encoders, for these weights, options and clips and no others; or refused."""

import copy
import logging
import shutil

import pytest
import torch
import toys  # noqa: F401
from conftest import noise
from safetensors.torch import load_file, save_file
from test_store import flip, shards

from usam import build_model, encoders
from usam.data.cache import CacheError, FeatureCache, abouts, clip_keys, held, verify
from usam.data.store import StoreError
from usam.types import Frames, prefix_mask

SMALL = (
    "encoders.whisper.arch={d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 16, "
    "num_mel_bins: 80, max_source_positions: 50}"
)
TINY = ("tiny", "encoders.whisper.freeze=all", SMALL)
FROZEN = [f"encoders.{name}.freeze=all" for name in ("whisper", "ced", "mert")]
THREE = ("mini_paper", "encoders.whisper.path=null", SMALL, *FROZEN)


@pytest.fixture(scope="module", params=[TINY, THREE], ids=["tiny", "three encoders"])
def model(request):
    return build_model(*request.param, seed=0)


@pytest.fixture(scope="module")
def tiny():
    return build_model(*TINY, seed=0)


def batch(model, *seeds):
    """Clips of several lengths, of which the first are the same when there are more."""
    clips = [torch.from_numpy(noise(0.3 + 0.17 * i, i, model.config.parsed.sample_rate)) for i in seeds]
    values = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return values, prefix_mask(torch.tensor([len(clip) for clip in clips]), values.shape[1])


def stored(folder):
    return [shard for one in held(folder) for shard in shards(folder / one.key)]


def test_frames_are_those_of_the_encoders_whatever_the_batch(model, tmp_path):
    with FeatureCache(tmp_path, model) as cache:
        cache.frames(*batch(model, 4, 1))
    cache = FeatureCache(tmp_path, model)
    values, mask = batch(model, 1, 2, 4, 0)
    given = model.model.encode(values, mask, cache.frames(values, mask))
    assert cache.encoded == 2 * len(cache.encoders)
    expected = model.model.encode(values, mask)
    torch.testing.assert_close(given.x, expected.x, rtol=0, atol=1e-5)
    assert torch.equal(given.mask, expected.mask)


def test_a_first_pass_gives_what_the_encoders_give_bit_for_bit(model, tmp_path):
    values, mask = batch(model, 1, 2, 0)
    given = model.model.encode(values, mask, FeatureCache(tmp_path, model).frames(values, mask))
    assert torch.equal(given.x, model.model.encode(values, mask).x)


def test_a_clip_that_comes_twice_is_encoded_once(tiny, tmp_path):
    cache = FeatureCache(tmp_path, tiny)
    values, mask = batch(tiny, 1, 1)
    x, _ = cache.frames(values, mask)["whisper"]
    assert torch.equal(x[0], x[1])
    assert cache.encoded == 1


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_is_as_near_as_it_says_also_the_first_time(dtype, error, tiny, tmp_path):
    values, mask = batch(tiny, 1, 2)
    whole = FeatureCache(tmp_path / "whole", tiny).frames(values, mask)["whisper"][0]
    with FeatureCache(tmp_path, tiny, dtype=dtype) as cache:
        first = cache.frames(values, mask)["whisper"][0]
    again = FeatureCache(tmp_path, tiny, dtype=dtype).frames(values, mask)["whisper"][0]
    assert torch.equal(first, again)
    assert first.dtype == torch.float32
    assert (first - whole).abs().max() > 0
    assert ((first - whole).abs() <= error * whole.abs() + 3e-8).all()


def test_halves_are_not_read_for_wholes(tiny, tmp_path):
    with FeatureCache(tmp_path, tiny, dtype="float16") as cache:
        cache.frames(*batch(tiny, 1))
    cache = FeatureCache(tmp_path, tiny)
    cache.frames(*batch(tiny, 1))
    assert cache.encoded == 1


def test_values_beyond_float16_are_refused(tiny, tmp_path):
    model = copy.deepcopy(tiny)
    model.model.encoders["whisper"].encoder.layer_norm.weight.data *= 1e5
    with pytest.raises(CacheError, match=r"encoders.whisper: values beyond float16; store bfloat16"):
        FeatureCache(tmp_path, model, dtype="float16").frames(*batch(model, 1))


def test_frames_that_are_no_numbers_are_not_stored(tiny, tmp_path):
    model = copy.deepcopy(tiny)
    model.model.encoders["whisper"].encoder.layer_norm.weight.data[0] = float("nan")
    with (
        pytest.raises(CacheError, match=r"encoders.whisper: NaN or infinity in its frames"),
        FeatureCache(tmp_path, model) as cache,
    ):
        cache.frames(*batch(model, 1))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "patch",
    [
        "encoders.whisper.layers=[0]",
        "encoders.whisper.context=clip",
        "encoders.whisper.arch.max_source_positions=40",
        "encoders.whisper.arch.activation_function=relu",
    ],
)
def test_other_options_are_another_key(patch, tiny, tmp_path):
    with FeatureCache(tmp_path, tiny) as cache:
        cache.frames(*batch(tiny, 1))
    other = build_model(*TINY, patch, seed=0)
    assert len(FeatureCache(tmp_path, other).stores["whisper"]) == 0


def test_what_is_beside_the_encoder_is_the_same_key(tiny, tmp_path):
    with FeatureCache(tmp_path, tiny) as cache:
        cache.frames(*batch(tiny, 1))
    patches = ["encoders.whisper.lr_scale=0.5", "llm.layers=1", "projector.0.stack=2"]
    other = build_model(*TINY, *patches, seed=0)
    assert len(FeatureCache(tmp_path, other).stores["whisper"]) == 1


def test_another_file_of_weights_with_the_same_path_is_another_key(speech, whisper, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(whisper, folder)
    spec = {**speech, "encoders": {"whisper": {"path": str(folder)}}}
    before = build_model(spec)
    with FeatureCache(tmp_path / "cache", before) as cache:
        cache.frames(*batch(before, 1))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.encoder.layer_norm.bias"] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    assert len(FeatureCache(tmp_path / "cache", before).stores["whisper"]) == 1
    assert len(FeatureCache(tmp_path / "cache", build_model(spec)).stores["whisper"]) == 0


def test_the_same_weights_elsewhere_are_the_same_key(speech, whisper, tmp_path):
    with FeatureCache(tmp_path / "cache", model := build_model(speech)) as cache:
        cache.frames(*batch(model, 1))
    shutil.copytree(whisper, tmp_path / "moved")
    moved = build_model({**speech, "encoders": {"whisper": {"path": str(tmp_path / "moved")}}})
    assert len(FeatureCache(tmp_path / "cache", moved).stores["whisper"]) == 1


def test_a_type_that_names_its_provider_too_as_a_saved_model_does_is_the_same_encoder(speech):
    named = {name: {**options, "type": f"usam:{name}"} for name, options in speech["encoders"].items()}
    assert abouts(build_model({**speech, "encoders": named}).model) == abouts(build_model(speech).model)


def test_an_encoder_of_ones_own_is_known_by_its_file_and_all_its_options():
    about = abouts(build_model(*TINY, "encoders.whisper={type: toy, freeze: all}", weights=False).model)
    _, written = about["whisper"]["by"]
    assert (written["file"], len(written["sha256"])) == ("toys.py", 64)
    assert about["whisper"]["options"]["freeze"] == "all"


def test_a_clip_is_known_by_its_own_samples_alone():
    values, mask = torch.rand(2, 100), prefix_mask(torch.tensor([100, 60]), 100)
    garbage = torch.where(mask, values, torch.rand(2, 100))
    keys = clip_keys(values, mask, 16000)
    assert keys == clip_keys(garbage, mask, 16000)
    assert keys[1:] == clip_keys(values[1:, :60], None, 16000)
    assert keys[1:] != clip_keys(values[1:, :61], None, 16000)
    assert keys != clip_keys(values, mask, 24000)


@pytest.mark.parametrize(
    ("patches", "reason"),
    [
        (["encoders.whisper.freeze=none"], r"encoders.whisper.freeze: .* trains, and changes its frames"),
        (["encoders.whisper.freeze=[encoder.conv1.*]"], r"encoders.whisper.freeze: .* trains"),
        (["encoders.whisper.lora={target_modules: [q_proj]}"], r"encoders.whisper.lora: its adapters train"),
        (["encoders.whisper.layers=weighted"], r"encoders.whisper.layers: the mix of its layers trains"),
    ],
)
def test_what_changes_or_is_not_stored_is_refused_with_the_reason(patches, reason, tmp_path):
    model = build_model(*TINY, *patches, seed=0)
    with pytest.raises(CacheError, match=f"frames cannot be stored: {reason}"):
        FeatureCache(tmp_path, model)


@encoders.register("dithered")
class Dithered(encoders.Encoder):
    """Loudness in steps of 20 ms, with noise in training."""

    sample_rate, frame_rate, dim = 16000, 50, 1

    def forward(self, audio, mask):
        audio = torch.nn.functional.pad(audio.masked_fill(~mask, 0), (0, -audio.shape[1] % 320))
        x = audio.unfold(1, 320, 320).square().mean(-1, keepdim=True) + torch.rand(()) * self.training
        return Frames(x, prefix_mask(self.config.length(mask.sum(-1)), x.shape[1]), 50)


def test_what_is_random_in_training_is_refused_unless_frozen(tmp_path):
    free, frozen = (build_model(*TINY, f"encoders.whisper={{type: dithered, freeze: {f}}}") for f in ("none", "all"))
    with pytest.raises(CacheError, match=r"encoders.whisper.freeze: none leaves on what is random in training"):
        FeatureCache(tmp_path, free)
    given = frozen.train().model.encode(*batch(frozen, 1)).x
    values, mask = batch(frozen, 1)
    assert torch.equal(frozen.model.encode(values, mask, FeatureCache(tmp_path, frozen).frames(values, mask)).x, given)


def test_every_encoder_that_is_refused_is_named(tmp_path):
    model = build_model("mini_paper", "encoders.mert.freeze=none", "encoders.whisper.freeze=none", seed=0)
    with pytest.raises(CacheError, match=r"encoders.mert.freeze.*encoders.whisper.freeze"):
        FeatureCache(tmp_path, model)


def test_a_structure_without_weights_is_refused(tmp_path):
    with torch.device("meta"):
        model = build_model(*TINY, weights=False)
    with pytest.raises(CacheError, match=r"encoders.whisper has no weights"):
        FeatureCache(tmp_path, model)


@pytest.mark.parametrize("hurt", [lambda file: flip(file, -5), lambda file: file.write_bytes(file.read_bytes()[:-5])])
def test_a_broken_shard_is_named_never_used_and_encoded_again_once_removed(hurt, tiny, tmp_path):
    for seed in (1, 2):
        with FeatureCache(tmp_path, tiny) as cache:
            expected = cache.frames(*batch(tiny, seed))
    broken = stored(tmp_path)[0]
    hurt(broken)
    values, mask = batch(tiny, 1, 2)
    with pytest.raises(StoreError, match=broken.name):
        FeatureCache(tmp_path, tiny).frames(values, mask)
    (why,) = verify(tmp_path)
    assert str(broken) in why
    verify(tmp_path, remove=True)
    assert verify(tmp_path) == []
    cache = FeatureCache(tmp_path, tiny)
    cache.frames(values, mask)
    assert cache.encoded == 1
    assert torch.equal(cache.frames(*batch(tiny, 2))["whisper"][0], expected["whisper"][0])


class Warnings(logging.Handler):
    """What is logged."""

    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


def test_a_full_cache_gives_frames_and_says_so_once(tiny, tmp_path):
    heard = Warnings()
    logging.getLogger("usam.data.cache").addHandler(heard)
    try:
        cache = FeatureCache(tmp_path, tiny, limit=6000 / 2**30, shard=1000)
        for seed in (0, 1, 2, 3, 0, 1, 2, 3):
            values, mask = batch(tiny, seed)
            x, _ = cache.frames(values, mask)["whisper"]
            torch.testing.assert_close(x, tiny.model.encoders["whisper"](values, mask).x)
    finally:
        logging.getLogger("usam.data.cache").removeHandler(heard)
    assert 4 < cache.encoded < 8
    assert heard.found == [
        f"{tmp_path}: its limit of {6000 / 2**30:g} GiB is reached; what is not stored is encoded each time"
    ]


def test_what_no_longer_fits_is_still_given_to_its_batch(tiny, tmp_path):
    cache = FeatureCache(tmp_path, tiny, limit=100 / 2**30, shard=2000)
    cache.frames(*batch(tiny, 1))  # gathered; the next batch has it as well, and wants to write
    values, mask = batch(tiny, 1, 2)
    x, _ = cache.frames(values, mask)["whisper"]
    torch.testing.assert_close(x, tiny.model.encoders["whisper"](values, mask).x)
    assert len(cache.stores["whisper"]) == 0


def test_a_file_is_no_cache(tiny, tmp_path):
    (tmp_path / "notes").write_text("")
    with pytest.raises(CacheError, match="notes: is a file; name a folder"):
        FeatureCache(tmp_path / "notes", tiny)


def test_nothing_is_held_by_a_folder_of_other_things(tmp_path):
    with pytest.raises(CacheError, match="no such folder"):
        held(tmp_path / "none")
    (tmp_path / "notes").mkdir()
    with pytest.raises(CacheError, match="holds no frames of encoders"):
        verify(tmp_path)


# What the model takes


def test_frames_of_some_encoders_may_be_given(tmp_path):
    model = build_model(*THREE, seed=0)
    values, mask = batch(model, 1, 2)
    frames = FeatureCache(tmp_path, model).frames(values, mask)
    given = model.model.encode(values, mask, {"mert": frames["mert"]})
    assert torch.equal(given.x, model.model.encode(values, mask).x)


def inputs(model):
    values, mask = batch(model, 1, 2)
    counts = model.config.parsed.placeholders(mask.sum(-1)).tolist()
    ids = torch.full((1, sum(counts) + 1), model.config.audio_token_id)
    ids[0, -1] = 1
    return {"input_ids": ids, "input_values": values, "input_values_mask": mask}


def test_forward_gives_the_same_from_frames(tiny, tmp_path):
    given = inputs(tiny)
    frames = FeatureCache(tmp_path, tiny).frames(given["input_values"], given["input_values_mask"])
    assert torch.equal(tiny(**given, audio_frames=frames).logits, tiny(**given).logits)


def test_forward_with_frames_compiles_without_a_break(tiny, tmp_path):
    given = inputs(tiny)
    frames = FeatureCache(tmp_path, tiny).frames(given["input_values"], given["input_values_mask"])
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(tiny, fullgraph=True, backend="eager")(**given, audio_frames=frames).logits
    assert torch.equal(found, tiny(**given).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, mask: {"wisper": (x, mask)}, "no encoder 'wisper'; did you mean 'whisper'"),
        (lambda x, mask: {"whisper": (x[:, 1:], mask)}, r"audio_frames\['whisper'\] is \(2, .* goes with input_values"),
        (lambda x, mask: {"whisper": (x[:1], mask)}, r"audio_frames\['whisper'\] is \(1, "),
        (lambda x, mask: {"whisper": (x, mask[:, 1:])}, r"the mask of audio_frames\['whisper'\] is"),
        (lambda x, mask: {"whisper": (x, mask.flip(1))}, "which come first"),
        (
            lambda x, mask: {"whisper": (x, torch.ones_like(mask))},
            r"counts \[32, 32\] frames, and these clips",
        ),
    ],
)
def test_frames_that_are_not_those_of_the_clips_are_refused(change, message, tiny, tmp_path):
    given = inputs(tiny)
    frames = FeatureCache(tmp_path, tiny).frames(given["input_values"], given["input_values_mask"])
    with pytest.raises(ValueError, match=message):
        tiny(**given, audio_frames=change(*frames["whisper"]))


def test_frames_in_generation_are_refused(tiny, tmp_path):
    given = inputs(tiny)
    frames = FeatureCache(tmp_path, tiny).frames(given["input_values"], given["input_values_mask"])
    with pytest.raises(ValueError, match="generation runs the encoders itself"):
        tiny.generate(**given, audio_frames=frames, max_new_tokens=1)
