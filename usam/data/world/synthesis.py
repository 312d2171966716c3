"""What sounds and notes are made of: clocks, partials, voices with harmonics, bands of noise, envelopes."""

from __future__ import annotations

import numpy as np

from usam.data.world.draw import SAMPLE_RATE, Wave

TABLE = 256  # samples of one period


def clock(seconds: float) -> Wave:
    """The times of so many seconds, in whole hundredths: lengths that are fast to transform."""
    return np.asarray(np.arange(max(1, round(100 * seconds)) * (SAMPLE_RATE // 100)) / SAMPLE_RATE)


def partials(time: Wave, frequencies: Wave, gains: Wave, decays: Wave) -> Wave:
    """Sines of these frequencies (Hz), each with its gain, that die away with these time constants (seconds)."""
    waves = np.sin(2 * np.pi * frequencies[:, None] * time) * np.exp(-time / decays[:, None])
    return np.asarray(gains @ waves)


def phase(frequency: Wave | float, time: Wave) -> Wave:
    """Periods passed at each time, of a frequency (Hz) that may change."""
    return np.asarray(np.cumsum(np.broadcast_to(frequency, time.shape)) / SAMPLE_RATE)


def voiced(passed: Wave, harmonics: Wave) -> Wave:
    """A periodic wave of so many periods passed.

    Args:
        passed: periods until each sample, as `phase` counts them.
        harmonics: the gain of each harmonic, and, with two dimensions, of each of several moments, evenly spread.
    """
    moments = np.atleast_2d(harmonics)
    spectrum = np.zeros((len(moments), TABLE // 2 + 1), dtype=complex)
    count = min(moments.shape[1], TABLE // 2)
    spectrum[:, 1 : count + 1] = -0.5j * TABLE * moments[:, :count]
    table = np.fft.irfft(spectrum, TABLE)
    which = np.arange(len(passed)) * len(moments) // len(passed)
    return np.asarray(table[which, (passed * TABLE).astype(int) % TABLE])


def band(noise: Wave, low: float, high: float, slope: int = 3) -> Wave:
    """The part of a noise between two frequencies (Hz), brought to a root mean square of 1."""
    frequencies = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    frequencies[0] = frequencies[1]
    gain = 1 / np.sqrt((1 + (low / frequencies) ** (2 * slope)) * (1 + (frequencies / high) ** (2 * slope)))
    passed = np.fft.irfft(np.fft.rfft(noise) * gain, len(noise))
    return np.asarray(passed / np.sqrt(np.mean(passed**2)))


def slow(points: Wave, time: Wave) -> Wave:
    """A curve through points that are evenly spread over the time."""
    return np.asarray(np.interp(time, np.linspace(0, time[-1], len(points)), points))


def faded(wave: Wave, attack: float, release: float) -> Wave:
    """A wave that comes within `attack` and goes within `release` seconds."""
    edges = np.ones(len(wave))
    for seconds, end in ((attack, slice(None, None, 1)), (release, slice(None, None, -1))):
        count = min(len(wave), max(1, round(seconds * SAMPLE_RATE)))
        edges[end][:count] *= np.arange(count) / count
    return wave * edges


def at_peak(wave: Wave, peak: float = 1.0) -> Wave:
    """A wave whose largest sample is that large."""
    return np.asarray(wave * (peak / np.abs(wave).max()))


def placed(pieces: list[tuple[float, Wave]], seconds: float) -> Wave:
    """One wave of that length from pieces and the seconds at which they begin; what lasts longer is cut off."""
    whole = np.zeros(round(seconds * SAMPLE_RATE))
    for start, wave in pieces:
        first = round(start * SAMPLE_RATE)
        heard = wave[: len(whole) - first]
        whole[first : first + len(heard)] += heard
    return whole
