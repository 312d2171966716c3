"""Audio beside its own answer rather than another's, by the frames that matter to it (U-SAM, eq. 9-12).

The score network says which frames matter to the answer, the aggregation gathers those that are kept into
a few slots, and a triplet draws the slots to the answer's tokens and away from another sample's.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from usam.losses import Loss
from usam.losses._alignment import Aggregation, align, at_own_dtype, masked_mean, mean_vector
from usam.losses._answers import answer_ids, same_answer
from usam.losses._candidates import Candidates, Queue, elsewhere, mean_over_processes, pack, processes
from usam.losses._selection import Decision, Normalize, decide, relevance, significance
from usam.losses._triplet import Negatives, choose, hinges
from usam.spec.sizes import FRAMES, TOKENS, WIDTH
from usam.types import LossInputs, LossOutput

EPSILON = 1e-12  # what silence is divided by


class SemanticContrastive(Loss):
    """Triplet of audio and answers, over significant frames; only samples with both take part.

    Computed in float32. Nothing of it is needed to generate. With `gather`, each process returns its
    part times the number of processes, so that the mean which distributed training takes of gradients is
    that of the whole batch, whatever each process holds of it.
    """

    class Config(Loss.Config):
        """Options of the semantic contrastive loss."""

        hidden: int = Field(256, ge=1, le=WIDTH)
        """Width of the bottlenecks of the score network and of the aggregation."""
        beta: float = Field(0.5, ge=0, lt=1)
        """Share of relevance (to the answer, and to the audio as a whole) in a frame's score; the rest is predicted."""
        normalize: Normalize = "sample"
        """Brings relevance to [0, 1]: by the range within the sample or the batch, or `affine` as (cosine + 1) / 2."""
        normalize_frames: bool = False
        """Whether the score network reads frames of unit mean square. The paper's reads them as they are, and says the
        same of all where they are small beside its biases."""
        relevance_gradient: bool = False
        """Whether the gradient also flows through the relevance."""
        decision: Decision = "straight_through"
        """How frames are kept: score over threshold, the gradient passed straight through or not at all (`hard`);
        `gumbel` draws, `topk` keeps a ratio, `soft` weighs by the score."""
        threshold: float = Field(0.5, gt=0, lt=1)
        """Frames that score higher are kept; where none does, the highest is."""
        temperature: float = Field(1.0, gt=0)
        """Of the draws of `gumbel`."""
        ratio: float = Field(0.5, gt=0, le=1)
        """Share of frames: what `topk` keeps, and what the sparsity `ratio` draws the mean score to."""
        slots: int = Field(8, ge=1, le=TOKENS)
        """Slots that the kept frames are gathered into."""
        softmax_over: Literal["frames", "slots"] = "frames"
        """Along what the aggregation's weights sum to 1: each slot a mean of frames, or each frame shared out."""
        alignment: Literal["max_mean", "pooled"] = "max_mean"
        """Best slot of each token and best token of each slot, averaged; or mean slot beside mean token."""
        similarity: Literal["cosine", "dot"] = "cosine"
        """Of a slot and a token; `dot` grows with their scale, and the margin must fit it."""
        margin: float = Field(0.2, ge=0)
        """By how much the own answer must be nearer than another's."""
        negatives: Negatives = "random"
        """Which other answers count: one at random, the nearest, or the mean over all."""
        directions: Literal["audio", "both"] = "audio"
        """What is compared with others: audio with answers; `both` averages this and answers with audio."""
        gather: bool = False
        """Takes negatives from all processes of distributed training."""
        queue: int = Field(0, ge=0, le=FRAMES)
        """Past samples remembered as further negatives while training, for small batches."""
        queue_tokens: int = Field(64, ge=1, le=TOKENS)
        """First tokens of an answer that the queue remembers and compares."""
        sparsity: Literal["l1", "ratio", "none"] = "l1"
        """Penalty on scores: their mean (eq. 12), or the squared distance of that mean from `ratio`."""
        sparsity_weight: float = Field(0.01, ge=0)
        """Its share beside the triplet."""

        @model_validator(mode="after")
        def _scores_learn(self) -> SemanticContrastive.Config:
            if self.decision == "hard" and (self.sparsity == "none" or self.sparsity_weight == 0):
                raise ValueError(
                    "decision 'hard' without a sparsity leaves the score network no gradient at all; "
                    "write decision: straight_through, or a sparsity with a weight above 0"
                )
            return self

    needs_states = False

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config, dim=dim)
        self.score = nn.Sequential(nn.Linear(dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, 1))
        self.aggregation = Aggregation(dim, config.hidden, config.slots, config.softmax_over)
        self.queue = Queue(config.queue, config.queue_tokens, config.slots, dim) if config.queue else None
        # Plain values and functions, so that torch.compile meets no pydantic.
        self.relevance = partial(relevance, normalize=config.normalize)
        self.significance = partial(significance, beta=config.beta)
        self.decide = partial(
            decide,
            how=config.decision,
            threshold=config.threshold,
            ratio=config.ratio,
            temperature=config.temperature,
        )
        self.align = partial(align, alignment=config.alignment, similarity=config.similarity)
        self.choose = partial(choose, negatives=config.negatives)
        self.normalize_frames = config.normalize_frames
        self.relevance_gradient, self.margin = config.relevance_gradient, config.margin
        self.both, self.gather = config.directions == "both", config.gather
        self.sparsity, self.sparsity_weight, self.ratio = config.sparsity, config.sparsity_weight, config.ratio
        self.said_alone = False

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Mean triplet cost of the samples that have a negative, plus the weighted mean sparsity of all that take part.

        `aux`, by sample: `scores` and `kept` (sample, time), `kept_ratio`, `distance` to the own answer,
        `negatives` that there were, `triplet`, `sparsity`; 0 for samples that take no part.
        """
        with torch.autocast(inputs.hidden.device.type, enabled=False):
            return self._forward(inputs)

    def _forward(self, inputs: LossInputs) -> LossOutput:
        x, mask = inputs.audio.x, inputs.audio.mask
        silent = x.shape[1] == 0
        if silent:  # one masked frame: with `gather`, every process must come through
            x, mask = F.pad(x, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        text, said = inputs.answer
        if self.gather or self.queue is not None:
            text, said = pack(text, said)
        mask = mask & said.any(-1, keepdim=True)
        x, text = _clean(x, mask), _clean(text, said)

        scores = self.scores(x, mask, text, said)
        kept = self.decide(scores, mask, training=self.training)
        own = Candidates(self.aggregation(x, kept), text, said, answer_ids(inputs), valid=mask.any(-1))
        distance, triplet, negatives = self._triplet(own, same_answer(inputs))
        sparsity = self._sparsity(scores, mask)

        value = self._mean(triplet, negatives > 0) + self.sparsity_weight * self._mean(sparsity, own.valid)
        aux = {
            "scores": scores,
            "kept": kept,
            "kept_ratio": masked_mean(kept, mask),
            "distance": distance,
            "negatives": negatives,
            "triplet": triplet,
            "sparsity": sparsity,
        }
        if silent:
            value = value + self.nothing(inputs)
        return LossOutput(value, {name: found.detach() for name, found in aux.items()})

    def scores(self, x: Tensor, mask: Tensor, text: Tensor, said: Tensor) -> Tensor:
        """How much each frame matters to the answer (eq. 9): (sample, time), in [0, 1], 0 where masked."""
        predicted = self.predicted(x)
        seen = x if self.relevance_gradient else x.detach()
        to_text = self.relevance(seen, mask, mean_vector(text, said))
        to_audio = self.relevance(seen, mask, mean_vector(seen, mask))
        return self.significance(predicted, to_text, to_audio).masked_fill(~mask, 0)

    def predicted(self, x: Tensor) -> Tensor:
        """What the score network says of each frame alone (p of eq. 9): (sample, time), in [0, 1]."""
        read = F.rms_norm(x, x.shape[-1:], eps=EPSILON) if self.normalize_frames else x
        return at_own_dtype(self.score, read).squeeze(-1).sigmoid()

    def _triplet(self, own: Candidates, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance to the own answer, cost, and number of negatives: (sample,) each (eq. 11)."""
        others = [elsewhere(own)] if self.gather and processes() > 1 else []
        past = [self.queue.candidates(own.slots.dtype)] if self.queue is not None and self.training else []
        groups = [own, *others, *past]
        allowed = [~same & own.valid, *(~own.alike(group) & group.valid for group in groups[1:])]
        negatives = torch.cat(allowed, 1) & own.valid.unsqueeze(-1)
        self._say_if_alone(own, negatives)

        to_answers = torch.cat([self.align(own.slots, group.text, group.mask) for group in groups], 1)
        cost = self.choose(hinges(to_answers, negatives, self.margin), negatives, training=self.training)
        if self.both:
            to_audio = torch.cat([self.align(group.slots, own.text, own.mask).mT for group in groups], 1)
            back = self.choose(hinges(to_audio, negatives, self.margin), negatives, training=self.training)
            cost = (cost + back) / 2
        if self.queue is not None and self.training:
            for group in (*others, own):
                self.queue.remember(group)
        distance = (1 - to_answers.diagonal()).masked_fill(~own.valid, 0)
        return distance, cost, negatives.sum(-1)

    def _sparsity(self, scores: Tensor, mask: Tensor) -> Tensor:
        mean = masked_mean(scores, mask)
        if self.sparsity == "none":
            return torch.zeros_like(mean)
        return mean if self.sparsity == "l1" else (mean - self.ratio).square().masked_fill(~mask.any(-1), 0)

    def _mean(self, costs: Tensor, counted: Tensor) -> Tensor:
        count = counted.sum().to(costs.dtype)
        if self.gather and processes() > 1:
            count = mean_over_processes(count)
        return costs.sum() / (count + (count == 0))

    def _say_if_alone(self, own: Candidates, negatives: Tensor) -> None:
        """Warn once that nothing is contrasted; a queue fills up by itself."""
        if torch.compiler.is_compiling() or self.said_alone or self.queue is not None:
            return
        if bool(own.valid.any()) and not bool(negatives.any()):
            self.said_alone = True
            warnings.warn(
                f"semantic_contrastive: none of the {len(negatives)} samples of this batch has another with audio and "
                "another answer to be told from, so there is no triplet term (and none whenever this recurs); use a "
                "larger batch with different answers, `gather: true` in distributed training, or `queue: 64`",
                stacklevel=2,
            )


def _clean(x: Tensor, mask: Tensor) -> Tensor:
    """At least float32, and zeros in padding, whatever stood there."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~mask.unsqueeze(-1), 0)
