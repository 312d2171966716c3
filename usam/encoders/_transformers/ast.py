"""The Audio Spectrogram Transformer (Gong et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from usam.encoders._kaldi import FRAME, KaldiFbank, fbank_frames
from usam.encoders._kaldi import HOP as FBANK_HOP
from usam.encoders._layers import LayerMix
from usam.encoders._transformers.network import Network, Span
from usam.encoders._windows import in_windows
from usam.spec.page import SpecError
from usam.types import prefix_mask


class Ast(Network):
    """The Audio Spectrogram Transformer (Gong et al., 2021), in its own windows, each padded as in training.

    A step of time is one token for each band of frequency, from the lowest to the highest.
    """

    types: ClassVar[tuple[str, ...]] = ("audio-spectrogram-transformer",)
    extractor = "ASTFeatureExtractor"

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__(model, config)
        if config.chunk is not None:
            raise SpecError("chunk: AST has windows of its own, as long as its table of positions; leave it out")
        self.fbank = KaldiFbank(model.config.num_mel_bins, "hann")
        self.steps = (model.config.max_length - model.config.patch_size) // model.config.time_stride + 1
        self.last = model.config.num_hidden_layers

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """Patches of 16 frames of 10 ms, every 10 frames, in 12 bands."""
        field = FRAME + (network.patch_size - 1) * FBANK_HOP
        bands = (network.num_mel_bins - network.patch_size) // network.frequency_stride + 1
        return Span(16000, field, network.time_stride * FBANK_HOP, bands)

    def end_at(self, state: int) -> None:
        """Layers, and the norm after the last."""
        if state < self.last:
            self.model.layernorm = nn.Identity()
        del self.model.layers[state:]

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, steps of bands, dim)."""
        return in_windows(
            audio,
            mask,
            lambda audio, mask: self._encode(audio, mask, mix),
            frames=self.steps,
            hop=self.span.hop,
            field=self.span.field,
            at_once=self.at_once,
        )

    def _encode(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        x = self.fbank(audio)
        own = prefix_mask(fbank_frames(mask.sum(-1)), x.shape[1])
        x = x.masked_fill(~own.unsqueeze(-1), 0)
        x = F.pad(x, (0, 0, 0, self.model.config.max_length - x.shape[1]))
        if self.options.get("do_normalize", True):
            x = (x - self.options.get("mean", -4.2677393)) / (2 * self.options.get("std", 4.5689974))
        x = self.model.embeddings(x.to(self.model.embeddings.cls_token.dtype))
        x = mix(self._states(x))[:, 2:]  # without the two tokens of the whole window
        return cast(Tensor, rearrange(x, "b (f t) d -> b (t f) d", t=self.steps))

    def _states(self, x: Tensor) -> Iterator[Tensor]:
        yield x
        for i, layer in enumerate(self.model.layers, 1):
            x = layer(x)
            yield self.model.layernorm(x) if i == self.last else x
