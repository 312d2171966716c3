"""Long audio in windows: the frames are those of the whole clip, attention reaches to the window's edge."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from usam.clock import ceil_div


def in_windows(
    audio: Tensor,
    mask: Tensor,
    encode: Callable[[Tensor, Tensor], Tensor],
    *,
    frames: int,
    hop: int,
    field: int,
    at_once: int,
) -> Tensor:
    """Encode clips window by window and join the frames.

    A window holds `frames` frames; frame i sees the samples from `i * hop` to `i * hop + field`, so that
    windows overlap by `field - hop` samples and no frame is lost between them. Windows without a sample
    of the clip are not encoded (their frames are zero), except while compiling, when that is not known.

    Args:
        audio: (batch, samples), zero where masked.
        mask: (batch, samples), a prefix.
        encode: (window, samples), (window, samples) -> (window, frames, dim).
        frames: frames of one window.
        hop: samples from one frame to the next.
        field: samples that one frame sees.
        at_once: windows encoded together, which bounds the memory.

    Returns:
        (batch, windows * frames, dim): at least as many frames as the clips have; trim them.
    """
    step = frames * hop
    count = max(1, ceil_div(max(audio.shape[1] - max(field - hop, 0), 0), step))
    padding = (0, max(0, count * step + max(field - hop, 0) - audio.shape[1]))
    size = step + max(field - hop, 0)
    windows = rearrange(F.pad(audio, padding).unfold(1, size, step), "b w s -> (b w) s")
    heard = rearrange(F.pad(mask, padding).unfold(1, size, step), "b w s -> (b w) s")
    if torch.compiler.is_compiling() or count == 1:
        x = encode(windows, heard)
    else:
        x = encode_heard(windows, heard, encode, at_once)
    return rearrange(x, "(b w) t d -> b (w t) d", w=count)


def encode_heard(windows: Tensor, heard: Tensor, encode: Callable[[Tensor, Tensor], Tensor], at_once: int) -> Tensor:
    """The frames of the windows that hold a sample, `at_once` of them together; zeros for the others."""
    full = heard.any(-1)
    if not full.any():
        full = full.clone()
        full[0] = True  # somebody must say how wide a frame is
    index = full.nonzero().squeeze(-1)
    found = [encode(windows[part], heard[part]) for part in torch.split(index, at_once)]
    some = torch.cat(found)
    return some.new_zeros(len(windows), *some.shape[1:]).index_copy(0, index, some)
