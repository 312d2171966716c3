"""Augmentations change what a clip sounds like while a model trains on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field

from usam.component import build
from usam.processor.audio import Waveform
from usam.registry import Registry
from usam.spec.spec import Config as Options


class Augmentation:
    """A waveform goes in, another comes out; every choice is drawn from the generator that is given.

    It works on the waveform, before any encoder, so that it serves all of them. A clip is changed by itself: nothing
    depends on its batch.
    """

    class Config(Options):
        """Options every augmentation has."""

        p: float = Field(1.0, gt=0, le=1)
        """Share of the clips that are changed."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def stretch(self) -> float:
        """How many times as long a clip may become; at least 1."""
        return 1.0

    def __call__(self, clip: Waveform, rate: int, generator: np.random.Generator) -> Waveform:
        """Change a clip, which itself stays as it is.

        Args:
            clip: (samples,), float32 in [-1, 1], one sample or more.
            rate: samples per second.
            generator: what is drawn comes from it.

        Returns:
            (samples,) of float32, at least one and at most `ceil(samples * stretch)`; in [-1, 1] if the clip is.
        """
        raise NotImplementedError(f"{type(self).__name__} has no __call__(clip, rate, generator)")


registry: Registry[Augmentation] = Registry(Augmentation, "usam.augmentations")
register = registry.register


def build_augmentation(component: str | Mapping[str, Any] | Options, /, **options: Any) -> Augmentation:
    """One augmentation: `build_augmentation("speed", factors=[0.9, 1.1])`."""
    cls, config = build("usam.augmentations", component, options)
    augmentation: Augmentation = cls(config)
    return augmentation
