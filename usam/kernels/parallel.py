"""Expert parallelism: each process keeps some of the experts, and rows travel to them and back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.distributed.device_mesh import DeviceMesh

from usam.kernels.routing import place
from usam.kernels.sparse import Sparse, sparse_experts

if TYPE_CHECKING:
    from usam.kernels import Experts


def shard(experts: Experts, mesh: DeviceMesh) -> Experts:
    """This process's experts: the count / size of them that follow those of the process before, as views."""
    count, size = len(experts.down), mesh.size()
    if count % size:
        raise ValueError(f"{count} experts cannot be shared evenly by the {size} processes of the mesh.")
    part = count // size
    own = slice(mesh.get_local_rank() * part, (mesh.get_local_rank() + 1) * part)
    down_bias, up, up_bias = (None if w is None else w[own] for w in (experts.down_bias, experts.up, experts.up_bias))
    return replace(experts, down=experts.down[own], down_bias=down_bias, up=up, up_bias=up_bias)


def expert_parallel(
    x: Tensor, gates: Tensor, chosen: Tensor, experts: Experts, mesh: DeviceMesh, backend: Sparse
) -> Tensor:
    """The gated sum of the chosen experts' outputs, wherever the experts are; every process of the mesh must call it.

    A row goes once to each process that has an expert of its, with all its choices. There the choices of experts kept
    elsewhere count as none, like those of padding, and what comes back are sums over the experts of one process.
    The host learns how many rows travel. Gradients of an expert come from the rows of all processes.

    Args:
        x: (row, in), this process's own rows; their number may differ between processes, and be 0.
        gates: (row, k).
        chosen: (row, k), int32, among the experts of all processes; their number where there is none.
        experts: those of this process, as `shard` gives them.
        mesh: of one dimension.
        backend: what computes, as for `sparse_experts`.

    Returns:
        (row, out) in x's dtype.
    """
    size, part = mesh.size(), len(experts.down)
    process = torch.arange(size, device=x.device)
    goes = (chosen.unsqueeze(0) // part == process[:, None, None]).any(-1)  # process row
    row = goes.nonzero()[:, 1]
    sent = goes.sum(-1)
    received = all_to_all_single(sent, None, None, mesh)
    to_us, from_us = received.tolist(), sent.tolist()
    theirs = all_to_all_single(chosen[row].contiguous(), to_us, from_us, mesh) - mesh.get_local_rank() * part
    theirs = theirs.masked_fill((theirs < 0) | (theirs >= part), part)
    y = sparse_experts(
        all_to_all_single_autograd(x[row], to_us, from_us, mesh),
        all_to_all_single_autograd(gates[row], to_us, from_us, mesh),
        place(theirs, part),
        experts,
        backend,
    )
    y = all_to_all_single_autograd(y, from_us, to_us, mesh)
    wide = torch.promote_types(gates.dtype, x.dtype)
    total = x.new_zeros(len(x), y.shape[-1], dtype=wide)
    parts = zip(torch.split(row, from_us), torch.split(y, from_us), strict=True)
    for rows, sums in parts:  # no row is in a part twice, so the order of its sum is fixed
        total = total.index_add(0, rows, sums.to(wide))
    return total.to(x.dtype)
