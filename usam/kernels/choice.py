"""Which backend is the fastest for a kind of work: measured once for each bucket of shapes, and remembered."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping

import torch

WARM_UP, REPEATS = 2, 5

_chosen: dict[Hashable, str] = {}


def bucket(rows: int) -> int:
    """The next power of two: row counts of a bucket share a choice."""
    return 1 << max(rows - 1, 0).bit_length()


def fastest(key: Hashable, candidates: Mapping[str, Callable[[], object]], device: torch.device) -> str:
    """The candidate that takes the least time; the first one where nothing may be measured.

    Args:
        key: what has this choice in common: device, types, widths, and `bucket`s of rows.
        candidates: what does the work, by name; each is run a few times, when the key is new.
        device: where it is done.

    Nothing is measured, and nothing remembered, under `torch.use_deterministic_algorithms`, whose runs must
    choose alike, and while a CUDA graph is captured, when nothing may wait: run once before. A candidate that fails is
    not chosen; if all fail, the first one's error is raised.
    """
    first = next(iter(candidates))
    if torch.are_deterministic_algorithms_enabled() or len(candidates) == 1:
        return first
    if key not in _chosen:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return first
        seconds, failed = {}, []
        for name, run in candidates.items():
            try:
                seconds[name] = _seconds(run, device)
            except Exception as error:  # one that cannot do it is out of the race
                failed.append(error)
        if not seconds:
            raise failed[0]
        _chosen[key] = min(seconds, key=lambda name: seconds[name])
    return _chosen[key]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[WARM_UP:])
