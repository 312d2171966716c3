"""EnCodec's encoder (Défossez et al., 2022): 75 latent frames a second, before they are quantised."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

from usam import ComponentError, Encoder, Frames
from usam.types import prefix_mask
from usam.weights import read_config


class Encodec(Encoder):
    """The causal 24 kHz model. A clip ends in silence, not in the reflection of its last samples."""

    class Config(Encoder.Config):
        """Options of the EnCodec encoder."""

        path: str | None = None
        """Hub id, folder or file of the weights; only the encoder's are used."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """Options of transformers' EncodecConfig; None reads them from `path`, else takes the 24 kHz model's."""

        def resolved(self) -> Encodec.Config:
            """The same config with its architecture filled in."""
            if self.arch is not None:
                return self
            arch = read_config(self.path, self.revision) if self.path else EncodecConfig().to_diff_dict()
            return self.model_copy(update={"arch": arch})

    sample_rate = 24000
    frame_rate = 75

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        codec = EncodecConfig(**self.config.arch)
        found = (codec.sampling_rate, codec.hop_length, codec.audio_channels, codec.use_causal_conv, codec.norm_type)
        if found != (24000, 320, 1, True, "weight_norm"):
            raise ComponentError(f"encodec: only the causal model (24 kHz, mono, weight norm) is taken; found {found}")
        self.dim = codec.hidden_size
        self.hop = codec.hop_length
        # A convolution starts with the reflection of what follows: up to this many frames.
        self.ahead = codec.last_kernel_size
        self.codec = EncodecModel(codec)  # whole, for its own initialisation
        del self.codec.decoder, self.codec.quantizer

    def pretrained(self) -> dict[str, Tensor]:
        """The encoder's tensors, under transformers' own names."""
        source = self.source()
        if source is None:
            return {}
        encoder = EncodecModel.from_pretrained(source.folder).encoder
        return {f"codec.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, ceil(samples / 320), 128) at 75 per second."""
        size = self.config.length(audio.shape[1])
        silence = (size + self.ahead) * self.hop - audio.shape[1]
        x = F.pad(audio.masked_fill(~mask, 0), (0, silence)).to(next(self.codec.parameters()).dtype)
        x = self.codec.encoder(x.unsqueeze(1)).mT[:, :size]  # batch time dim
        return Frames(x, prefix_mask(self.config.length(mask.sum(-1)), size), self.config.rate)
