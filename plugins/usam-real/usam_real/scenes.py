"""Sound events one after another, out of Sonic Pi's samples, with captions that name them in order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 44100
LONGEST, FADE = 1.5, 0.05  # seconds of an event, and of its end
GAPS = (0.1, 0.4)  # seconds
SPEEDS = (0.9, 1.1)
PEAKS = (0.3, 0.8)
NOISE = 0.001
COUNTS = (1, 2, 2, 3)
# Names of files, each of which is of one caption. Left out is what would sound alike under two captions.
EVENTS = {
    "a kick drum": ["bd_*", "drum_heavy_kick", "drum_bass_*", "elec_*_kick"],
    "a snare drum": ["sn_*", "drum_snare_*", "elec_*_snare", "elec_snare"],
    "a cymbal": ["drum_cymbal_*", "drum_splash_*", "elec_cymbal"],
    "a tom": ["drum_tom_*"],
    "a tabla": ["tabla_*"],
    "a bass": ["bass_*"],
    "a drum loop": ["loop_breakbeat", "loop_industrial", "loop_compus", "loop_mehackit?", "loop_amen"],
    "a guitar": ["guit_*"],
    "a bell": ["perc_bell", "perc_bell2", "elec_bell", "elec_chime", "elec_triangle"],
    "a blip": ["elec_beep", "elec_blip", "elec_blip2", "elec_blup", "elec_ping", "elec_plip", "elec_pop", "elec_twip"],
    "a robot": ["glitch_robot*", "mehackit_robot*"],
    "a telephone": ["mehackit_phone*"],
    "a scratched record": ["vinyl_backspin", "vinyl_rewind", "vinyl_scratch"],
    "a hum": ["ambi_glass_hum", "ambi_haunted_hum", "ambi_soft_buzz", "ambi_drone", "loop_drone_g_97"],
    "a whoosh": ["ambi_dark_woosh", "ambi_swoosh", "perc_swash", "perc_swoosh"],
    "an impact": ["perc_impact1", "perc_impact2", "misc_cineboom"],
}
PARTS = ("train", "dev", "test")


def recordings(folder: Path, seed: int) -> dict[str, dict[str, list[Path]]]:
    """By part, the files of each caption; no file is in two parts, and each part has some of every caption.

    Raises:
        ValueError: a caption has fewer than three files there.
    """
    files = sorted(folder.glob("*.flac"))
    parts: dict[str, dict[str, list[Path]]] = {part: {} for part in PARTS}
    for caption, names in EVENTS.items():
        own = [file for file in files if any(fnmatchcase(file.stem, name) for name in names)]
        if len(own) < len(PARTS):
            raise ValueError(f"{folder}: {len(own)} files of '{caption}' ({', '.join(names)}); expected three or more")
        random.Random(f"{seed}:{caption}").shuffle(own)
        held_out = max(1, len(own) // 5)
        parts["test"][caption], parts["dev"][caption] = own[:held_out], own[held_out : 2 * held_out]
        parts["train"][caption] = own[2 * held_out :]
    return parts


def scenes(recordings: Mapping[str, Sequence[Path]], count: int, seed: str) -> Iterator[tuple[NDArray[Any], str]]:
    """Waveforms at 44.1 kHz of one to three events, with their captions; a seed gives the same ones again."""
    for number in range(count):
        draw = random.Random(f"{seed}:{number}")
        names = draw.sample(sorted(recordings), draw.choice(COUNTS))
        pieces = [np.zeros(int(draw.uniform(*GAPS) * RATE))]
        for name in names:
            speed, peak = draw.uniform(*SPEEDS), draw.uniform(*PEAKS)
            pieces.append(_event(draw.choice(recordings[name]), speed, peak))
            pieces.append(np.zeros(int(draw.uniform(*GAPS) * RATE)))
        wave = np.concatenate(pieces)
        wave += np.random.default_rng(draw.getrandbits(32)).normal(0, NOISE, len(wave))
        yield wave, ", then ".join(names)


def _event(file: Path, speed: float, peak: float) -> NDArray[Any]:
    wave = soxr.resample(_wave(file), RATE * speed, RATE)[: int(LONGEST * RATE)].copy()
    end = min(len(wave), int(FADE * RATE))
    wave[len(wave) - end :] *= np.linspace(1, 0, end)
    return wave * (peak / max(np.abs(wave).max(), 1e-9))


@lru_cache(maxsize=256)
def _wave(file: Path) -> NDArray[Any]:
    """One channel at 44.1 kHz, without the silence before it begins."""
    wave, rate = soundfile.read(file, always_2d=True)
    wave = wave.mean(1) if rate == RATE else soxr.resample(wave.mean(1), rate, RATE)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * max(np.abs(wave).max(), 1e-9))
    return wave[loud[0] :] if len(loud) else wave
