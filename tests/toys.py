"""Components that are hard to save, to batch and to count: what a third party might publish."""

import torch
from einops import rearrange
from torch import nn
from transformers import T5Config, T5EncoderModel

from usam import encoders, losses, projectors
from usam.types import Frames, LossOutput, prefix_mask
from usam.weights import locate, read


@encoders.register("toy")
class Toy(encoders.Encoder):
    """24 kHz, 75 frames a second, each its own window; batch statistics, and two kinds of buffers."""

    class Config(encoders.Encoder.Config):
        path: str | None = None

    sample_rate = 24000
    frame_rate = 75
    dim = 6

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("window", torch.empty(320), persistent=False)
        self.register_buffer("scale", torch.empty(()))
        self.map = nn.Linear(320, self.dim)
        self.norm = nn.BatchNorm1d(self.dim)
        self.reset_parameters()

    def reset_parameters(self):
        self.window = torch.hann_window(320, device=self.window.device)
        self.scale = torch.full((), 3.0, device=self.scale.device)

    def source(self):
        return locate(self.config.path) if self.config.path else None

    def pretrained(self):
        return read(self.source()) if self.config.path else {}

    def forward(self, audio, mask):
        size = self.config.length(audio.shape[1])
        padded = nn.functional.pad(audio.masked_fill(~mask, 0), (0, size * 320 - audio.shape[1]))
        x = self.map(rearrange(padded, "b (t s) -> b t s", s=320) * self.window * self.scale)
        x = rearrange(self.norm(rearrange(x, "b t d -> b d t")), "b d t -> b t d")
        own = prefix_mask(self.config.length(mask.sum(-1)), size)
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, 75.0)


@encoders.register("toy_tied")
class Tied(Toy):
    """Holds a model of transformers with one table under two names."""

    def __init__(self, config):
        super().__init__(config)
        self.text = T5EncoderModel(T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2))


@projectors.register("toy_gate")
class Gate(projectors.Projector):
    """Frames scaled by what the prompt says, so that a clip with another's prompt is found out."""

    reads_prompt = True

    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or in_dim
        self.gate = nn.Linear(prompt_dim, in_dim)
        self.map = nn.Linear(in_dim, self.dim)

    def forward(self, frames, prompt=None):
        words = prompt.mask.sum(-1, keepdim=True).clamp_min(1)
        gate = self.gate((prompt.x * prompt.mask.unsqueeze(-1)).sum(1) / words).to(frames.x.dtype)
        x = self.map(frames.x * gate.unsqueeze(1)).masked_fill(~frames.mask.unsqueeze(-1), 0)
        return Frames(x, frames.mask, frames.rate, {"gate": gate})


@losses.register("toy_match")
class Match(losses.Loss):
    """The audio's mean, mapped, beside the answer's mean."""

    def __init__(self, config, *, dim):
        super().__init__(config, dim=dim)
        self.map = nn.Linear(dim, dim)

    def forward(self, inputs):
        if not inputs.audio.mask.any():
            return LossOutput(self.nothing(inputs))
        answer, mask = inputs.answer
        heard = inputs.audio.x.sum(1) / inputs.audio.lengths.clamp_min(1).unsqueeze(-1)
        said = answer.sum(1) / mask.sum(-1, keepdim=True).clamp_min(1)
        distance = (self.map(heard.float()) - said.float()).square().mean(-1)
        return LossOutput(distance.mean(), {"distance": distance.detach()})
