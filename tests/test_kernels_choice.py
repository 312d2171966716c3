"""The choice of a backend is measured once, remembered, and never made where runs must be alike."""

import time

import pytest
import torch

from usam.kernels import Experts, choice, place
from usam.kernels.sparse import sparse_experts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(choice, "_chosen", {})


def work(seconds, calls):
    """A candidate that takes so long at least, and says that it ran."""

    def run():
        calls.append(seconds)
        time.sleep(seconds)

    return run


def test_the_fastest_is_measured_once_for_a_key():
    calls = []
    candidates = {"slow": work(0.05, calls), "fast": work(0, calls)}
    assert choice.fastest("key", candidates, CPU) == "fast"
    ran = len(calls)
    assert choice.fastest("key", candidates, CPU) == "fast"
    assert len(calls) == ran
    choice.fastest("another key", candidates, CPU)
    assert len(calls) == 2 * ran


def test_deterministic_runs_take_the_first_and_measure_nothing():
    calls = []
    torch.use_deterministic_algorithms(True)
    try:
        assert choice.fastest("key", {"slow": work(0.05, calls), "fast": work(0, calls)}, CPU) == "slow"
    finally:
        torch.use_deterministic_algorithms(False)
    assert not calls
    assert not choice._chosen


def test_a_single_candidate_is_not_measured():
    calls = []
    assert choice.fastest("key", {"only": work(0, calls)}, CPU) == "only"
    assert not calls


@pytest.mark.parametrize(("rows", "size"), [(0, 1), (1, 1), (2, 2), (3, 4), (88, 128), (5632, 8192)])
def test_buckets_are_powers_of_two(rows, size):
    assert choice.bucket(rows) == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_experts_choose_for_themselves_with_the_same_result(dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    experts = Experts(normal(3, 16, 4), normal(3, 4), normal(3, 16, 8), normal(3, 16))
    gates = normal(6, 2).sigmoid()
    placement = place(torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [3, 3], [2, 0]], dtype=torch.int32), 3)
    x = normal(6, 8)
    outputs = {}
    for backend in ("torch", "auto"):
        own = x.clone().requires_grad_()
        y = sparse_experts(own, gates, placement, experts, backend)
        y.square().sum().backward()
        outputs[backend] = y.detach(), own.grad
    torch.testing.assert_close(outputs["auto"], outputs["torch"])
    measured = list(choice._chosen.values())  # float64 has one candidate only: nothing to measure
    assert measured == [] if dtype == torch.float64 else set(measured) <= {"torch", "grouped_mm"} and len(measured) == 1
