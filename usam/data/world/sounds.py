"""Sound events: sixteen things that sound, each by its own physics, one to three in a clip, in an order and a count.

A scene is what is heard in which order, and how often. Scenes of several things belong to a split by their order of
things, whatever the counts; scenes of one thing by the thing and its count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from usam.data.world.draw import SAMPLE_RATE, Draw, Split, Wave, split_of
from usam.data.world.synthesis import at_peak, band, clock, faded, partials, phase, placed, slow, voiced

TASKS = ("aac",)
THINGS_IN_A_CLIP = (1, 1, 2, 2, 2, 3)  # each as likely
COUNTS = {1: (1, 2, 3), 2: (1, 2, 3), 3: (1,)}  # how often a thing may sound, by things in the clip
TIMES = {1: "", 2: " twice", 3: " three times"}
LONGEST = 3.0  # seconds of a clip
SHORTEST = 1.0
GAP = (-0.08, 0.2)  # seconds from the end of one thing to the next: they may overlap, by a third at most
QUIET = 0.03  # of its peak: below, a sound is taken to be over
PAUSE = 0.05  # seconds of less that part two spans of sound
FLOOR = (-50.0, -32.0)  # dB of the background noise below the loudest sample
GAINS = (0.4, 1.0)  # of a thing beside the others

Scene = tuple[tuple[str, int], ...]  # name and count of each thing, in order


@dataclass(frozen=True)
class Thing:
    """What sounds, how one says so, and how it is made."""

    who: str
    does: str
    doing: str
    sound: Callable[[Draw], Wave]
    counted: bool = False
    """Whether it sounds in strokes that one can count."""


def clips(task: str, split: Split, count: int, seed: int) -> Iterator[tuple[Wave, dict[str, Any]]]:
    """Waves at 16 kHz, and their rows without the audio."""
    for i in range(count):
        yield _clip(Draw(split, seed, task, i))


def split_of_scene(scene: Scene) -> Split:
    """To which split a scene belongs."""
    if len(scene) > 1:
        return split_of("scene " + " > ".join(name for name, _ in scene))
    ((name, count),) = scene
    place = list(THINGS).index(name)
    if not THINGS[name].counted:
        return ("train", "test", "train", "dev")[place % 4]
    if count == place % 3 + 1:  # every counted thing has one count that only test hears alone
        return "test"
    return "dev" if place % 4 == 0 and count == (place + 1) % 3 + 1 else "train"


def captions(scene: Scene) -> list[str]:
    """What is heard, in three ways; the first is the shortest, and the one to be learned."""
    things = [(THINGS[name], TIMES[count]) for name, count in scene]
    plain = [f"{thing.who} {thing.does}{times}" for thing, times in things]
    doing = [f"{thing.who} {thing.doing}{times}" for thing, times in things]
    if len(scene) == 1:
        thing, times = things[0]
        return [plain[0], f"{thing.who} is {thing.doing}{times}", f"the sound of {doing[0]}"]
    firstly = ["first " + plain[0], *(f"then {one}" for one in plain[1:])]
    return [", then ".join(plain), ", ".join(firstly), ", followed by ".join(doing)]


def _clip(draw: Draw) -> tuple[Wave, dict[str, Any]]:
    things = draw.choice(THINGS_IN_A_CLIP)
    while True:
        scene = _scene(draw, things)
        pieces: list[tuple[float, Wave]] = []
        events, now = [], draw.any(0.02, 0.2)
        for name, count in scene:
            event, strokes = _event(draw, name, count, now)
            pieces += strokes
            events.append(event)
            now = event["offset"] + max(draw.any(*GAP), (event["onset"] - event["offset"]) / 3)
        seconds = max(SHORTEST, events[-1]["offset"] + draw.any(0.05, 0.2), *(event["offset"] for event in events))
        if seconds <= LONGEST:
            break
    wave = at_peak(placed(pieces, seconds), draw.any(0.4, 0.9))
    wave += 10 ** (draw.any(*FLOOR) / 20) * draw.noise(len(wave))
    return np.clip(wave, -1, 1), {"answer": captions(scene), "meta": {"events": events}}


def _scene(draw: Draw, things: int) -> Scene:
    """One of the split's."""
    while True:
        names = draw.some(tuple(THINGS), things)
        scene = tuple((name, draw.choice(COUNTS[things]) if THINGS[name].counted else 1) for name in names)
        if split_of_scene(scene) == draw.split:
            return scene


