"""Which of an encoder's hidden states its frames are made of: the last, a learned mix, or some side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from usam.spec.page import SpecError

Layers = Literal["last", "weighted"] | list[int]
"""The option: `last`; `weighted`, a learned mix of all hidden states; or the numbers of those to concatenate.

State 0 is what enters the first layer and state i is what layer i gives; negative numbers count from the end.
"""


class LayerMix(nn.Module):
    """Frames from hidden states. A component that has one as `mix` declares `random = LayerMix.random`.

    Args:
        layers: which states.
        count: how many states there are: one more than layers.
        dim: width of a state.

    Raises:
        SpecError: a state that does not exist, or none at all.
    """

    random = ("mix.weights",)

    def __init__(self, layers: Layers, count: int, dim: int) -> None:
        super().__init__()
        chosen = layers if isinstance(layers, list) else [-1]
        wrong = [i for i in chosen if not -count <= i < count]
        if wrong or not chosen:
            raise SpecError(f"layers: {layers} names no states; there are {count}, from 0 to {count - 1}")
        self.states = [i % count for i in chosen]
        self.dim = dim * len(self.states)
        if layers == "weighted":
            self.weights = nn.Parameter(torch.empty(count))
            self.reset_parameters()
        else:
            self.register_parameter("weights", None)

    def reset_parameters(self) -> None:
        """An even mix."""
        if self.weights is not None:
            nn.init.zeros_(self.weights)

    def forward(self, states: Iterable[Tensor]) -> Tensor:
        """All states in order, (batch, time, dim) each, to (batch, time, self.dim).

        States that come from a generator are kept no longer than needed, and none is asked for past the last needed.
        """
        if self.weights is not None:
            shares = self.weights.float().softmax(0)
            return torch.stack([x * share.to(x.dtype) for x, share in zip(states, shares, strict=True)]).sum(0)
        found = {i: x for i, x in zip(range(max(self.states) + 1), states, strict=False) if i in self.states}
        return torch.cat([found[i] for i in self.states], -1)
