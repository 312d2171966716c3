"""The mixture of experts on a GPU, beside what else computes it: time, memory, and how far both are from the floor.

In bfloat16, routing included: medians of CUDA events, each run after the L2 cache was overwritten. Eager runs wait
for that first, so that launches count; a CUDA graph is queued behind it, so that they do not. Memory is what a run
adds at its peak to weights and inputs. A floor is what the bytes that must move and the products that must be
computed take at the speed of a copy and of one large product, both measured in the same run. Writes a plot beside the
result; `--quick` measures a few rows with few runs and only prints them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import torch
from _mixtures import ROUTING, SHAPES, SIDES, STEPS, Case, Shape, routes, sides, with_gradients
from torch import Tensor

RUNS = 50
QUICK_RUNS = 10
QUICK = ("A", "A'", "B", "C", "G")

# Row, step, other side, and how many times as long as ours it must take at least; `peers` is the fastest other.
GOALS = [
    ("A", 0, "loop", 1.3), ("A", 0, "floor", 1 / 1.5), ("A", 1, "loop", 1.3),
    ("A'", 0, "loop", 3.0), ("A'", 1, "loop", 2.0),
    ("B", 0, "loop", 1.15), ("B", 0, "two products", 0.85), ("B", 1, "loop", 1.15),
    ("B'", 0, "loop", 2.0), ("B'", 1, "loop", 1.8),
    ("C", 0, "peers", 1.0), ("C", 0, "floor", 0.6), ("C", 1, "peers", 1.0), ("C", 1, "floor", 0.5),
    ("D", 0, "grouped_mm", 1.2), ("D", 0, "floor", 0.6), ("D", 1, "grouped_mm", 1.1),
    ("D2", 0, "peers", 1.0), ("D2", 0, "floor", 0.65), ("D2", 1, "peers", 1.0), ("D2", 1, "floor", 0.55),
    ("E", 0, "peers", 1.0), ("E", 0, "floor", 0.65), ("E", 1, "peers", 1.0), ("E", 1, "floor", 0.55),
    ("G", 0, "floor", 0.6), ("G", 1, "grouped_mm", 1.0),
]  # fmt: skip
LIGHTER = 1 / 0.6  # memory of the loop over ours in B, with gradients


@dataclass(frozen=True)
class Speed:
    """What the device does, as measured."""

    copy: float  # bytes a second, read and written
    matmul: float  # operations a second

    def floor(self, shape: Shape, step: str) -> float:
        """Seconds that no implementation can beat."""
        return max(shape.bytes(step) / self.copy, shape.flops(step) / self.matmul)


class Device:
    """Times runs on the GPU."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.cache = torch.empty(2**28, dtype=torch.int8, device="cuda")  # more than any L2 holds

    def seconds(self, run: Callable[[], Any], wait: bool) -> float:
        """Median, the cache overwritten before each run; `wait` for that, or queue the run behind it."""
        for _ in range(3):
            run()
        events = []
        for _ in range(self.runs):
            self.cache.zero_()
            if wait:
                torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1000

    def speed(self) -> Speed:
        """A copy of a gigabyte, and a product of 8192 three times."""
        source = torch.empty(2**30, dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)
        a, b = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device="cuda").unbind()
        copy = self.seconds(lambda: target.copy_(source), wait=False)
        return Speed(2 * 2**30 / copy, 2 * 8192**3 / self.seconds(lambda: a @ b, wait=False))

    def measure(self, run: Callable[[], Any], graph: bool) -> dict[str, float | None]:
        """Seconds eager and in a CUDA graph, and the bytes it adds at its peak."""
        eager = self.seconds(run, wait=True)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        found = {"eager": eager, "graph": None, "bytes": torch.cuda.max_memory_allocated() - before}
        if graph:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):  # what a first run allocates does not belong into the graph
                run()
            torch.cuda.synchronize()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                run()
            found["graph"] = self.seconds(captured.replay, wait=False)
        return found

    def both(self, case: Case, run: Callable[[], Tensor], graph: bool) -> dict[str, Any]:
        """Measures of both steps."""
        with torch.no_grad():
            forward = self.measure(run, graph)
        return {STEPS[0]: forward, STEPS[1]: self.measure(lambda: with_gradients(case, run), graph)}

    def row(self, shape: Shape) -> dict[str, Any]:
        """Every side of a shape; of one that fails, what it said."""
        found: dict[str, Any] = {}
        expected: Tensor | None = None
        for name, side in sides(shape).items():
            case = Case(shape, torch.bfloat16, "cuda")
            try:
                run = side.prepare(case)
                if side.compiled:
                    torch.compiler.reset()  # a function is compiled anew for a few shapes only
                    run = torch.compile(run, dynamic=False)
                y = with_gradients(case, run).detach()
                expected = y if expected is None else expected
                if side.same and (y - expected).norm() > 0.03 * expected.norm():
                    raise AssertionError("it computes another mixture")
                found[name] = self.both(case, run, side.graph)
            except Exception as error:  # of a peer, which is a result too
                if name == "usam":
                    raise
                found[name] = {"failed": f"{type(error).__name__}: {error}"}
            del case
            torch.cuda.empty_cache()
        return found


