"""Streams are standardised by statistics that training gathers once, and that belong to the model."""

import pytest
import torch
import toys  # noqa: F401
from conftest import noise
from safetensors.torch import load_file
from short_runs import SMALL

from usam import UsamForConditionalGeneration, UsamProcessor, build_fusion, build_model
from usam.data.cache import FeatureCache
from usam.data.trial import try_spec
from usam.model.statistics import gather
from usam.spec.spec import load_spec
from usam.testing import fusion_promises
from usam.training.run import read_run
from usam.training.start import train
from usam.types import Audio, Frames, prefix_mask

PROMISES = {
    "concat": fusion_promises("concat", standardize=True),
    "pam": fusion_promises("pam", standardize=True, layer_norm=False),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]
TINY = ["fusion.standardize=true", *(override.removeprefix("model.") for override in SMALL)]


@pytest.mark.parametrize("promise", CASES)
def test_a_fusion_that_standardises_keeps_its_promises(promise):
    promise()


def streams(*lengths, seed=0):
    """Clips of one stream, whose channels have other means and deviations; noise stands behind a clip."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lengths), max(lengths), 3, generator=generator) * torch.tensor([1.0, 50.0, 0.0]) + 7
    return {"ear": Frames(x, prefix_mask(torch.tensor(lengths), max(lengths)), 50.0)}


def sound(lengths):
    own = prefix_mask(torch.tensor(lengths) * 320, max(lengths) * 320)
    return Audio(torch.zeros(own.shape), own, 16000)


def test_the_clips_that_were_looked_at_have_mean_0_and_variance_1():
    fusion = build_fusion("concat", dims={"ear": 3}, standardize=True)
    some, more = streams(9, 4), streams(7, seed=1)
    fusion.gather([some, more])
    found = [fusion(some, sound([9, 4])), fusion(more, sound([7]))]
    x = torch.cat([frames.x[frames.mask] for frames in found])
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


def test_what_cannot_be_gathered_is_told():
    fusion = build_fusion("concat", dims={"ear": 3}, standardize=True)
    with pytest.raises(ValueError, match=r"no clip gives a frame of encoders\.ear"):
        fusion.gather([])
    with pytest.raises(ValueError, match=r"NaN or infinity in the frames of encoders\.ear"):
        fusion.gather([{"ear": Frames(torch.full((1, 2, 3), torch.inf), torch.ones(1, 2, dtype=torch.bool), 50.0)}])
    with pytest.raises(ValueError, match=r"write fusion\.standardize: true"):
        gather(build_model("tiny", weights=False), [])


# In a model


@pytest.fixture(scope="module")
def batch():
    processor = UsamProcessor.from_spec("tiny")
    return processor(text=["<|audio|> a", "<|audio|> b"], audio=[noise(0.4, 1), noise(1.2, 2)])


def test_before_statistics_are_gathered_it_says_what_to_do(batch):
    model = build_model("tiny", *TINY, seed=0)
    with pytest.raises(ValueError, match=r"not gathered yet: `usam train` .* usam\.model\.statistics\.gather"):
        model(**batch)
    gather(model, [batch])
    assert model(**batch).logits.isfinite().all()


def test_frames_of_a_cache_are_those_before(batch, tmp_path):
    model = build_model("tiny", *TINY, "encoders.whisper.freeze=all", seed=0)
    frames = FeatureCache(tmp_path, model).frames(batch["input_values"], batch["input_values_mask"].bool())
    gather(model, [{"audio_frames": frames, "input_values_mask": batch["input_values_mask"]}])
    given, plain = (model(**batch, **more).logits for more in ({"audio_frames": frames}, {}))
    torch.testing.assert_close(given, plain)


def test_a_check_of_the_spec_trains_with_it():
    assert try_spec(load_spec("tiny", *TINY)).sound


def statistics(folder):
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if ".statistics." in name}


def test_a_run_gathers_them_first_and_saves_them(run_file):
    run = read_run(run_file, *SMALL, "model.fusion.standardize=true", "model.encoders.whisper.freeze=all")
    folder = train(run)
    found = statistics(folder)
    assert len(found) == 2
    model = UsamForConditionalGeneration.from_pretrained(folder)
    assert model.model.fusion.gathered
    clips = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(noise(0.5 + 0.1 * i, seed=i)) for i in range(8)], batch_first=True
    )
    mask = prefix_mask(torch.tensor([round(16000 * (0.5 + 0.1 * i)) for i in range(8)]), clips.shape[1])
    heard = model.model.streams(Audio(clips, mask, 16000))["whisper"]
    x = heard.x[heard.mask]
    torch.testing.assert_close(found["model.fusion.statistics.whisper.mean"], x.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        found["model.fusion.statistics.whisper.scale"], x.std(0, correction=0), atol=1e-3, rtol=1e-2
    )


def test_the_next_stage_and_a_resumed_run_keep_them(run_file):
    frozen = ["model.fusion.standardize=true"]
    first = train(read_run(run_file, *SMALL, *frozen, "train.max_steps=2"))
    before = statistics(first)
    resumed = train(read_run(run_file, *SMALL, *frozen, "train.max_steps=4"), resume=True)
    run_file.with_name("one.jsonl").write_text('{"audio": "0.wav", "task": "asr", "answer": "ab"}\n' * 4)
    run_file.write_text(run_file.read_text().replace("model: tiny", f"model: {first}"))
    other = train(read_run(run_file, "data.train=one.jsonl", f"train.output_dir={run_file.parent}/next"))
    for folder in (resumed, other):
        assert all(torch.equal(tensor, before[name]) for name, tensor in statistics(folder).items())
