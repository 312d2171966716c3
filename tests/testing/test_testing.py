"""The kit catches every promise when it is broken, and only lets one be broken with a reason."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import ConfigDict
from tokenizers import normalizers
from torch import nn
from transformers import AutoModel, GraniteConfig, LlamaConfig, LlamaModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutput

from usam import SpecError, encoders, fusions, llm, losses, projectors
from usam.component import adapt
from usam.llm.tiny import Tiny
from usam.testing import (
    BrokenPromises,
    check_encoder,
    check_fusion,
    check_llm,
    check_loss,
    check_projector,
    encoder_promises,
    fusion_promises,
    llm_promises,
    loss_promises,
    projector_promises,
)
from usam.types import Frames, LossOutput, prefix_mask
from usam.weights import locate


@pytest.fixture(autouse=True)
def one_thread():
    """Such small tensors run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Encoders: windows of ten samples, each mapped by itself. Every class below breaks one promise.


@encoders.register("kit_honest")
class Honest(encoders.Encoder):
    class Config(encoders.Encoder.Config):
        path: str | None = None
        arch: dict[str, Any] | None = None
        gain: float | None = 1.0

    sample_rate = 1000
    frame_rate = 100
    dim = 4

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("window", torch.empty(10), persistent=False)
        self.bias = nn.Parameter(torch.empty(4))
        self.map = nn.Linear(10, 4)
        self.reset_parameters()

    def reset_parameters(self):
        self.window = torch.hann_window(10, device=self.window.device)
        nn.init.zeros_(self.bias)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.window.dtype != torch.float32:
            self.window = torch.hann_window(10, device=self.window.device)
        return self

    def heard(self, audio, mask):
        return audio.masked_fill(~mask, 0)

    def features(self, windows):
        return self.map((windows * self.window).to(self.map.weight.dtype)) + self.bias

    def valid(self, mask):
        return self.config.length(mask.sum(-1))

    def forward(self, audio, mask):
        size = self.config.length(audio.shape[1])
        audio = F.pad(self.heard(audio, mask), (0, 10 * size - audio.shape[1]))
        x = self.features(rearrange(audio, "b (t s) -> b t s", s=10))
        return Frames(x, prefix_mask(self.valid(mask), size), self.config.rate)


@encoders.register("kit_true_width")
class WrongDim(Honest):
    dim = 5

    def __init__(self, config):
        super().__init__(config)
        self.dim = 5


@encoders.register("kit_true_width_aux")
class AuxByTime(Honest):
    def forward(self, audio, mask):
        frames = super().forward(audio, mask)
        return Frames(frames.x, frames.mask, frames.rate, {"power": rearrange(frames.x, "b t d -> t b d")})


@encoders.register("kit_true_rate_mask")
class MaskRoundsDown(Honest):
    def valid(self, mask):
        return mask.sum(-1) // 10


@encoders.register("kit_true_rate_tensors")
class IntsRoundDown(Honest):
    class Config(Honest.Config):
        def length(self, samples):
            return super().length(samples) if isinstance(samples, torch.Tensor) else samples // 10 or 1


