"""A corpus of real words, spoken by eSpeak NG into WAV files with a JSONL manifest.

It is the data of the demo and of the tests: nothing is downloaded, and a seed gives the same bytes again.
"""

from __future__ import annotations

import _ctypes
import ctypes
import difflib
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS_PER_CLIP = (2, 3, 4)
VOICES = ("en-us", "en-gb", "en-us+m1", "en-gb+m3", "en-us+f1", "en-gb+f3", "en-us+m7", "en-us+f4")
UNSEEN_VOICES = ("en-us+m4", "en-gb+f2", "en-us+m2", "en-gb+m5")
RATES = (150, 200)  # words a minute
PITCHES = (35, 65)  # eSpeak's own scale, 0 to 99
HELD_OUT = 0.2  # share of the sentences of each length that training never says
QUIET = 0.01  # of a clip's peak: what lies below it at either end is cut off
MARGIN = 0.02  # seconds kept beyond that


def speak(text: str, *, voice: str = "en-us", rate: int = 175, pitch: int = 50) -> tuple[NDArray[np.float32], int]:
    """A waveform in [-1, 1] and its sample rate; the same arguments give the same samples.

    Args:
        text: what to say.
        voice: one of `voices()`, with a `+` and one of `variants()` for another speaker: "en-us+f1".
        rate: words a minute, 80 to 450.
        pitch: 0 to 99.

    Raises:
        ImportError: eSpeak NG is not installed.
        ValueError: an unknown voice, a number out of range, or a text without a sound.
    """
    return say_all([(text, voice, rate, pitch)])[0]


def say_all(utterances: Sequence[tuple[str, str, int, int]]) -> list[tuple[NDArray[np.float32], int]]:
    """Several texts, each with voice, rate and pitch as `speak` takes them, by one eSpeak NG, one after the other.

    It saves the time to start it anew; but how a text sounds depends, by a trace, on those before it in the list.
    """
    asked = [(text, _identifier(voice), rate, pitch) for text, voice, rate, pitch in utterances]
    for _, _, rate, pitch in utterances:
        for name, value, low, high in (("rate", rate, 80, 450), ("pitch", pitch, 0, 99)):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must lie within {low} and {high}")
    said = []
    with _espeak() as espeak:
        for text, identifier, rate, pitch in asked:
            wave = espeak.say(text, identifier, rate, pitch)
            if not wave.any():
                raise ValueError(f"nothing to say in {text!r}")
            said.append((wave.astype(np.float32) / np.float32(32768), espeak.sample_rate))
    return said


def espeak_version() -> str:
    """Of eSpeak NG: "1.52.0"."""
    with _espeak() as espeak:
        return espeak.version


def voices() -> list[str]:
    """The voices, named by their languages: "en-us", "en-gb-scotland", "de"."""
    return sorted(_voices())


def variants() -> list[str]:
    """The speakers that any voice can take after a `+`: "f1", "m3"."""
    return sorted(file.name for file in (Path(_loader().get_data_path()) / "voices" / "!v").iterdir())


