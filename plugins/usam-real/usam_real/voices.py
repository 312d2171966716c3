"""Voices that say a sentence: a neural one by piper-tts, three of Flite, and eSpeak NG."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import soxr
from numpy.typing import NDArray

RATE = 16000


class Voice(Protocol):
    """Something that speaks."""

    def say(self, text: str, speed: float, pitch: float) -> NDArray[Any]:
        """A waveform at 16 kHz; `speed` and `pitch` are multiples of the voice's own."""
        ...


class Neural:
    """The voice of a folder that `fetch` filled, by piper-tts on one thread. It draws its own noise at every sentence.

    Raises:
        ImportError: piper-tts is not installed.
        FileNotFoundError: the folder has no voice.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import onnxruntime
            from piper import PiperVoice, SynthesisConfig
            from piper.config import PiperConfig
        except ImportError as error:
            raise ImportError(f"the neural voice needs piper-tts: {error}; pip install piper-tts") from error
        file = next(iter(sorted(folder.glob("*.onnx"))), None)
        if file is None:
            raise FileNotFoundError(f"{folder}: no voice is there; run `python -m usam_real fetch` first")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        config = PiperConfig.from_dict(json.loads(file.with_name(f"{file.name}.json").read_text(encoding="utf-8")))
        self.voice, self.options = PiperVoice(session=session, config=config), SynthesisConfig

    def say(self, text: str, speed: float, pitch: float) -> NDArray[Any]:
        """Longer by the pitch, and then played faster by it."""
        pieces = self.voice.synthesize(text, self.options(length_scale=pitch / speed))
        wave = np.concatenate([piece.audio_float_array for piece in pieces])
        return soxr.resample(wave, self.voice.config.sample_rate * pitch, RATE)


class Flite:
    """The voices of CMU ARCTIC by Flite (Black and Lenzo, 2001), out of the libraries in a folder that `fetch` filled.

    The speaker changes with the pitch that is asked for: one woman and two men. They draw noise at every sentence.

    Raises:
        FileNotFoundError: the folder has no libraries.
        OSError: they cannot be loaded on this system.
    """

    SPEAKERS = ("slt", "rms", "slt", "awb")

    def __init__(self, folder: Path) -> None:
        names = ("", "_usenglish", "_cmulex", *(f"_cmu_us_{speaker}" for speaker in sorted(set(self.SPEAKERS))))
        files = {name: next(iter(sorted(folder.glob(f"libflite{name}.so.*"))), None) for name in names}
        if missing := [f"libflite{name}" for name, file in files.items() if file is None]:
            raise FileNotFoundError(f"{folder}: {', '.join(missing)} not there; run `python -m usam_real fetch` first")
        try:  # each finds what it calls in those before it
            found = {name: ctypes.CDLL(str(file), ctypes.RTLD_GLOBAL) for name, file in files.items()}
        except OSError as error:
            raise OSError(
                f"Flite cannot be loaded: {error}; it needs the library of ALSA (apt-get install libasound2)"
            ) from error
        self.library = found[""]
        self.library.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
        self.library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        self.library.flite_init()
        self.speakers: dict[str, Any] = {}
        for speaker in set(self.SPEAKERS):
            register = getattr(found[f"_cmu_us_{speaker}"], f"register_cmu_us_{speaker}")
            register.restype = ctypes.POINTER(_Speaker)
            self.speakers[speaker] = register(None)

    def say(self, text: str, speed: float, pitch: float) -> NDArray[Any]:
        """Longer by the pitch, and then played faster by it."""
        speaker = self.speakers[self.SPEAKERS[int(pitch * 1000) % len(self.SPEAKERS)]]
        self.library.feat_set_float(speaker.contents.features, b"duration_stretch", pitch / speed)
        made = self.library.flite_text_to_wave(text.encode(), speaker)
        if not made:
            raise ValueError(f"Flite cannot say {text!r}")
        samples, rate = made.contents.samples, made.contents.rate
        wave = np.ctypeslib.as_array(samples, (made.contents.count,)).astype(np.float32) / 32768
        self.library.delete_wave(made)
        return soxr.resample(wave, rate * pitch, RATE)


class _Wave(ctypes.Structure):
    """The beginning of Flite's `cst_wave`."""

    _fields_: ClassVar = [
        ("type", ctypes.c_char_p),
        ("rate", ctypes.c_int),
        ("count", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class _Speaker(ctypes.Structure):
    """The beginning of Flite's `cst_voice`."""

    _fields_: ClassVar = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class ESpeak:
    """eSpeak NG, which usam's own worlds speak with; its speakers change with the pitch that is asked for."""

    SPEAKERS = ("en-us", "en-us+f2", "en-us+m3", "en-gb", "en-gb+f4")

    def say(self, text: str, speed: float, pitch: float) -> NDArray[Any]:
        """By 160 words a minute and the middle of the range of pitches."""
        from usam.data.spoken import say_all

        speaker = self.SPEAKERS[int(pitch * 1000) % len(self.SPEAKERS)]
        ((wave, rate),) = say_all([(text, speaker, round(160 * speed), min(99, max(0, round(50 * pitch))))])
        return soxr.resample(wave, rate, RATE)
