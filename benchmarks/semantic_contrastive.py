"""A forward and backward pass of the semantic contrastive loss at width 4096, against one with 1024 slots.

The alternative is the loss with wide networks: a score network with a hidden layer of 1024, an aggregation of
4096 x 4096 x 1024 that shares each kept frame out to 1024 slots, dot products, one shuffled negative. Ours has
bottlenecks of 256 and 8 slots, and compares every audio with every answer. 8 samples, answers of 40 tokens, 14
and 40 frames; gradients for all weights and for the audio. One process a variant, so that neither sees the
other's memory. Time is the processor's, which other work on the machine hardly changes.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

DIM, BATCH, TOKENS, STEPS, PROCESSES = 4096, 8, 40, 6, 2
LENGTHS = (14, 40)


def resident() -> int:
    """Bytes of memory now."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * resource.getpagesize()


def wide(margin: float = 0.2) -> Any:
    """The alternative, as a module of (audio, text) -> loss."""
    import torch.nn.functional as F
    from torch import Tensor, nn

    def ranged(x: Tensor) -> Tensor:
        return (x - x.min()) / (x.max() - x.min())

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Sequential(nn.Linear(DIM, 1024), nn.ReLU(), nn.Linear(1024, 1))
            self.weigh = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, 1024))

        def alike(self, slots: Tensor, text: Tensor) -> Tensor:
            products = slots @ text.mT
            return (products.amax(-1).mean(-1) + products.amax(-2).mean(-1)) / 2

        def forward(self, audio: Tensor, text: Tensor) -> Tensor:
            to_text, to_audio = (F.cosine_similarity(audio, x.mean(1, True), -1) for x in (text, audio))
            scores = self.score(audio).squeeze(-1).sigmoid() / 2 + (ranged(to_text) + ranged(to_audio)) / 4
            kept = audio * (scores > 0.5).unsqueeze(-1)
            slots = self.weigh(kept).softmax(-1).mT @ kept
            cost = F.relu(margin + self.alike(slots, text.roll(1, 0)) - self.alike(slots, text)).mean()
            return cost + (scores.mean(-1) - 0.5).square().mean()

    return Wide()


def measure(variant: str, frames: int) -> None:
    """Print the seconds of each pass, the bytes that the first one added at its peak, and the number of parameters."""
    import torch

    from usam.losses import build_loss
    from usam.types import Frames, LossInputs

    torch.set_num_threads(1)  # waiting threads would count as work
    torch.manual_seed(0)
    module = build_loss("semantic_contrastive", dim=DIM) if variant == "ours" else wide()
    module.train()
    audio = torch.randn(BATCH, frames, DIM).requires_grad_()
    text = torch.randn(BATCH, TOKENS, DIM) * 0.02  # as small as a language model's embeddings
    labels = torch.randint(1000, (BATCH * TOKENS,))
    answer = torch.nn.functional.pad(text, (0, 0, 1, 0)), torch.arange(TOKENS + 1).expand(BATCH, -1) > 0
    heard = Frames(audio, torch.ones(BATCH, frames, dtype=torch.bool), 1.5)
    inputs = LossInputs(torch.zeros(BATCH * TOKENS, DIM), labels, torch.nn.Identity(), heard, answer)

    def step() -> None:
        (module(inputs).value if variant == "ours" else module(audio, text)).backward()
        module.zero_grad()
        audio.grad = None

    before = resident()
    step()
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    seconds, wall = [], []
    for _ in range(STEPS):
        start, began = time.process_time(), time.perf_counter()
        step()
        seconds.append(time.process_time() - start)
        wall.append(time.perf_counter() - began)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    print(json.dumps({"seconds": seconds, "wall": wall, "added": added, "parameters": parameters}))


def main() -> None:
    """Both variants in turn, several processes each; medians, and their ratios."""
    from _record import record

    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(PROCESSES):
        for frames in LENGTHS:
            for variant in ("ours", "wide"):
                command = [sys.executable, __file__, variant, str(frames)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.setdefault(f"{variant} {frames}", []).append(json.loads(done.stdout.splitlines()[-1]))

    def ratio(key: str, frames: int) -> float:
        def median(variant: str) -> float:
            runs = [run[key] for run in found[f"{variant} {frames}"]]
            return float(statistics.median(runs if key == "added" else [x for run in runs for x in run]))

        return median("ours") / median("wide")

    rows = []
    for frames in LENGTHS:
        against = f"the semantic contrastive loss with {frames} frames, against 1024 slots"
        named = {"seconds": "processor time of", "wall": "time by the clock of", "added": "memory added by"}
        for key, what in named.items():
            found_ratio = ratio(key, frames)
            row = {"what": f"{what} {against}", "measured": f"{found_ratio:.3f}", "bound": "0.2"}
            rows.append({**row, "ok": found_ratio <= 0.2})
    record(__file__, rows, found)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
