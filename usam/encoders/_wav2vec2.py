"""The parts of wav2vec 2 (Baevski et al., 2020) that its descendants share, exact under padding."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from usam.clock import ceil_div
from usam.types import prefix_mask

PIECE = 2**18  # slices whose products are summed together: 22 MB for each clip


class Convolutions(nn.Module):
    """The convolutions, of a whole clip in bounded memory.

    Names are the checkpoint's. Where the first layer has a group norm, which is one of each channel over
    time, its statistics are those of the clip alone.

    Args:
        conv_layers: the layers of a feature encoder of transformers.
        frames: frames of one window.
        at_once: windows encoded together.
    """

    def __init__(self, conv_layers: nn.ModuleList, frames: int, at_once: int) -> None:
        super().__init__()
        self.conv_layers = conv_layers
        self.frames, self.at_once = frames, at_once
        convs = [cast(nn.Conv1d, layer.conv) for layer in conv_layers]
        self.field, self.hop = field_and_hop([c.kernel_size[0] for c in convs], [c.stride[0] for c in convs])

    def forward(self, audio: Tensor, mask: Tensor) -> Tensor:
        """(batch, samples), zero where masked, to (batch, frames, channels); frames past a clip's own are arbitrary."""
        total = max(1, (audio.shape[1] - self.field) // self.hop + 1)
        frames = min(self.frames, total)
        count = ceil_div(total, frames)
        step = frames * self.hop
        size = step + self.field - self.hop
        scale, shift = self._norm(audio, mask.sum(-1))
        windows = F.pad(audio, (0, (count - 1) * step + size - audio.shape[1])).unfold(1, size, step)
        starts = torch.arange(count, device=audio.device) * step
        heard = rearrange(mask.sum(-1, keepdim=True) >= starts + self.field, "b w -> (b w)")
        x = where(
            heard if count > 1 else None,
            self._encode,
            rearrange(windows, "b w s -> (b w) s"),
            repeat(scale, "b c -> (b w) c 1", w=count),
            repeat(shift, "b c -> (b w) c 1", w=count),
            at_once=self.at_once,
        )
        return rearrange(x, "(b w) t c -> b (w t) c", w=count)[:, :total]

    def _encode(self, windows: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        first: Any = self.conv_layers[0]
        conv, norm = first.conv, getattr(first, "layer_norm", None)
        with torch.autocast(windows.device.type, enabled=False):  # 8 bits would drown what is quiet
            bias = None if conv.bias is None else conv.bias.float()
            x = F.conv1d(windows.float().unsqueeze(1), conv.weight.float(), bias, conv.stride)
            x = torch.addcmul(shift, x, scale).to(conv.weight.dtype)
        if isinstance(norm, nn.LayerNorm):
            x = rearrange(norm(rearrange(x, "w c t -> w t c")), "w t c -> w c t")
        x = first.activation(x)
        for layer in self.conv_layers[1:]:
            x = layer(x)
        return cast(Tensor, rearrange(x, "w c t -> w t c"))

    def _norm(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the group norm multiplies and adds, (batch, channels) each; 1 and 0 when there is none.

        A filter's mean and variance over time follow from those of the waveform's slices: with the weights
        w of a channel, mean = w m and variance = w C w. In float64, for a filter may hear only little.
        """
        first: Any = self.conv_layers[0]
        conv, norm = first.conv, getattr(first, "layer_norm", None)
        if not isinstance(norm, nn.GroupNorm):
            one = audio.new_ones(len(audio), conv.out_channels)
            return one, one - 1
        with torch.autocast(audio.device.type, enabled=False):
            count = ((lengths - conv.kernel_size[0]) // conv.stride[0] + 1).clamp_min(0)
            slices = audio.unfold(1, conv.kernel_size[0], conv.stride[0])  # batch frame tap: a view
            outside = ~prefix_mask(count, slices.shape[1]).unsqueeze(-1)
            count = count.clamp_min(1).unsqueeze(-1)
            pieces = list(zip(torch.split(slices, PIECE, 1), torch.split(outside, PIECE, 1), strict=True))
            mean = torch.stack([x.double().masked_fill(no, 0).sum(-2) for x, no in pieces]).sum(0) / count
            products = []
            for x, no in pieces:
                centred = (x.double() - mean.unsqueeze(-2)).masked_fill(no, 0)
                products.append(centred.mT @ centred)
            covariance = torch.stack(products).sum(0) / count.unsqueeze(-1)
            weight = conv.weight.double().squeeze(1)  # channel tap
            variance = ((weight @ covariance) * weight).sum(-1)
            scale: Tensor = norm.weight * (variance + norm.eps).rsqrt()
            center = mean @ weight.mT + (0 if conv.bias is None else conv.bias)
            return scale.float(), (norm.bias - center * scale).float()


class WeightNormConv(nn.Module):
    """A convolution with a weight norm over its taps that can be pickled; names are the older checkpoints'.

    Args:
        conv: a Conv1d with torch's parametrisation, whose place it takes.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        original = cast(Any, conv).parametrizations.weight
        self.weight_g = nn.Parameter(original.original0.detach())  # 1 1 tap
        self.weight_v = nn.Parameter(original.original1.detach())  # out in tap
        self.bias = nn.Parameter(torch.empty_like(self.weight_v[:, 0, 0]))
        self.padding, self.groups = conv.padding, conv.groups
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As transformers does: normal weights, no bias, and a norm that changes nothing."""
        nn.init.kaiming_normal_(self.weight_v)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight_g.copy_(self._length())

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, time) -> (batch, dim, time), and a frame more where the kernel is even."""
        weight = (self.weight_v.float() * (self.weight_g.float() / self._length())).to(self.weight_v.dtype)
        return F.conv1d(x, weight, self.bias, padding=self.padding, groups=self.groups)

    def _length(self) -> Tensor:
        return self.weight_v.float().square().sum((0, 1), keepdim=True).sqrt()


def attended(
    x: Tensor, own: Tensor, attend: Callable[[Tensor, Tensor], Tensor], *, frames: int, at_once: int
) -> Tensor:
    """Frames (batch, time, dim) through layers with attention, in windows of at most `frames` frames.

    Args:
        x: the frames.
        own: (batch, time), a prefix.
        attend: (window, time, dim) and a mask (window, time), nowhere empty, to (window, time, out).
        frames: frames of a window.
        at_once: windows encoded together.
    """
    count = ceil_div(x.shape[1], frames)
    size = min(frames, x.shape[1])
    rest = count * size - x.shape[1]
    windows = rearrange(F.pad(x, (0, 0, 0, rest)), "b (w t) d -> (b w) t d", w=count)
    mask = rearrange(F.pad(own, (0, rest)), "b (w t) -> (b w) t", w=count)
    heard = mask.any(-1)
    mask = mask | ~heard.unsqueeze(-1)  # a softmax over no frame at all would be NaN
    out = where(heard if count > 1 else None, attend, windows, mask, at_once=at_once)
    return rearrange(out, "(b w) t d -> b (w t) d", w=count)[:, : x.shape[1]]


def where(some: Tensor | None, encode: Callable[..., Tensor], *rows: Tensor, at_once: int) -> Tensor:
    """Encode the rows that `some` names, not more than `at_once` together; the others are zero.

    None, or compiling, when it is not known which are named: all rows together.
    """
    if some is None or torch.compiler.is_compiling():
        return encode(*rows)
    index = some.nonzero().squeeze(-1) if some.any() else some.new_zeros(1, dtype=torch.long)
    x = torch.cat([encode(*(row[part] for row in rows)) for part in torch.split(index, at_once)])
    return x.new_zeros(len(some), *x.shape[1:]).index_copy(0, index, x)


def normalized(audio: Tensor, mask: Tensor) -> Tensor:
    """Clips (batch, samples) of zero mean and unit variance over their own samples; zero where masked."""
    count = mask.sum(-1, keepdim=True).clamp_min(1)
    audio = (audio - audio.sum(-1, keepdim=True) / count).masked_fill(~mask, 0)
    return audio * (audio.square().sum(-1, keepdim=True) / count + 1e-7).rsqrt()


def field_and_hop(kernels: list[int], strides: list[int]) -> tuple[int, int]:
    """Samples that a frame sees after all convolutions, and from one frame to the next."""
    return 1 + sum((kernel - 1) * prod(strides[:i]) for i, kernel in enumerate(kernels)), prod(strides)


def plain_name(name: str) -> str:
    """A tensor's name with torch's older names of a weight norm."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )
