"""Front-ends on the device against transformers' own feature extractors, at batch 1, 8 and 32.

Ten seconds a clip; both are given what they are given in use: the extractors a list of arrays, ours the
padded batch that the model holds. Medians of interleaved runs. The outputs agree to 1e-4; of Kaldi's, whose
extractor computes in float64, to 2e-4, which the lowest bins reach where next to nothing sounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _record import record
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor

from usam.encoders._kaldi import KaldiFbank
from usam.encoders.whisper import LogMel

SECONDS, RATE, RUNS = 10, 16000, 5
Front = tuple[Callable[[list[np.ndarray[Any, Any]]], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]


def whisper() -> Front:
    """Log-mel of 30 s windows."""
    extractor, ours = WhisperFeatureExtractor(feature_size=80), LogMel(80)
    return (
        lambda clips: extractor(clips, sampling_rate=RATE, return_tensors="pt").input_features,
        lambda batch: ours(batch, 3000),
    )


def kaldi() -> Front:
    """Kaldi's filter bank, normalised as AST takes it."""
    extractor, ours = ASTFeatureExtractor(max_length=998), KaldiFbank(128, "hann", 1.0)
    return (
        lambda clips: extractor(clips, sampling_rate=RATE, return_tensors="pt").input_values,
        lambda batch: (ours(batch) - extractor.mean) / (2 * extractor.std),
    )


def main() -> None:
    """Both sides in turn."""
    rows, raw = [], {}
    for name, make, tolerance in (("Whisper's log-mel", whisper, 1e-4), ("Kaldi's filter bank (AST)", kaldi, 2e-4)):
        theirs, ours = make()
        for size in (1, 8, 32):
            clips = [np.random.default_rng(i).normal(0, 0.1, SECONDS * RATE).astype(np.float32) for i in range(size)]
            batch = torch.from_numpy(np.stack(clips))
            error = float((theirs(clips) - ours(batch)).abs().max())
            assert error < tolerance, f"{name}: the outputs differ by {error}"
            times: list[list[float]] = [[], []]
            for _ in range(RUNS):
                for side, run in enumerate((lambda: theirs(clips), lambda: ours(batch))):  # noqa: B023
                    start = time.perf_counter()
                    run()
                    times[side].append(time.perf_counter() - start)
            ratio = statistics.median(times[0]) / statistics.median(times[1])
            raw[f"{name}, batch {size}"] = {"theirs": times[0], "ours": times[1], "error": error}
            rows.append(
                {
                    "what": f"{name}: how many times faster than transformers' extractor at batch {size}",
                    "measured": f"{ratio:.1f}",
                    "bound": "3 at batch 8",
                    "ok": size != 8 or ratio >= 3,
                }
            )
    record(__file__, rows, raw)


if __name__ == "__main__":
    main()
