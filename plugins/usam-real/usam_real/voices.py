"""Voices that say a sentence: a neural one by piper-tts, and eSpeak NG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

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


class ESpeak:
    """eSpeak NG, which usam's own worlds speak with; its speakers change with the pitch that is asked for."""

    SPEAKERS = ("en-us", "en-us+f2", "en-us+m3", "en-gb", "en-gb+f4")

    def say(self, text: str, speed: float, pitch: float) -> NDArray[Any]:
        """By 160 words a minute and the middle of the range of pitches."""
        from usam.data.spoken import say_all

        speaker = self.SPEAKERS[int(pitch * 1000) % len(self.SPEAKERS)]
        ((wave, rate),) = say_all([(text, speaker, round(160 * speed), min(99, max(0, round(50 * pitch))))])
        return soxr.resample(wave, rate, RATE)
