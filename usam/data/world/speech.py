"""Speech: numbers and short commands by many voices of eSpeak NG, to transcribe, and numbers to translate into Chinese.

Sixty words, so that a model of a few million weights learns them within minutes; 1,000 numbers and 1,152 commands, so
that it has to hear each word to get a sentence right.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import soxr

from usam.data.spoken import say_all, trimmed
from usam.data.world.draw import SAMPLE_RATE, Draw, Split, Wave, split_of
from usam.data.world.numerals import chinese, english

TASKS = ("asr", "s2tt")
NUMBERS = 1000
VERBS = ("open", "close", "find", "paint", "clean", "move")
COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("door", "box", "lamp", "chair", "table", "window", "book", "cup")
WHEN = ("", " now", " later", " today")
ACCENTS = ("en-us", "en-gb")
SPEAKERS: dict[Split, tuple[str, ...]] = {
    "train": ("", "+m1", "+m3", "+m6", "+m7", "+m8", "+f1", "+f3", "+f4"),
    "dev": ("+m2", "+f5"),
    "test": ("+m4", "+m5", "+f2"),
}
RATES = (150, 200)  # words a minute
PITCHES = (35, 65)  # eSpeak's own scale, 0 to 99
SESSION = 16  # clips that one eSpeak speaks, which remembers how it spoke before: starting it costs twice a clip
SILENCE = (0.05, 0.3)  # seconds before and after
HISS = (-60.0, -45.0)  # dB of the noise below a full scale


@cache
def numbers(split: Split) -> tuple[int, ...]:
    """The numbers that a split says. Zero, the one place of its word, is for training."""
    return tuple(n for n in range(NUMBERS) if ("train" if n == 0 else split_of(f"number {n}")) == split)


@cache
def commands(split: Split) -> tuple[str, ...]:
    """The commands that a split says."""
    said = (f"{verb} the {colour} {thing}{when}" for verb, colour, thing, when in product(VERBS, COLOURS, THINGS, WHEN))
    return tuple(text for text in said if split_of(text) == split)


@cache
def voices(split: Split) -> tuple[str, ...]:
    """The voices that a split speaks with: every speaker in every accent."""
    return tuple(accent + speaker for accent, speaker in product(ACCENTS, SPEAKERS[split]))


def clips(task: str, split: Split, count: int, seed: int) -> Iterator[tuple[Wave, dict[str, Any]]]:
    """Waves at 16 kHz, and their rows without the audio.

    Raises:
        ImportError: eSpeak NG is not installed.
    """
    for first in range(0, count, SESSION):
        draws = [Draw(split, seed, task, i) for i in range(first, min(first + SESSION, count))]
        asked = [_asked(task, draw) for draw in draws]
        speech = say_all([(one["text"], one["voice"], one["rate"], one["pitch"]) for one in asked])
        for draw, said, (wave, rate) in zip(draws, asked, speech, strict=True):
            yield _clip(task, draw, said, trimmed(wave, rate), rate)


def _asked(task: str, draw: Draw) -> dict[str, Any]:
    """What is said, and how."""
    said: dict[str, Any]
    if task == "s2tt" or draw.choice((True, False)):
        number = draw.choice(numbers(draw.split))
        said = {"text": english(number), "number": number}
    else:
        said = {"text": draw.choice(commands(draw.split))}
    voice, (rate, pitch) = draw.choice(voices(draw.split)), (round(draw.any(*span)) for span in (RATES, PITCHES))
    return said | {"voice": voice, "rate": rate, "pitch": pitch}


def _clip(task: str, draw: Draw, said: dict[str, Any], speech: Any, rate: int) -> tuple[Wave, dict[str, Any]]:
    speech = soxr.resample(speech, rate, SAMPLE_RATE)
    before, after = (round(draw.any(*SILENCE) * SAMPLE_RATE) for _ in range(2))
    wave = np.concatenate([np.zeros(before), speech, np.zeros(after)])
    wave += 10 ** (draw.any(*HISS) / 20) * draw.noise(len(wave))
    onset, offset = before / SAMPLE_RATE, (before + len(speech)) / SAMPLE_RATE
    answer = chinese(said["number"]) if task == "s2tt" else said["text"]
    event = {"name": "speech", "onset": round(onset, 4), "offset": round(offset, 4)}
    return wave, {"answer": answer, "meta": {**said, "events": [event]}}
