"""The choice of a backend is measured once, remembered, and never made where runs must be alike."""

import time
from dataclasses import replace

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


def test_a_candidate_that_fails_is_out_of_the_race():
    def fails():
        raise RuntimeError("Invalid strides/sizes")

    calls = []
    assert choice.fastest("key", {"broken": fails, "whole": work(0, calls)}, CPU) == "whole"
    assert choice.fastest("key", {"broken": fails, "whole": work(0, calls)}, CPU) == "whole"
    with pytest.raises(RuntimeError, match="Invalid strides"):
        choice.fastest("all fail", {"broken": fails, "too": fails}, CPU)
    assert "all fail" not in choice._chosen


def mixture(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    experts = Experts(normal(3, 16, 4), normal(3, 4), normal(3, 16, 8), normal(3, 16))
    placement = place(torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [3, 3], [2, 0]], dtype=torch.int32), 3)
    return normal(6, 8), normal(6, 2).sigmoid(), placement, experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_experts_choose_for_themselves_with_the_same_result(dtype):
    """On a CPU nothing is measured: the grouped product where it can, float64 by a loop."""
    x, *rest = mixture(dtype)
    outputs = {}
    for backend in ("torch", "auto"):
        own = x.clone().requires_grad_()
        y = sparse_experts(own, *rest, backend)
        y.square().sum().backward()
        outputs[backend] = y.detach(), own.grad
    torch.testing.assert_close(outputs["auto"], outputs["torch"])
    assert not choice._chosen


def test_weights_that_stand_anywhere_are_no_reason_to_fail():
    """Turned about or cut out of others, torch's grouped product does not take them: another backend does."""
    x, gates, placement, experts = mixture()
    expected = sparse_experts(x, gates, placement, experts, "torch")
    turned = experts.down.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    wide = torch.zeros(3, 16, 9)
    wide[..., 1:] = experts.up
    for name, weight in (("down", turned), ("up", wide[..., 1:])):
        moved = replace(experts, **{name: weight})
        torch.testing.assert_close(sparse_experts(x, gates, placement, moved, "auto"), expected)
        with pytest.raises(ValueError, match="row by row or column by column"):
            sparse_experts(x, gates, placement, moved, "grouped_mm")
