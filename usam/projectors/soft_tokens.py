"""Soft tokens: each frame as a mixture of the language model's own embeddings (LegoSLM, Ma et al., 2025, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from usam.component import Float32Linear
from usam.projectors import Projector
from usam.registry import ComponentError
from usam.spec.sizes import TOKENS
from usam.types import Frames, Prompt, Vocabulary


class SoftTokens(Projector):
    """A frame of the language model's width is scored by its products with all embeddings, and by a learned blank.

    What goes out is the mean of the embeddings by the softmax of the scores, the blank's share being a learned vector:
    the language model reads what it can read, words and silence. The scores are what `ctc` trains (`against:
    soft_tokens`). The stage before it maps to the language model's width, without being told so.
    """

    class Config(Projector.Config):
        """Options of soft tokens."""

        temperature: float = Field(1.0, ge=0.01, le=100)
        """The scores are divided by it before the softmax: above 1 mixes more tokens, below 1 fewer."""
        top: int | None = Field(None, ge=1, le=TOKENS)
        """Mix only so many of a frame's best tokens, and the blank, which takes a third of the time or less; null mixes
        the whole vocabulary."""
        sharp: bool = False
        """Outside of training a frame is its best token's embedding, or the blank's vector, and no mixture."""

    reads_vocabulary = True
    keeps_width = True

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        if out_dim is not None and out_dim != in_dim:
            raise ComponentError(
                f"soft_tokens compares frames with embeddings of {out_dim} numbers, and is given frames of {in_dim}: "
                "write a stage before it, such as linear"
            )
        self.dim = in_dim
        self.blank = Float32Linear(in_dim, 1)
        self.silence = nn.Parameter(torch.empty(in_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The blank's vector starts as embeddings do."""
        nn.init.normal_(self.silence, std=0.02)

    def forward(self, frames: Frames, prompt: Prompt | None = None, vocabulary: Vocabulary | None = None) -> Frames:
        """Frames of (batch, time, dim); in `aux`, for `ctc`: what was scored, and the blank's score of each.

        Where nothing reads the frames, they go out as they came.

        Raises:
            ValueError: there is no vocabulary, or its embeddings have another width.
        """
        if vocabulary is None:
            raise ValueError("soft_tokens reads the language model's vocabulary: a model lends it, else give it")
        if vocabulary.dim != self.dim:
            raise ValueError(
                f"soft_tokens is given frames of {self.dim} numbers, and the embeddings have {vocabulary.dim}: make it "
                "the last stage of the projector, behind one such as linear"
            )
        x = frames.x.masked_fill(~frames.mask.unsqueeze(-1), 0)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):
            blank = self.blank(x)
            scored = (x / self.config.temperature).flatten(0, 1), (blank / self.config.temperature).flatten(0, 1)
            if not vocabulary.frames_read:  # with a path to all parameters, for distributed training
                mixed = (x + 0 * self.silence).flatten(0, 1)
            elif self.config.sharp and not self.training:
                mixed = self._sharp(*scored, vocabulary)
            elif self.config.top is not None and self.config.top < vocabulary.size:
                mixed = self._of_the_best(*scored, vocabulary, self.config.top)
            else:
                mixed = self._of_all(*scored, vocabulary)
        mixed = mixed.view_as(x).masked_fill(~frames.mask.unsqueeze(-1), 0).to(frames.x.dtype)
        aux = {"ctc_frames": x, "ctc_blank": blank.squeeze(-1), "ctc_mask": frames.mask}
        return Frames(mixed, frames.mask, frames.rate, aux)

    def _of_all(self, x: Tensor, blank: Tensor, vocabulary: Vocabulary) -> Tensor:
        """The mixture of the whole vocabulary, a part of it at a time; frames (frame, dim), blank (frame, 1)."""
        parts = vocabulary.parts(len(x), x.device)
        mean: Callable[..., Any] = partial(_mean, vocabulary)
        if len(parts) > 1 and torch.is_grad_enabled():  # of one part the scores stay for the backward pass
            mean = partial(checkpoint, mean, use_reentrant=False)
        found = [mean(x, ids) for ids in parts]
        totals = torch.stack([*(total for total, _ in found), blank])  # part frame 1
        means = torch.stack([*(of_part for _, of_part in found), self.silence.to(x.dtype).expand_as(x)])
        return (totals.softmax(0) * means).sum(0)

    def _of_the_best(self, x: Tensor, blank: Tensor, vocabulary: Vocabulary, count: int) -> Tensor:
        """The mixture of each frame's best tokens."""
        rows = vocabulary.embed(_best(vocabulary, x, count)).to(x.dtype)  # frame token dim
        scores = torch.einsum("f d, f k d -> f k", x, rows)
        shares = torch.cat([scores, blank], -1).softmax(-1)
        return torch.einsum("f k, f k d -> f d", shares[:, :-1], rows) + shares[:, -1:] * self.silence.to(x.dtype)

    def _sharp(self, x: Tensor, blank: Tensor, vocabulary: Vocabulary) -> Tensor:
        """The best of all, the blank among them."""
        row = vocabulary.embed(_best(vocabulary, x, 1).squeeze(-1)).to(x.dtype)
        return torch.where(blank > (x * row).sum(-1, keepdim=True), self.silence.to(x.dtype), row)


def _mean(vocabulary: Vocabulary, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of a part of the vocabulary: the logarithm of its total (frame, 1), and its own mixture (frame, dim)."""
    rows = vocabulary.embed(ids).to(x.dtype)
    scores = x @ rows.mT
    total = scores.logsumexp(-1, keepdim=True)
    return total, (scores - total).exp() @ rows


@torch.no_grad()
def _best(vocabulary: Vocabulary, x: Tensor, count: int) -> Tensor:
    """The ids of the best tokens: (frame, token)."""
    scores, words = [], []
    for ids in vocabulary.parts(len(x), x.device):
        found = vocabulary.scores(x, ids).topk(min(count, len(ids)), -1)
        scores.append(found.values)
        words.append(ids[found.indices])
    place = torch.cat(scores, -1).topk(count, -1).indices
    return torch.cat(words, -1).gather(-1, place)
