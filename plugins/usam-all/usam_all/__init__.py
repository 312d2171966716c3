"""One component of every family, each as short as it can be: what must be filled in, and nothing else."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from usam import Encoder, Frames, Fusion, Loss, LossOutput, Projector, Prompt
from usam.augmentations import Augmentation
from usam.component import Parts
from usam.llm.tiny import Tiny
from usam.metrics import Metric
from usam.readers import Form, Layout
from usam.suites import Item, Suite, rows
from usam.types import prefix_mask


class Power(Encoder):
    """How loud the parts of each block of 20 ms are."""

    class Config(Encoder.Config):  # options that every encoder has are inherited
        parts: Literal[1, 4, 16] = 4
        """Of a block, which is the width of the frames."""

    sample_rate, frame_rate = 16000, 50  # a second's samples and frames
    dim = property(lambda self: self.config.parts)  # width of the frames

    def forward(self, audio, mask):  # (batch, samples) to (batch, time, dim)
        audio = F.pad(audio.masked_fill(~mask, 0), (0, -audio.shape[1] % 320))
        x = rearrange(audio, "b (t p s) -> b t p s", p=self.dim, s=320 // self.dim).square().mean(-1)
        return Frames(x, prefix_mask(self.config.length(mask.sum(-1)), x.shape[1]), self.config.rate)


class Mean(Fusion):
    """The mean of all encoders' frames, each mapped to one width."""

    def __init__(self, config, *, dims):
        super().__init__(config, dims=dims)
        self.dim = max(dims.values())
        self.maps = Parts({name: nn.Linear(dims[name], self.dim) for name in self.names})

    def forward(self, streams, audio):
        mapped = {name: Frames(self.maps[name](f.x), f.mask, f.rate) for name, f in streams.items()}
        aligned, mask, rate = self.align(mapped, audio)  # on one clock
        return Frames(torch.stack(aligned).mean(0), mask, rate)


class Gated(Projector):
    """A gated linear unit (Dauphin et al., 2017)."""

    def __init__(self, config, *, in_dim, prompt_dim, out_dim=None):
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or in_dim
        self.map = nn.Linear(in_dim, 2 * self.dim)

    def forward(self, frames, prompt=None):
        return Frames(F.glu(self.map(frames.x)), frames.mask, frames.rate)


class Nearness(Loss):
    """How far the mean of a sample's audio points away from that of its answer: 0 to 2."""

    def forward(self, inputs):
        if inputs.labels.numel() == 0 or inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        heard, said = Prompt(inputs.audio.x, inputs.audio.mask), Prompt(*inputs.answer)
        whole = heard.mask.any(-1) & said.mask.any(-1)  # has audio and an answer
        away = (1 - F.cosine_similarity(heard.mean(), said.mean(), dim=-1)) * whole
        return LossOutput(away.sum() / whole.sum().clamp_min(1))


class Primer(Tiny):
    """usam's small language model over bytes, with squared ReLUs (So et al., 2021)."""

    def text_config(self):
        config = super().text_config()
        config.hidden_act = "relu2"
        return config


class Birds(Layout):
    """Rows of a bird watcher: a song, and whose it is."""

    forms = (Form(("song", "bird")),)

    def said(self, row):
        return {"audio": row["song"], "prompt": "Which bird sings?", "answer": row["bird"]}


class Flip(Augmentation):
    """The waveform upside down, which sounds the same."""

    def __call__(self, clip, rate, generator):
        return -clip


class Exact(Metric):
    """The share of the answers that are a reference, word by word."""

    higher_is_better, unit, bounds = True, "share of the answers", (0.0, 1.0)

    def statistics(self, prediction, references):
        return [float(prediction.split() in [text.split() for text in references]), 1.0]

    def of(self, total):
        return float(total[0] / total[1])


class Quiz(Suite):
    """A file `quiz.jsonl` with rows of `sound`, `question` and `answer`."""

    splits, task, asks, metrics = ("test",), "qa", "{question}", {"exact": {"type": "exact"}}
    source, home = "this file", "nowhere: it is an example"

    def items(self, root):
        for place, row in rows(self.found(root, "quiz.jsonl"), ("sound", "question", "answer")):
            yield Item(place, row["sound"], (row["sound"],), (row["answer"],), question=row["question"])
