"""The mixture of experts as two stacked products against a loop over its experts.

The alternative is what one writes first: every expert's output, stacked, multiplied by the gates and summed. The
experts map 768 to 4096, one gate a clip; 88 frames are one clip of 30 s behind windows of a third of a second, 704
are eight. Time is the processor's on one thread, medians of interleaved runs; memory is the most that one run
allocates at once, weights and inputs apart, as the allocator reports it. Linear experts are joined into one matrix
in inference while clips are few: that matrix is then all the memory it takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _record import record
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from usam import build_projector
from usam.types import Frames, Prompt

IN, OUT, PROMPT, EXPERTS, FRAMES = 768, 4096, 4096, 3, 88
RUNS = {88: 7, 704: 3}


def loop(module: Any, frames: Frames, prompt: Prompt) -> Tensor:
    """Each expert in turn, all outputs stacked, weighed and summed."""
    gates = module.router({"prompt": prompt.x.mean(1)}).softmax(-1)
    outputs = []
    for e in range(EXPERTS):
        hidden = frames.x
        if module.w_up is not None:
            hidden = F.gelu(F.linear(hidden, module.w_up[e], module.b_up[e]))
        outputs.append(F.linear(hidden, module.w_down[e].mT, module.b_down[e]))
    return (torch.stack(outputs, -2) * gates[:, None, :, None]).sum(-2)


def ours(module: Any, frames: Frames, prompt: Prompt) -> Tensor:
    """The projector as it is."""
    y: Tensor = module(frames, prompt).x
    return y


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that `run` has allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    most = now = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    """Both sides in turn, for every size."""
    torch.set_num_threads(1)
    rows, raw = [], {}
    for hidden, name in ((512, "experts of 512"), (4096, "experts of 4096"), (0, "linear experts")):
        torch.manual_seed(0)
        module = build_projector("moe", in_dim=IN, prompt_dim=PROMPT, out_dim=OUT, experts=EXPERTS, hidden=hidden)
        for total, runs in RUNS.items():
            clips = total // FRAMES
            mask = torch.ones(clips, FRAMES, dtype=torch.bool)
            prompt = Prompt(torch.randn(clips, 8, PROMPT), torch.ones(clips, 8, dtype=torch.bool))
            frames = Frames(torch.randn(clips, FRAMES, IN).requires_grad_(), mask, 3.0)
            error = (ours(module, frames, prompt) - loop(module, frames, prompt)).abs().max().item()
            assert error < 1e-4, f"the variants compute different mixtures: {error}"
            for backward in (False, True):

                def step(variant: Callable[..., Tensor], backward: bool = backward) -> None:
                    with torch.set_grad_enabled(backward):
                        y = variant(module, frames, prompt)  # noqa: B023
                        if backward:
                            y.sum().backward()
                    module.zero_grad()  # noqa: B023
                    frames.x.grad = None  # noqa: B023

                seconds: dict[str, list[float]] = {"ours": [], "loop": []}
                for _ in range(runs + 1):
                    for side, variant in (("ours", ours), ("loop", loop)):
                        start = time.process_time()
                        step(variant)
                        seconds[side].append(time.process_time() - start)
                seconds = {side: found[1:] for side, found in seconds.items()}  # the first warms up
                memory = {side: peak(lambda v=variant: step(v)) for side, variant in (("ours", ours), ("loop", loop))}
                what = f"{name}, {total} frames, forward{' and backward' if backward else ''}"
                raw[what] = {"seconds": seconds, "bytes": memory, "error": error}
                faster = statistics.median(seconds["loop"]) / statistics.median(seconds["ours"])
                lighter = memory["loop"] / memory["ours"]
                fast, light = bounds(hidden == 0 and clips <= EXPERTS and not backward, backward)
                rows.append(row(f"mixture, time of a loop over experts against ours: {what}", faster, fast))
                rows.append(row(f"mixture, memory of a loop over experts against ours: {what}", lighter, light))
    record(__file__, rows, raw)


def bounds(merged: bool, backward: bool) -> tuple[float, float]:
    """What time and memory must be. The products do most of the work on a CPU, and in `forward` are the same ones."""
    if merged:
        return 1.5, 0.75
    return (1.0 if backward else 0.9), 1.25


def row(what: str, ratio: float, least: float) -> dict[str, Any]:
    return {"what": what, "measured": f"{ratio:.2f}", "bound": f"at least {least}", "ok": ratio >= least}


if __name__ == "__main__":
    main()
