"""Clips of strangers: bytes that are sound, of a bounded length, before any of them is decoded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass

from usam.processor.audio import AudioError, open_audio
from usam.serving.server_limits import Limits, Refused

FORMATS = {  # what clients call them, and what libsndfile does
    "wav": ("WAV", "WAVEX", "RF64"),
    "flac": ("FLAC",),
    "mp3": ("MP3", "MPEG"),
    "ogg": ("OGG",),
    "opus": ("OGG",),
    "aiff": ("AIFF",),
}


@dataclass(frozen=True)
class Sent:
    """A clip as it came."""

    param: str  # where in the request
    data: bytes
    format: str | None = None  # that the client names; None leaves it to the bytes


def decoded(text: str, param: str) -> bytes:
    """The bytes of base64 text; Refused for other text, such as a path or an address."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        why = "nothing is fetched or read from a disk" if "/" in text[:200] or ":" in text[:200] else str(error)
        raise Refused(
            400, f"{param}: not base64 text ({why}); send the file's bytes in it", param, "invalid_base64"
        ) from (error)


def check_clips(clips: Iterable[Sent], rate: int, limits: Limits) -> None:
    """Refuse what is no sound, or too long; headers alone are read for it, and checked against the bytes.

    Args:
        clips: of one request.
        rate: samples a second that the model takes.
        limits: of the server.
    """
    left = limits.seconds
    for clip in clips:
        if not clip.data:
            raise Refused(400, f"{clip.param}: empty; send the bytes of a file of sound", clip.param, "invalid_audio")
        try:
            left -= _seconds(clip, rate, limits)
        except AudioError as error:
            raise Refused(400, f"{clip.param}: {error}", clip.param, "invalid_audio") from error
        if left < 0:
            raise Refused(
                400,
                f"{clip.param}: {limits.seconds - left:,.1f} s of audio until its end, and at most "
                f"{limits.seconds:g} s are taken in a request; send less",
                clip.param,
                "audio_too_long",
            )


def _seconds(clip: Sent, rate: int, limits: Limits) -> float:
    with open_audio(clip.data, rate) as sound:
        low, high = limits.rates
        if not low <= sound.rate <= high:
            told = f"{clip.param}: {sound.rate:,} samples a second; {low:,} to {high:,} are taken"
            raise Refused(400, told, clip.param, "invalid_sample_rate")
        if sound.channels > limits.channels:
            told = f"{clip.param}: {sound.channels} channels; at most {limits.channels} are taken"
            raise Refused(400, told, clip.param, "too_many_channels")
        kind = sound.kind.split()[0]
        if clip.format is not None and kind not in FORMATS[clip.format]:
            told = f"{clip.param}: said to be {clip.format}, and the bytes are {kind}; name the format that they have"
            raise Refused(400, told, clip.param, "wrong_format")
        return sound.frames / sound.rate