@encoders.register("kit_true_rate_says")
class SaysAnotherRate(Honest):
    class Config(Honest.Config):
        @property
        def rate(self):
            return 110.0

        def length(self, samples):
            return -(-samples // 10)


@encoders.register("kit_survives_silence")
class Normalises(Honest):
    def heard(self, audio, mask):
        audio = super().heard(audio, mask)
        return audio / audio.square().sum(-1, keepdim=True).sqrt()


@encoders.register("kit_ignores_padding")
class HearsPadding(Honest):
    def heard(self, audio, mask):
        return audio


@encoders.register("kit_keeps_batch_items_apart")
class MeanOverBatch(Honest):
    def features(self, windows):
        x = super().features(windows)
        return x - x.mean(0, keepdim=True)


@encoders.register("kit_keeps_batch_items_apart_by_a_hair")
class WhisperOfNeighbours(Honest):
    def features(self, windows):
        x = super().features(windows)
        return x + 1e-7 * x.roll(1, 0)


@encoders.register("kit_keeps_its_front_end_in_float32")
class CastsItsWindow(Honest):
    def _apply(self, fn, recurse=True):
        return nn.Module._apply(self, fn, recurse)


@encoders.register("kit_refuses_unknown_options")
class TakesAnything(Honest):
    class Config(Honest.Config):
        model_config = ConfigDict(extra="ignore")


@encoders.register("kit_loads_nothing_in_init")
class LoadsInInit(Honest):
    def __init__(self, config):
        super().__init__(config)
        if config.path:
            locate(config.path)


@encoders.register("kit_survives_meta_device_parameter")
class ForgetsItsBias(Honest):
    def __init__(self, config):
        super().__init__(config)
        nn.init.zeros_(self.bias)

    def reset_parameters(self):
        self.window = torch.hann_window(10, device=self.window.device)


@encoders.register("kit_survives_meta_device_buffer")
class ForgetsItsWindow(Honest):
    def __init__(self, config):
        super().__init__(config)
        self.window = torch.hann_window(10)

    def reset_parameters(self):
        nn.init.zeros_(self.bias)


@encoders.register("kit_survives_meta_device_tensor")
class PlainTensor(Honest):
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.ones(4)

    def features(self, windows):
        return super().features(windows) * self.scale


@encoders.register("kit_survives_meta_device_item")
class ReadsAValue(Honest):
    def __init__(self, config):
        super().__init__(config)
        self.rates = [value.item() for value in torch.linspace(0, 0.1, 2)]


@encoders.register("kit_gradient_reaches_every_trainable_parameter")
class UnusedLayer(Honest):
    def __init__(self, config):
        super().__init__(config)
        self.spare = nn.Linear(4, 4)


@encoders.register("kit_gradient_reaches_every_trainable_parameter_zero")
class ZeroGradient(Honest):
    def features(self, windows):
        return self.map((windows * self.window).to(self.map.weight.dtype)) + 0 * self.bias


@encoders.register("kit_stays_frozen_dropout")
class AlwaysDrops(Honest):
    def features(self, windows):
        return F.dropout(super().features(windows), 0.5)


@encoders.register("kit_stays_frozen_statistics")
class DriftingNorm(Honest):
    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm1d(4)

    def train(self, mode=True):
        return nn.Module.train(self, mode)

    def features(self, windows):
        return rearrange(self.norm(rearrange(super().features(windows), "b t d -> b d t")), "b d t -> b t d")


@encoders.register("kit_stays_frozen_gradient")
class Unfreezes(Honest):
    def train(self, mode=True):
        super().train(mode)
        self.bias.requires_grad_(mode)
        return self


@encoders.register("kit_runs_in_bfloat16")
class Cancels(Honest):
    def features(self, windows):
        return (super().features(windows) + 100) - 100


@encoders.register("kit_runs_in_bfloat16_fails")
class Float32Only(Honest):
    def features(self, windows):
        return self.map(windows * self.window) + self.bias


@encoders.register("kit_compiles")
class BreaksGraph(Honest):
    def features(self, windows):
        x = super().features(windows)
        return x if x.detach().sum().item() > 1e9 else x + 0


@encoders.register("kit_compiles_branch")
class Branches(Honest):
    def forward(self, audio, mask):
        if not mask.any():
            return Frames(audio[:, :0].unsqueeze(-1).expand(-1, -1, 4), mask[:, :0], self.config.rate)
        return super().forward(audio, mask)


@encoders.register("kit_compiles_otherwise")
class CompilesToAnother(Honest):
    def features(self, windows):
        return super().features(windows) * (2 if torch.compiler.is_compiling() else 1)


@encoders.register("kit_is_deterministic")
class Dithers(Honest):
    def heard(self, audio, mask):
        return super().heard(audio, mask) + 1e-6 * torch.randn_like(audio)


@encoders.register("kit_state_dict_round_trips")
class RandomConstant(Honest):
    def __init__(self, config):
        super().__init__(config)
        self.offset = 0.0 if self.bias.is_meta else torch.rand(()).tolist()

    def features(self, windows):
        return super().features(windows) + self.offset


@encoders.register("kit_hears_its_clip")
class HearsNothing(Honest):
    def features(self, windows):
        return super().features(0 * windows)


@encoders.register("kit_hears_its_clip_to_its_end")
class HearsTheBeginning(Honest):
    def heard(self, audio, mask):
        first = torch.arange(audio.shape[1]) < 500
        return super().heard(audio, mask & first)


@encoders.register("kit_leaves_its_input_alone")
class MasksInPlace(Honest):
    def heard(self, audio, mask):
        return audio.masked_fill_(~mask, 0).mul_(0.5)


@encoders.register("kit_is_deterministic_between")
class RemembersWhatItHeard(Honest):
    """Scales by the loudest and the softest of the batches that it has heard so far."""

    def __init__(self, config):
        super().__init__(config)
        self.peaks = set()

    def features(self, windows):
        self.peaks.add(windows.abs().max().tolist())
        return super().features(windows / (max(self.peaks) + min(self.peaks)))


ENCODERS = {
    "true_width": r"expected frames \(3, 100, 5\); found \(3, 100, 4\)",
    "true_width_aux": r"aux\['power'\] by item; found \(100, 3, 4\)",
    "true_rate_mask": "masks of config.length frames; found 0 instead of 1 for 1 samples",
    "true_rate_tensors": "the same from ints and from integer tensors",
    "true_rate_says": "about 11000 frames for 100 s; found 10000",
    "survives_silence": "finite frames for silence; found NaN",
    "ignores_padding": "frames of a clip of 1 samples, alone and in a batch of 1333",
    "keeps_batch_items_apart": "the frames of a clip beside others",
    "keeps_batch_items_apart_by_a_hair": r"no gradient from item 0 to others; found some in items \[2\]",
    "keeps_its_front_end_in_float32": "window in torch.float32; found torch.bfloat16",
    "refuses_unknown_options": "a SpecError for 'no_such_option'; found that it was accepted",
    "loads_nothing_in_init": "a config and no weights; found ComponentError",
    "survives_meta_device_parameter": "that all is filled; found bias uninitialised",
    "survives_meta_device_buffer": "the buffer window as a plain build has it without NaN",
    "survives_meta_device_tensor": "plain tensors: scale",
    "survives_meta_device_item": "raised RuntimeError",
    "gradient_reaches_every_trainable_parameter": "a gradient; found none for spare.weight",
    "gradient_reaches_every_trainable_parameter_zero": "only zeros for bias",
    "stays_frozen_dropout": "two equal calls in training mode",
    "stays_frozen_statistics": "norm.running_mean stands still",
    "stays_frozen_gradient": "that nothing trains; found bias",
    "runs_in_bfloat16": "an error of at most 10%",
    "runs_in_bfloat16_fails": "raised RuntimeError",
    "compiles": "no graph break; found .*item",
    "compiles_branch": "no graph break; found 1: generic_jump",
    "compiles_otherwise": "the result without torch.compile",
    "is_deterministic": "the same output twice",
    "is_deterministic_between": "the same output twice",
    "hears_its_clip": "other frames in the first third",
    "hears_its_clip_to_its_end": "other frames in the last third",
    "leaves_its_input_alone": "the input as it was given",
    "state_dict_round_trips": "the output of the module that was saved",
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_broken_encoder_is_caught(name):
    broken = [p for p in encoder_promises(f"kit_{name}", arch={"any": 1}) if name.startswith(p.name)]
    assert len(broken) == 1
    with pytest.raises(BrokenPromises, match=ENCODERS[name]):
        broken[0]()


def test_an_option_of_none_where_the_default_is_not_none_is_caught():
    (promise,) = (p for p in encoder_promises("kit_honest", gain=None) if p.name == "config_round_trips")
    with pytest.raises(BrokenPromises, match="defaults that are not None"):
        promise()


def test_an_honest_encoder_keeps_all():
    report = check_encoder("kit_honest", arch={"any": 1})
    assert (len(report.kept), report.expected_failures, report.notes) == (18, {}, {})
    assert str(report) == "usam.encoders:kit_honest: 18 promises kept, 0 expected failures"


# Fusions: the streams side by side, with their mean as an offset.


@fusions.register("kit_honest")
class HonestFusion(fusions.Fusion):
    def __init__(self, config, *, dims):
        super().__init__(config, dims=dims)
        self.dim = sum(dims.values())

    def forward(self, streams, audio):
        aligned, mask, rate = self.align(streams, audio)
        return Frames(torch.cat(aligned, -1), mask, rate)


@fusions.register("kit_true_width")
class FusionOfWrongDim(HonestFusion):
    def __init__(self, config, *, dims):
        super().__init__(config, dims=dims)
        self.dim = max(dims.values())


@fusions.register("kit_keeps_the_clock")
class DropsTheRest(HonestFusion):
    class Config(fusions.Fusion.Config):
        def length(self, streams, samples, sample_rate):
            frames, rate = super().length(streams, samples, sample_rate)
            return samples * int(2 * rate) // (2 * sample_rate) if self.rate is None and len(
                streams
            ) > 1 else frames, rate


@fusions.register("kit_keeps_the_clock_mask")
class AllIsReal(HonestFusion):
    def forward(self, streams, audio):
        frames = super().forward(streams, audio)
        return Frames(frames.x, torch.ones_like(frames.mask), frames.rate)


@fusions.register("kit_survives_empty_streams")
class ScalesToOne(HonestFusion):
    def forward(self, streams, audio):
        aligned, mask, rate = self.align(streams, audio)
        return Frames(torch.cat([x / x.norm(dim=(1, 2), keepdim=True) for x in aligned], -1), mask, rate)


@fusions.register("kit_ignores_the_order_of_names")
class InOrderOfArrival(HonestFusion):
    def forward(self, streams, audio):
        self.names = list(streams)
        return super().forward(streams, audio)


@fusions.register("kit_leaves_a_single_stream_unchanged")
class Doubles(HonestFusion):
    def forward(self, streams, audio):
        frames = super().forward(streams, audio)
        return Frames(2 * frames.x, frames.mask, frames.rate)


@fusions.register("kit_aligns_time")
class FrameByFrame(HonestFusion):
    """Frame i of every stream together, whatever their rates."""

    def forward(self, streams, audio):
        _, mask, rate = self.align(streams, audio)
        size = mask.shape[1]
        x = [F.pad(streams[n].x, (0, 0, 0, max(0, size - streams[n].x.shape[1])))[:, :size] for n in self.names]
        return Frames(torch.cat(x, -1), mask, rate)


@fusions.register("kit_ignores_padding")
class ReadsOn(HonestFusion):
    def forward(self, streams, audio):
        full = {name: Frames(s.x, torch.ones_like(s.mask), s.rate) for name, s in streams.items()}
        aligned, _, rate = self.align(full, audio)
        return Frames(torch.cat(aligned, -1), self.align(streams, audio)[1], rate)


@fusions.register("kit_keeps_batch_items_apart")
class CentresTheBatch(HonestFusion):
    def forward(self, streams, audio):
        frames = super().forward(streams, audio)
        return Frames(frames.x - frames.x.mean(0), frames.mask, frames.rate)


@fusions.register("kit_honest_prompted")
class HonestPromptedFusion(HonestFusion):
    reads_prompt = True

    def __init__(self, config, *, dims, prompt_dim):
        super().__init__(config, dims=dims)
        self.gate = nn.Linear(prompt_dim, self.dim)

    def said(self, prompt):
        words = prompt.x.masked_fill(~prompt.mask.unsqueeze(-1), 0)
        return words.sum(1, keepdim=True) / prompt.mask.sum(-1)[:, None, None]

    def forward(self, streams, audio, prompt):
        frames = super().forward(streams, audio)
        x = frames.x * (1 + self.gate(self.said(prompt)))
        return Frames(x.masked_fill(~frames.mask.unsqueeze(-1), 0), frames.mask, frames.rate)


@fusions.register("kit_hears_its_own_prompt")
class FusesAllPrompts(HonestPromptedFusion):
    def said(self, prompt):
        return super().said(prompt).mean(0, keepdim=True)


@fusions.register("kit_ignores_prompt_padding")
class FusesPromptPadding(HonestPromptedFusion):
    def said(self, prompt):
        return prompt.x.mean(1, keepdim=True)


@fusions.register("kit_fixes_its_prompt")
class FusesWithoutThePrompt(HonestPromptedFusion):
    def fixed(self, prompt):
        return {"type": "concat"}, {}


@fusions.register("kit_standardizes_its_streams")
class TakesThemAsTheyAre(HonestFusion):
    def __init__(self, config, *, dims):
        super().__init__(config.model_copy(update={"standardize": False}), dims=dims)


FUSIONS = {
    "standardizes_its_streams": "that it knows statistics; found none",
    "true_width": r"expected frames \(3, 13, 6\); found \(3, 13, 15\)",
    "keeps_the_clock": r"\[1, 1, 1, 1, 1, 1, 2, 4, 13\] frames",
    "keeps_the_clock_mask": r"masks of \[1, 1, 1, 1, 1, 1, 2, 4, 13\]",
    "survives_empty_streams": "a stream without a valid frame; found NaN",
    "ignores_the_order_of_names": "the same frames for names in reverse",
    "leaves_a_single_stream_unchanged": "the stream's own frames",
    "aligns_time": r"frame 0 \(0.040 s\) hears stream 'a' \(50/s\) around its own time; found 0.010 s",
    "ignores_padding": "frames of a clip of 1 samples, alone and in a batch of 16000",
    "keeps_batch_items_apart": "the frames of a clip beside others",
    "hears_its_own_prompt": "clip 0 when prompt 1 changes",
    "ignores_prompt_padding": "its prompt among 6 and 12 words",
    "fixes_its_prompt": "the frames with that prompt",
}


@pytest.mark.parametrize("name", FUSIONS)
def test_a_broken_fusion_is_caught(name):
    broken = [p for p in fusion_promises(f"kit_{name}") if name.startswith(p.name)]
    with pytest.raises(BrokenPromises, match=FUSIONS[name]):
        broken[0]()


def test_an_honest_fusion_keeps_all():
    assert len(check_fusion("kit_honest").kept) == 23
    assert len(check_fusion("kit_honest_prompted").kept) == 23


# Projectors: frames scaled by what the prompt says.


@projectors.register("kit_honest")
class HonestProjector(projectors.Projector):
    reads_prompt = True

    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or in_dim
        self.map = nn.Linear(in_dim, self.dim)
        self.gate = nn.Linear(prompt_dim, self.dim)

    def said(self, prompt):
        words = prompt.x.masked_fill(~prompt.mask.unsqueeze(-1), 0)
        return words.sum(1, keepdim=True) / prompt.mask.sum(-1)[:, None, None]

    def project(self, x, mask):
        return self.map(x)

    def forward(self, frames, prompt=None):
        x = self.project(frames.x, frames.mask) * (1 + self.gate(self.said(prompt)))
        return Frames(x, frames.mask, frames.rate)


@projectors.register("kit_true_width")
class KeepsItsWidth(HonestProjector):
    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim)


