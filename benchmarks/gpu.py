"""The mixture of experts on one GPU, in minutes: `python benchmarks/gpu.py FOLDER`.

Runs the kernels' tests there, times tiles of every product, and times rows of benchmarks/_mixtures.py beside what one
writes with torch, in bfloat16, routing included: medians of CUDA events, each run after the L2 cache was overwritten.
Eager runs wait for that first, so that launches count; a CUDA graph is queued behind it, so that they do not. A floor
is what the bytes that must move and the products that must be computed take at the speed of a copy and of one large
product, both measured in the same visit.

Every step is a process of its own with a time limit, for an error on a GPU is the end of its process; what it finds is
appended to FOLDER/results.jsonl at once, what it says to FOLDER/log.txt. The last ones write FOLDER/summary.txt and
FOLDER/gpu.png; `--step summary` writes the former anew without a GPU, and `--step keep` puts the figures into
benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # usam need not be installed there

from _mixtures import ROUTING, SHAPES, STEPS, Case, Shape, routes, sides, with_gradients  # noqa: E402

BUDGET = 470.0  # seconds of the whole visit
ROWS = ("A", "A'", "B", "B'", "C", "D2", "G")
COMPILED = ("B", "C")
MOST = 0.4  # seconds that one median may take: long runs are repeated less often
DEVICE = "cuda"
PROCESSES = 12  # that compile, or test, at once
TESTING = 80.0  # seconds for the tests; which of them ended by then is told

# Tiles of each product, on the rows they are tried on; experts with few rows have low ones.
TILED = ("C", "D", "E")
WIDE_TILES = [
    {"BM": high, "BN": wide, "BK": 64, "GROUP": 8, "num_warps": 8, "num_stages": stages} | most
    for (high, wide), stages, most in product(((128, 128), (128, 256), (64, 256)), (3, 4), ({}, {"maxnreg": 128}))
    if high * wide <= 2**14 or not most  # the sums of 128 by 256 alone are 128 registers a thread
]
LOW_TILES = [
    {"BM": 16, "BN": wide, "BK": 64, "GROUP": 8, "num_warps": warps, "num_stages": stages}
    for wide, stages, warps in product((64, 128, 256), (3, 4), (4, 8))
]
TILES = dict.fromkeys(TILED, WIDE_TILES) | {"G": LOW_TILES}

# Row, step, other side, and how many times as long as ours it must take at least; `others` is the fastest of them.
GOALS = [
    ("A", 0, "loop", 1.3), ("A", 0, "floor", 1 / 1.5), ("A", 1, "loop", 1.3),
    ("A'", 0, "loop", 3.0), ("A'", 1, "loop", 2.0),
    ("B", 0, "loop", 1.15), ("B", 0, "two products", 0.85), ("B", 1, "loop", 1.15),
    ("B'", 0, "loop", 2.0), ("B'", 1, "loop", 1.8),
    ("C", 0, "others", 1.0), ("C", 0, "floor", 0.6), ("C", 1, "others", 1.0), ("C", 1, "floor", 0.5),
    ("D2", 0, "others", 1.0), ("D2", 0, "floor", 0.65), ("D2", 1, "others", 1.0), ("D2", 1, "floor", 0.55),
    ("G", 0, "floor", 0.6), ("G", 1, "grouped_mm", 1.0),
]  # fmt: skip
FAR = 0.03  # how far from each other two sides may be, relatively
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

    def __init__(self) -> None:
        self.cache = torch.empty(2**28, dtype=torch.int8, device=DEVICE)  # more than any L2 holds

    def says(self) -> dict[str, str]:
        """What it is, and what runs on it."""
        import triton

        versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": str(torch.version.cuda)}
        return {"device": torch.cuda.get_device_name(), **versions}

    def wait(self) -> None:
        """Until it is done; raises what went wrong there."""
        torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], wait: bool) -> float:
        """Median, the cache overwritten before each run; `wait` for that, or queue the run behind it."""
        for _ in range(2):
            run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        runs = max(5, min(50, int(MOST / (time.perf_counter() - start))))
        events = []
        for _ in range(runs):
            self.cache.zero_()
            if wait:
                torch.cuda.synchronize()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            events.append((first, last))
        torch.cuda.synchronize()
        return statistics.median(first.elapsed_time(last) for first, last in events) / 1000

    def speed(self) -> Speed:
        """A copy of a gigabyte, and a product of 8192 three times."""
        source = torch.empty(2**30, dtype=torch.int8, device=DEVICE)
        target = torch.empty_like(source)
        a, b = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device=DEVICE).unbind()
        copy = self.seconds(lambda: target.copy_(source), wait=False)
        return Speed(2 * 2**30 / copy, 2 * 8192**3 / self.seconds(lambda: a @ b, wait=False))

    def peak(self, run: Callable[[], Any]) -> int:
        """The bytes that a run adds at its peak."""
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same in a CUDA graph."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # what a first run allocates does not belong into the graph
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def compiled(self, kernel: Any) -> dict[str, int]:
        """Registers of a thread, bytes that spill, bytes of shared memory, and programs on a multiprocessor."""
        kernels = kernel.device_caches[torch.cuda.current_device()][0]
        made = list(kernels.values())[-1]
        shared, threads = made.metadata.shared, 32 * made.metadata.num_warps
        most = min(65536 // (threads * -(-made.n_regs // 8) * 8), 233472 // (shared + 1024), 2048 // threads)
        return {"registers": made.n_regs, "spilled": made.n_spills, "shared": shared, "programs": most}


class Findings:
    """Lines of FOLDER/results.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "results.jsonl"

    def add(self, **found: Any) -> None:
        """One more, on the disk when this returns."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps(found), flush=True)

    def read(self) -> list[dict[str, Any]]:
        """All so far; a line that a killed process left unfinished is left out."""
        found = []
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []:
            with suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found


# Steps


def tests(findings: Findings, *_: str) -> None:
    """The kernels' tests on the device, but those of torch's rules and of compilers, in a few processes at once."""
    start = time.monotonic()
    environment = os.environ | {
        "TRITON_INTERPRET": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    files = [f"tests/kernels/test_kernels_{name}.py" for name in ("dense", "routing", "sparse")]
    leave = "not sound and not rules and not compiles and not meta_device and not import and not interpreter"
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header"]
    listed = subprocess.run(
        [*pytest, "--collect-only", "-k", leave, *files], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    ids = [line for line in listed.stdout.splitlines() if "::" in line]
    if not ids:
        findings.add(step="tests", failed=[listed.stdout[-1500:] + listed.stderr[-1500:]])
        return
    parts = [ids[i::PROCESSES] for i in range(min(PROCESSES, len(ids)))]
    running = [
        subprocess.Popen(
            [*pytest, "-vv", "--tb=short", *part], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for part in parts
    ]  # fmt: skip
    for process, part in zip(running, parts, strict=True):
        try:
            said = process.communicate(timeout=max(0.1, start + TESTING - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[0]
        ended = [line for line in said.splitlines() if "::" in line and line.rstrip().endswith("%]")]
        failed = [line for line in ended if " FAILED " in line or " ERROR " in line]
        passed = sum(" PASSED " in line for line in ended)
        findings.add(step="tests", tests=len(part), passed=passed, failed=failed, status=process.returncode)
        if process.returncode:
            print(said)


def graph(findings: Findings, *_: str) -> None:
    """A mixture of the best two in a CUDA graph gives, for other numbers, what it gives outside of one."""
    small(findings)
    device = Device()
    case = Case(Shape(2, 64, 96, 80, 5, top_k=2, frames=20), torch.bfloat16, DEVICE)
    run = sides(case.shape)["usam, triton"].prepare(case)
    kept: list[Tensor] = []
    with torch.no_grad():
        replay = device.captured(lambda: kept.append(run()))
        case.x.copy_(torch.randn_like(case.x))
        replay()
        expected = run()
    device.wait()
    findings.add(step="graph", equal=torch.equal(kept[-1], expected))


def sanitize(findings: Findings, *_: str) -> None:
    """One small mixture, forward and backward, under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        findings.add(step="sanitize", failed="compute-sanitizer is not installed")
        return
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__]
    done = subprocess.run([*command, str(findings.file.parent), "--step", "small"], capture_output=True, text=True)
    findings.add(step="sanitize", status=done.returncode, said=(done.stdout + done.stderr)[-800:])


