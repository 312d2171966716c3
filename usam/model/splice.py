"""The splice: which placeholder each audio frame stands at, and whose prompt each clip hears.

`slots` is True at the placeholders: (batch, length). No shape depends on data, so that all of it compiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from usam.types import Frames, Prompt, prefix_mask


def owners(slots: Tensor, counts: Tensor) -> Tensor:
    """The sample each clip belongs to: (clip,), from the placeholders' rows and how many each clip takes."""
    first = counts.cumsum(0) - counts
    ends = slots.sum(-1).cumsum(0)
    return torch.searchsorted(ends, first, right=True).clamp_max(len(slots) - 1)


def prompts_of(embeds: Tensor, prompt_mask: Tensor, owner: Tensor) -> Prompt:
    """Each clip's instruction, which is its sample's: Prompt of (clip, length, dim)."""
    mask = prompt_mask.bool()
    return Prompt(embeds.masked_fill(~mask.unsqueeze(-1), 0)[owner], mask[owner])


def check_counts(
    slots: Tensor, counts: Tensor, what: str = "tokens", why: Callable[[], str | None] = lambda: None
) -> None:
    """Compare placeholders with how many each clip takes, row by row; not while compiling.

    Args:
        slots: True at the placeholders: (batch, length).
        counts: how many each clip takes.
        what: of what.
        why: looks for a reason, when they differ.

    Raises:
        ValueError: they differ in number, or a row does not hold whole clips.
    """
    if torch.compiler.is_compiling():
        return
    rows, clips = slots.sum(-1).cumsum(0), counts.cumsum(0)
    # Every row holds whole clips: else one sample would hear the end of another's.
    whole = torch.isin(rows, nn.functional.pad(clips, (1, 0))).all() & (rows[-1] == clips[-1])
    if not whole:
        remedy = why() or "make both with one UsamProcessor, and do not cut input_ids"
        raise ValueError(
            f"{int(rows[-1])} audio placeholders for {int(clips[-1])} audio {what}: the {len(counts)} clips have "
            f"{counts.tolist()} {what}, the {len(slots)} rows {slots.sum(-1).tolist()} placeholders; {remedy}"
        )


def unheard(slots: Tensor, counts: Tensor, known: int) -> Tensor:
    """True for the clips that stand behind the first `known` columns: (clip,).

    Raises:
        ValueError: a clip stands on both sides.
    """
    columns = slots.nonzero()[:, 1]
    clip = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    before = torch.zeros_like(counts).index_add(0, clip, (columns < known).to(counts))
    cut = ((before > 0) & (before < counts)).nonzero()
    if len(cut):
        i = int(cut[0])
        raise ValueError(
            f"the cache of {known} tokens ends within clip {i}, after {int(before[i])} of its {int(counts[i])} "
            "tokens; crop it to end before or behind the clip"
        )
    return before < counts


def scatter(embeds: Tensor, slots: Tensor, frames: Frames) -> Tensor:
    """Embeddings with the k-th valid frame at the k-th placeholder; no shape depends on data."""
    rank = slots.flatten().cumsum(0).sub(1).clamp_min(0).view_as(slots)
    clip, frame = _nth(frames, rank)
    return torch.where(slots.unsqueeze(-1), frames.x[clip, frame].to(embeds.dtype), embeds)


def by_sample(slots: Tensor, frames: Frames) -> Frames:
    """Each sample's clips joined in order, one placeholder a token: Frames of (batch, tokens, dim)."""
    counts = slots.sum(-1)
    return _joined(frames, counts, slots.shape[1])[0]


def beside(slots: Tensor, frames: Frames) -> tuple[Frames, Tensor]:
    """Each sample's clips joined in order, one placeholder a clip; and the columns of these, (batch, tokens)."""
    owner = owners(slots, torch.ones_like(frames.lengths))
    counts = frames.lengths.new_zeros(len(slots)).index_add(0, owner, frames.lengths)
    joined, clip = _joined(frames, counts, frames.mask.numel())
    nth = torch.arange(1, len(frames.x) + 1, device=slots.device)
    column = torch.searchsorted(slots.flatten().cumsum(0), nth) % slots.shape[1]
    return joined, column[clip]


def _joined(frames: Frames, counts: Tensor, bound: int) -> tuple[Frames, Tensor]:
    """All valid frames in rows of `counts`, at most `bound`; and the clip of each."""
    size = bound if torch.compiler.is_compiling() else int(counts.max())
    start = counts.cumsum(0) - counts
    clip, frame = _nth(frames, start.unsqueeze(-1) + torch.arange(size, device=counts.device))
    mask = prefix_mask(counts, size)
    x = frames.x[clip, frame].masked_fill(~mask.unsqueeze(-1), 0)
    return Frames(x, mask, frames.rate, frames.aux), clip


def _nth(frames: Frames, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Clip and place in it of the valid frame that is the `rank`-th of all."""
    ends = frames.lengths.cumsum(0)
    clip = torch.searchsorted(ends, rank, right=True).clamp_max(len(ends) - 1)
    return clip, (rank - (ends - frames.lengths)[clip]).clamp(0, frames.x.shape[1] - 1)