@projectors.register("kit_true_rate")
class DropsTheLastGroup(HonestProjector):
    class Config(projectors.Projector.Config):
        def length(self, frames, rate):
            return frames // 2, rate / 2

    def forward(self, frames, prompt=None):
        out = super().forward(frames, prompt)
        return Frames(out.x[:, 1::2], out.mask[:, 1::2], out.rate / 2)


@projectors.register("kit_true_rate_says")
class ForgetsItsRate(HonestProjector):
    class Config(projectors.Projector.Config):
        def length(self, frames, rate):
            return -(-frames // 2), rate / 2

    def forward(self, frames, prompt=None):
        out = super().forward(frames, prompt)
        return Frames(out.x[:, ::2], out.mask[:, ::2], out.rate)


@projectors.register("kit_hears_its_own_prompt")
class HearsAllPrompts(HonestProjector):
    def said(self, prompt):
        return super().said(prompt).mean(0, keepdim=True)


@projectors.register("kit_hears_its_own_prompt_never")
class HearsNoPrompt(HonestProjector):
    def said(self, prompt):
        return 0 * super().said(prompt)


@projectors.register("kit_hears_its_own_prompt_secretly")
class HearsSecretly(HonestProjector):
    reads_prompt = False


@projectors.register("kit_ignores_prompt_padding")
class HearsPromptPadding(HonestProjector):
    def said(self, prompt):
        return prompt.x.mean(1, keepdim=True)


@projectors.register("kit_ignores_padding")
class SumsOverTime(HonestProjector):
    def project(self, x, mask):
        return self.map(x) + self.map(x.mean(1, keepdim=True))


@projectors.register("kit_keeps_batch_items_apart")
class SumsOverBatch(HonestProjector):
    def project(self, x, mask):
        x = self.map(x.masked_fill(~mask.unsqueeze(-1), 0))
        return x + x[:, :1].sum(0, keepdim=True)


@projectors.register("kit_hears_every_frame")
class HearsThePromptAlone(HonestProjector):
    def project(self, x, mask):
        return super().project(0 * x, mask)


@projectors.register("kit_hears_every_frame_but_some")
class SkipsFrames(HonestProjector):
    class Config(projectors.Projector.Config):
        def length(self, frames, rate):
            return -(-frames // 2), rate / 2

    def forward(self, frames, prompt=None):
        out = super().forward(frames, prompt)
        return Frames(out.x[:, ::2], out.mask[:, ::2], out.rate / 2)


@projectors.register("kit_follows_time")
class TurnsTimeAround(HonestProjector):
    """Reverses an item's own frames, so that all else stays true."""

    def project(self, x, mask):
        size = mask.sum(-1, keepdim=True)
        index = (size - 1 - torch.arange(x.shape[1])).clamp_min(0)
        return super().project(x.gather(1, index.unsqueeze(-1).expand_as(x)), mask)


@projectors.register("kit_fixes_its_prompt")
class FixesWithoutThePrompt(HonestProjector):
    def fixed(self, prompt):
        return {"type": "linear", "stack": 1}, {"map.0.weight": self.map.weight, "map.0.bias": self.map.bias}


@projectors.register("kit_borrows_the_vocabulary")
class ReadsNoVocabulary(HonestProjector):
    reads_vocabulary = True

    def forward(self, frames, prompt=None, vocabulary=None):
        return super().forward(frames, prompt)


@projectors.register("kit_borrows_the_vocabulary_for_good")
class KeepsTheVocabulary(ReadsNoVocabulary):
    def forward(self, frames, prompt=None, vocabulary=None):
        self.lent = vocabulary
        found = super().forward(frames, prompt)
        return Frames(found.x + vocabulary.embed(torch.tensor(0)), found.mask, found.rate)


PROJECTORS = {
    "borrows_the_vocabulary": "other frames with another vocabulary; found the same",
    "borrows_the_vocabulary_for_good": r"keeps no vocabulary; found \.lent",
    "true_width": "dim 8 for out_dim=8; found 12",
    "true_rate": "at least 1 frame for 1 frame; found 0",
    "true_rate_says": "the rate 12.5; found 25",
    "hears_its_own_prompt": "item 0 when prompt 1 changes",
    "hears_its_own_prompt_never": "item 1 changes with prompt 1; found that it does not",
    "hears_its_own_prompt_secretly": "works without a prompt; found AttributeError",
    "ignores_prompt_padding": "whose prompt has 6 words, among 6 and 12",
    "ignores_padding": "frames of an item of 1 frames, alone and in a batch of 53",
    "keeps_batch_items_apart": "the frames of an item beside others",
    "hears_every_frame": "that every frame is heard",
    "hears_every_frame_but_some": r"that \[1, 3, 5, 7, 9\] of 40 are not",
    "follows_time": "the first half hears around frame 29.5, the second around 9.5",
    "fixes_its_prompt": "the frames with that prompt",
}


@pytest.mark.parametrize("name", PROJECTORS)
def test_a_broken_projector_is_caught(name):
    broken = [p for p in projector_promises(f"kit_{name}") if name.startswith(p.name)]
    with pytest.raises(BrokenPromises, match=PROJECTORS[name]):
        broken[0]()


def test_an_honest_projector_keeps_all():
    assert len(check_projector("kit_honest").kept) == 21


# Losses: the distance of the states from the mean embedding of the answers.


@losses.register("kit_honest")
class HonestLoss(losses.Loss):
    def __init__(self, config, *, dim):
        super().__init__(config, dim=dim)
        self.map = nn.Linear(dim, dim)

    def distance(self, inputs):
        x, mask = inputs.answer
        middle = (x * mask.unsqueeze(-1)).sum((0, 1)) / mask.sum()
        return (self.map(inputs.hidden.to(self.map.weight.dtype)) - middle).square().mean(-1)

    def forward(self, inputs):
        if inputs.labels.numel() == 0:
            return LossOutput(self.nothing(inputs))
        return LossOutput(self.distance(inputs).mean())


@losses.register("kit_gives_a_finite_scalar")
class NotReduced(HonestLoss):
    def forward(self, inputs):
        return LossOutput(self.distance(inputs))


@losses.register("kit_says_nothing_without_supervision")
class MeanOfNothing(HonestLoss):
    def forward(self, inputs):
        return LossOutput(self.distance(inputs).mean())


@losses.register("kit_says_nothing_without_supervision_alone")
class ZeroWithoutParameters(HonestLoss):
    def forward(self, inputs):
        return super().forward(inputs) if inputs.labels.numel() else LossOutput(inputs.hidden.sum() * 0)


@losses.register("kit_survives_degenerate_batches")
class Whitens(HonestLoss):
    def forward(self, inputs):
        if inputs.labels.numel() == 0:
            return LossOutput(self.nothing(inputs))
        return LossOutput((self.distance(inputs) / inputs.hidden.std(0).mean()).mean())


@losses.register("kit_survives_degenerate_batches_gradient")
class Root(HonestLoss):
    def forward(self, inputs):
        value = super().forward(inputs).value
        spread = (inputs.hidden - inputs.hidden.mean(0)).square().sum().sqrt() if inputs.labels.numel() else 0.0
        return LossOutput(value + spread)


@losses.register("kit_ignores_the_order_of_samples")
class LaterCountsMore(HonestLoss):
    def distance(self, inputs):
        return super().distance(inputs) * torch.arange(len(inputs.hidden))


@losses.register("kit_takes_states_of_another_dtype")
class Float32StatesOnly(HonestLoss):
    def distance(self, inputs):
        return self.map(inputs.hidden).square().mean(-1)


@losses.register("kit_does_without_what_is_not_given")
class NeedsItsTeacher(HonestLoss):
    def distance(self, inputs):
        weights = [extra["x_weight"] for extra in inputs.batch["extra"]]
        return super().distance(inputs) * sum(weights)


@losses.register("kit_pulls_at_something")
class PullsAtItself(losses.Loss):
    def __init__(self, config, *, dim):
        super().__init__(config, dim=dim)
        self.bias = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return LossOutput(self.bias.square() + self.nothing(inputs))


@losses.register("kit_is_a_mean")
class Adds(HonestLoss):
    def forward(self, inputs):
        if inputs.labels.numel() == 0:
            return LossOutput(self.nothing(inputs))
        return LossOutput(self.distance(inputs).sum())


@losses.register("kit_gives_a_finite_scalar_and_lets_go")
class HoldsItsGraph(HonestLoss):
    def forward(self, inputs):
        value = super().forward(inputs).value
        return LossOutput(value, {"distance": value})


@losses.register("kit_reads_states_or_says_so")
class CallsTheHead(HonestLoss):
    needs_states = False

    def forward(self, inputs):
        if inputs.labels.numel() == 0:
            return LossOutput(self.nothing(inputs))
        return LossOutput(inputs.head(inputs.hidden).square().mean() + self.nothing(inputs))


@losses.register("kit_reads_states_or_says_so_of_frames")
class ReadsFrames(HonestLoss):
    needs_frames = False

    def forward(self, inputs):
        return LossOutput(super().forward(inputs).value + inputs.audio.x.square().mean())


@losses.register("kit_borrows_the_vocabulary")
class LossKeepsTheVocabulary(HonestLoss):
    def forward(self, inputs):
        self.lent = inputs.vocabulary
        return super().forward(inputs)


LOSSES = {
    "reads_states_or_says_so": "that the head is not called; found a call",
    "reads_states_or_says_so_of_frames": "the value with other frames",
    "borrows_the_vocabulary": r"keeps no vocabulary; found \.lent",
    "gives_a_finite_scalar": r"a scalar; found shape \(19,\)",
    "says_nothing_without_supervision": "expected 0; found nan",
    "says_nothing_without_supervision_alone": "none for map.weight, map.bias",
    "survives_degenerate_batches": "a finite value for constant inputs; found inf",
    "survives_degenerate_batches_gradient": "finite gradients for constant inputs; found NaN or infinity in hidden",
    "ignores_the_order_of_samples": "the value of reordered samples",
    "gives_a_finite_scalar_and_lets_go": "by-products without a gradient; found one in distance",
    "pulls_at_something": "a gradient that is not zero for what it was given; found none",
    "is_a_mean": "for the same samples twice; found",
    "does_without_what_is_not_given": "a ValueError that says what is missing; found KeyError: 'extra'",
    "takes_states_of_another_dtype": "raised RuntimeError",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_broken_loss_is_caught(name):
    columns = {"extra": [{"x_weight": 1.0}] * 4} if name.startswith("does_without") else None
    broken = [p for p in loss_promises(f"kit_{name}", batch=columns) if name.startswith(p.name)]
    with pytest.raises(BrokenPromises, match=LOSSES[name]):
        broken[0]()


def test_an_honest_loss_keeps_all():
    assert len(check_loss("kit_honest").kept) == 21


@losses.register("kit_aux")
class OfTheRouter(losses.Loss):
    def forward(self, inputs):
        if "0.gates" not in inputs.aux:
            return LossOutput(self.nothing(inputs))
        return LossOutput(inputs.aux["0.gates"].square().mean() + 0 * inputs.hidden.sum())


@losses.register("kit_columns")
class WeighsItsSamples(HonestLoss):
    """Each token weighs what its row says."""

    def distance(self, inputs):
        weights = [extra.get("x_weight", 1.0) for extra in inputs.batch.get("extra") or [{}] * len(inputs.answer[1])]
        ends = inputs.answer[1].sum(-1).cumsum(0)
        sample = torch.searchsorted(ends, torch.arange(len(inputs.hidden)), right=True)
        return super().distance(inputs) * torch.tensor(weights)[sample]


def test_a_loss_is_given_the_columns_it_reads():
    report = check_loss("kit_columns", batch={"extra": [{"x_weight": weight} for weight in (1.0, 2.0, 0.5, 3.0)]})
    assert len(report.kept) == 21


def test_a_loss_is_given_the_by_products_it_reads():
    check_loss("kit_aux", aux={"0.gates": torch.rand(4, 3)})


# Language models: Tiny, with one thing wrong.


@llm.register("kit_true_width")
class WiderThanItsTable(Tiny):
    @property
    def dim(self):
        return 2 * self.config.dim


@llm.register("kit_keeps_its_text_config")
class CopiesItsConfig(Tiny):
    def backbone(self, text_config):
        return super().backbone(copy.deepcopy(text_config))


@llm.register("kit_matches_the_causal_lm")
class GraniteWithoutItsScale(Tiny):
    def text_config(self):
        return GraniteConfig(**{**super().text_config().to_diff_dict(), "logits_scaling": 3.0})


@llm.register("kit_hears_embeddings_as_ids")
class ScalesIds(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)

        def scaled(module, args, kwargs):
            if kwargs.get("inputs_embeds") is None:
                kwargs["inputs_embeds"] = 2 * module.embed_tokens(kwargs.pop("input_ids"))
            return args, kwargs

        backbone.register_forward_pre_hook(scaled, with_kwargs=True)
        return backbone


@llm.register("kit_hears_embeddings_as_ids_in_place")
class WritesIntoItsInput(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)

        def scale(module, args, kwargs):
            if kwargs.get("inputs_embeds") is None:
                kwargs["inputs_embeds"] = module.embed_tokens(kwargs.pop("input_ids"))
            kwargs["inputs_embeds"].mul_(2)
            return args, kwargs

        backbone.register_forward_pre_hook(scale, with_kwargs=True)
        return backbone


@llm.register("kit_looks_only_back")
class LooksAhead(Tiny):
    def text_config(self):
        config = super().text_config()
        config.is_causal = False
        return config


@llm.register("kit_ignores_left_padding")
class DropsTheMask(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        gone = {"attention_mask": None, "position_ids": None}
        backbone.register_forward_pre_hook(lambda module, args, kwargs: (args, {**kwargs, **gone}), with_kwargs=True)
        return backbone


@llm.register("kit_hears_from_beside")
class KeepsItsCache(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        backbone.register_forward_hook(lambda module, args, found: BaseModelOutput(found.last_hidden_state))
        return backbone


@llm.register("kit_hears_from_beside_too_late")
class AnswersBeforeItsLayers(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)

        def early(module, args, kwargs, found):
            found.last_hidden_state = module.norm(kwargs["inputs_embeds"])

        backbone.register_forward_hook(early, with_kwargs=True)
        return backbone


@llm.register("kit_survives_meta_device")
class AlwaysOnTheCPU(Tiny):
    def backbone(self, text_config):
        with torch.device("cpu"):
            return super().backbone(text_config)


@llm.register("kit_tokenizer_round_trips")
class LowersItsText(Tiny):
    def tokenizer(self):
        tokenizer = super().tokenizer()
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        return tokenizer


@llm.register("kit_tokenizer_round_trips_within")
class AddsWords(Tiny):
    def tokenizer(self):
        tokenizer = super().tokenizer()
        tokenizer.add_tokens(["<|more|>"])
        return tokenizer


@llm.register("kit_lora_starts_as_no_op")
class RandomLoRA(Tiny):
    def backbone(self, text_config):
        backbone = adapt(super().backbone(text_config), self.config)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.02)
        return backbone


@llm.register("kit_stays_frozen")
class DropsAttention(Tiny):
    def text_config(self):
        config = super().text_config()
        config.attention_dropout = 0.5
        return config


@llm.register("kit_stays_frozen_thaws")
class ThawsInTraining(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        train = backbone.train

        def thaw(mode=True):
            backbone.norm.requires_grad_(True)
            return train(mode)

        backbone.train = thaw
        return backbone


@llm.register("kit_gradient_reaches_every_trainable_parameter")
class SparesALayer(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        backbone.spare = nn.Linear(4, 4)
        return backbone


def before(backbone, change):
    """Lets `change` see the arguments of each call first."""
    backbone.register_forward_pre_hook(lambda module, args, kwargs: (args, change(kwargs)), with_kwargs=True)
    return backbone


@llm.register("kit_decodes_from_its_cache")
class IgnoresItsCache(Tiny):
    def backbone(self, text_config):
        def fresh(kwargs):
            kept = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
            return {**kept, "attention_mask": kept["attention_mask"][:, -kept["inputs_embeds"].shape[1] :]}

        return before(super().backbone(text_config), fresh)


@llm.register("kit_decodes_from_its_cache_positions")
class BeginsAnewAfterItsCache(Tiny):
    def backbone(self, text_config):
        def anew(kwargs):
            length = kwargs["inputs_embeds"].shape[1]
            return {**kwargs, "position_ids": kwargs["position_ids"] - kwargs["position_ids"][:, :1] * (length < 5)}

        return before(super().backbone(text_config), anew)


@llm.register("kit_decodes_from_its_cache_padding")
class SeesPaddingAfterItsCache(Tiny):
    def backbone(self, text_config):
        def unmasked(kwargs):
            step = kwargs["inputs_embeds"].shape[1] < 5
            return {**kwargs, "attention_mask": None} if step else kwargs

        return before(super().backbone(text_config), unmasked)


@llm.register("kit_decodes_from_its_cache_returns")
class GivesNoCache(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        backbone.register_forward_hook(lambda module, args, found: BaseModelOutput(found.last_hidden_state))
        return backbone


@llm.register("kit_answers_inside_a_model")
class HeadOfItsOwnScale(Tiny):
    """What is neither in its config nor in its weights is lost when it is saved."""

    made = 0

    def head(self, text_config):
        head = super().head(text_config)
        HeadOfItsOwnScale.made += 1
        scale = HeadOfItsOwnScale.made
        head.register_forward_hook(lambda module, args, logits: logits * scale)
        return head


@llm.register("kit_answers_inside_a_model_config")
class ConfigUnderAnothersName(Tiny):
    """Its config calls itself a Llama's, and comes back as one."""

    def text_config(self):
        return type("MyConfig", (LlamaConfig,), {})(**super().text_config().to_diff_dict())

    def backbone(self, text_config):
        return LlamaModel(text_config)


@llm.register("kit_tokenizer_gives_offsets")
class ForgetsItsPlaces(Tiny):
    def tokenizer(self):
        class Slow(PreTrainedTokenizerFast):
            def _batch_encode_plus(self, *args, return_offsets_mapping=False, **kwargs):
                if return_offsets_mapping:
                    raise NotImplementedError("return_offset_mapping is not available when using Python tokenizers")
                return super()._batch_encode_plus(*args, **kwargs)

            _encode_plus = _batch_encode_plus

        fast = super().tokenizer()
        return Slow(tokenizer_object=fast.backend_tokenizer, pad_token=fast.pad_token, eos_token=fast.eos_token)


@llm.register("kit_tokenizer_gives_offsets_elsewhere")
class CountsFromOne(Tiny):
    def tokenizer(self):
        class Shifted(PreTrainedTokenizerFast):
            def __call__(self, *args, **kwargs):
                found = super().__call__(*args, **kwargs)
                if "offset_mapping" in found:
                    found["offset_mapping"] = [(max(a - 1, 0), max(b - 1, 0)) for a, b in found["offset_mapping"]]
                return found

        fast = super().tokenizer()
        return Shifted(tokenizer_object=fast.backend_tokenizer, pad_token=fast.pad_token, eos_token=fast.eos_token)


@llm.register("kit_keeps_gradient_checkpointing")
class EvalWhenFrozen(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        if self.config.freeze == "all":
            backbone.train = lambda mode=True: backbone
            nn.Module.train(backbone, False)
        return backbone


@llm.register("kit_hears_all_before")
class ForgetsAtOnce(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        for layer in backbone.layers:
            layer.self_attn.register_forward_hook(lambda module, args, found: (0 * found[0], *found[1:]))
        return backbone


@llm.register("kit_keeps_batch_items_apart")
class CentresItsBatch(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        backbone.norm.register_forward_hook(lambda module, args, output: output - output.mean(0, keepdim=True))
        return backbone


@llm.register("kit_keeps_its_text_config_for_all")
class OneConfigForAll(Tiny):
    def text_config(self):
        if not hasattr(self, "kept"):
            self.kept = super().text_config()
        return self.kept


@llm.register("kit_tokenizer_round_trips_for_all")
class OneTokenizerForAll(Tiny):
    def tokenizer(self):
        if not hasattr(self, "kept"):
            self.kept = super().tokenizer()
        return self.kept


@llm.register("kit_is_deterministic")
class Noisy(Tiny):
    def backbone(self, text_config):
        backbone = super().backbone(text_config)
        backbone.norm.register_forward_hook(lambda module, args, output: output + 1e-6 * torch.randn_like(output))
        return backbone


@llm.register("kit_chooses_words")
class SaysHalf(Tiny):
    def head(self, text_config):
        head = super().head(text_config)
        head.shaped = lambda logits: logits / 2  # which its forward does not do
        return head


LLMS = {
    "chooses_words": "the head's logits of these words",
    "true_width": "dim 16, as the embeddings have it; found 32",
    "keeps_its_text_config": "backbone.config is text_config; found a copy",
    "matches_the_causal_lm": "the causal LM's logits",
    "hears_embeddings_as_ids": "the states from token ids",
    "hears_embeddings_as_ids_in_place": "inputs_embeds as they were given",
    "looks_only_back": "the states before the last word",
    "hears_all_before": "another last state for another first word; found the same",
    "keeps_batch_items_apart": "the states of a text beside another",
    "keeps_its_text_config_for_all": "a new config for each call; found the same one",
    "tokenizer_round_trips_for_all": "a new one for each call; found the same",
    "ignores_left_padding": "the states without padding",
    "hears_from_beside": "a Cache in its output; found None",
    "hears_from_beside_too_late": r"all states from its place on hear it; found a change of 0",
    "survives_meta_device": "elsewhere; look at backbone",
    "tokenizer_round_trips": "found 'describe this audio: déjà vu, 3 cats.'",
    "tokenizer_round_trips_within": "at most 258 tokens; found 259",
    "lora_starts_as_no_op": "the states without LoRA",
    "stays_frozen": "two equal calls in training mode",
    "stays_frozen_thaws": r"that nothing trains; found norm\.weight",
    "gradient_reaches_every_trainable_parameter": r"none for backbone\.spare\.weight",
    "decodes_from_its_cache": "the states of the whole at once",
    "decodes_from_its_cache_positions": "the states of the whole at once",
    "decodes_from_its_cache_padding": "the states of the whole at once",
    "decodes_from_its_cache_returns": "a Cache in its output; found None",
    "answers_inside_a_model": "the answer's logits after it was saved and loaded",
    "answers_inside_a_model_config": "a MyConfig from the saved config; found a LlamaConfig",
    "tokenizer_gives_offsets": "offsets; found NotImplementedError",
    "tokenizer_gives_offsets_elsewhere": r"a token for every character; found none for \['\.'\]",
    "keeps_gradient_checkpointing": r"found (\d+) saved elements instead of \1",
    "is_deterministic": "the same states twice",
}


@pytest.mark.parametrize("name", LLMS)
def test_a_broken_llm_is_caught(name):
    options = {"injection": "cross_attention"} if name.startswith("hears_from_beside") else {}
    broken = [p for p in llm_promises(f"kit_{name}", dim=16, heads=2, **options) if name.startswith(p.name)]
    with pytest.raises(BrokenPromises, match=LLMS[name]):
        broken[0]()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("decodes_from_its_cache", "what goes with input_ids"),  # its cache stays short, which the model looks at
        ("decodes_from_its_cache_positions", "the logits of an answer in one pass"),
    ],
)
def test_what_is_wrong_with_a_cache_is_heard_in_a_model_too(name, fault):
    (promise,) = (p for p in llm_promises(f"kit_{name}", dim=16, heads=2) if p.name == "answers_inside_a_model")
    with pytest.raises(BrokenPromises, match=fault):
        promise()


@llm.register("kit_bare")
class Bare(Tiny):
    """Neither adapts its backbone nor freezes its head: that is done outside."""

    def backbone(self, text_config):
        return AutoModel.from_config(text_config)

    def head(self, text_config):
        return nn.Linear(self.config.dim, text_config.vocab_size, bias=False)


@llm.register("kit_diligent")
class Diligent(Bare):
    """Does by itself what is done outside, as builders once had to."""

    def backbone(self, text_config):
        return adapt(super().backbone(text_config), self.config)

    def head(self, text_config):
        return super().head(text_config).requires_grad_(self.config.freeze != "all")


@pytest.mark.parametrize(
    ("name", "freeze"),
    [(name, freeze) for name in ("kit_bare", "kit_diligent") for freeze in ("all", "none", ["layers.0.*"])]
    + [("kit_bare", ["lm_head"])],
)
def test_adapters_and_freezing_are_done_outside_whether_the_builder_does_them_or_not(name, freeze):
    builder = llm.build_llm(name, dim=16, heads=2, freeze=freeze, lora={"r": 2, "target_modules": ["q_proj"]})
    halves = llm.build_backbone(builder, builder.text_config()), llm.build_head(builder, builder.text_config())
    trains = {name: p.requires_grad for name, p in halves[0].named_parameters()}
    adapters = [name for name in trains if "lora_" in name]
    assert len(adapters) == 4
    assert all(trains[name] for name in adapters)
    assert trains["norm.weight"] == (freeze != "all")
    assert trains["layers.0.mlp.up_proj.weight"] == (freeze in ("none", ["lm_head"]))
    assert halves[1].weight.requires_grad == (freeze not in ("all", ["lm_head"]))


@pytest.mark.parametrize("name", ["kit_bare", "kit_diligent"])
def test_a_builder_keeps_its_promises_either_way(name):
    assert len(check_llm(name, dim=16, heads=2, lora={"r": 2, "target_modules": ["q_proj"]}).kept) == 23


def test_an_honest_llm_keeps_all():
    report = check_llm("tiny", dim=16, heads=2, injection="cross_attention")
    assert len(report.kept) == 23
    assert "hears_from_beside" not in report.notes


# The rules of the kit.


@pytest.mark.parametrize(
    ("promises", "broken"),
    [
        (encoder_promises("any"), ENCODERS),
        (fusion_promises("any"), [*FUSIONS, *ENCODERS]),
        (projector_promises("any"), [*PROJECTORS, *ENCODERS]),
        (loss_promises("any"), [*LOSSES, *ENCODERS]),
        (llm_promises("any"), [*LLMS, *ENCODERS]),
    ],
    ids=["encoder", "fusion", "projector", "loss", "llm"],
)
def test_every_promise_has_been_broken(promises, broken):
    never = {p.name for p in promises if not any(name.startswith(p.name) for name in broken)}
    assert never <= {"config_round_trips"}  # broken by an option, above


def test_every_broken_promise_is_listed_at_once():
    with pytest.raises(BrokenPromises) as caught:
        check_encoder("kit_keeps_batch_items_apart", arch={"any": 1})
    message = str(caught.value)
    assert message.startswith("usam.encoders:kit_keeps_batch_items_apart breaks 3 of 18 promises:")
    assert "  ignores_padding: expected the frames of a clip" in message
    assert "  keeps_batch_items_apart: expected the frames of a clip beside others" in message
    assert "look at what mixes the batch axis" in message


def test_a_component_that_cannot_be_built_says_so_once():
    @encoders.register("kit_fails")
    class Fails(Honest):
        def __init__(self, config):
            raise RuntimeError("no such kernel")

    with pytest.raises(BrokenPromises, match="breaks 17 of 18 promises") as caught:
        check_encoder("kit_fails")
    assert str(caught.value).count("raised RuntimeError: no such kernel") == 1


def test_an_expected_failure_is_reported_with_its_reason():
    report = check_encoder("kit_compiles", expected_failures={"compiles": "looks at its output"})
    assert report.expected_failures == {"compiles": "looks at its output"}
    assert "compiles" not in report.kept
    assert "1 expected failures\n  compiles fails, as expected: looks at its output" in str(report)


def test_an_expected_failure_that_no_longer_fails_is_an_error():
    with pytest.raises(BrokenPromises, match="but it holds: take 'compiles' out of expected_failures"):
        check_encoder("kit_honest", expected_failures={"compiles": "looks at its output"})


def test_an_expected_failure_needs_a_reason():
    with pytest.raises(ValueError, match="say why 'compiles' may fail"):
        check_encoder("kit_compiles", expected_failures={"compiles": " "})


def test_an_unknown_expected_failure_suggests_the_closest():
    with pytest.raises(ValueError, match="no promise 'ignore_padding'; did you mean 'ignores_padding'"):
        check_encoder("kit_honest", expected_failures={"ignore_padding": "why"})


def test_a_single_promise_is_a_test_case_that_names_itself():
    cases = encoder_promises("kit_compiles", expected_failures={"compiles": "looks at its output"})
    ids = [str(case) for case in cases]
    assert ids[0] == "true_width"
    assert "compiles (expected to fail: looks at its output)" in ids
    for case in cases:
        if case.name in ("true_width", "compiles"):
            case()


def test_nothing_is_built_before_a_promise_is_called():
    assert len(encoder_promises("no_such_encoder")) == 18


def test_a_wrong_option_is_no_broken_promise():
    with pytest.raises(SpecError, match="unknown option 'gian'; did you mean 'gain'"):
        check_encoder("kit_honest", gian=2.0, expected_failures={"compiles": "why"})


def test_a_component_is_named_as_everywhere():
    config = check_encoder.__globals__["EncoderCase"]("kit_honest", {}, 1.0).config
    for component in ("kit_honest", {"type": "kit_honest"}, config):
        assert check_encoder(component, seconds=0.1).component == "usam.encoders:kit_honest"


def test_the_kit_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    check_projector("linear")
    assert torch.equal(torch.get_rng_state(), before)
