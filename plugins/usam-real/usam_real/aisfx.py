"""aiSFX (Ma and Lerch, 2022), a convolutional network that learned to sort sound effects, at 5.4 frames a second."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import Field, field_validator
from torch import Tensor, nn

from usam import ComponentError, Encoder, Frames
from usam.clock import N, ceil_div
from usam.parts import of_saved
from usam.spec.page import SpecError
from usam.spec.spec import Config
from usam.types import prefix_mask
from usam.weights import Source
from usam_real._checkpoint import located, tensors_of
from usam_real._norm import StoredNorm

RATE, FFT, HOP, BINS = 44100, 2048, 1024, 96
LOUDEST = 9.457798957824707  # of all spectrograms that it was trained on, by which they were divided
POOL = 8  # spectrogram frames of one frame: three poolings by two
CONTEXT = 4 * POOL  # spectrogram frames on either side of a frame that may change it: 30, in whole frames
CHUNK = 128 * POOL  # spectrogram frames that are encoded together
HEAD = re.compile(r"fc\.\d+\.[024]\.(weight|bias)")  # the classifiers, one for each data set


class Arch(Config):
    """The size of an aiSFX network."""

    width: int = Field(64, ge=1, le=4096)
    """Channels of the first block; each of the three others has twice as many as the one before."""


class AiSfx(Encoder):
    """The network before it takes the maximum over its block of 2.3 s: each frame stands for its own 186 ms.

    Clips of any length are one block. Sound below 22 kHz is heard, as it was trained; audio of lower rates is
    resampled, and has nothing up there.
    """

    class Config(Encoder.Config):
        """Options of the aiSFX encoder."""

        path: str | None = None
        """File or folder of the weights: `checkpoint.pth` of the package aisfx, or the same as safetensors. A folder
        that usam saved gives its encoder of this type."""
        arch: dict[str, Any] | None = None
        """`width`, the channels of the first block; null reads it from `path`."""
        chunks_at_once: int = Field(4, ge=1)
        """Pieces of 24 s, and clips, that are encoded together: bounds the memory."""

        @field_validator("arch")
        @classmethod
        def _known_sizes(cls, arch: dict[str, Any] | None) -> dict[str, Any] | None:
            return arch if arch is None else Arch.model_validate(arch).to_dict()

        @property
        def sample_rate(self) -> int:
            """44.1 kHz."""
            return RATE

        @property
        def rate(self) -> float:
            """5.38 frames per second: one for every 8192 samples."""
            return RATE / (HOP * POOL)

        def length(self, samples: N) -> N:
            """One frame for every 8192 samples begun."""
            return ceil_div(samples, HOP * POOL)

        def resolved(self) -> AiSfx.Config:
            """The same config with its size filled in."""
            if self.arch is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("aisfx needs 'path' (weights) or 'arch' (width)")
            first = own_tensors(self.path).get("conv_block1.conv1.weight")
            if first is None:
                raise ComponentError(f"{self.path}: no checkpoint of aisfx: it has no conv_block1.conv1.weight")
            return self.model_copy(update={"arch": {"width": len(first)}})

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        width = Arch.model_validate(self.config.arch).width
        self.dim = 8 * width
        self.mel = LogMel()
        self.conv_block1 = Block(1, width)
        self.conv_block2 = Block(width, 2 * width)
        self.conv_block3 = Block(2 * width, 4 * width)
        self.conv_block4 = Block(4 * width, 8 * width)

    def source(self) -> Source | None:
        """The file or folder of the weights; None when they are random."""
        return located(self.config.path) if self.config.path else None

    def pretrained(self) -> dict[str, Tensor]:
        """The tensors of the embedding network; the classifiers behind it are left out."""
        return own_tensors(self.config.path) if self.config.path else {}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, ceil(samples / 8192), 8 * width) at 5.38 per second."""
        size = self.config.length(audio.shape[1])
        sounding = ceil_div(mask.sum(-1), HOP)  # spectrogram frames of each clip
        step = min(max(1, size) * POOL, CHUNK)
        count = max(1, ceil_div(size * POOL, step))
        context = CONTEXT if count > 1 else 0
        whole = (count * step + 2 * context + 1) * HOP
        before = context * HOP + HOP // 2
        x = F.pad(audio.masked_fill(~mask, 0), (before, whole - before - audio.shape[1]))
        x = x.unfold(1, (step + 2 * context + 1) * HOP, step * HOP)
        first = torch.arange(count, device=x.device).unsqueeze(-1) * step - context
        place = first + torch.arange(step + 2 * context, device=x.device)
        own = (place >= 0) & (place < sounding[:, None, None])
        pieces = zip(
            rearrange(x, "b c s -> (b c) s").split(self.config.chunks_at_once),
            rearrange(own, "b c t -> (b c) t").split(self.config.chunks_at_once),
            strict=True,
        )
        x = torch.cat([self._encode(audio, own) for audio, own in pieces])
        x = x[:, context // POOL : (context + step) // POOL]
        x = rearrange(x, "(b c) t d -> b (c t) d", c=count)[:, :size]
        heard = prefix_mask(self.config.length(mask.sum(-1)), size)
        return Frames(x.masked_fill(~heard.unsqueeze(-1), 0), heard, self.config.rate)

    def _encode(self, audio: Tensor, own: Tensor) -> Tensor:
        """(piece, samples), and which of its spectrogram frames belong to the clip, to (piece, frames, dim)."""
        own = rearrange(own, "p t -> p 1 t 1")
        x = self.mel(audio).unsqueeze(1).masked_fill(~own, 0).to(self.conv_block1.conv1.weight.dtype)
        for block in (self.conv_block1, self.conv_block2, self.conv_block3):
            x = F.max_pool2d(block(x, own), 2, ceil_mode=True)
            own = own[:, :, ::2]
        return reduce(self.conv_block4(x, own), "p d t f -> p t d", "mean")


class Block(nn.Module):
    """Two convolutions; beyond the clip is silence for each, as at the edge of an image.

    Args:
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = StoredNorm(out_channels, eps=1e-5)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = StoredNorm(out_channels, eps=1e-5)

    def forward(self, x: Tensor, own: Tensor) -> Tensor:
        """(piece, in_channels, frames, bins), (piece, 1, frames, 1) -> (piece, out_channels, frames, bins)."""
        x = F.relu(self.bn1(self.conv1(x))).masked_fill(~own, 0)
        return F.relu(self.bn2(self.conv2(x))).masked_fill(~own, 0)


class LogMel(nn.Module):
    """The spectrogram that the paper made with Essentia, in float32 whatever the model's dtype."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.empty(FFT, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.empty(FFT // 2 + 1, BINS, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Hann window that ends in zeros, and triangles of equal width in mels, each with the sum 1."""
        device = self.filters.device
        hertz = torch.linspace(0, RATE / 2, FFT // 2 + 1, dtype=torch.float64)
        mels, corners = 1127 * torch.log1p(hertz / 700), 1127 * math.log1p(RATE / 2 / 700)
        edges = torch.linspace(0, corners, BINS + 2, dtype=torch.float64)
        distance = (mels.unsqueeze(-1) - edges) / edges[1]  # in widths of a band: bin edge
        filters = torch.minimum(distance[:, :-2], -distance[:, 2:]).clamp_min(0)
        self.filters = (filters / filters.sum(0)).float().to(device)
        self.window = torch.hann_window(FFT, periodic=False, dtype=torch.float64).float().to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> LogMel:
        super()._apply(fn, recurse)
        if self.filters.dtype != torch.float32:
            self.reset_parameters()  # a cast of the model must not coarsen them
        return self

    def forward(self, audio: Tensor) -> Tensor:
        """(piece, (frames + 1) * 1024) -> (piece, frames, 96)."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio.float(), FFT, HOP, window=self.window, center=False, return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            return ((power.mT @ self.filters) * 1e4 + 1).log10() / LOUDEST


def own_tensors(path: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under this encoder's names."""
    return {
        name.removeprefix("embedding_net."): tensor
        for name, tensor in tensors_of(path).items()
        if not HEAD.fullmatch(name)
    }
