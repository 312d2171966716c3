"""Kaldi's log-mel filter bank, batched, on the device, in float32 whatever the model's dtype."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from usam.clock import N
from usam.encoders._front_end import FrontEnd

FRAME, HOP, FFT = 400, 160, 512  # 25 ms and 10 ms at 16 kHz
FLOOR = float(np.finfo(np.float32).eps)
PREEMPHASIS = 0.97


def fbank_frames(samples: N) -> N:
    """Frames that `samples` samples hold whole: `1 + (n - 400) // 160`, and none below 400."""
    return (samples >= FRAME) * ((samples - FRAME) // HOP + 1)


class KaldiFbank(FrontEnd):
    """Frames of 25 ms every 10 ms: mean removed, pre-emphasis 0.97, window, power spectrum, mel, natural log.

    Args:
        bins: mel bins, from 20 Hz to 8 kHz.
        window: "povey" (Kaldi's own) or "hann" (Kaldi's "hanning").
        scale: what the waveform in [-1, 1] is multiplied by; 2**15 for models trained on integers.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int, window: str = "povey", scale: float = 1.0) -> None:
        super().__init__()
        self.bins, self.shape, self.scale = bins, window, scale
        self.register_buffer("window", torch.empty(FRAME, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.empty(FFT // 2 + 1, bins, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The symmetric window, and triangles that are straight on Kaldi's mel axis."""
        # How the window is rounded moves values near silence by 2e-4: Povey's as BEATs' authors have it, in float32
        # from the start; Hann's as transformers' AST has it, from float64.
        povey = self.shape == "povey"
        dtype = torch.float32 if povey else torch.float64
        window = torch.hann_window(FRAME, periodic=False, dtype=dtype, device="cpu")
        with warnings.catch_warnings():  # with 128 bins one triangle is narrower than the spectrum's grid: it stays
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero values")
            filters = mel_filter_bank(
                FFT // 2 + 1, self.bins, 20.0, 8000.0, 16000, mel_scale="kaldi", triangularize_in_mel_space=True
            )
        device = self.filters.device
        self.window = (window.pow(0.85) if povey else window).float().to(device)
        self.filters = torch.from_numpy(filters.astype(np.float32)).to(device)

    def forward(self, audio: Tensor) -> Tensor:
        """(batch, samples) at 16 kHz -> (batch, fbank_frames(samples), bins)."""
        with torch.autocast(audio.device.type, enabled=False):
            x = F.pad(audio.float() * self.scale, (0, max(0, FRAME - audio.shape[1])))
            x = x.unfold(1, FRAME, HOP)[:, : fbank_frames(audio.shape[1])]  # batch frame sample
            x = x - x.mean(-1, keepdim=True)
            before = torch.cat([x[..., :1], x[..., :-1]], -1)  # the first sample stands before itself
            spectrum = torch.fft.rfft((x - PREEMPHASIS * before) * self.window, FFT)
            power = spectrum.real.square() + spectrum.imag.square()
            mel: Tensor = power @ self.filters
            return mel.clamp_min(FLOOR).log()
