"""SpecAugment (Park et al., 2019): bands of frequency and stretches of time are cut out."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from usam.augmentations import Augmentation
from usam.augmentations._levels import within_full_scale
from usam.processor.audio import Waveform

TOP = 8000.0  # Hz, where the masks' mel axis ends


class SpecAugment(Augmentation):
    """The masks are cut out of the sound itself, as SpeechBrain does it (Ravanelli et al., 2021), and not out of one
    encoder's features: so they serve every encoder, those without a mel front-end too, and all hear the same.

    Where a mask lies there is silence, which a log-mel front-end writes as its floor; in the paper it is the mean.
    There is no time warping; see `speed`.
    """

    class Config(Augmentation.Config):
        """Options of SpecAugment; the defaults are the paper's policy LD, but for `time_share`."""

        bins: int = Field(80, ge=1, le=1024)
        """Mel bins from 0 to 8 kHz, in which `frequency_width` is counted."""
        frequency_masks: int = Field(2, ge=0, le=100)
        """How many bands are cut out."""
        frequency_width: int = Field(27, ge=0)
        """The widest band, in mel bins; a width is drawn from 0 on."""
        time_masks: int = Field(2, ge=0, le=100)
        """How many stretches of time are cut out."""
        time_width: float = Field(1.0, ge=0)
        """The longest stretch, in seconds; a length is drawn from 0 on."""
        time_share: float = Field(0.2, ge=0, le=1)
        """The longest stretch, as a share of the clip (the paper's p; LD has 1, which may silence a short clip)."""

    def __call__(self, clip: Waveform, rate: int, generator: np.random.Generator) -> Waveform:
        """The clip with silence where the masks lie."""
        config = self.config
        edges = hertz(np.linspace(0, mel(min(TOP, rate / 2)), config.bins + 1))
        bands = []
        for _ in range(config.frequency_masks):
            width = int(generator.integers(0, min(config.frequency_width, config.bins) + 1))
            first = int(generator.integers(0, config.bins - width + 1))
            bands.append((edges[first], edges[first + width]))
        x = without(clip, rate, bands)
        longest = int(min(config.time_width * rate, config.time_share * len(clip)))
        for _ in range(config.time_masks):
            width = int(generator.integers(0, longest + 1))
            first = int(generator.integers(0, len(clip) - width + 1))
            x[first : first + width] = 0
        return within_full_scale(x, clip)


def without(clip: Waveform, rate: int, bands: list[tuple[float, float]]) -> np.ndarray:
    """A copy of a clip without some bands of frequency, in Hz."""
    if not any(low < high for low, high in bands):
        return clip.copy()
    size = 1 << (2 * len(clip) - 1).bit_length()  # what a filter smears past the end does not come in at the start
    spectrum = np.fft.rfft(clip.astype(np.float64), size)
    at = np.fft.rfftfreq(size, 1 / rate)
    for low, high in bands:
        spectrum[(at >= low) & (at < high)] = 0
    return np.fft.irfft(spectrum, size)[: len(clip)]


def mel(hz: float) -> float:
    """HTK's scale."""
    return float(2595 * np.log10(1 + hz / 700))


def hertz(mels: np.ndarray) -> np.ndarray:
    """The inverse of `mel`."""
    return 700 * (10 ** (mels / 2595) - 1)
