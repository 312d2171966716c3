"""Music: seven instruments, three tempos, major and minor, waltz and march, in every combination.

Three seconds hold at least one bar and the next first beat, so all of it can be heard: a chord of root, third and fifth
with its root an octave below on each first beat, one note of the scale on the others, softer. A slow beat is
100 to 118 a minute, for a slower one would leave no room for a second bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from usam.data.world.draw import SAMPLE_RATE, SPLITS, Draw, Split, Wave
from usam.data.world.synthesis import at_peak, band, clock, faded, partials, phase, placed, voiced

TASKS = ("mc",)
TEMPOS = {"slow": (100.0, 118.0), "moderate": (135.0, 160.0), "fast": (185.0, 220.0)}  # beats a minute
MODES = {"major": (0, 2, 4, 5, 7, 9), "minor": (0, 2, 3, 5, 7, 8)}  # semitones of the scale above its root
METERS = {"waltz": 3, "march": 4}
METER_WORDS = {"waltz": "three-four", "march": "four-four"}
TONICS = (220.0, 415.0)  # Hz
SECONDS = 2.9
RINGS = 0.25  # seconds that a note may ring on after its beat
FRAMES = 100  # changes of timbre a second
SOFT = 0.4  # of the other beats, beside the first
FLOOR = (-60.0, -40.0)  # dB of the background noise

Combination = tuple[str, str, str | None, str]  # instrument, tempo, mode, meter; drums have no mode


@cache
def combinations(split: Split) -> tuple[Combination, ...]:
    """The combinations that a split plays: one in seven is for dev, one in seven for test, and each pair is trained."""
    tuned = [name for name in INSTRUMENTS if name != "drums"]
    found: list[Combination] = []
    for (i, name), (t, tempo), (m, mode), (k, meter) in product(*map(enumerate, (tuned, TEMPOS, MODES, METERS))):
        if _split_at(i + 2 * t + 4 * m + 3 * k) == split:
            found.append((name, tempo, mode, meter))
    for (t, tempo), (k, meter) in product(enumerate(TEMPOS), enumerate(METERS)):
        if SPLITS[(0, 1, 2, 0, 0, 0)[2 * t + k]] == split:
            found.append(("drums", tempo, None, meter))
    return tuple(found)


def _split_at(place: int) -> Split:
    return ("dev", "test", "train", "train", "train", "train", "train")[place % 7]


def clips(task: str, split: Split, count: int, seed: int) -> Iterator[tuple[Wave, dict[str, Any]]]:
    """Waves at 16 kHz, and their rows without the audio."""
    for i in range(count):
        draw = Draw(split, seed, task, i)
        yield play(draw, draw.choice(combinations(split)))


def captions(combination: Combination) -> list[str]:
    """What is played, in three ways; the first is the shortest, and the one to be learned."""
    name, tempo, mode, meter = combination
    who = {"drums": "drums", "strings": "strings"}.get(name, f"{'an' if name[0] in 'aeiou' else 'a'} {name}")
    plays = "play" if who == name else "plays"
    kind, key = (f"{mode} {meter}", f" in a {mode} key") if mode else (meter, "")
    return [
        f"a {tempo} {kind} on {who}",
        f"{who} {plays} a {tempo} {meter}{key}",
        f"{tempo} music in {METER_WORDS[meter]} time{f' and a {mode} key' if mode else ''}, played on {who}",
    ]


def play(draw: Draw, combination: Combination) -> tuple[Wave, dict[str, Any]]:
    """A clip and its row without the audio."""
    name, tempo, mode, meter = combination
    bpm = draw.between("bpm", *TEMPOS[tempo])
    onset = draw.any(0.02, 0.1)
    beats = np.arange(onset, SECONDS - 0.1, 60 / bpm)
    strike = cache(INSTRUMENTS[name](draw))  # the same key gives the same note
    pieces: list[tuple[float, Wave]] = []
    if mode is None:
        for i, beat in enumerate(beats):
            pieces += [(beat, part) for part in strike(float(i % METERS[meter] == 0), 0.0)]
    else:
        tonic, scale = draw.between("tonic", *TONICS), MODES[mode]
        lasts = 60 / bpm + RINGS
        for i, beat in enumerate(beats):
            first = i % METERS[meter] == 0
            chord = (-12, 0, scale[2], 7) if first else (draw.choice(scale) + draw.choice((0, 12)),)
            notes = [note for semitones in chord for note in strike(tonic * 2 ** (semitones / 12), lasts)]
            pieces += [(beat, (0.6 if first else SOFT) * note) for note in notes]
    wave = at_peak(placed(pieces, SECONDS), draw.any(0.4, 0.9))
    wave = faded(wave, 0.005, 0.05) + 10 ** (draw.any(*FLOOR) / 20) * draw.noise(len(wave))
    truth = {"instrument": name, "tempo": tempo, "mode": mode, "meter": meter, "params": draw.params}
    events = [{"name": "music", "onset": round(onset, 4), "offset": SECONDS}]
    played = {"beats": [round(float(beat), 4) for beat in beats], "events": events}
    return np.clip(wave, -1, 1), {"answer": captions(combination), "meta": truth | played}


# An instrument draws its timbre once a clip, and gives what plays a note: of a frequency (Hz), for so many seconds. The
# drums' first argument says whether it is a first beat.
Strike = Callable[[float, float], list[Wave]]


def _note(
    pitch: float, seconds: float, harmonics: Wave, fall: Wave | None = None, vibrato: tuple[float, float] = (0.0, 0.0)
) -> Wave:
    """A note of harmonics that stay, or that each fall off with their time constant; vibrato is rate and depth."""
    time = clock(seconds)
    harmonics = harmonics[: max(1, int(0.45 * SAMPLE_RATE / pitch))]
    if fall is not None:
        moments = np.arange(round(seconds * FRAMES))[:, None] / FRAMES
        harmonics = harmonics * np.exp(-moments / fall[: len(harmonics)])
    rate, depth = vibrato
    passed = pitch * time + (pitch * depth / (2 * np.pi * rate) * np.sin(2 * np.pi * rate * time) if depth else 0.0)
    return voiced(passed, harmonics)


def _piano(draw: Draw) -> Strike:
    """Hammered: a hard attack, higher harmonics sooner over."""
    order = np.arange(1.0, 21.0)
    decay, dark = draw.between("decay", 0.35, 0.55), draw.between("dark", 1.1, 1.5)
    gains, fall = order**-dark, decay / order**0.6
    return lambda pitch, seconds: [faded(_note(pitch, seconds, gains, fall), 0.003, 0.08)]


def _organ(draw: Draw) -> Strike:
    """Pipes at octaves and fifths, as long as the key is held."""
    gains = np.zeros(16)
    gains[[0, 1, 2, 3, 5, 7, 11, 15]] = [1, 0.9, 0.3, 0.8, 0.3, 0.7, 0.3, draw.between("mixture", 0.3, 0.6)]
    return lambda pitch, seconds: [faded(_note(pitch, seconds - RINGS, gains), 0.015, 0.03)]


def _strings(draw: Draw) -> Strike:
    """Bowed: all harmonics, a slow attack, several players out of tune with one another."""
    order = np.arange(1.0, 31.0)
    attack, spread = draw.between("attack", 0.07, 0.11), draw.between("spread", 0.004, 0.008)
    gains = 1 / order**0.9

    def strike(pitch: float, seconds: float) -> list[Wave]:
        players = [(pitch * (1 + spread * side), (draw.any(4.5, 6), 0.004)) for side in (-1, 0, 1)]
        notes = [_note(p, seconds - 0.1, gains, vibrato=v) for p, v in players]
        return [faded(np.sum(notes, axis=0), attack, 0.12)]

    return strike


def _flute(draw: Draw) -> Strike:
    """Blown: nearly a sine, an octave up, with breath and vibrato."""
    second, breath = draw.between("second", 0.1, 0.2), draw.between("breath", 0.04, 0.08)
    gains, vibrato = np.array([1, second, 0.06]), (draw.between("vibrato", 4.5, 6), 0.008)

    def strike(pitch: float, seconds: float) -> list[Wave]:
        tone = _note(2 * pitch, seconds - RINGS, gains, vibrato=vibrato)
        air = breath * band(draw.noise(len(tone)), 1.6 * pitch, 7000, 1)
        return [faded(tone + air, 0.04, 0.05)]

    return strike


def _guitar(draw: Draw) -> Strike:
    """Plucked: a string of noise that each period averages with its neighbour (Karplus and Strong, 1983)."""
    order = np.arange(1.0, 41.0)
    place, loss = draw.between("place", 0.12, 0.22), draw.between("loss", 0.9965, 0.998)
    gains = np.abs(np.sin(np.pi * order * place)) * np.exp(-order / 30)

    def strike(pitch: float, seconds: float) -> list[Wave]:
        period = SAMPLE_RATE / pitch
        each = loss * np.abs(np.cos(np.pi * np.minimum(order / period, 0.49)))  # what a period leaves of a harmonic
        return [faded(_note(pitch, seconds, gains, -1 / (pitch * np.log(each))), 0.001, 0.05)]

    return strike


def _trumpet(draw: Draw) -> Strike:
    """Brass: the louder, the brighter, so that a note opens; strong harmonics around 1.2 kHz."""
    order = np.arange(1.0, 25.0)
    centre, opening = draw.between("centre", 1100, 1500), draw.between("opening", 0.04, 0.07)

    def strike(pitch: float, seconds: float) -> list[Wave]:
        held = seconds - RINGS
        gains = np.exp(-(((order * pitch - centre) / 900) ** 2)) + 0.15 / order
        moments = np.arange(round(held * FRAMES))[:, None] / FRAMES
        opened = gains * (1 - np.exp(-(moments + 0.005) / (opening * (0.3 + order / 8))))
        time = clock(held)
        return [faded(voiced(pitch * time, opened[:, : max(1, int(7000 / pitch))]), 0.01, 0.04)]

    return strike


def _drums(draw: Draw) -> Strike:
    """A bass drum on first beats, a snare on the others, a cymbal on all."""
    kick, snare = draw.between("kick", 50, 70), draw.between("snare", 170, 230)

    def strike(first: float, seconds: float) -> list[Wave]:
        time = clock(0.2)
        cymbal = 0.12 * band(draw.noise(len(time)), 5000, 7800) * np.exp(-time / 0.03)
        if first:
            glide = np.sin(2 * np.pi * phase(kick * (1 + 2 * np.exp(-time / 0.02)), time)) * np.exp(-time / 0.08)
            return [faded(1.2 * glide, 0.001, 0.02), cymbal]
        skin = partials(time, snare * np.array([1, 1.6]), np.array([0.4, 0.2]), np.array([0.04, 0.03]))
        return [
            faded(skin + 0.25 * band(draw.noise(len(time)), 1000, 6500) * np.exp(-time / 0.05), 0.001, 0.02),
            cymbal,
        ]

    return strike


INSTRUMENTS: dict[str, Callable[[Draw], Strike]] = {
    "piano": _piano,
    "organ": _organ,
    "strings": _strings,
    "flute": _flute,
    "guitar": _guitar,
    "trumpet": _trumpet,
    "drums": _drums,
}
