"""What both models return: transformers' own outputs, the audio they were given, and the parts of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from usam.types import Frames

F = TypeVar("F", bound=Callable[..., Any])


def may_be_tuple(forward: F) -> F:
    """A `forward` that also gives a tuple: with `return_dict=False`, as an argument or in the config."""
    return cast(F, can_return_tuple(forward))


@dataclass
class UsamModelOutput(BaseModelOutputWithPast):
    """The language model's output, and the audio it was given."""

    audio: Frames | None = None
    inputs_embeds: Tensor | None = None


@dataclass
class UsamOutput(CausalLMOutputWithPast):
    """What the whole model returns.

    `loss` is the weighted sum, `losses` the unweighted parts, `aux` the by-products of projector and
    losses. While training, `logits` is None: the head runs on the supervised positions only.
    """

    losses: dict[str, Tensor] | None = None
    aux: Mapping[str, Tensor] | None = None