def small(findings: Findings, *_: str) -> None:
    """What `sanitize` looks at: widths and rows that no tile divides."""
    device = Device()
    for top_k in (1, 2, None):
        case = Case(Shape(1, 24, 40, 56, 5, top_k=top_k, frames=30), torch.bfloat16, DEVICE)
        with_gradients(case, sides(case.shape)["usam, triton"].prepare(case))
        device.wait()


def units() -> Iterator[tuple[str, str, int]]:
    """Row, product and tile of all that `tiles` times; and each row whole, by the tiles as they stand."""
    for row in ROWS:
        yield row, "", 0
    for row, tiles in TILES.items():
        for i, kernel in product(range(len(tiles)), KERNELS):
            yield row, kernel, i


def warm(findings: Findings, part: str) -> None:
    """Compile a part of everything that will be timed: the result lies on the disk then."""
    device = Device()
    own = [unit for i, unit in enumerate(sorted(units())) if i % PROCESSES == int(part)]
    case, name = None, ""
    for row, kernel, i in own:
        try:
            if row != name:
                case, name = None, row
                case = Case(SHAPES[row], torch.bfloat16, DEVICE)
            assert case is not None
            if kernel:
                work(case, kernel, TILES[row][i])()
            else:
                run = sides(case.shape)["usam, triton"].prepare(case)
                with_gradients(case, run)
                with torch.no_grad():
                    run()
            device.wait()
        except Exception as error:  # `tiles` will meet it again, and say it there
            print(f"{row} {kernel} {i}: {error}", flush=True)