def _event(draw: Draw, name: str, count: int, onset: float) -> tuple[dict[str, Any], list[tuple[float, Wave]]]:
    """One thing that sounds `count` times from `onset` on: its truth, and its strokes and when they begin."""
    draw = draw.afresh()
    stroke = at_peak(THINGS[name].sound(draw), draw.any(*GAINS))
    parts = _sounding(stroke)
    first, lasts = parts[0][0], parts[-1][1] - parts[0][0]
    stroke = stroke[round(first * SAMPLE_RATE) :]
    every = max(0.22, lasts + draw.between("pause", 0.06, 0.16)) if count > 1 else 0.0
    if every > 0.4:
        every = draw.between("interval", 0.32, 0.4)  # a long stroke still sounds when the next one comes
    starts = [onset + i * every for i in range(count)]
    spans = [[round(start + edge - first, 4) for edge in part] for start in starts for part in parts]
    truth = {"name": name, "count": count, "onset": spans[0][0], "offset": spans[-1][1], "spans": spans}
    return truth | {"params": draw.params}, [(start, stroke) for start in starts]


def _sounding(wave: Wave) -> list[tuple[float, float]]:
    """From when to when a wave sounds, in seconds."""
    loud = np.flatnonzero(np.abs(wave) > QUIET * np.abs(wave).max())
    breaks = np.flatnonzero(np.diff(loud) > PAUSE * SAMPLE_RATE)
    begins, ends = loud[np.r_[0, breaks + 1]], loud[np.r_[breaks, len(loud) - 1]] + 1
    return [(float(begin) / SAMPLE_RATE, float(end) / SAMPLE_RATE) for begin, end in zip(begins, ends, strict=True)]


def _beep(draw: Draw) -> Wave:
    """A sine."""
    time = clock(draw.between("seconds", 0.14, 0.24))
    return faded(np.sin(2 * np.pi * draw.between("pitch", 900, 1700) * time), 0.01, 0.01)


def _bell(draw: Draw) -> Wave:
    """A church bell's partials (hum, prime, tierce, quint, nominal ...), the higher the sooner over."""
    ratios = np.array([0.5, 1, 1.19, 1.5, 2, 2.51, 2.66, 3.01, 4.17])
    gains = np.array([0.4, 0.7, 0.6, 0.3, 1, 0.4, 0.4, 0.4, 0.3])
    decays = draw.between("decay", 0.22, 0.4) / np.sqrt(ratios)
    return faded(partials(clock(0.7), draw.between("pitch", 420, 800) * ratios, gains, decays), 0.001, 0.1)


def _drum(draw: Draw) -> Wave:
    """The modes of a round membrane, the zeros of Bessel's functions, and the stick's click."""
    ratios = np.array([1, 1.594, 2.136, 2.296, 2.653, 2.918])
    gains = np.array([1, 0.6, 0.4, 0.3, 0.25, 0.2])
    time = clock(0.3)
    skin = partials(time, draw.between("pitch", 70, 130) * ratios, gains, draw.between("decay", 0.06, 0.11) / ratios)
    return faded(skin + 0.3 * band(draw.noise(len(time)), 200, 900) * np.exp(-time / 0.006), 0.001, 0.02)


def _clap(draw: Draw) -> Wave:
    """Three bursts of noise, for no hand is flat, and a fourth that dies away in the room."""
    time = clock(0.2)
    gap = draw.between("gap", 0.007, 0.011)
    bursts = np.sum([np.where(time >= s, np.exp(-(time - s) / 0.003), 0) for s in gap * np.arange(3)], axis=0)
    tail = np.where(time >= 3 * gap, np.exp(-(time - 3 * gap) / draw.between("room", 0.02, 0.035)), 0)
    centre = draw.between("pitch", 1100, 1900)
    return np.asarray(band(draw.noise(len(time)), 0.75 * centre, 1.35 * centre, 4) * (bursts + tail))


