"""The token table and the head: where they are found, how they grow with the vocabulary, how they are lent."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from usam.types import Vocabulary


class WithHead:
    """A model with a token table in `model` and a head, `lm_head`, that turns states into logits."""

    model: Any
    lm_head: Any
    sourced: frozenset[str]

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token table."""
        return cast(nn.Module, self.model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token table."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return cast(nn.Module, self.lm_head)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head's weights."""
        self.lm_head = new_embeddings
        know_head(self.model, new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """transformers' resize; table and head are then in every checkpoint, for no source has them any more."""
        before = self.lm_head.out_features
        table = cast(Any, super()).resize_token_embeddings(*args, **kwargs)
        if self.lm_head.out_features != before:
            resized = {id(p) for module in (table, self.lm_head) for p in module.parameters()}
            self.sourced -= {n for n, p in cast(Any, self).named_parameters(remove_duplicate=False) if id(p) in resized}
        return cast(nn.Embedding, table)

    def _get_resized_lm_head(self, old_lm_head: Any, *args: Any, **kwargs: Any) -> nn.Linear:
        new = cast(Any, super())._get_resized_lm_head(old_lm_head, *args, **kwargs)
        new.requires_grad_(old_lm_head.weight.requires_grad)
        # The same head with other weights: a new Linear would drop its logit scale or soft cap.
        old_lm_head.weight, old_lm_head.bias, old_lm_head.out_features = new.weight, new.bias, new.out_features
        return cast(nn.Linear, old_lm_head)


class Head:
    """The head as losses call it: any dtype in, logits out."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def __call__(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.head(as_head(self.head, hidden)))

    def chosen(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """The logits of some words, `self(hidden)[..., ids]`; of other words none is computed, where that is possible.

        Args:
            hidden: (..., dim).
            ids: (word,).
        """
        head, rows = self.head, getattr(self.head, "weight", None)
        plain = type(rows) is nn.Parameter and not self.spread and not hasattr(head, "_hf_hook")
        if not plain or not (type(head) is nn.Linear or hasattr(head, "shaped")):
            return self(hidden)[..., ids]
        bias = None if head.bias is None else cast(Tensor, head.bias)[ids]
        logits = F.linear(as_head(head, hidden), cast(Tensor, rows)[ids], bias)
        return cast(Tensor, cast(Any, head).shaped(logits)) if hasattr(head, "shaped") else logits

    @property
    def size(self) -> int:
        """Entries of a row of logits."""
        return cast(int, self.head.out_features)

    @property
    def trains(self) -> bool:
        """Whether anything of the head trains."""
        return any(p.requires_grad for p in self.head.parameters())

    @property
    def spread(self) -> bool:
        """Whether processes share its weights (FSDP2, ZeRO-3), and hooks gather them for a forward or backward pass."""
        gathers = hasattr(self.head, "unshard")
        return gathers or any(hasattr(p, "ds_id") for p in self.head.parameters())


def as_head(head: nn.Module, hidden: Tensor) -> Tensor:
    weight = getattr(head, "weight", hidden)
    return hidden.to(weight.dtype) if weight.dtype.is_floating_point else hidden


def know_head(body: nn.Module, head: nn.Module) -> None:
    """Let a model without its head find it; as a plain attribute, or its parameters would stand there twice."""
    body.__dict__["head"] = head


def vocabulary_of(body: Any) -> Vocabulary:
    """The words of a model's language model, with its head where that is known."""
    table, head = body.get_input_embeddings(), getattr(body, "head", None)
    plain = getattr(table, "base_layer", table)  # beneath adapters
    ends = body.config.eos_token_id
    return Vocabulary(
        size=plain.num_embeddings,
        dim=plain.embedding_dim,
        embed=table,
        logits=_no_logits if head is None else Head(head).chosen,
        ends=() if ends is None else tuple(ends) if isinstance(ends, (list, tuple)) else (ends,),
    )


def _no_logits(hidden: Tensor, ids: Tensor) -> Tensor:
    raise ValueError("a UsamModel has no head, and so no logits: UsamForConditionalGeneration has both")
