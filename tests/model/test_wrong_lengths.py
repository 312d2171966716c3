"""A component whose length() is wrong is named, with its numbers, and no other fault is blamed on one."""

import pytest
import torch

from usam import UsamProcessor, build_model, encoders, fusions, projectors
from usam.types import Frames, prefix_mask


@encoders.register("early")
class Early(encoders.Encoder):
    """Leaves out its last frame."""

    sample_rate, frame_rate, dim = 16000, 10, 4

    def forward(self, audio, mask):
        lengths = self.config.length(mask.sum(-1)) - 1
        x = torch.zeros(len(audio), int(lengths.max()), self.dim)
        return Frames(x, prefix_mask(lengths, x.shape[1]), 10.0)


@fusions.register("halved")
class Halved(fusions.Fusion):
    """Drops every other frame."""

    def __init__(self, config, *, dims):
        super().__init__(config, dims=dims)
        self.dim = sum(dims.values())

    def forward(self, streams, audio):
        (frames,) = streams.values()
        return Frames(frames.x[:, ::2], frames.mask[:, ::2], frames.rate)


@projectors.register("longer")
class Longer(projectors.Projector):
    """Says one frame more than it gives."""

    class Config(projectors.Projector.Config):
        def length(self, frames, rate):
            return frames + 1, rate

    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = in_dim

    def forward(self, frames, prompt=None):
        return frames


def fault(*overrides, samples=1600):
    model, processor = build_model("tiny", *overrides), UsamProcessor.from_spec("tiny", *overrides)
    batch = processor(text="<|audio|>", audio=torch.zeros(1600).numpy(), return_tensors="pt")
    batch |= {"input_values": torch.zeros(1, samples), "input_values_mask": None}
    with pytest.raises(ValueError) as caught:
        model(**batch)
    return str(caught.value)


def test_an_encoder():
    said = fault({"encoders": {"whisper": None, "early": {"type": "early"}}}, "projector.0.stack=1", samples=4800)
    assert (
        "encoders.early: its config's length() counts [3] frames for [4800] samples, and its forward gives [2]" in said
    )


def test_a_fusion():
    said = fault("fusion=halved", "projector.0.stack=1")
    assert (
        "fusion: its config's length() counts [5] frames for clips of [1600] samples, and its forward gives [3]" in said
    )


def test_a_projector():
    assert (
        "3 audio placeholders for 2 audio tokens: the 1 clips have [2] tokens, the 1 rows [3] placeholders; "
        "projector.1: its config's length() counts [3] frames for [2] frames, and its forward gives [2]"
    ) in fault({"projector": [{"type": "linear", "stack": 4}, "longer"]})


def test_clips_of_another_length_are_no_components_fault():
    assert fault(samples=16000).endswith("make both with one UsamProcessor, and do not cut input_ids")