def write_corpus(
    folder: str | Path,
    *,
    train: int = 3000,
    test: int = 200,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Path]:
    """Write a corpus of short spoken sentences, unless the folder holds the very same one already.

    Args:
        folder: receives `wav/`, the manifests and `corpus.json`, which says how it was made.
        train: clips to train on.
        test: clips of each test set: `unseen_sentences`, of known voices, and `unseen_voices`, whose
            sentences are as new as their speakers.
        seed: another seed draws other sentences, and pairs them otherwise with voices, rates and pitches.
        progress: called with the number of clips written so far.

    Returns:
        The manifests by name. Their rows have `audio` (a path relative to the manifest), `task`, `answer`, and
        in `meta` the `voice` and the `seconds`.

    Raises:
        FileExistsError: the folder holds something else.
        ImportError: eSpeak NG is not installed.
        ValueError: more clips to test on than there are sentences.
    """
    folder = Path(folder)
    recipe = _recipe(train, test, seed)
    clips = _clips(train, test, seed)
    manifests = {name: folder / f"{name}.jsonl" for name in clips}
    if holds(folder, recipe, "corpus"):
        return manifests
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made elsewhere and moved in whole: an interrupted run leaves nothing behind.
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as workshop:
        made = Path(workshop, "corpus")
        (made / "wav").mkdir(parents=True)
        written = 0
        for name, group in clips.items():
            rows = []
            for number, clip in enumerate(group, start=1):
                audio = f"wav/{name}-{number:05d}.wav"
                rows.append({"audio": audio, "task": "asr", **clip.write(made / audio)})
                written += 1
                if progress is not None:
                    progress(written)
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (made / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        (made / "corpus.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # it is empty
        made.rename(folder)
    return manifests


@dataclass(frozen=True)
class Clip:
    """What is said in one file, and how."""

    text: str
    voice: str
    rate: int
    pitch: int

    def write(self, file: Path) -> dict[str, Any]:
        """Speak it into a 16-bit WAV file; its answer, and beside it voice and seconds."""
        wave, rate = speak(self.text, voice=self.voice, rate=self.rate, pitch=self.pitch)
        wave = soxr.resample(trimmed(wave, rate), rate, SAMPLE_RATE)
        soundfile.write(file, wave, SAMPLE_RATE, subtype="PCM_16")
        return {"answer": self.text, "meta": {"voice": self.voice, "seconds": round(len(wave) / SAMPLE_RATE, 3)}}


def _clips(train: int, test: int, seed: int) -> dict[str, list[Clip]]:
    draw = random.Random(seed)
    heard, unseen = _sentences(draw)
    return {
        "train": [_clip(draw, heard, VOICES) for _ in range(train)],
        "unseen_sentences": [_clip(draw, unseen, VOICES) for _ in range(test)],
        "unseen_voices": [_clip(draw, unseen, UNSEEN_VOICES) for _ in range(test)],
    }


def _sentences(draw: random.Random) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences to train on and sentences held out, each by number of words: no sentence is in both."""
    heard, unseen = [], []
    for count in WORDS_PER_CLIP:
        sentences = [" ".join(words) for words in product(WORDS, repeat=count)]
        draw.shuffle(sentences)
        cut = round(HELD_OUT * len(sentences))
        unseen.append(sentences[:cut])
        heard.append(sentences[cut:])
    return heard, unseen


def _clip(draw: random.Random, sentences: list[list[str]], voices: tuple[str, ...]) -> Clip:
    text = draw.choice(draw.choice(sentences))  # a length first, or the longest would crowd out the others
    return Clip(text, draw.choice(voices), draw.randint(*RATES), draw.randint(*PITCHES))


def trimmed(wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Without the silence at either end."""
    loud = np.flatnonzero(np.abs(wave) > QUIET * np.abs(wave).max())
    margin = round(MARGIN * rate)
    return wave[max(0, loud[0] - margin) : loud[-1] + 1 + margin]


def _recipe(train: int, test: int, seed: int) -> dict[str, Any]:
    """All that decides the bytes of a corpus."""
    return {
        "train": train,
        "test": test,
        "seed": seed,
        "words": list(WORDS),
        "words_per_clip": list(WORDS_PER_CLIP),
        "voices": list(VOICES),
        "unseen_voices": list(UNSEEN_VOICES),
        "rates": list(RATES),
        "pitches": list(PITCHES),
        "held_out": HELD_OUT,
        "quiet": QUIET,
        "margin": MARGIN,
        "sample_rate": SAMPLE_RATE,
        "columns": ["audio", "task", "answer", "meta"],
        "espeak": espeak_version(),
    }


def holds(folder: Path, recipe: dict[str, Any], what: str) -> bool:
    """Whether the folder holds what was made by that recipe, as its `{what}.json` says; False when it is empty.

    Raises:
        FileExistsError: it holds something else.
    """
    file = folder / f"{what}.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        differing = sorted(key for key in recipe.keys() | found.keys() if recipe.get(key) != found.get(key))
        if not differing:
            return True
        faults = "; ".join(f"{key} is {found.get(key)}, not {recipe.get(key)}" for key in differing)
        raise FileExistsError(f"{folder} holds another {what} ({faults}): delete it, or name another folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else than a {what}: name another folder")
    return False


def _identifier(voice: str) -> str:
    """What eSpeak NG calls a voice: "gmw/en-US+f1" for "en-us+f1"."""
    language, plus, variant = voice.partition("+")
    if language not in _voices():
        raise ValueError(f"no voice '{voice}'; {_close(language, voices())}")
    if plus and variant not in variants():  # eSpeak NG would speak without it, and say nothing
        raise ValueError(f"no voice '{voice}'; after the +, {_close(variant, variants())}")
    return _voices()[language] + plus + variant


def _close(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    return f"did you mean {' or '.join(found)}?" if found else f"known: {', '.join(names)}"


@cache
def _voices() -> dict[str, str]:
    with _espeak() as espeak:
        return espeak.voices()


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError('the spoken corpus needs eSpeak NG: pip install "usam[demo]"') from error
    return espeakng_loader


# The part of eSpeak NG's C interface (speak_lib.h, espeak_ng.h) that is used here.
SYNCHRONOUS, DO_NOT_EXIT, UTF8, CHARACTERS, RATE, PITCH = 2, 0x8000, 1, 1, 1, 3
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


_one_at_a_time = threading.Lock()  # every copy shares what the C library keeps, such as the place of strtok


class VoiceEntry(ctypes.Structure):
    """The first fields of an `espeak_VOICE`."""

    _fields_ = [("name", ctypes.c_char_p), ("languages", ctypes.c_char_p), ("identifier", ctypes.c_char_p)]


@contextmanager
def _espeak() -> Iterator[ESpeak]:
    """eSpeak NG as if it had never spoken, to one thread at a time.

    It keeps its state in globals that nothing resets (the phase of its flutter, for one), so that what was
    said before would change a clip. A copy of the library has globals of its own.
    """
    loader = _loader()
    with _one_at_a_time, TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = shutil.copy(loader.get_library_path(), folder)
        try:
            library = ctypes.CDLL(copy)
        except OSError as error:
            raise ImportError(f"eSpeak NG cannot be loaded from {folder}: set TMPDIR to another folder") from error
        try:
            yield ESpeak(library, loader.get_data_path())
        finally:
            library.espeak_Terminate()
            unload: Any = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary", None)
            unload(library._handle)


class ESpeak:
    """A loaded library of eSpeak NG, ready to speak."""

    def __init__(self, library: ctypes.CDLL, data: str) -> None:
        self._library = library
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(VoiceEntry))
        library.espeak_Info.restype = ctypes.c_char_p
        self.sample_rate = int(library.espeak_Initialize(SYNCHRONOUS, 0, str(data).encode(), DO_NOT_EXIT))
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG finds no data in {data}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # breath is noise, seeded with the time of day

    @property
    def version(self) -> str:
        """Of the library: "1.52.0"."""
        return str(self._library.espeak_Info(None).decode())

    def voices(self) -> dict[str, str]:
        """The identifier of each language's voice."""
        found: dict[str, str] = {}
        for entry in self._library.espeak_ListVoices(None):
            if not entry:
                break
            voice = entry.contents
            # A byte of priority comes before the name; the zero after it ends the first of the languages.
            found.setdefault(voice.languages[1:].decode(), voice.identifier.decode())
        return found

    def say(self, text: str, identifier: str, rate: int, pitch: int) -> NDArray[np.int16]:
        """The samples of a text in one voice."""
        chunks = [np.zeros(0, np.int16)]

        def keep(samples: Any, count: int, events: int) -> int:
            if samples and count:
                chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        callback = Callback(keep)  # C holds no reference to it: this variable keeps it alive
        self._library.espeak_SetSynthCallback(callback)
        if self._library.espeak_SetVoiceByName(identifier.encode()):
            raise RuntimeError(f"eSpeak NG cannot load its voice {identifier}")
        self._library.espeak_SetParameter(RATE, rate, 0)
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        self._library.espeak_Synth(data, size, 0, CHARACTERS, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(chunks)