KERNELS = ("up", "down", "dh", "dw")


def work(case: Case, kernel: str, tile: dict[str, int] | None = None) -> Callable[[], Any]:
    """One product of a mixture of the best few with this tile; of `down` with the sum over a row's experts."""
    from usam.kernels import _sparse, route
    from usam.kernels.sparse import Sparse

    shape = case.shape
    with torch.no_grad():
        routed = route(case.logits.flatten(0, 1), top_k=shape.top_k, renormalize=shape.renormalize)
        placed = routed.placement
        e = case.experts
        assert placed is not None
        assert e.up is not None
        weights = e.down.detach(), e.down_bias, e.up.detach(), e.up_bias
        x, places = case.x.detach().flatten(0, 1), (placed.src, placed.dst, placed.offs)
        s = _sparse.plain(Sparse(x, routed.gates, *places, *weights, "gelu", "triton", True))
        hidden, pre = x.new_empty(2, shape.routed, shape.hidden).normal_().unbind()
        dy = case.dy.flatten(0, 1)
    if tile is not None:
        _sparse.HOPPER[kernel] = tile
    down, up = s.down, s.up
    assert up is not None
    return {
        "up": lambda: _sparse.up(s, up),
        "down": lambda: _sparse.down(s, hidden, down, s.down_bias),
        "dh": lambda: _sparse.dh(s, dy, pre),
        "dw": lambda: _sparse.dw(s, hidden, dy, down, s.down_bias, "b"),
        "combine": lambda: _sparse.combine(s, dy.new_empty(shape.routed, shape.out)),
    }[kernel]


def tiles(findings: Findings, *_: str) -> None:
    """Every product with every tile, on each row."""
    from usam.kernels import _sparse

    device = Device()
    for row, choices in TILES.items():
        case = Case(SHAPES[row], torch.bfloat16, DEVICE)
        shape = case.shape
        combining = device.seconds(work(case, "combine"), wait=False)
        findings.add(step="tiles", row=row, kernel="combine", us=combining * 1e6)
        for kernel in KERNELS:
            width = shape.width if kernel == "up" else shape.out
            usual = _sparse.HOPPER[kernel]
            for tile in choices:
                found: dict[str, Any] = {"step": "tiles", "row": row, "kernel": kernel, "tile": tile}
                try:
                    run = work(case, kernel, tile)
                    seconds = device.seconds(run, wait=False)  # of `down` with `combine`, but of the best one
                    flops = 2 * shape.routed * width * shape.hidden
                    found |= {"us": seconds * 1e6, "tflops": flops / seconds / 1e12}
                    found |= device.compiled(getattr(_sparse, f"{kernel}_kernel"))
                except Exception as error:
                    found |= {"failed": f"{type(error).__name__}: {error}"[:300]}
                findings.add(**found)
            _sparse.HOPPER[kernel] = usual
        del case
        torch.cuda.empty_cache()


def speed(findings: Findings, *_: str) -> None:
    """What the device is and does, and routing alone."""
    device = Device()
    findings.add(step="speed", **device.says(), **asdict(device.speed()))
    case = Case(ROUTING, torch.bfloat16, DEVICE)
    findings.add(step="routing", **{name: device.seconds(run, wait=False) for name, run in routes(case).items()})


