"""`backend: auto` on a CPU against what one writes with torch: a loop, an einsum, a grouped product, in turn.

A ratio is the median time of the fastest of these over that of usam, routing included, on one thread. usam also gives
what the router did, and takes masks; calling it takes about a tenth of a millisecond, of which the smallest mixture
here is made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _mixtures import STEPS, Case, Run, Shape, grouped, loop, loop_of_rows, ours, with_gradients
from _record import record
from torch import Tensor

SECONDS = 3.0  # for each row, about
CASES = {
    "the paper's experts, a clip": (Shape(1, 768, 768, 4096, 3), torch.float32),
    "the paper's experts, eight clips": (Shape(8, 768, 768, 4096, 3), torch.float32),
    "the paper's experts, a clip, bfloat16": (Shape(1, 768, 768, 4096, 3), torch.bfloat16),
    "wide experts, a clip, bfloat16": (Shape(1, 768, 4096, 4096, 3), torch.bfloat16),
    "small experts, 400 frames": (Shape(16, 128, 128, 128, 3, frames=25), torch.float32),
    "tiny experts, 16 frames": (Shape(2, 16, 32, 16, 3, frames=8), torch.float32),
    "one of 64": (Shape(8, 256, 256, 512, 64, top_k=1), torch.float32),
    "one of 64, bfloat16": (Shape(8, 256, 256, 512, 64, top_k=1), torch.bfloat16),
}


def einsum(case: Case) -> Run:
    """All experts as two einsums, the gates between them."""
    e = case.experts
    assert e.up is not None
    assert e.down_bias is not None

    def run() -> Tensor:
        gates = case.logits.softmax(-1, dtype=torch.float32).to(case.x.dtype)
        hidden = F.gelu(torch.einsum("btd,ehd->bteh", case.x, e.up) + e.up_bias) * gates[:, None, :, None]
        return torch.einsum("bteh,eho->bto", hidden, e.down) + (gates @ e.down_bias)[:, None]

    return run


def main() -> None:
    """Every case, forward and with gradients."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    raw = {}
    for name, (shape, dtype) in CASES.items():
        case = Case(shape, dtype, "cpu")
        others = {"grouped_mm": grouped, "loop": loop_of_rows} if shape.top_k else {"einsum": einsum, "loop": loop}
        sides = {"usam": ours("auto")(case)} | {other: prepare(case) for other, prepare in others.items()}
        for step in STEPS:

            def timed(run: Run, step: str = step, case: Case = case) -> float:
                work: Callable[[], Any] = run if step == STEPS[0] else lambda: with_gradients(case, run)
                with torch.set_grad_enabled(step != STEPS[0]):
                    start = time.perf_counter()
                    work()
                    return time.perf_counter() - start

            first = sum(timed(run) + timed(run) for run in sides.values()) / 2
            times = [{side: timed(run) for side, run in sides.items()} for _ in range(max(5, int(SECONDS / first)))]
            medians = {side: statistics.median(found[side] for found in times) for side in sides}
            ratio = min(medians[other] for other in others) / medians["usam"]
            what = f"mixture on a CPU, fastest of {', '.join(others)} over usam: {name}, {step}"
            rows.append({"what": what, "measured": f"{ratio:.2f}", "bound": "at least 0.95", "ok": ratio >= 0.95})
            raw[f"{name}, {step}"] = medians
    record(__file__, rows, raw)


if __name__ == "__main__":
    main()
