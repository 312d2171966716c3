"""Faster or slower, pitch and all, as a tape would be (Ko et al., 2015)."""

from __future__ import annotations

import math

import numpy as np
import soxr
from pydantic import Field, field_validator

from usam.augmentations import Augmentation
from usam.augmentations._levels import within_full_scale
from usam.processor.audio import Waveform


class Speed(Augmentation):
    """One of the factors is drawn for each clip; a clip of n samples has n / factor of them afterwards."""

    class Config(Augmentation.Config):
        """Options of the speed."""

        factors: list[float] = Field([0.9, 1.0, 1.1], min_length=1)
        """How many times as fast; below 1 a clip becomes longer."""

        @field_validator("factors")
        @classmethod
        def _moderate(cls, factors: list[float]) -> list[float]:
            for factor in factors:
                if not 0.25 <= factor <= 4:
                    raise ValueError(f"{factor:g} is no speed of speech; expected 0.25 to 4")
            return factors

    @property
    def stretch(self) -> float:
        """By the slowest."""
        return max(1.0, 1 / float(min(self.config.factors)))

    def __call__(self, clip: Waveform, rate: int, generator: np.random.Generator) -> Waveform:
        """The clip resampled."""
        factor = float(generator.choice(self.config.factors))
        if factor == 1:
            return clip.copy()
        most = max(1, math.ceil(len(clip) * min(self.stretch, 1 / factor)))
        found = soxr.resample(clip, rate * factor, rate, quality="HQ")[:most]
        return within_full_scale(found if len(found) else clip[:1], clip)
