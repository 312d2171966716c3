"""Louder or quieter, and never clipped."""

from __future__ import annotations

import numpy as np

from usam.augmentations import Augmentation
from usam.augmentations._levels import Range, within_full_scale
from usam.processor.audio import Waveform


class Gain(Augmentation):
    """A gain is drawn for each clip, and lowered where its peak would pass full scale."""

    class Config(Augmentation.Config):
        """Options of the gain."""

        db: Range = (-10.0, 6.0)
        """Lowest and highest gain in decibels."""

    def __call__(self, clip: Waveform, rate: int, generator: np.random.Generator) -> Waveform:
        """The clip times a factor."""
        factor = 10 ** (generator.uniform(*self.config.db) / 20)
        return within_full_scale(clip.astype(np.float64) * factor, clip)
