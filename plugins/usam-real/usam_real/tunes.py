"""Melodies by the programs of General MIDI, with captions of instrument, tempo and mode."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 22050
SECONDS, RING = 4.0, 0.3  # of a clip, and how long before its end the last note ends
PROGRAMS = {
    "a piano": 0,
    "a harpsichord": 6,
    "a music box": 10,
    "a marimba": 12,
    "an organ": 19,
    "an accordion": 21,
    "a guitar": 24,
    "an electric guitar": 30,
    "a violin": 40,
    "a harp": 46,
    "a choir": 52,
    "a trumpet": 56,
    "a saxophone": 65,
    "an oboe": 68,
    "a clarinet": 71,
    "a flute": 73,
    "a sitar": 104,
    "a banjo": 105,
    "a bagpipe": 109,
    "steel drums": 114,
}
TEMPI = {"slow": (60, 75), "lively": (110, 130), "fast": (190, 230)}  # notes a minute
MODES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
ROOTS = {"train": (0, 2, 3, 5, 6, 8, 9, 11), "dev": (1, 7), "test": (4, 10)}  # semitones above C
LOWEST = 55
STEPS = (-2, -1, -1, 1, 1, 2)  # of the scale, from one note to the next
TRIAD = (0, 2, 4)


def tunes(font: Path, part: str, count: int, seed: str) -> Iterator[tuple[NDArray[Any], str]]:
    """Waveforms at 22.05 kHz of four seconds, with their captions; the parts have no key in common.

    Raises:
        ImportError: tinysoundfont is not installed.
    """
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError("melodies need tinysoundfont: pip install --no-deps tinysoundfont") from error
    synth = tinysoundfont.Synth(samplerate=RATE)
    loaded = synth.sfload(str(font))
    for number in range(count):
        draw = random.Random(f"{seed}:{number}")
        name, tempo, mode = (draw.choice(sorted(each)) for each in (PROGRAMS, TEMPI, MODES))
        synth.program_select(0, loaded, 0, PROGRAMS[name])
        wave = _played(
            synth, notes(draw, mode, ROOTS[part], SECONDS * TEMPI[tempo][0] / 60), draw.uniform(*TEMPI[tempo])
        )
        synth.sounds_off()
        synth.generate(RATE // 10)  # what still sounds belongs to no clip
        yield wave, f"{name} {'play' if name.endswith('s') else 'plays'} a {tempo} melody in a {mode} key"


def notes(draw: random.Random, mode: str, roots: tuple[int, ...], count: float) -> list[int]:
    """At least `count` MIDI keys: the chord of the key, one note after the other, then a walk through its scale."""
    scale, root = MODES[mode], LOWEST + draw.choice(roots)
    places = list(TRIAD)
    while len(places) < count:
        places.append(min(max(places[-1] + draw.choice(STEPS), 0), 9))
    return [root + 12 * (place // 7) + scale[place % 7] for place in places]


def _played(synth: Any, keys: list[int], tempo: float) -> NDArray[Any]:
    each, pieces, left = int(RATE * 60 / tempo), [], int(SECONDS * RATE)
    for key in keys:
        if left <= int(RING * RATE):
            break
        long = min(each, left - int(RING * RATE))
        synth.noteon(0, key, 100)
        pieces.append(_mono(synth, long))
        synth.noteoff(0, key)
        left -= long
    pieces.append(_mono(synth, left))
    wave = np.concatenate(pieces)
    return wave * (0.5 / max(np.abs(wave).max(), 1e-9))


def _mono(synth: Any, samples: int) -> NDArray[Any]:
    return np.frombuffer(synth.generate(samples), np.float32).reshape(-1, 2).mean(1).astype(np.float64)
