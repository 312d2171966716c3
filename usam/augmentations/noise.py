"""Noise is mixed in: recordings from files, or white or pink noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from pydantic import model_validator

from usam.augmentations import Augmentation
from usam.augmentations._levels import Range, within_full_scale
from usam.processor.audio import AudioError, Waveform
from usam.processor.clip import Clip

SOUNDS = {f".{name.lower()}" for name in soundfile.available_formats()} | {".opus", ".mp3", ".oga", ".aif"}
QUIET = 1e-10  # mean power below which a clip or a noise is silence


class Noise(Augmentation):
    """A noise is drawn for each clip, a part of it that is as long, and a ratio of signal to noise.

    Where the sum would pass full scale, both are made quieter together. A silent clip stays as it is.
    """

    class Config(Augmentation.Config):
        """Options of the noise: `files` or `color`."""

        files: str | list[str] | None = None
        """Recordings: files, folders (with all that is in them), or manifests (.jsonl, whose rows have `audio`)."""
        color: Literal["white", "pink"] | None = None
        """Noise that is made: as loud at each frequency, or in each octave."""
        snr: Range = (5.0, 20.0)
        """Lowest and highest ratio of the clip's mean power to the noise's, in decibels."""

        @model_validator(mode="after")
        def _one_kind(self) -> Noise.Config:
            if (self.files is None) == (self.color is None):
                raise ValueError("write 'files', where noise is recorded, or 'color', white or pink; one of them")
            return self

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.files is not None:
            _ = self.recordings  # what is missing is told now

    @cached_property
    def recordings(self) -> list[Clip]:
        """The clips of noise, in an order that does not depend on the machine."""
        names = [self.config.files] if isinstance(self.config.files, str) else list(self.config.files)
        found = [clip for name in names for clip in _clips(Path(name).expanduser())]
        if not found:
            raise AudioError(f"noise.files: there is no audio in {', '.join(names) or 'an empty list'}")
        return found

    def __call__(self, clip: Waveform, rate: int, generator: np.random.Generator) -> Waveform:
        """The clip with noise."""
        decibels = generator.uniform(*self.config.snr)
        noise = self._recorded(len(clip), rate, generator) if self.config.color is None else self._made(clip, generator)
        x = clip.astype(np.float64)
        signal, power = float(np.mean(x**2)), float(np.mean(noise**2))
        if signal < QUIET or power < QUIET:
            return clip.copy()
        return within_full_scale(x + noise * np.sqrt(signal / power / 10 ** (decibels / 10)), clip)

    def _recorded(self, size: int, rate: int, generator: np.random.Generator) -> np.ndarray:
        recording = self.recordings[int(generator.integers(len(self.recordings)))]
        surplus = _seconds(recording) - size / rate
        if surplus > 0:
            start = recording.start + generator.uniform(0, surplus)
            recording = replace(recording, start=start, duration=(size + 1) / rate)
        found = recording.read(rate).astype(np.float64)
        return np.tile(found, -(-size // len(found)))[:size]

    def _made(self, clip: Waveform, generator: np.random.Generator) -> np.ndarray:
        white = generator.standard_normal(len(clip))
        if self.config.color == "white" or len(clip) < 3:
            return white
        spectrum = np.fft.rfft(white)
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        spectrum[0] = 0
        return np.fft.irfft(spectrum, len(clip))


def _seconds(recording: Clip) -> float:
    """How long a recording is, by its file's header; 0 where it has none, and is read from its start."""
    try:
        header = soundfile.info(str(recording.source).removeprefix("file://"))
    except soundfile.LibsndfileError:
        return 0.0
    seconds = header.frames / header.samplerate - recording.start
    return float(min(seconds, recording.duration or seconds))


def _clips(path: Path) -> Iterator[Clip]:
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SOUNDS)
        yield from (Clip(str(file)) for file in files)
    elif not path.is_file():
        raise AudioError(f"noise.files: {path}: no such file or folder (looked in {path.parent.resolve()})")
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                yield _of_row(line, f"{path}:{number}", path.parent)
    else:
        yield Clip(str(path))


def _of_row(line: str, where: str, folder: Path) -> Clip:
    try:
        row: Any = json.loads(line)
        if not isinstance(row, dict) or "audio" not in row:
            raise ValueError("expected a map with 'audio'")
        return Clip.of(row["audio"], folder)
    except ValueError as error:
        raise AudioError(f"noise.files: {where}: {error}") from error
