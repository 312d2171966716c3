"""What CLAP's audio tower (Wu et al., 2023) hears: mel frames in decibels, normalised by fixed statistics."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from usam.encoders._front_end import FrontEnd

FLOOR = 1e-10  # -100 dB


class ClapMel(FrontEnd):
    """The spectrogram of transformers' ClapFeatureExtractor, in float32 whatever the model's dtype.

    Args:
        bins: mel bins.
        sample_rate: samples per second.
        fft: samples that a frame sees, around its centre.
        hop: samples from one frame to the next.
        lowest: frequency in Hz where the filters begin.
        highest: frequency in Hz where they end.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int, *, sample_rate: int, fft: int, hop: int, lowest: float, highest: float) -> None:
        super().__init__()
        self.bins, self.sample_rate, self.fft, self.hop = bins, sample_rate, fft, hop
        self.lowest, self.highest = lowest, highest
        self.register_buffer("window", torch.empty(fft, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.empty(fft // 2 + 1, bins, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A periodic Hann window and the slaney mel filters, which go with single windows of a clip."""
        grid, highest, rate = self.fft // 2 + 1, self.highest, self.sample_rate
        filters = mel_filter_bank(grid, self.bins, self.lowest, highest, rate, norm="slaney", mel_scale="slaney")
        device = self.filters.device
        self.window = torch.hann_window(self.fft, dtype=torch.float64, device="cpu").float().to(device)
        self.filters = torch.from_numpy(filters.astype(np.float32)).to(device)

    def forward(self, audio: Tensor) -> Tensor:
        """(batch, samples) to decibels (batch, 1 + samples // hop, bins); frame i is centred on sample i * hop."""
        with torch.autocast(audio.device.type, enabled=False):
            x = F.pad(audio.float(), (self.fft // 2, self.fft // 2), mode="reflect")
            spectrum = torch.stft(x, self.fft, self.hop, window=self.window, center=False, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            mel: Tensor = power.mT @ self.filters
            return 10 * mel.clamp_min(FLOOR).log10()


class FixedNorm(nn.BatchNorm2d):
    """A batch norm that keeps its statistics, also in training: a clip's frames depend on that clip alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width), normalised in float32: 8 bits are too coarse for decibels."""
        with torch.autocast(x.device.type, enabled=False):
            mean, variance = cast(Tensor, self.running_mean).float(), cast(Tensor, self.running_var).float()
            x = F.batch_norm(x.float(), mean, variance, self.weight.float(), self.bias.float(), eps=self.eps)
        return x.to(self.weight.dtype)