def row(findings: Findings, name: str, how: str = "") -> None:
    """Every side of a row, or the compiled ones alone; of one that fails, what it said."""
    from usam.kernels import choice

    device = Device()
    shape = SHAPES[name]
    expected: Tensor | None = None
    for side_name, side in sides(shape).items():
        if side.compiled != (how == "compiled"):
            continue
        found: dict[str, Any] = {"step": "row", "row": name, "side": side_name}
        try:
            case = Case(shape, torch.bfloat16, DEVICE)
            run = side.prepare(case)
            if side.compiled:
                run = torch.compile(run, dynamic=False)
            y = with_gradients(case, run).detach()
            if side.same and expected is not None:
                found["error"] = ((y - expected).norm() / expected.norm()).item()
            expected = y if side.same and expected is None else expected
            for step, work in zip(STEPS, (run, lambda: with_gradients(case, run)), strict=True):  # noqa: B023
                with torch.set_grad_enabled(step != STEPS[0]):
                    found[step] = {"eager": device.seconds(work, wait=True), "bytes": device.peak(work)}
            if side_name == "usam, auto":
                found["choice"] = sorted(set(choice._chosen.values())) or ["triton"]
            findings.add(**found)
            if side.graph and not side.compiled:
                for step, work in zip(STEPS, (run, lambda: with_gradients(case, run)), strict=True):  # noqa: B023
                    with torch.set_grad_enabled(step != STEPS[0]):
                        seconds = device.seconds(device.captured(work), wait=False)
                    findings.add(step="row", row=name, side=side_name, **{step: {"graph": seconds}})
        except Exception as error:
            findings.add(**found, failed=f"{type(error).__name__}: {error}"[:600])
            traceback.print_exc()
        case = run = None
        torch.cuda.empty_cache()