def time(found: dict[str, Any], side: str, step: str, how: str = "eager") -> float:
    """Seconds of a side, or of the fastest other that computes the same (`peers`); infinite where it failed."""
    if side == "peers":
        others = [name for name in found if SIDES[name].same and not name.startswith("usam")]
        return min(time(found, name, step, how) for name in others)
    return found.get(side, {}).get(step, {}).get(how) or float("inf")


def reached(found: dict[str, Any], speed: Speed) -> list[dict[str, object]]:
    """A line for each goal of the rows that were measured."""
    lines = []
    for name, index, other, least in GOALS:
        if name not in found:
            continue
        step = STEPS[index]
        mine = time(found[name], "usam", step, "graph" if other == "floor" else "eager")
        theirs = speed.floor(SHAPES[name], step) if other == "floor" else time(found[name], other, step)
        words = {"floor": "floor over time in a CUDA graph", "peers": "time of the fastest other over that of usam"}
        what = words.get(other, f"time of {other} over that of usam")
        lines.append(line(f"{name}, {step}: {what}", theirs / mine, least))
    memory = [time(found["B"], side, STEPS[1], "bytes") for side in ("loop", "usam")]
    lines.append(line(f"B, {STEPS[1]}: memory of loop over that of usam", memory[0] / memory[1], LIGHTER))
    routing = found["routing"]
    lines.append(line("routing: time of torch over that of usam", routing["torch"] / routing["usam"], 2.0))
    return lines


def line(what: str, ratio: float, least: float) -> dict[str, object]:
    """A measured ratio; one with something that could not be measured is no success."""
    ok = least <= ratio < float("inf")
    return {"what": f"mixture {what}", "measured": f"{ratio:.2f}", "bound": f"at least {least:.2f}", "ok": ok}


def plot(found: dict[str, Any], speed: Speed) -> Any:
    """A figure: the time of every side in every row, over the floor; in a CUDA graph where it can be held by one."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    names = [name for name in found if name in SHAPES]
    for panel, step in zip(panels, STEPS, strict=True):
        for side, marker in zip(SIDES, "oshvv^DD<>Px", strict=True):
            ratios = [
                min(time(found[n], side, step, how) for how in ("eager", "graph")) / speed.floor(SHAPES[n], step)
                for n in names
            ]
            shown = [(n, ratio) for n, ratio in zip(names, ratios, strict=True) if ratio < float("inf")]
            if shown:
                panel.plot(*zip(*shown, strict=True), marker, label=side, fillstyle="none")
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=step, yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("time over the floor")
    panels[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    """All rows of the table, routing alone, and the goals."""
    from _record import RESULTS, record

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows with few runs; nothing is written")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        print(NO_GPU)
        return
    device = Device(QUICK_RUNS if quick else RUNS)
    speed = device.speed()
    found: dict[str, Any] = {}
    for name in QUICK if quick else SHAPES:
        found[name] = device.row(SHAPES[name])
        floors = {step: speed.floor(SHAPES[name], step) for step in STEPS}
        print(json.dumps({name: found[name], "floor": floors}), flush=True)
    routing = routes(Case(ROUTING, torch.bfloat16, "cuda"))
    found["routing"] = {name: device.seconds(run, wait=False) for name, run in routing.items()}
    lines = reached(found, speed)
    if quick:
        print("\n".join(f"{goal['what']}: {goal['measured']} ({goal['bound']})" for goal in lines))
        return
    RESULTS.mkdir(exist_ok=True)
    plot(found, speed).savefig(RESULTS / "moe.png", dpi=120)
    missing = sorted({side.package for side in SIDES.values() if find_spec(side.package) is None})
    raw = {"device": torch.cuda.get_device_name(), "speed": asdict(speed), "seconds": found, "not installed": missing}
    record(__file__, lines, raw)


NO_GPU = """\
There is no CUDA device here, and nothing was measured or written. This benchmark compares kernels with each other and
with what a device's memory and tensor cores allow; on a CPU the Triton kernels run in an interpreter, whose time says
nothing, there is no L2 cache to overwrite, no CUDA graph and no device memory to watch, and the peers' kernels do not
run. Run it on a machine with an NVIDIA GPU. What a CPU can say of the mixture is measured by benchmarks/mixture.py, and
what the compiler says of the kernels by benchmarks/kernels_aot.py."""


if __name__ == "__main__":
    main()
