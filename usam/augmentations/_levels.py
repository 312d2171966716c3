"""Levels of sound: ranges in decibels, and a peak that stays within full scale."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from usam.processor.audio import Waveform


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{pair[0]:g} lies above {pair[1]:g}; write the lower one first")
    if not all(abs(end) <= 200 for end in pair):
        raise ValueError("decibels are from -200 to 200 here")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
"""Lowest and highest, in decibels."""


def within_full_scale(x: Waveform, before: Waveform) -> Waveform:
    """`x`, made quieter where its peak lies above 1, and above that of what it was made of."""
    bound = max(1.0, float(np.abs(before).max()))
    peak = float(np.abs(x).max())
    return (x if peak <= bound else np.clip(x * (bound / peak), -bound, bound)).astype(np.float32)