def measured(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was found of each row's sides, the lines of a side joined."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.get("step") == "row" and "side" in line:
            side = found.setdefault(line["row"], {}).setdefault(line["side"], {})
            for key, value in line.items():
                side[key] = side.get(key, {}) | value if isinstance(value, dict) else value
    return found


def taken(found: dict[str, Any], side: str, step: str, how: str = "eager") -> float:
    """Seconds of a side, or of the fastest other that computes the same (`others`); infinite where it failed."""
    if side == "others":
        others = [name for name in found if not name.startswith(("usam", "two products"))]
        return min((taken(found, name, step, how) for name in others), default=float("inf"))
    return found.get(side, {}).get(step, {}).get(how) or float("inf")


def reached(found: dict[str, Any], device: Speed, routing: dict[str, float] | None) -> list[dict[str, Any]]:
    """A line for each goal of the rows that were measured; one with what could not be measured is not reached."""
    lines = []

    def goal(what: str, ratio: float, least: float) -> None:
        lines.append({"what": what, "ratio": ratio, "least": least, "ok": least <= ratio < float("inf")})

    for name, index, other, least in GOALS:
        if name not in found:
            continue
        step = STEPS[index]
        mine = taken(found[name], "usam, auto", step, "graph" if other == "floor" else "eager")
        theirs = device.floor(SHAPES[name], step) if other == "floor" else taken(found[name], other, step)
        words = {"floor": "floor over time in a CUDA graph", "others": "time of the fastest other over that of usam"}
        goal(f"{name}, {step}: {words.get(other, f'time of {other} over that of usam')}", theirs / mine, least)
    if "B" in found:
        loop, ours = (taken(found["B"], side, STEPS[1], "bytes") for side in ("loop", "usam, auto"))
        goal(f"B, {STEPS[1]}: memory of loop over that of usam", loop / ours, LIGHTER)
    if routing is not None:
        goal("routing: time of torch over that of usam", routing["torch"] / routing["usam"], 2.0)
    return lines


def best_tiles(lines: list[dict[str, Any]]) -> Iterator[str]:
    """For each product the tiles by their geometric mean over the rows, and the low ones."""
    timed = [line for line in lines if line.get("step") == "tiles" and "tflops" in line]
    for kernel, rows in product(KERNELS, (TILED, ("G",))):
        by_tile: dict[str, dict[str, Any]] = {}
        for line in timed:
            if line["kernel"] == kernel and line["row"] in rows:
                by_tile.setdefault(json.dumps(line["tile"]), {})[line["row"]] = line
        means = {
            tile: math.exp(statistics.mean(math.log(found[row]["us"]) for row in rows))
            for tile, found in by_tile.items()
            if set(found) == set(rows)
        }
        for tile in sorted(means, key=lambda t: means[t])[:3]:
            size = " ".join(f"{key}={value}" for key, value in json.loads(tile).items())
            said = [f"{by_tile[tile][row]['us']:.0f} us {by_tile[tile][row]['tflops']:.0f} TFLOP/s" for row in rows]
            first = by_tile[tile][rows[0]]
            used = f"{first.get('registers')} registers, {first.get('programs')} programs an SM"
            yield f"{kernel:5} {'/'.join(rows):6} {size}: {', '.join(said)}; {used}"


def summary(findings: Findings, *_: str) -> None:
    """All in short, printed and written."""
    lines = findings.read()
    told = ("speed", "graph", "sanitize", "routing")
    said = [json.dumps(line) for line in lines if line.get("step") in told and "ended" not in line]
    parts = [line for line in lines if line.get("step") == "tests"]
    failed = [name for part in parts for name in part.get("failed", [])]
    of = sum(part.get("tests", 0) for part in parts)
    said.append(f"tests: {sum(part.get('passed', 0) for part in parts)} of {of} passed, failed: {failed}")
    said += best_tiles(lines)
    device = next((Speed(line["copy"], line["matmul"]) for line in lines if "copy" in line), None)
    routing = next((line for line in lines if line.get("step") == "routing"), None)
    found = measured(lines)
    for name, (step, how) in product(found, product(STEPS, ("eager", "graph"))):
        times = {side: taken(found[name], side, step, how) for side in found[name]}
        cells = [f"{side} {seconds * 1e6:.0f}" for side, seconds in times.items() if seconds < float("inf")]
        floor = f"floor {device.floor(SHAPES[name], step) * 1e6:.0f}" if device else ""
        said.append(f"{name:3} {step}, {how}, us: {'; '.join(cells)}; {floor}")
    for name, by_side in found.items():
        said.append(f"{name:3} auto chose {by_side.get('usam, auto', {}).get('choice')}")
        for side, what in by_side.items():
            if "failed" in what or what.get("error", 0) > FAR:
                said.append(f"{name:3} {side}: {what.get('failed', 'it computes another mixture')}")
    if device:
        for line in reached(found, device, routing):
            said.append(f"{'ok' if line['ok'] else 'NO':3}{line['what']}: {line['ratio']:.2f} of {line['least']:.2f}")
    for line in lines:
        if "seconds" in line:
            said.append(f"{line['step']}: {line['seconds']:.0f} s, {line['ended']}")
    (findings.file.parent / "summary.txt").write_text("\n".join(said) + "\n", encoding="utf-8")
    print("\n".join(said))


def keep(findings: Findings, *_: str) -> None:
    """The visit's figures among the results of the benchmarks: ratios in CUDA graphs, and the goals."""
    lines = findings.read()
    device = next(line for line in lines if "copy" in line)
    found = measured(lines)
    rows = []
    for name, step in product(found, STEPS):
        mine = taken(found[name], "usam, auto", step, "graph")
        for other in ("loop", "grouped_mm"):
            ratio = taken(found[name], other, step, "graph") / mine
            if ratio < float("inf"):
                what = f"row {name}, {step}, in a CUDA graph: time of {other} over that of usam"
                rows.append({"what": what, "measured": f"{ratio:.2f}", "bound": "none", "ok": True})
    routing = next((line for line in lines if line.get("step") == "routing" and "usam" in line), None)
    for line in reached(found, Speed(device["copy"], device["matmul"]), routing):
        bound = f"at least {line['least']:.2f}" + ("" if line["ok"] else ", not met")
        rows.append(
            {"what": f"row {line['what']}", "measured": f"{line['ratio']:.2f}", "bound": bound, "ok": line["ok"]}
        )
    versions = {name: device[name] for name in ("torch", "triton", "cuda")}
    result = {"script": "gpu.py", "device": f"one {device['device']}", "versions": versions, "rows": rows, "raw": lines}
    (ROOT / "benchmarks" / "results" / "gpu.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


def plot(findings: Findings, *_: str) -> None:
    """Write the figure."""
    lines = findings.read()
    device = next(Speed(line["copy"], line["matmul"]) for line in lines if "copy" in line)
    figure(measured(lines), device).savefig(findings.file.parent / "gpu.png", dpi=120)


def figure(found: dict[str, Any], device: Speed) -> Any:
    """The time of every side in every row, over the floor; in a CUDA graph where it can be held by one."""
    import matplotlib.pyplot as plt

    made, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    names = list(dict.fromkeys(side for row in found.values() for side in row))
    for panel, step in zip(panels, STEPS, strict=True):
        for side, marker in zip(names, "os^vD<>P", strict=False):
            ratios = {
                row: min(taken(found[row], side, step, how) for how in ("eager", "graph"))
                / device.floor(SHAPES[row], step)
                for row in found
            }
            shown = {row: ratio for row, ratio in ratios.items() if ratio < float("inf")}
            if shown:
                panel.plot(list(shown), list(shown.values()), marker, label=side, fillstyle="none")
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(title=step, yscale="log")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("time over the floor")
    panels[1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return made


# The visit


@dataclass(frozen=True)
class Step:
    """A step, its arguments, the seconds it may take, and how many processes do it at once, each given its number."""

    name: str
    arguments: tuple[str, ...] = ()
    seconds: float = 60
    processes: int = 0


PLAN = [
    Step("speed", seconds=40),
    Step("tests", seconds=90),
    Step("graph", seconds=30),
    Step("warm", seconds=100, processes=PROCESSES),
    Step("tiles", seconds=100),
    *(Step("row", (name,), seconds=45) for name in ROWS),
    Step("sanitize", seconds=45),
    *(Step("row", (name, "compiled"), seconds=60) for name in COMPILED),
    Step("plot", seconds=20),
    Step("summary", seconds=20),
]
LAST = 25.0  # seconds kept for the plot and the summary


def visit(folder: Path, plan: list[Step], budget: float, script: str = __file__) -> None:
    """Every step in turn; one that fails or takes too long is the end of that step alone."""
    findings = Findings(folder)
    start = time.monotonic()
    for step in plan:
        left = budget - (time.monotonic() - start) - (0 if step.name in ("plot", "summary") else LAST)
        if left < 5 and step.name not in ("plot", "summary"):
            findings.add(step=step.name, arguments=step.arguments, seconds=0, ended="left out: no time")
            continue
        begun, limit = time.monotonic(), min(step.seconds, max(left, 5))
        each = [(str(i),) for i in range(step.processes)] or [()]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            print(f"--- {step.name} {' '.join(step.arguments)}", file=log, flush=True)
            out = None if step.name == "summary" else log
            running = [
                subprocess.Popen(
                    [sys.executable, script, str(folder), "--step", step.name, *step.arguments, *own],
                    stdout=out, stderr=out, start_new_session=True, cwd=ROOT,
                )
                for own in each
            ]  # fmt: skip
            ended = [_ended(process, begun + limit - time.monotonic()) for process in running]
        worst = next((said for said in ended if said != "done"), "done")
        findings.add(step=step.name, arguments=step.arguments, seconds=time.monotonic() - begun, ended=worst)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> str:
    """How it ended; one that takes too long is killed with all that it started."""
    try:
        status = process.wait(max(seconds, 0.1))
        return "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return "killed: it took too long"


NO_GPU = """\
There is no CUDA device here, and nothing was measured or written. This benchmark compares kernels with each other and
with what a device's memory and tensor cores allow; on a CPU the Triton kernels run in an interpreter, whose time says
nothing, there is no L2 cache to overwrite, no CUDA graph and no device memory to watch. Run it on a machine with an
NVIDIA GPU. What a CPU can say of the mixture is measured by benchmarks/mixture.py, and what the compiler says of the
kernels by benchmarks/kernels_aot.py."""


def main() -> None:
    """The whole visit, or one step of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "runs" / "gpu")
    parser.add_argument("--step", nargs="+", help="one step alone, and its arguments")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="what the visit may take")
    given = parser.parse_args()
    if given.step:
        name, *arguments = given.step
        globals()[name](Findings(given.folder), *arguments)
    elif not torch.cuda.is_available():
        print(NO_GPU)
    else:
        given.folder.mkdir(parents=True, exist_ok=True)
        visit(given.folder, PLAN, given.seconds)


if __name__ == "__main__":
    main()
