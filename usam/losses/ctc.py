"""Connectionist temporal classification of the answer's tokens (Graves et al., 2006, eq. 5 to 15).

The classes are the language model's own tokens, whose embeddings stand for them (as in LegoSLM, Ma et al., 2025), so
that a projector learns to speak them before any language model listens. The softmax over a large vocabulary is
estimated with sampled negatives (Bengio and Senecal, 2008; Jean et al., 2015, section 3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from usam.component import Float32Linear
from usam.losses import Loss
from usam.losses._answers import answer_ids
from usam.spec.sizes import LONG
from usam.types import IGNORE, LossInputs, LossOutput, Vocabulary

Score = Callable[[Tensor, Tensor], Tensor]  # frames (batch, time, dim), ids (word,) -> (batch, time, word)


class CTC(Loss):
    """A sample's projected frames say its supervised tokens, but those that end an answer, in order.

    A frame's scores are its products with the embeddings, and what a learned blank gives. Exact are the scores of the
    tokens that stand in the batch; the sum over all others is exact in evaluations, so that a clip's loss is then its
    own whatever the batch, and in training an estimate without bias from sampled negatives, which depends on what is
    drawn. Samples without audio or without an answer are left out.
    """

    class Config(Loss.Config):
        """Options of the CTC."""

        against: Literal["embeddings", "head", "soft_tokens"] = "embeddings"
        """What scores the frames: the token table, or the rows of the head, each beside a blank of the loss's own; or
        the projector's stage soft_tokens, by the table and by its blank."""
        negatives: Annotated[int, Field(ge=1, le=LONG)] | Literal["all"] = 1000
        """Tokens drawn anew in each step of training for all that stand in no answer of the batch; `all` takes all of
        them, as evaluations do."""
        too_long: Literal["error", "skip"] = "error"
        """A sample that has fewer frames than tokens (and one more for each token that follows itself) has no CTC: it
        stops training, or is left out with a warning, as evaluations leave it out, where clips may be shuffled."""
        tasks: list[str] | None = Field(None, min_length=1)
        """Tasks whose samples it looks at, those whose answers say what sounds in its order; null looks at all."""

    needs_states = False

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__(config, dim=dim)
        self.needs_frames = config.against != "soft_tokens"
        self.blank = None if config.against == "soft_tokens" else Float32Linear(dim, 1)

    def forward(self, inputs: LossInputs) -> LossOutput:
        """Each sample's negative log-likelihood by the number of its tokens, and the mean of these, as torch has it.

        `samples` in `aux` is that of each, and `counted` whether it counts.

        Raises:
            ValueError: an answer is too long to learn, or what `against` and `tasks` name is not there.
        """
        if inputs.labels.numel() == 0 or inputs.audio.x.shape[1] == 0:
            return LossOutput(self.nothing(inputs))
        if inputs.vocabulary is None:
            raise ValueError("ctc reads the language model's vocabulary: a model lends it (LossInputs.vocabulary)")
        mask = inputs.audio.mask
        targets, lengths = _targets(answer_ids(inputs), inputs.vocabulary.ends)
        counted = self._counted(inputs, targets, lengths)
        # The classes: the blank, the tokens that stand here, and all others as one, whose logit is that of their sum.
        words = torch.unique(targets[targets != IGNORE])
        with torch.autocast(mask.device.type, enabled=False):
            x, blank = self._frames(inputs)
            scores = [blank.unsqueeze(-1), self._score(inputs.vocabulary)(x, words)]
            if (rest := self._rest(x, words, inputs.vocabulary)) is not None:
                scores.append(rest.unsqueeze(-1))
            logs = torch.cat(scores, -1).log_softmax(-1).transpose(0, 1)  # time batch class
            said = torch.searchsorted(words, targets.clamp_min(0)).add(1).masked_fill(targets == IGNORE, 0)
            each = _ctc(logs, said, mask.sum(-1), lengths) / lengths.clamp_min(1)
        each = torch.where(counted, each, 0)
        return LossOutput(each.sum() / counted.sum().clamp_min(1), {"samples": each.detach(), "counted": counted})

    def _frames(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """Each sample's frames (batch, time, dim) as they are scored, and the blank's score (batch, time)."""
        audio, mask = inputs.audio.x, inputs.audio.mask.unsqueeze(-1)
        stages = [name.removesuffix(".ctc_frames") for name in inputs.aux if name.endswith(".ctc_frames")]
        if self.blank is not None:
            if stages:
                raise ValueError(f"projector.{stages[0]} scores its own frames: write losses.ctc.against: soft_tokens")
            x = audio.masked_fill(~mask, 0)
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            return x, cast(Tensor, self.blank(x)).squeeze(-1)
        if len(stages) != 1:
            raise ValueError(
                f"losses.ctc.against: soft_tokens needs one stage of this name in the projector, found {len(stages)}"
            )
        x, blank, own = (inputs.aux[f"{stages[0]}.ctc_{name}"] for name in ("frames", "blank", "mask"))
        wide = torch.promote_types(x.dtype, torch.float32)
        x, blank = x[own].to(wide), blank[own].to(wide)  # the clips of a sample come one after the other
        if not torch.compiler.is_compiling() and not mask.is_meta and len(x) != int(mask.sum()):
            raise ValueError(
                f"ctc: soft_tokens has scored {len(x)} frames, and the projector gives {int(mask.sum())}: make it the "
                "last stage, or put behind it what keeps each frame"
            )
        rows = x.new_zeros(*audio.shape[:2], x.shape[-1]).masked_scatter(mask, x)
        return rows, blank.new_zeros(audio.shape[:2]).masked_scatter(mask.squeeze(-1), blank)

    def _score(self, vocabulary: Vocabulary) -> Score:
        if self.config.against != "head":
            return vocabulary.scores
        return lambda x, ids: vocabulary.logits(x, ids).to(x.dtype)

    def _counted(self, inputs: LossInputs, targets: Tensor, lengths: Tensor) -> Tensor:
        """Which samples it looks at: (batch,)."""
        heard = inputs.audio.mask.sum(-1)
        counted = (heard > 0) & inputs.answer[1].any(-1)
        if self.config.tasks is not None:
            if "tasks" not in inputs.batch:
                raise ValueError("losses.ctc.tasks: this batch does not say the tasks of its samples (batch['tasks'])")
            chosen = [task in self.config.tasks for task in inputs.batch["tasks"]]
            counted = counted & torch.tensor(chosen, device=counted.device)
        again = (targets[:, 1:] == targets[:, :-1]) & (targets[:, 1:] != IGNORE)
        needed = lengths + again.sum(-1)
        long = counted & (needed > heard)
        if not torch.compiler.is_compiling() and not long.is_meta and bool(long.any()):
            i = int(long.nonzero()[0])
            ids = inputs.batch.get("ids") or [None] * len(long)
            who = f"sample {i} of the batch" if ids[i] is None else f"'{ids[i]}'"
            if self.training and self.config.too_long == "error":
                raise ValueError(
                    f"ctc: {who} has {int(heard[i])} frames, and its answer of {int(lengths[i])} tokens needs "
                    f"{int(needed[i])}: give it more frames a second (a smaller stack, window or stride), leave such "
                    "rows out, or write losses.ctc.too_long: skip"
                )
            warnings.warn("ctc: samples whose answers need more frames than they have are left out", stacklevel=2)
        return counted & ~long

    def _rest(self, x: Tensor, words: Tensor, vocabulary: Vocabulary) -> Tensor | None:
        """The logarithm of the sum over all tokens but these, of their scores' exponentials: (batch, time)."""
        others = torch.ones(vocabulary.size, dtype=torch.bool, device=x.device).index_fill(0, words, False)
        count, drawn = vocabulary.size - len(words), self.config.negatives
        if count == 0:
            return None
        score = partial(_log_sum, self._score(vocabulary))
        if self.training and drawn != "all" and drawn < count:
            chance = torch.rand(vocabulary.size, device=x.device).masked_fill(~others, -1)
            # Each one drawn stands for count / drawn of them.
            return score(x, chance.topk(drawn).indices) + math.log(count / drawn)
        parts = [ids[others[ids]] for ids in vocabulary.parts(x.shape[0] * x.shape[1], x.device)]
        parts = [ids for ids in parts if len(ids)]
        if len(parts) > 1 and torch.is_grad_enabled():  # of one part the scores stay for the backward pass
            score = partial(cast(Any, checkpoint), score, use_reentrant=False)
        return torch.stack([score(x, ids) for ids in parts]).logsumexp(0)


def _log_sum(score: Score, x: Tensor, ids: Tensor) -> Tensor:
    return score(x, ids).logsumexp(-1)


def _targets(ids: Tensor, ends: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """What is to be said, from the first column on, then IGNORE: (batch, token); and how many each: (batch,)."""
    said = ids != IGNORE
    for end in ends:
        said = said & (ids != end)
    first = said.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    return ids.masked_fill(~said, IGNORE).gather(1, first), said.sum(-1)


def _ctc(logs: Tensor, targets: Tensor, frames: Tensor, lengths: Tensor) -> Tensor:
    """torch's, for each sample: (batch,); 0 where there is none."""
    if logs.is_meta:  # where torch has none
        return logs.sum((0, 2))
    found: Tensor = F.ctc_loss(logs, targets, frames, lengths, reduction="none", zero_infinity=True)
    return found
