"""The benchmark of the mixture measures what it says: every side computes the mixture; floors are costs."""

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _mixtures  # noqa: E402
import moe  # noqa: E402

TINY = {
    "all experts": _mixtures.Shape(2, 8, 12, 16, 3, frames=5),
    "all linear experts": _mixtures.Shape(2, 8, 0, 16, 3, frames=5),
    "best two": _mixtures.Shape(2, 8, 12, 16, 4, top_k=2, frames=5),
    "best one": _mixtures.Shape(2, 8, 12, 16, 4, top_k=1, frames=5),
    "best two, square": _mixtures.Shape(2, 16, 12, 16, 4, top_k=2, frames=5),
}
ALIKE = [
    (shape, name)
    for shape in TINY
    for name, side in _mixtures.sides(TINY[shape]).items()
    if side.same and not side.compiled  # which is the same function
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
    speed = moe.Speed(copy=1e12, matmul=200e12)
    seconds = {"memory": shape.bytes("forward") / 1e12, "products": shape.flops("forward") / 200e12}
    assert speed.floor(shape, "forward") == seconds[bound] == max(seconds.values())


def made_up(seconds):
    """Measures of rows A to G in which every side takes so long, by name."""
    measure = lambda name: {"eager": seconds[name], "graph": seconds[name], "bytes": seconds[name]}  # noqa: E731
    rows = {
        row: {name: dict.fromkeys(_mixtures.STEPS, measure(name)) for name in _mixtures.sides(shape)}
        for row, shape in _mixtures.SHAPES.items()
    }
    return {**rows, "routing": {"usam": 1.0, "torch": 3.0}}


def test_goals_hold_where_usam_is_fast_and_fail_where_a_peer_is():
    fast = dict.fromkeys(_mixtures.SIDES, 9.0) | {"usam": 1.0}
    instant = moe.Speed(copy=1e12, matmul=1e12)
    reached = {line["what"]: line["ok"] for line in moe.reached(made_up(fast), instant)}
    against_others = {what: ok for what, ok in reached.items() if "floor" not in what}
    assert len(against_others) == 20
    assert all(against_others.values())
    found = made_up(fast)
    found["D"]["grouped_mm"]["forward"]["eager"] = 1.1
    lost = {line["what"] for line in moe.reached(found, instant) if not line["ok"] and "floor" not in line["what"]}
    assert lost == {"mixture D, forward: time of grouped_mm over that of usam"}


def test_a_side_that_failed_is_no_success():
    found = made_up(dict.fromkeys(_mixtures.SIDES, 1.0) | {"loop": 9.0})
    found["A"]["loop"] = {"failed": "RuntimeError: no"}
    lines = {line["what"]: line["ok"] for line in moe.reached(found, moe.Speed(1e12, 1e12))}
    assert not lines["mixture A, forward: time of loop over that of usam"]
    assert lines["mixture B, forward: time of loop over that of usam"]


def test_the_plot_shows_every_side_and_every_row():
    sizes = dict.fromkeys(_mixtures.SIDES, 1.0)
    figure = moe.plot(made_up(sizes), moe.Speed(1e12, 1e12))
    shown = set().union(*(_mixtures.sides(shape) for shape in _mixtures.SHAPES.values()))
    for panel in figure.axes:
        assert {line.get_label() for line in panel.lines if not line.get_label().startswith("_")} == shown
        assert [tick.get_text() for tick in panel.get_xticklabels()] == list(_mixtures.SHAPES)
        ratios = [y for line in panel.lines for y in line.get_ydata()]
        assert all(math.isfinite(ratio) for ratio in ratios)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure for minutes")
def test_without_a_gpu_it_says_so_and_writes_nothing():
    results = ROOT / "benchmarks" / "results"
    before = {file: file.stat().st_mtime_ns for file in results.iterdir()}
    done = subprocess.run([sys.executable, moe.__file__], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("There is no CUDA device here, and nothing was measured or written.")
    assert {file: file.stat().st_mtime_ns for file in results.iterdir()} == before
