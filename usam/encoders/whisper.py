"""Whisper's encoder (Radford et al., 2022), any size, on audio of any length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from pydantic import Field
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.audio_utils import mel_filter_bank
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from usam.clock import N, ceil_div
from usam.encoders import Encoder
from usam.encoders._front_end import FrontEnd
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._windows import in_windows
from usam.parts import of_saved
from usam.spec.page import SpecError
from usam.types import Frames, prefix_mask
from usam.weights import parsing, read, read_config

FFT, HOP = 400, 160
FLOOR = 1e-10
SAMPLES_PER_FRAME = 2 * HOP  # the second convolution halves the mel frames


class Whisper(Encoder):
    """Clips are cut into the windows Whisper was trained on (30 s), each padded with silence, as the
    original does; longer audio is several windows, and only frames of real audio come out.

    `context: clip` spares the silence: each frame hears the clip alone, at the positions it would have, and other
    frames come out than Whisper was trained with.
    """

    class Config(Encoder.Config):
        """Options of the Whisper encoder."""

        path: str | None = None
        """Hub id, folder or file of the weights; only the encoder's are read. A folder that usam saved
        gives its encoder of this type."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """Options of transformers' WhisperConfig; null reads them from `path`."""
        context: Literal["window", "clip"] = "window"
        """What a frame hears: its whole window, with the silence behind the clip, as Whisper was trained; or the clip
        alone, which takes time by its length."""
        layers: Layers = "last"
        """Hidden states that make the frames: last, weighted (a learned mix), or numbers to concatenate."""
        attn_implementation: str = "sdpa"
        """Attention of transformers: sdpa, eager, flash_attention_2 ..."""
        windows_at_once: int = Field(16, ge=1)
        """Windows of a long clip encoded together: bounds the memory."""

        @property
        def sample_rate(self) -> int:
            """16 kHz."""
            return 16000

        @property
        def rate(self) -> float:
            """50 frames per second."""
            return self.sample_rate / SAMPLES_PER_FRAME

        def length(self, samples: N) -> N:
            """One frame for every 320 samples begun."""
            return ceil_div(samples, SAMPLES_PER_FRAME)

        def resolved(self) -> Whisper.Config:
            """The same config with its architecture filled in."""
            if self.arch is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("whisper needs 'path' (weights) or 'arch' (options of WhisperConfig)")
            arch = encoder_arch(read_config(self.path, self.revision))
            with parsing(self.path):
                WhisperConfig(**arch)
            return self.model_copy(update={"arch": arch})

    random = LayerMix.random

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        whisper = WhisperConfig(**self.config.arch)
        whisper._attn_implementation = config.attn_implementation
        self.mix = LayerMix(config.layers, whisper.encoder_layers + 1, whisper.d_model)
        self.dim = self.mix.dim
        self.window = whisper.max_source_positions
        self.mel = LogMel(whisper.num_mel_bins)
        self.encoder = WhisperEncoder(whisper)
        self.depth = whisper.encoder_layers
        self.needed = self.depth if self.mix.weights is not None else max(self.mix.states)
        del self.encoder.layers[self.needed :]
        if self.needed < self.depth:
            self.encoder.layer_norm = nn.Identity()  # it belongs to the last state

    def pretrained(self) -> dict[str, Tensor]:
        """The tensors under `model.encoder.` of a Whisper checkpoint, up to the last layer needed."""
        source = self.source()
        if source is None:
            return {}
        unused = [f"layers.{i}." for i in range(self.needed, self.depth)]
        unused += ["layer_norm."] if self.needed < self.depth else []
        found = read(source, "model.encoder.")
        return {f"encoder.{name}": t for name, t in found.items() if not name.startswith(tuple(unused))}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, ceil(samples / 320), d_model) at 50 per second."""
        size = self.config.length(audio.shape[1])
        x = in_windows(
            audio.masked_fill(~mask, 0),
            mask,
            partial(self._encode, sounding=min(audio.shape[1], self.window * SAMPLES_PER_FRAME)),
            frames=self.window,
            hop=SAMPLES_PER_FRAME,
            field=SAMPLES_PER_FRAME,
            at_once=self.config.windows_at_once,
        )[:, :size]
        own = prefix_mask(self.config.length(mask.sum(-1)), size)
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, self.config.rate)

    def _encode(self, windows: Tensor, mask: Tensor, *, sounding: int) -> Tensor:
        """(window, samples), of which only the first `sounding` can be other than zero, to frames."""
        mel = self.mel(windows[:, :sounding], 2 * self.window).to(self.encoder.conv1.weight.dtype)
        if self.config.context == "clip":
            size = self.config.length(sounding)
            own = prefix_mask(self.config.length(mask.sum(-1)), size)
            return cast(Tensor, self.mix(self._states(mel[..., : 2 * size], own)))
        if self.config.layers == "last":
            return cast(Tensor, self.encoder(mel).last_hidden_state)
        return cast(Tensor, self.mix(self._states(mel)))

    def _states(self, mel: Tensor, own: Tensor | None = None) -> Iterator[Tensor]:
        """What enters the first layer, and what each layer gives; after the last one comes the final norm.

        Args:
            mel: (window, bins, 2 * time).
            own: (window, time), which frames the clip has: nothing else is heard. None: all.
        """
        encoder: Any = self.encoder
        if own is not None:  # convolutions end where the clip does
            mel = mel * repeat(own, "w t -> w 1 (t two)", two=2)
        x = F.gelu(encoder.conv1(mel))
        if own is not None:
            x = x * repeat(own, "w t -> w 1 (t two)", two=2)
        x = F.gelu(encoder.conv2(x)).mT + encoder.embed_positions.weight[: x.shape[-1] // 2]
        x = F.dropout(x, encoder.dropout, self.training)
        heard = None if own is None else create_bidirectional_mask(encoder.config, x, own)
        yield x
        for i, layer in enumerate(encoder.layers, start=1):
            x = layer(x, heard)
            yield encoder.layer_norm(x) if i == self.depth else x


class LogMel(FrontEnd):
    """Whisper's log-mel spectrogram, in float32 whatever the model's dtype.

    Args:
        bins: mel bins, 80 or 128 (large-v3).
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("window", torch.empty(FFT, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.empty(FFT // 2 + 1, bins, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A periodic Hann window and the slaney mel filters, 0 to 8000 Hz."""
        filters = mel_filter_bank(FFT // 2 + 1, self.bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
        device = self.filters.device
        self.window = torch.hann_window(FFT, dtype=torch.float64).float().to(device)
        self.filters = torch.from_numpy(filters.astype(np.float32)).to(device)

    def forward(self, audio: Tensor, frames: int) -> Tensor:
        """The spectrogram of (batch, samples) at 16 kHz, followed by silence: (batch, bins, frames).

        Each item is scaled by its own maximum. Frames that hear nothing but the silence are not computed.
        """
        total = frames * HOP
        sounding = min(frames, ceil_div(audio.shape[1] + FFT // 2, HOP))
        end = (sounding - 1) * HOP + FFT // 2  # of the last sounding frame, which may lie past the window's
        with torch.autocast(audio.device.type, enabled=False):
            x = F.pad(audio.float(), (0, min(end, total) - audio.shape[1]))
            x = F.pad(x, (FFT // 2, max(0, end - total)), mode="reflect")
            spectrum = torch.stft(x, FFT, HOP, window=self.window, center=False, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (self.filters.mT @ power).clamp_min(FLOOR).log10()
            mel = F.pad(mel, (0, frames - sounding), value=math.log10(FLOOR))
            mel = torch.maximum(mel, mel.amax((-2, -1), keepdim=True) - 8)
            return (mel + 4) / 4


def encoder_arch(config: dict[str, Any]) -> dict[str, Any]:
    """What of a Whisper config the encoder depends on, as options of WhisperConfig."""
    keys = [
        "d_model",
        "encoder_layers",
        "encoder_attention_heads",
        "encoder_ffn_dim",
        "num_mel_bins",
        "max_source_positions",
        "activation_function",
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "encoder_layerdrop",
        "scale_embedding",
        "init_std",
    ]
    return {key: config[key] for key in keys if key in config}
