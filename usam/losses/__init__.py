"""Losses say how wrong the model is; the model's loss is their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from usam.component import Component, ComponentConfig, build, finish
from usam.registry import Registry
from usam.spec.spec import Config
from usam.types import LossInputs, LossOutput


class Loss(Component):
    """A term of the training objective; it may own parameters, and never holds the model.

    Args:
        dim: width of the language model's states and of the projected audio.
    """

    class Config(ComponentConfig):
        """Options every loss has."""

        weight: float = Field(1.0, ge=0)
        """Its share in the weighted sum."""

    needs_states: bool = True
    """Whether it reads `hidden` or `head`; of the class, or of one loss by its options. Where no loss of a model does,
    its language model is not run, and `hidden` holds no state."""

    needs_frames: bool = True
    """Whether it reads `audio.x`, and not its mask or by-products alone: a projector may spare what nothing reads."""

    def __init__(self, config: Any, *, dim: int) -> None:
        super().__init__(config)

    def forward(self, inputs: LossInputs) -> LossOutput:
        """A scalar, a mean over what it looks at; with nothing to say, `self.nothing(inputs)`.

        A loss that is the mean over `inputs.labels` may give the value of each, detached, as `tokens` in `aux`: it is
        then logged for each task, and told whose it is when it is not finite.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(inputs)")

    def nothing(self, inputs: LossInputs) -> Tensor:
        """Zero, with a path to every parameter, so that distributed training does not wait for a gradient."""
        heard = inputs.hidden.sum() + inputs.audio.x[:, :0].sum()  # no frame, for padding may hold anything
        return sum((p.sum() for p in self.parameters()), heard) * 0.0


registry: Registry[Loss] = Registry(Loss, "usam.losses")
register = registry.register


def build_loss(
    component: str | Mapping[str, Any] | Config, /, *, dim: int, weights: bool = True, **options: Any
) -> Loss:
    """One loss, outside any spec: `build_loss("cross_entropy", dim=4096, label_smoothing=0.1)`."""
    cls, config = build("usam.losses", component, options)
    loss: Loss = finish(cls(config, dim=dim), config, weights)
    return loss