def _rain(draw: Draw) -> Wave:
    """Drops that ring for a moment, so many that they are a hiss, and some one hears alone."""
    time = clock(draw.between("seconds", 0.7, 1.1))
    hiss = band(draw.noise(len(time)), draw.between("pitch", 2500, 3800), 7500, 2)
    drops = np.where(np.abs(draw.noise(len(time))) > 1 - draw.between("drops", 0.002, 0.005), 1.0, 0.0)
    ring = np.exp(-clock(0.02) / 0.0015) * np.sin(2 * np.pi * 5200 * clock(0.02))
    return faded(0.3 * hiss + 2.0 * np.convolve(drops, ring)[: len(time)], 0.15, 0.15)


def _wind(draw: Draw) -> Wave:
    """Noise in a low band that swells, and whistles a little."""
    time = clock(draw.between("seconds", 0.8, 1.2))
    low = draw.between("pitch", 160, 300)
    gusts = slow(np.array([draw.any(0.3, 1) for _ in range(5)]), time)
    return faded(band(draw.noise(len(time)), low, 1.9 * low, 4) * gusts, 0.2, 0.2)


def _engine(draw: Draw) -> Wave:
    """Explosions, so many a second, through a pipe."""
    time = clock(draw.between("seconds", 0.7, 1.1))
    rate = draw.between("rate", 24, 42) * slow(np.array([1, draw.between("rise", 1.0, 1.3), 1.05]), time)
    harmonics = np.arange(1, 60)
    pipe = sum(np.exp(-(((harmonics * 32 - centre) / 90) ** 2)) for centre in (110, 330, 700))
    beat = voiced(phase(rate, time), (0.08 + np.asarray(pipe)) / harmonics**0.3)
    return faded(at_peak(beat) + 0.02 * band(draw.noise(len(time)), 300, 2000), 0.1, 0.1)


def _siren(draw: Draw) -> Wave:
    """A tone that goes up and down."""
    time = clock(draw.between("seconds", 0.9, 1.3))
    middle = draw.between("pitch", 650, 950)
    sweep = middle * 2 ** (0.55 * np.sin(2 * np.pi * draw.between("rate", 1.8, 3.2) * time - np.pi / 2))
    return faded(voiced(phase(sweep, time), np.array([1, 0.25, 0.35, 0.1, 0.12])), 0.05, 0.05)


