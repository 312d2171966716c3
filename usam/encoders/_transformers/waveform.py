"""wav2vec 2 (Baevski et al., 2020) and what has its structure: convolutions over the waveform, then a transformer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, cast

from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from usam.encoders._layers import LayerMix
from usam.encoders._transformers.network import Network, Span
from usam.encoders._wav2vec2 import Convolutions, WeightNormConv, attended, field_and_hop, normalized
from usam.types import prefix_mask


class Waveform(Network):
    """wav2vec 2 (Baevski et al., 2020) and what has its structure."""

    types: ClassVar[tuple[str, ...]] = ("wav2vec2", "hubert", "data2vec-audio", "unispeech", "unispeech-sat")
    extractor = "Wav2Vec2FeatureExtractor"
    sample_rate = None

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__(model, config)
        model.feature_extractor = Convolutions(model.feature_extractor.conv_layers, self.window, self.at_once)
        self.position: WeightNormConv | None = None
        positions = model.encoder.pos_conv_embed
        if hasattr(positions, "conv"):  # torch's parametrisation cannot be pickled
            self.position, self.activation = WeightNormConv(positions.conv), positions.activation
            del model.encoder.pos_conv_embed
        self.last = model.config.num_hidden_layers
        self.stable = getattr(model.config, "do_stable_layer_norm", False)

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """By the convolutions."""
        field, hop = field_and_hop(list(network.conv_kernel), list(network.conv_stride))
        return Span(int(preprocessor.get("sampling_rate", 16000)), field, hop)

    def end_at(self, state: int) -> None:
        """Layers, and where the norm is the last, that too."""
        encoder = self.model.encoder
        if self.stable and state < self.last:
            encoder.layer_norm = nn.Identity()
        del encoder.layers[state:]

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, frames, dim)."""
        if self.options.get("do_normalize", True):
            audio = normalized(audio, mask)
        x = self.model.feature_extractor(audio, mask)
        own = prefix_mask(self.span.length(mask.sum(-1)), x.shape[1])
        x = self.model.feature_projection(x)
        x = x[0] if isinstance(x, tuple) else x
        x = self._placed(x, ~own.unsqueeze(-1))
        return attended(x, own, lambda x, mask: mix(self._states(x, mask)), frames=self.window, at_once=self.at_once)

    def _placed(self, x: Tensor, outside: Tensor) -> Tensor:
        """The frames with their positions, by convolutions that see nothing past a clip's end."""
        encoder = self.model.encoder
        x = x.masked_fill(outside, 0)
        place = x
        if self.position is not None:
            place = self.activation(self.position(place.mT)[..., : x.shape[1]]).mT
        else:
            for layer in encoder.pos_conv_embed.layers:
                place = layer(place.mT).mT.masked_fill(outside, 0)
        x = x + place
        return cast(Tensor, encoder.dropout(x if self.stable else encoder.layer_norm(x)))

    def _states(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        yield x
        for i, state in enumerate(self._layers(x, mask), 1):
            yield self.model.encoder.layer_norm(state) if self.stable and i == self.last else state

    def _layers(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        attention_mask = create_bidirectional_mask(self.model.config, x, mask)
        for layer in self.model.encoder.layers:
            x = layer(x, attention_mask=attention_mask)
            yield x
