"""XARES-LLM trains a language model on an encoder that it is given, and scores twenty tasks: any of usam's may enter.

    python -m xares_llm.run usam.harnesses.xares_llm.UsamEncoder --model_args '{"type": "whisper", "path": "..."}'

Its contract (https://github.com/xiaomi-research/xares-llm, README and modeling_xaresllm.py): a module with
`output_dim`, called with audio at 16 kHz and a mask, 1 where it is heard, which gives features and their mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from usam import encoders  # by the module: XARES-LLM takes the only name here that ends in Encoder
from usam.spec.page import SpecError
from usam.types import Audio, prefix_mask

RATE = 16000  # what XARES-LLM resamples all audio to


class UsamEncoder(nn.Module):
    """A frozen encoder of usam's, with its weights.

    Args:
        type: the encoder's name.
        options: its options, as in a spec.

    Raises:
        SpecError, ComponentError: there is no such encoder, an option is wrong, or weights do not fit.
    """

    def __init__(self, type: str = "", **options: Any) -> None:
        super().__init__()
        if not type:
            raise SpecError(
                'which encoder? --model_args \'{"type": "whisper", "path": "openai/whisper-small"}\'; known: '
                + ", ".join(encoders.registry.names())
            )
        self.encoder = encoders.build_encoder({"type": type, **options})
        self.encoder.requires_grad_(False)  # XARES-LLM means to, and sets another attribute
        self.output_dim = self.encoder.dim

    @torch.no_grad()
    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features and their mask.

        Args:
            audio: (batch, samples) or (samples,), in [-1, 1] at 16 kHz.
            audio_attention_mask: (batch, samples), 1 on a clip's own samples, which come first; None for all.

        Returns:
            (batch, frames, output_dim), and (batch, frames) as whole numbers, 1 on a clip's own frames.

        Raises:
            ValueError: the shapes do not go together, or a mask has holes.
        """
        x = audio.unsqueeze(0) if audio.ndim == 1 else audio
        if x.ndim != 2:
            raise ValueError(f"audio is (batch, samples), found {tuple(audio.shape)}")
        mask = torch.ones_like(x, dtype=torch.bool) if audio_attention_mask is None else audio_attention_mask.bool()
        mask = mask.to(x.device).reshape(-1, mask.shape[-1])
        if mask.shape != x.shape:
            raise ValueError(f"the mask is of the audio's shape {tuple(x.shape)}, found {tuple(mask.shape)}")
        if not torch.equal(mask, prefix_mask(mask.sum(-1), mask.shape[-1])):
            raise ValueError("a clip's own samples come first: the mask has holes, or begins with padding")
        heard = Audio(x.float(), mask, RATE).at(self.encoder.config.sample_rate)
        frames = self.encoder(heard.x, heard.mask)
        return frames.x, frames.mask.long()
