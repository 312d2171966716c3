"""Stages in order: a stage whose arithmetic of time is wrong is named, and not the words of who uses it."""

import pytest
import torch

from usam import ComponentError, UsamProcessor, build_model, projectors
from usam.types import Frames


class Halves(projectors.Projector):
    """Every second frame; its config counts otherwise."""

    class Config(projectors.Projector.Config):
        mask: bool = False

        def length(self, frames, rate):
            return (frames // 2 + 1, rate / 2) if self.mask else (frames, rate)

    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim)
        self.dim = in_dim

    def forward(self, frames, prompt=None):
        if not self.config.mask:
            return Frames(frames.x[:, ::2], frames.mask[:, ::2], frames.rate / 2)
        size = frames.x.shape[1] // 2 + 1
        x = torch.nn.functional.pad(frames.x[:, ::2], (0, 0, 0, size))[:, :size]
        return Frames(x, torch.ones(x.shape[:2], dtype=torch.bool), frames.rate / 2)


@pytest.fixture
def halves(monkeypatch):
    monkeypatch.setattr(projectors.registry, "_registered", {})
    projectors.registry.register("halves")(Halves)
    yield
    projectors.registry.refresh()


def hear(*seconds, **options):
    stages = [{"type": "linear", "stack": 4}, {"type": "halves", **options}, {"type": "linear"}]
    model = build_model("tiny", {"projector": None}, {"projector": stages, "llm": {"dim": 16, "heads": 2}})
    clips = [{"type": "audio", "audio": torch.randn(int(16000 * s))} for s in seconds]
    chats = [[{"role": "user", "content": [clip, {"type": "text", "text": "What?"}]}] for clip in clips]
    processor = UsamProcessor.from_spec(model.config.parsed)
    return model(**processor.apply_chat_template(chats, tokenize=True, add_generation_prompt=True))


def test_a_stage_that_gives_other_lengths_than_it_says_is_named(halves):
    with pytest.raises(ComponentError, match=r"^projector\.1: Halves gives 7 frames for 13, .* says 13:"):
        hear(1.0)


def test_so_is_one_whose_mask_says_something_else(halves):
    with pytest.raises(ComponentError, match=r"^projector\.1: Halves gives 7 frames for 7, .* says 4:"):
        hear(1.0, 0.5, mask=True)
