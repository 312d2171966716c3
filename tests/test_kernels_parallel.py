"""Experts in two processes against the same experts in one."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from usam.kernels import Experts
from usam.kernels.parallel import expert_parallel, shard
from usam.kernels.routing import place
from usam.kernels.sparse import sparse_experts

NONE = 4  # of four experts
ROWS = {
    "each process its rows": ([[0, 2], [1, 0], [3, 1]], [[2, 3], [0, 3]]),
    "padding": ([[0, 2], [NONE, NONE]], [[NONE, NONE], [NONE, 1], [3, 2]]),
    "experts of one process alone": ([[0, 1], [1, 0]], [[0, 1]]),
    "a process without rows": ([[0, 2], [3, 1]], []),
    "no rows": ([], []),
}


def draw(case):
    """What both processes have: their rows one after the other."""
    torch.manual_seed(0)
    chosen = [torch.tensor(rows, dtype=torch.int32).reshape(-1, 2) for rows in ROWS[case]]
    x = [torch.randn(len(rows), 5, dtype=torch.float64, requires_grad=True) for rows in chosen]
    gates = [torch.rand(len(rows), 2, dtype=torch.float64, requires_grad=True) for rows in chosen]
    down, up = (torch.randn(4, *shape, dtype=torch.float64, requires_grad=True) for shape in ((6, 3), (6, 5)))
    biases = (torch.randn(4, width, dtype=torch.float64, requires_grad=True) for width in (3, 6))
    dy = [torch.randn(len(rows), 3, dtype=torch.float64) for rows in chosen]
    experts = Experts(down, next(biases), up, next(biases))
    return SimpleNamespace(x=x, gates=gates, chosen=chosen, experts=experts, dy=dy)


def work(rank, folder):
    """One process: output, gradients of its rows, and of its experts, a file a case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for case in ROWS:
        have = draw(case)
        x, gates = have.x[rank], have.gates[rank]
        y = expert_parallel(x, gates, have.chosen[rank], shard(have.experts, mesh), mesh, "torch")
        y.backward(have.dy[rank])
        experts = vars(shard(Experts(*(w.grad for w in weights(have.experts))), mesh))
        torch.save({"y": y.detach(), "x": x.grad, "gates": gates.grad, "experts": experts}, f"{folder}/{case}{rank}")
    with pytest.raises(ValueError, match="3 experts cannot be shared evenly by the 2 processes"):
        shard(Experts(torch.zeros(3, 2, 2)), mesh)
    dist.destroy_process_group()


def weights(experts):
    return experts.down, experts.down_bias, experts.up, experts.up_bias


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("case", ROWS)
def test_two_processes_do_what_one_does(folder, case):
    have = draw(case)
    x, gates, chosen = (torch.cat(parts) for parts in (have.x, have.gates, have.chosen))
    y = sparse_experts(x, gates, place(chosen, 4), have.experts, "torch")
    y.backward(torch.cat(have.dy))
    found = [torch.load(folder / f"{case}{rank}") for rank in range(2)]
    torch.testing.assert_close(torch.cat([part["y"] for part in found]), y.detach())
    for rank, part in enumerate(found):
        torch.testing.assert_close(part["x"], have.x[rank].grad)
        torch.testing.assert_close(part["gates"], have.gates[rank].grad)
    for name in ("down", "down_bias", "up", "up_bias"):
        grad = torch.cat([part["experts"][name] for part in found])
        torch.testing.assert_close(grad, getattr(have.experts, name).grad)
