"""Small models with a router and with scores, and files that are no clips."""

import struct

import numpy as np
import soundfile

from usam import UsamProcessor, build_model

SPEC = {
    "base": "tiny",
    "encoders": {
        "whisper": {
            "arch": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
                     "num_mel_bins": 80, "max_source_positions": 50},
        }
    },
    "projector": [{"type": "moe", "experts": 2, "hidden": 4, "router": "audio"}, {"type": "linear", "stack": 4}],
    "llm": {"dim": 16, "layers": 1, "heads": 2},
    "losses": {"cross_entropy": {}, "semantic_contrastive": {"hidden": 4}},
    "prompts": {"asr": "Transcribe this audio.", "aac": "Describe the sounds."},
}  # fmt: skip


def save_model(folder, seed=0):
    model = build_model(SPEC, seed=seed)
    model.save_pretrained(folder)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(folder)
    return folder


def write_text(file):
    file.write_text("no sound at all, only words")


def write_nothing(file):
    file.write_bytes(b"")


def write_slow(file):
    """A header of one sample a second."""
    soundfile.write(file, np.zeros(100, np.int16), 8000, format="WAV")
    content = bytearray(file.read_bytes())
    content[24:28] = struct.pack("<I", 1)
    file.write_bytes(content)


def write_day(file):
    """A day of silence, in less than a megabyte."""
    with soundfile.SoundFile(file, "w", 1000, 1, "PCM_16", format="FLAC") as sound:
        for _ in range(24):
            sound.write(np.zeros(3_600_000, np.int16))


def write_hour(file):
    soundfile.write(file, np.zeros(3_600_000, np.int16), 1000, format="WAV")


def write_promise(file):
    """A header of two gigabytes, and nothing behind it."""
    soundfile.write(file, np.zeros(100, np.int16), 8000, format="WAV")
    content = bytearray(file.read_bytes())
    content[40:44] = struct.pack("<I", 2_000_000_000)
    file.write_bytes(content)


BAD = {
    "text": (write_text, "not audio"),
    "nothing": (write_nothing, "empty"),
    "1 Hz": (write_slow, "1 samples per second"),
    "a day": (write_day, "is 24.0 hours long, and at most 5 s are taken"),
    "an hour": (write_hour, "is 60 minutes long, and at most 5 s are taken"),
    "2 GB": (write_promise, "declare"),
}
