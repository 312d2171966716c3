"""WavLM (Chen et al., 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from usam.encoders._transformers.waveform import Waveform


class WavLM(Waveform):
    """WavLM (Chen et al., 2022), whose layers share a bias for positions."""

    types: ClassVar[tuple[str, ...]] = ("wavlm",)

    def _layers(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        bias = None
        for i, layer in enumerate(self.model.encoder.layers):
            x, bias = layer(x, attention_mask=mask, position_bias=bias, index=i)
            yield x