def _bird(draw: Draw) -> Wave:
    """Two whistles upward."""
    pitch, rise = draw.between("pitch", 3000, 4600), draw.between("rise", 1.2, 1.45)
    time = clock(draw.between("seconds", 0.05, 0.08))
    whistle = np.sin(2 * np.pi * phase(pitch * rise ** (time / time[-1]), time)) * np.hanning(len(time))
    return np.concatenate([whistle, np.zeros(SAMPLE_RATE // 50), 0.8 * whistle])


def _dog(draw: Draw) -> Wave:
    """A voice that jumps up and falls, through a short wide mouth."""
    time = clock(draw.between("seconds", 0.16, 0.24))
    pitch = draw.between("pitch", 190, 330)
    rough = 1 + 0.06 * slow(draw.noise(40), time)
    harmonics = np.arange(1, 26)
    mouth = [(draw.between("mouth", 650, 1000), 1.0, 220), (1700, 0.55, 300), (2900, 0.2, 400)]
    formants = sum(gain * np.exp(-(((harmonics * pitch - centre) / width) ** 2)) for centre, gain, width in mouth)
    bark = voiced(phase(pitch * rough * slow(np.array([0.8, 1.15, 1.05, 0.75]), time), time), np.asarray(formants))
    breath = 0.12 * band(draw.noise(len(time)), 800, 3000)
    return faded((at_peak(bark) + breath) * np.exp(-time / 0.12), 0.015, 0.05)


def _drip(draw: Draw) -> Wave:
    """A bubble under water: its pitch rises while it dies away (Minnaert)."""
    time = clock(0.12)
    rise = draw.between("pitch", 520, 900) * (1 + draw.between("rise", 5, 9) * time)
    return faded(
        np.sin(2 * np.pi * phase(rise, time)) * np.exp(-time / draw.between("decay", 0.02, 0.032)), 0.002, 0.02
    )


def _clock(draw: Draw) -> Wave:
    """Tick and tock: clicks that ring high and for a few milliseconds, evenly."""
    pitch, every = draw.between("pitch", 2300, 3300), draw.between("interval", 0.13, 0.2)
    ratios = np.array([1, 1.63, 2.2])
    tick, tock = (
        partials(clock(0.04), p * ratios, np.array([1, 0.7, 0.4]), 0.005 / ratios) for p in (pitch, pitch / 1.3)
    )
    return placed([(i * every, tock if i % 2 else tick) for i in range(6)], 5 * every + 0.04)


def _glass(draw: Draw) -> Wave:
    """A crash, and splinters that ring where they fall, later and more softly."""
    time = clock(0.6)
    crash = band(draw.noise(len(time)), 3000, 7500) * np.exp(-time / 0.02)
    pieces = [(0.0, 0.6 * crash)]
    low, fall = draw.between("pitch", 3000, 4200), draw.between("fall", 0.12, 0.25)
    for _ in range(14):
        start = 0.4 * draw.any(0, 1) ** 1.5
        modes = low * np.array([draw.any(1, 1.3), draw.any(1.3, 1.75)])
        ring = partials(clock(0.18), modes, np.array([1, 0.7]), np.array([0.03, 0.02]))
        pieces.append((start, ring * np.exp(-start / fall)))
    return placed(pieces, 0.6)


def _knock(draw: Draw) -> Wave:
    """A wooden door: few low modes, over at once."""
    ratios = np.array([1, 1.72, 2.61, 3.5])
    gains = np.array([1, 0.8, 0.5, 0.3])
    decays = draw.between("decay", 0.012, 0.02) / np.sqrt(ratios)
    return partials(clock(0.12), draw.between("pitch", 300, 460) * ratios, gains, decays)


def _steps(draw: Draw) -> Wave:
    """Heel and sole on gravel: a dull blow, then grains."""
    time = clock(0.16)
    heel = band(draw.noise(len(time)), 60, 160) * np.exp(-time / 0.02)
    ground = draw.between("pitch", 1800, 2800)
    grains = np.abs(draw.noise(len(time))) ** 6 * band(draw.noise(len(time)), ground, 2.2 * ground)
    step = at_peak(heel) + at_peak(grains * np.exp(-(((time - 0.07) / 0.03) ** 2)), draw.between("grain", 0.4, 0.8))
    every = draw.between("interval", 0.3, 0.38)
    return placed([(i * every, step) for i in range(3)], 2 * every + 0.16)


def _bee(draw: Draw) -> Wave:
    """Wings: a pulse train of many harmonics that comes nearer and goes."""
    time = clock(draw.between("seconds", 0.7, 1.1))
    flutter = 1 + 0.05 * slow(draw.noise(14), time)
    harmonics = np.arange(1, 24)
    wings = voiced(phase(draw.between("pitch", 180, 270) * flutter, time), 1 / harmonics**0.6)
    return faded(wings * (0.75 + 0.25 * np.sin(2 * np.pi * draw.between("rate", 5, 9) * time)), 0.12, 0.12)


THINGS = {
    "beep": Thing("a device", "beeps", "beeping", _beep, counted=True),
    "bell": Thing("a bell", "rings", "ringing", _bell, counted=True),
    "drum": Thing("a drum", "beats", "beating", _drum, counted=True),
    "clap": Thing("someone", "claps", "clapping", _clap, counted=True),
    "bird": Thing("a bird", "chirps", "chirping", _bird, counted=True),
    "dog": Thing("a dog", "barks", "barking", _dog, counted=True),
    "drip": Thing("water", "drips", "dripping", _drip, counted=True),
    "knock": Thing("someone", "knocks", "knocking", _knock, counted=True),
    "glass": Thing("glass", "breaks", "breaking", _glass),
    "rain": Thing("rain", "falls", "falling", _rain),
    "wind": Thing("the wind", "blows", "blowing", _wind),
    "engine": Thing("an engine", "runs", "running", _engine),
    "siren": Thing("a siren", "wails", "wailing", _siren),
    "clock": Thing("a clock", "ticks", "ticking", _clock),
    "steps": Thing("someone", "walks", "walking", _steps),
    "bee": Thing("a bee", "buzzes", "buzzing", _bee),
}
