"""w2v-BERT 2.0 (Seamless Communication, 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from einops import rearrange
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from usam.encoders._kaldi import FRAME, KaldiFbank, fbank_frames
from usam.encoders._kaldi import HOP as FBANK_HOP
from usam.encoders._layers import LayerMix
from usam.encoders._transformers.network import Network, Span
from usam.encoders._wav2vec2 import attended
from usam.registry import ComponentError
from usam.types import prefix_mask


class W2vBert(Network):
    """w2v-BERT 2.0 (Seamless Communication, 2023): a conformer on pairs of mel frames."""

    types: ClassVar[tuple[str, ...]] = ("wav2vec2-bert",)
    extractor = "SeamlessM4TFeatureExtractor"

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__(model, config)
        self.fbank = KaldiFbank(self.options.get("num_mel_bins", 80), "povey", scale=2.0**15)
        width, stride = model.config.feature_projection_input_dim, self.span.hop // FBANK_HOP
        if width != self.fbank.bins * stride:
            raise ComponentError(
                f"transformers: {stride} frames of {self.fbank.bins} mel bins do not make "
                f"feature_projection_input_dim {width}; look at 'num_mel_bins' and 'stride' in 'preprocessor'"
            )

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """Frames of 10 ms, by twos."""
        stride = preprocessor.get("stride", 2)
        return Span(16000, FRAME + (stride - 1) * FBANK_HOP, stride * FBANK_HOP)

    def end_at(self, state: int) -> None:
        """Layers; there is no norm after them."""
        del self.model.encoder.layers[state:]

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, frames, dim); each mel bin is normalised over the clip."""
        stride = self.span.hop // FBANK_HOP
        lengths = fbank_frames(mask.sum(-1))
        x = per_bin(self.fbank(audio), lengths)
        x = rearrange(x[:, : x.shape[1] // stride * stride], "b (t s) m -> b t (s m)", s=stride)
        own = prefix_mask(lengths // stride, x.shape[1])
        x = self.model.feature_projection(x.to(self.model.feature_projection.projection.weight.dtype))[0]
        x = self.model.encoder.dropout(x.masked_fill(~own.unsqueeze(-1), 0))
        return attended(x, own, lambda x, mask: mix(self._states(x, mask)), frames=self.window, at_once=self.at_once)

    def _states(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        attention_mask = create_bidirectional_mask(self.model.config, x, mask)
        yield x
        for layer in self.model.encoder.layers:
            x = layer(x, attention_mask=attention_mask, conv_attention_mask=mask)
            yield x


def per_bin(x: Tensor, lengths: Tensor) -> Tensor:
    """Mel frames (batch, time, bin) with zero mean and unit variance in each bin over a clip; zero past its end."""
    outside = ~prefix_mask(lengths, x.shape[1]).unsqueeze(-1)
    count = lengths.clamp_min(1)[:, None, None]
    x = (x - x.masked_fill(outside, 0).sum(1, keepdim=True) / count).masked_fill(outside, 0)
    variance = x.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)
    return x * (variance + 1e-7).rsqrt()
