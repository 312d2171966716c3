"""The benchmark on a GPU, without one: every side computes the mixture, floors are costs, no step ends the visit."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from usam.kernels.backends import INTERPRETED

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _mixtures  # noqa: E402
import gpu  # noqa: E402

TINY = {
    "all experts": _mixtures.Shape(2, 8, 12, 16, 3, frames=5),
    "all linear experts": _mixtures.Shape(2, 8, 0, 16, 3, frames=5),
    "best two": _mixtures.Shape(2, 8, 12, 16, 4, top_k=2, frames=5),
    "best one": _mixtures.Shape(2, 8, 12, 16, 4, top_k=1, frames=5),
}
ALIKE = [
    (shape, name)
    for shape in TINY
    for name, side in _mixtures.sides(TINY[shape]).items()
    if side.same
    and not side.compiled  # which is the same function
    and not (name == "usam, triton" and not INTERPRETED)
]


def by_loops(case):
    """Output and gradients in float64, one frame and one expert after the other."""
    x, logits, down, down_bias, *first = (t.detach().double().requires_grad_() for t in case.leaves)
    frames = []
    for b in range(case.shape.clips):
        for t in range(case.shape.frames):
            probs = (logits[b, t] if case.shape.top_k else logits[b]).softmax(-1)
            best = probs.argsort(descending=True)[: case.shape.top_k]
            y = 0
            for e in best.tolist():
                hidden = x[b, t]
                if first:
                    hidden = torch.nn.functional.gelu(first[0][e] @ hidden + first[1][e])
                gate = probs[e] if case.shape.top_k == 1 else probs[e] / probs[best].sum()
                y = y + gate * (hidden @ down[e] + down_bias[e])
            frames.append(y)
    y = torch.stack(frames).view(case.dy.shape)
    return y, torch.autograd.grad(y, [x, logits, down, down_bias, *first], case.dy.double())


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("shape", "side"), ALIKE)
def test_a_side_computes_the_mixture_and_its_gradients(shape, side):
    case = _mixtures.Case(TINY[shape], torch.float32, "cpu")
    y = _mixtures.SIDES[side].prepare(case)()
    grads = torch.autograd.grad(y, case.leaves, case.dy)
    expected, gradients = by_loops(case)
    assert distance(y, expected) < 2e-6
    for leaf, grad, true in zip(case.leaves, grads, gradients, strict=True):
        assert distance(grad, true) < 5e-6, leaf.shape


@pytest.mark.parametrize("shape", TINY)
def test_the_library_products_cost_what_the_floor_counts(shape):
    from torch.utils.flop_counter import FlopCounterMode

    case = _mixtures.Case(TINY[shape], torch.float32, "cpu")
    run = _mixtures.SIDES["two products"].prepare(case)
    for step, work in (("forward", run), ("forward and backward", lambda: _mixtures.with_gradients(case, run))):
        with FlopCounterMode(display=False) as counted:
            work()
        assert counted.get_total_flops() == TINY[shape].flops(step)


def test_routing_by_torch_ends_where_ours_does():
    case = _mixtures.Case(TINY["best two"], torch.float32, "cpu")
    runs = _mixtures.routes(case)
    assert runs["usam"]().tolist() == runs["torch"]().tolist()


# Counted by hand: 2 * rows * (in * hidden + hidden * out) operations; two bytes for each weight, input and output.
COSTS = {
    "A": (10.5e9, 120e6),
    "A'": (1.66e9, 19.7e6),
    "B": (673e9, 174e6),
    "B'": (106e9, 73.6e6),
    "C": (472e9, 393e6),
    "D": (473e9, 1133e6),
    "D2": (945e9, 1133e6),
    "E": (2646e9, 1116e6),
    "F": (5386e9, 558e6),
    "G": (1.85e9, 672e6),
}


@pytest.mark.parametrize("name", COSTS)
def test_operations_and_bytes_are_those_counted_by_hand(name):
    shape = _mixtures.SHAPES[name]
    assert (shape.flops("forward"), shape.bytes("forward")) == pytest.approx(COSTS[name], rel=0.005)


def test_the_page_shows_these_costs():
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert f"prints it -->\n{_mixtures.table()}\n<!-- /shapes -->" in page, "paste what benchmarks/_mixtures.py prints"


def test_gradients_cost_two_more_products_and_what_they_write():
    shape = _mixtures.Shape(1, 2, 3, 5, 7, frames=1)
    assert shape.flops("forward and backward") == 3 * shape.flops("forward") == 3 * 2 * 7 * (2 * 3 + 3 * 5)
    weights, hidden = 7 * (2 * 3 + 3 * 5), 7 * 3
    assert shape.bytes("forward and backward") == 2 * (3 * weights + 3 * 2 + 2 * 5 + 6 * hidden)


def test_experts_without_a_row_are_not_read():
    one = _mixtures.Shape(1, 4, 4, 4, 64, top_k=1, frames=1)
    assert one.bytes("forward") == replace(one, experts=1).bytes("forward")


@pytest.mark.parametrize(("name", "bound"), [("A", "memory"), ("A'", "memory"), ("B", "products"), ("G", "memory")])
def test_the_floor_is_the_slower_of_memory_and_products(name, bound):
    shape = _mixtures.SHAPES[name]
    speed = gpu.Speed(copy=1e12, matmul=200e12)
    seconds = {"memory": shape.bytes("forward") / 1e12, "products": shape.flops("forward") / 200e12}
    assert speed.floor(shape, "forward") == seconds[bound] == max(seconds.values())


def made_up(seconds):
    """Measures of the rows in which every side takes so long, by name."""
    measure = lambda name: {"eager": seconds[name], "graph": seconds[name], "bytes": seconds[name]}  # noqa: E731
    return {
        row: {name: dict.fromkeys(_mixtures.STEPS, measure(name)) for name in _mixtures.sides(_mixtures.SHAPES[row])}
        for row in gpu.ROWS
    }


ROUTING = {"usam": 1.0, "torch": 3.0}


def test_goals_hold_where_usam_is_fast_and_fail_where_another_is():
    fast = dict.fromkeys(_mixtures.SIDES, 9.0) | {"usam, auto": 1.0}
    instant = gpu.Speed(copy=1e12, matmul=1e12)
    reached = {line["what"]: line["ok"] for line in gpu.reached(made_up(fast), instant, ROUTING)}
    against_others = {what: ok for what, ok in reached.items() if "floor" not in what}
    assert len(against_others) == 16
    assert all(against_others.values())
    found = made_up(fast)
    found["G"]["grouped_mm"]["forward and backward"] = {"eager": 0.9}
    lines = gpu.reached(found, instant, ROUTING)
    lost = {line["what"] for line in lines if not line["ok"] and "floor" not in line["what"]}
    assert lost == {"G, forward and backward: time of grouped_mm over that of usam"}


def test_a_side_that_failed_is_no_success():
    found = made_up(dict.fromkeys(_mixtures.SIDES, 1.0) | {"loop": 9.0})
    found["A"]["loop"] = {"failed": "RuntimeError: no"}
    lines = {line["what"]: line["ok"] for line in gpu.reached(found, gpu.Speed(1e12, 1e12), None)}
    assert not lines["A, forward: time of loop over that of usam"]
    assert lines["B, forward: time of loop over that of usam"]


def test_the_plot_shows_every_side_and_every_row():
    made = gpu.figure(made_up(dict.fromkeys(_mixtures.SIDES, 1.0)), gpu.Speed(1e12, 1e12))
    shown = set().union(*(_mixtures.sides(_mixtures.SHAPES[row]) for row in gpu.ROWS))
    for panel in made.axes:
        assert {line.get_label() for line in panel.lines if not line.get_label().startswith("_")} == shown
        assert [tick.get_text() for tick in panel.get_xticklabels()] == list(gpu.ROWS)
        ratios = [y for line in panel.lines for y in line.get_ydata()]
        assert all(math.isfinite(ratio) for ratio in ratios)


# The visit


class NoDevice(gpu.Device):
    """Runs everything once, and says that it took a millisecond."""

    def __init__(self):
        pass

    def says(self):
        return {"device": "none"}

    def wait(self):
        pass

    def seconds(self, run, wait):
        run()
        return 1e-3

    def speed(self):
        return gpu.Speed(1e12, 1e12)

    def peak(self, run):
        return 1

    def captured(self, run):
        run()
        return run

    def compiled(self, kernel):
        return {"registers": 1, "spilled": 0, "shared": 0, "programs": 2}


@pytest.fixture
def findings(tmp_path, monkeypatch):
    """A folder to write to, with small rows and few tiles, and no device."""
    whole = replace(TINY["best two"], hidden=16)  # as torch's grouped product wants it
    shapes = {"A": TINY["all experts"], "A'": TINY["all linear experts"], "D": replace(whole, top_k=1)}
    shapes |= dict.fromkeys(("C", "D2", "E", "G"), whole)
    few = {row: tiles[:2] for row, tiles in gpu.TILES.items()}
    for name, value in {"Device": NoDevice, "DEVICE": "cpu", "SHAPES": shapes, "TILES": few}.items():
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "ROUTING", TINY["best two"])
    monkeypatch.setattr(gpu, "ROWS", ("A", "A'", "C"))
    return gpu.Findings(tmp_path)


needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="the kernels run on a CPU")


@needs_interpreter
def test_the_steps_of_a_visit_find_what_the_summary_and_the_plot_need(findings, capsys):
    gpu.speed(findings)
    gpu.small(findings)
    for row in gpu.ROWS:
        gpu.row(findings, row)
    gpu.plot(findings)
    gpu.summary(findings)
    found = gpu.measured(findings.read())
    assert list(found) == ["A", "A'", "C"]
    assert set(found["A"]) == {"usam, triton", "usam, auto", "loop", "two products"}
    for sides in found.values():
        for name, side in sides.items():
            assert "failed" not in side, side
            graph = {} if name == "loop of rows" else {"graph": 1e-3}
            assert side["forward"] == side["forward and backward"] == {"eager": 1e-3, "bytes": 1, **graph}
            assert side.get("error", 0) < gpu.FAR
    said = (findings.file.parent / "summary.txt").read_text()
    assert said == capsys.readouterr().out[-len(said) :]
    assert "ok A, forward: time of loop over that of usam" not in said  # 1 is less than 1.3
    assert "NO A, forward: time of loop over that of usam: 1.00 of 1.30" in said
    assert (findings.file.parent / "gpu.png").stat().st_size > 10_000


@needs_interpreter
def test_every_tile_is_timed_and_the_best_told(findings):
    from usam.kernels import _sparse

    before = {kernel: dict(tile) for kernel, tile in _sparse.HOPPER.items()}
    gpu.tiles(findings)
    assert before == _sparse.HOPPER
    lines = [line for line in findings.read() if "tile" in line]
    assert len(lines) == 4 * 4 * 2
    assert all(line["registers"] == 1 and math.isfinite(line["tflops"]) for line in lines)
    best = list(gpu.best_tiles(lines))
    assert len(best) == 4 * 2 * 2
    assert best[0].startswith("up    C/D/E  BM=128")


@needs_interpreter
def test_everything_that_is_timed_is_compiled_before(findings, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PROCESSES", 2)
    assert len(set(gpu.units())) == len(list(gpu.units())) == 3 + 4 * 4 * 2
    gpu.warm(findings, "0")
    assert capsys.readouterr().out == ""


@needs_interpreter
def test_a_side_that_fails_ends_no_row(findings, monkeypatch):
    def fails(case):
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(_mixtures.SIDES, "usam, triton", replace(_mixtures.SIDES["usam, triton"], prepare=fails))
    gpu.row(findings, "A")
    sides = gpu.measured(findings.read())["A"]
    assert sides["usam, triton"]["failed"] == "RuntimeError: no such kernel"
    assert all("forward" in side for name, side in sides.items() if name != "usam, triton")


def test_a_capture_is_compared_with_what_it_captures(findings):
    if INTERPRETED:
        gpu.graph(findings)
        assert findings.read() == [{"step": "graph", "equal": True}]


SCRIPT = """
import json, sys, time
folder, _, name, *rest = sys.argv[1:]
open(folder + "/results.jsonl", "a").write(json.dumps({"step": name, "rest": rest}) + "\\n")
if name == "crash":
    import os
    os.abort()
