"""The whole way from a manifest's rows to a batch's tensors, against reading the same files with soundfile.

Clips of 0.5 to 30 s, log-normal around 6 s, mono at 16 kHz, which is also the model's rate, as WAV and as FLAC; in
batches of a budget, with answers, labels and masks. One process, its own seconds: hours of audio a core-second. Both in
turn, several rounds, medians; and, each by itself, the parts of it, in milliseconds a clip: the header and its checks,
the samples, the chat, its tokens with labels and masks, the padded batch. Where a file is plain samples, reading it is
little more than copying them, so that what is done beside it shows most. `--quick` takes fewer clips.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from _record import record

from usam import UsamProcessor, load_spec
from usam.data.collate import Collator, Memory
from usam.data.manifest import Manifest
from usam.data.sampling import Budget, BudgetSampler
from usam.processor.audio import open_audio
from usam.processor.feature_extractor import Heard
from usam.training.rows import measured

RATE, MEDIAN, SIGMA, BUDGET = 16000, 6.0, 0.8, 60.0
CLIPS, ROUNDS = (64, 2) if "--quick" in sys.argv else (400, 7)
BOUND = 0.8


def write(folder: Path, kind: str) -> tuple[Path, float]:
    """A manifest of clips that sound a little like speech, and their hours."""
    draw, rows, hours = np.random.default_rng(0), [], 0.0
    for i in range(CLIPS):
        seconds = float(np.clip(draw.lognormal(np.log(MEDIAN), SIGMA), 0.5, 30))
        wave = np.cumsum(draw.normal(0, 1, round(seconds * RATE)))  # most of its power is low, so that FLAC packs it
        wave -= np.convolve(wave, np.ones(400) / 400, "same")
        soundfile.write(folder / f"{i}.{kind}", (0.5 * wave / np.abs(wave).max()).astype(np.float32), RATE)
        rows.append({"audio": f"{i}.{kind}", "task": "asr", "answer": "a dog barks and a door closes"})
        hours += seconds / 3600
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder / "train.jsonl", hours


def seconds_of(work: Callable[[], Any]) -> float:
    """Of the processor."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(kind: str) -> tuple[float, dict[str, Any]]:
    """The loader's hours a core-second over soundfile's."""
    spec = load_spec("tiny")
    processor = UsamProcessor.from_spec(spec)
    with tempfile.TemporaryDirectory() as place:
        file, hours = write(Path(place), kind)
        samples = Manifest(file, spec.prompts)
        batches = list(BudgetSampler(measured(samples, processor), Budget(seconds=BUDGET)))
        collate = Collator(processor)
        names = sorted(Path(place).glob(f"*.{kind}"))

        def load() -> None:
            for batch in batches:
                collate([samples[i] for i in batch])

        def read() -> None:
            for name in names:
                soundfile.read(name, dtype="float32")

        ears = processor.feature_extractor
        chats = [[processor.render(samples[i].messages) for i in batch] for batch in batches]
        sounds = [[Heard(ears.fetch_audio(chat.audio[0])) for chat in some] for some in chats]
        heard = [
            [replace(chat, audio=(x,)) for chat, x in zip(*pair, strict=True)]
            for pair in zip(chats, sounds, strict=True)
        ]
        memory = Memory()

        def open_all() -> None:
            for name in names:
                with open_audio(str(name), RATE):
                    pass

        def sound() -> None:
            for some in chats:
                with memory.lent() as room:
                    for chat in some:
                        ears.fetch_audio(chat.audio[0], room=room)

        def render() -> None:
            for batch in batches:
                for i in batch:
                    processor.render(samples[i].messages)

        def encode() -> None:
            for some in heard:
                processor.encode(some, labels=True)

        def pad() -> None:
            for some in sounds:
                ears.padded([x.samples for x in some], "pt")

        parts = {"checks": open_all, "samples": sound, "chat": render, "tokens": encode, "padding": pad}
        spent = {part: statistics.median(seconds_of(work) for _ in range(ROUNDS)) for part, work in parts.items()}
        spent |= {"samples": spent["samples"] - spent["checks"], "tokens": spent["tokens"] - spent["padding"]}
        found: dict[str, list[float]] = {"loader": [], "soundfile": []}
        for work in (load, read):  # files and code are in memory then
            work()
        for _ in range(ROUNDS):
            found["loader"].append(seconds_of(load))
            found["soundfile"].append(seconds_of(read))
    each = {name: hours / statistics.median(times) for name, times in found.items()}
    raw = {"hours": hours, "seconds": found, "hours a core-second": each, "seconds by part": spent}
    return each["loader"] / each["soundfile"], raw


def main() -> None:
    """Each kind of file."""
    torch.set_num_threads(1)
    rows, raw = [], {}
    for kind in ("wav", "flac"):
        ratio, raw[kind] = measure(kind)
        speed = raw[kind]["hours a core-second"]["loader"]
        spent = [f"{part} {1000 * t / CLIPS:.3f}" for part, t in raw[kind]["seconds by part"].items()]
        print(f"{kind.upper()}, ms a clip: {', '.join(spent)}")
        what = (
            f"{kind.upper()}: hours of audio that are loaded in a core-second ({speed:.2f}), over soundfile's reading"
        )
        rows.append({"what": what, "measured": f"{ratio:.2f}", "bound": f"at least {BOUND}", "ok": ratio >= BOUND})
    record(__file__, rows, raw)


if __name__ == "__main__":
    main()
