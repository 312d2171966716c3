"""The splice: which placeholder each audio frame stands at, and whose prompt each clip hears.

`slots` is True at the placeholders: (batch, length). No shape depends on data, so that all of it compiles.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from usam.types import Frames, Prompt, prefix_mask


def owners(slots: Tensor, tokens: Tensor) -> Tensor:
    """The sample each clip belongs to: (clip,), from the placeholders' rows and the clips' token counts."""
    first = tokens.cumsum(0) - tokens
    ends = slots.sum(-1).cumsum(0)
    return torch.searchsorted(ends, first, right=True).clamp_max(len(slots) - 1)


def prompts_of(embeds: Tensor, prompt_mask: Tensor, owner: Tensor) -> Prompt:
    """Each clip's instruction, which is its sample's: Prompt of (clip, length, dim)."""
    mask = prompt_mask.bool()
    return Prompt(embeds.masked_fill(~mask.unsqueeze(-1), 0)[owner], mask[owner])


def check_counts(slots: Tensor, frames: Frames) -> None:
    """Compare placeholders with audio tokens, row by row; not while compiling.

    Raises:
        ValueError: they differ in number, or a row does not hold whole clips.
    """
    if torch.compiler.is_compiling():
        return
    rows, clips = slots.sum(-1).cumsum(0), frames.lengths.cumsum(0)
    # Every row holds whole clips: else one sample would hear the end of another's.
    whole = torch.isin(rows, nn.functional.pad(clips, (1, 0))).all() & (rows[-1] == clips[-1])
    if not whole:
        raise ValueError(
            f"{int(rows[-1])} audio placeholders for {int(clips[-1])} audio tokens: the {len(frames.x)} clips have "
            f"{frames.lengths.tolist()} tokens, the {len(slots)} rows {slots.sum(-1).tolist()} placeholders; "
            "make both with one UsamProcessor, and do not cut input_ids"
        )


def scatter(embeds: Tensor, slots: Tensor, frames: Frames) -> Tensor:
    """Embeddings with the k-th valid frame at the k-th placeholder; no shape depends on data."""
    rank = slots.flatten().cumsum(0).sub(1).clamp_min(0).view_as(slots)
    ends = frames.lengths.cumsum(0)
    clip = torch.searchsorted(ends, rank, right=True).clamp_max(len(ends) - 1)
    frame = (rank - (ends - frames.lengths)[clip]).clamp(0, frames.x.shape[1] - 1)
    return torch.where(slots.unsqueeze(-1), frames.x[clip, frame].to(embeds.dtype), embeds)


def by_sample(slots: Tensor, frames: Frames) -> Frames:
    """Each sample's clips joined in order: Frames of (batch, tokens, dim)."""
    counts = slots.sum(-1)
    size = slots.shape[1] if torch.compiler.is_compiling() else int(counts.max())
    ends = frames.lengths.cumsum(0)
    start = counts.cumsum(0) - counts
    rank = start.unsqueeze(-1) + torch.arange(size, device=slots.device)
    clip = torch.searchsorted(ends, rank, right=True).clamp_max(len(ends) - 1)
    frame = (rank - (ends - frames.lengths)[clip]).clamp(0, frames.x.shape[1] - 1)
    mask = prefix_mask(counts, size)
    return Frames(frames.x[clip, frame].masked_fill(~mask.unsqueeze(-1), 0), mask, frames.rate, frames.aux)