if name == "hang":
    time.sleep(60)
"""


def test_no_step_ends_the_visit(tmp_path):
    script = tmp_path / "steps.py"
    script.write_text(SCRIPT)
    plan = [gpu.Step("crash"), gpu.Step("hang", seconds=2), gpu.Step("many", ("x",), processes=2), gpu.Step("summary")]
    gpu.visit(tmp_path, plan, 100, str(script))
    lines = gpu.Findings(tmp_path).read()
    assert {line["step"]: line["ended"] for line in lines if "ended" in line} == {
        "crash": "failed with status -6",
        "hang": "killed: it took too long",
        "many": "done",
        "summary": "done",
    }
    assert sorted(line["rest"] for line in lines if line["step"] == "many" and "rest" in line) == [
        ["x", "0"],
        ["x", "1"],
    ]


def test_without_time_steps_are_left_out_but_the_last(tmp_path):
    script = tmp_path / "steps.py"
    script.write_text(SCRIPT)
    gpu.visit(tmp_path, [gpu.Step("row", ("A",)), gpu.Step("summary")], 10, str(script))
    ended = [(line["step"], line["ended"]) for line in gpu.Findings(tmp_path).read() if "ended" in line]
    assert ended == [("row", "left out: no time"), ("summary", "done")]


def test_how_a_step_ended_is_no_finding_of_it(findings):
    lines = [{"step": "row", "row": "A", "side": "loop", "forward": {"eager": 1.0}}]
    ended = [
        {"step": step, "arguments": [], "seconds": 1.0, "ended": "failed with status 1"} for step in ("row", "speed")
    ]
    assert gpu.measured([*lines, *ended]) == gpu.measured(lines)
    for line in ended:
        findings.add(**line)
    gpu.summary(findings)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "results.jsonl").write_text(json.dumps({"step": "graph"}) + '\n{"step": "ro')
    assert gpu.Findings(tmp_path).read() == [{"step": "graph"}]


def test_the_plan_ends_in_time_and_names_steps_and_rows_that_exist():
    for step in gpu.PLAN:
        assert callable(getattr(gpu, step.name))
        assert step.name != "row" or step.arguments[0] in _mixtures.SHAPES
    assert gpu.BUDGET <= 480


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, gpu.__file__, str(tmp_path / "new")], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("There is no CUDA device here, and nothing was measured or written.")
    assert not (tmp_path / "new").exists()
