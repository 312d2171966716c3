"""A network of transformers as a function of clips, and the arithmetic of its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import AutoModel

from usam.clock import N
from usam.encoders._layers import LayerMix


@dataclass(frozen=True)
class Span:
    """Where a step of the output sees the waveform, in samples, and how many frames a step has."""

    sample_rate: int
    field: int
    hop: int
    bands: int = 1

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop * self.bands

    def length(self, samples: N) -> N:
        """Frames of the steps that lie within `samples` samples."""
        return (samples >= self.field) * ((samples - self.field) // self.hop + 1) * self.bands


class Network(nn.Module):
    """A model of transformers as a function of clips.

    Args:
        model: as AutoModel builds it.
        config: the component's, with `chunk`, `windows_at_once`, `layers` and `preprocessor`.
    """

    types: ClassVar[tuple[str, ...]] = ()
    """The model types of transformers that it runs."""
    extractor: ClassVar[str]
    """The feature extractor that is reproduced here."""
    sample_rate: ClassVar[int | None] = 16000
    """The only one that its filters are for; None: any."""
    loader: ClassVar[Any] = AutoModel
    """What reads a checkpoint."""
    loading: ClassVar[dict[str, Any]] = {}
    """Options for it."""

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        if hasattr(model, "masked_spec_embed"):
            del model.masked_spec_embed  # SpecAugment's
        self.model = model
        self.options = config.preprocessor or {}
        self.span = config._span
        self.window = max(1, round((config.chunk or 30.0) * self.span.sample_rate / self.span.hop))
        self.at_once = config.windows_at_once

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """The arithmetic of its time."""
        raise NotImplementedError("a network has a span_of(network, preprocessor)")

    @staticmethod
    def construct(network: Any) -> Any:
        """The model without a checkpoint's weights."""
        return AutoModel.from_config(network)

    @staticmethod
    def states_of(network: Any) -> tuple[int, int]:
        """How many hidden states it has, and their width."""
        return network.num_hidden_layers + 1, network.hidden_size

    def end_at(self, state: int) -> None:
        """Drop the layers that come after a hidden state, and the norm of the last one."""
        raise NotImplementedError(f"{type(self).__name__} has no end_at(state)")

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """Clips (batch, samples), zero where masked, to (batch, frames, dim), one frame at least."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(audio, mask, mix)")
