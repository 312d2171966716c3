"""Whisper on the clip alone against its 30 s windows: time of a batch of clips as long as recordings are."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from _record import record

from usam import build_encoder

BASE = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
CLIPS, BATCH, ROUNDS = 32, 8, 3
MEDIAN, SIGMA = 6.0, 0.8  # seconds, log-normal, cut to 0.5 to 30


def durations() -> list[float]:
    """Seconds of the clips, in the order in which they come."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), SIGMA, CLIPS)
    return [float(s) for s in drawn.clip(0.5, 30)]


def batches(seconds: list[float]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Noise of these lengths, padded to the longest of each batch."""
    made = []
    for i in range(0, len(seconds), BATCH):
        sizes = torch.tensor([int(s * 16000) for s in seconds[i : i + BATCH]])
        mask = torch.arange(int(sizes.max())) < sizes.unsqueeze(1)
        made.append((torch.randn(mask.shape) * mask, mask))
    return made


@torch.inference_mode()
def main() -> None:
    """Both contexts in turn, clips as they come and sorted by length."""
    torch.manual_seed(0)
    encoders = {name: build_encoder("whisper", arch=BASE, context=name).eval() for name in ("window", "clip")}
    rows: list[dict[str, Any]] = []
    raw: dict[str, Any] = {"seconds": durations()}
    for order, seconds in {"as they come": durations(), "sorted by length": sorted(durations())}.items():
        data = batches(seconds)
        times: dict[str, list[float]] = {name: [] for name in encoders}
        for _ in range(ROUNDS):
            for name, encoder in encoders.items():
                start = time.perf_counter()
                for audio, mask in data:
                    encoder(audio, mask)
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(found) for name, found in times.items()}
        ratio = medians["window"] / medians["clip"]
        what = f"whisper-base's encoder: 30 s windows over `context: clip`, time, {CLIPS} clips {order}"
        rows.append({"what": what, "measured": f"{ratio:.2f}", "bound": "at least 2", "ok": ratio >= 2})
        raw[order] = times
    sounding = sum(durations()) / (30 * CLIPS)
    rows.append({"what": "of the 30 s windows holds sound", "measured": f"{sounding:.0%}", "bound": "-", "ok": True})
    record(__file__, rows, raw)


if __name__ == "__main__":
    main()
