"""Batches for the semantic contrastive loss, and one of the processes that compute it together."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn

from usam.losses import build_loss
from usam.types import IGNORE, Frames, LossInputs, prefix_mask

DIM = 6
FRAMES, ANSWERS = (7, 4, 5, 1), ("abcd", "xy", "pqr", "mnopq")


def make_loss(seed=0, **options):
    torch.manual_seed(seed)
    return build_loss("semantic_contrastive", dim=options.pop("dim", DIM), hidden=5, slots=3, **options)


def batch(frames=FRAMES, answers=ANSWERS, seed=0, dtype=torch.float32):
    """Samples with so many frames, each with its answer, whose letters are tokens; '' for none of it."""
    table = torch.randn(128, DIM, generator=torch.Generator().manual_seed(9)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    size = max(len(answer) for answer in answers) + 2
    ids = torch.full((len(answers), size), IGNORE)
    for row, answer in zip(ids, answers, strict=True):
        row[size - len(answer) :] = torch.tensor([ord(letter) for letter in answer])  # after the prompt
    said = ids != IGNORE
    audio = torch.randn(len(frames), max(frames), DIM, generator=generator).to(dtype)
    mask = prefix_mask(torch.tensor(frames), max(frames))
    return LossInputs(
        hidden=torch.zeros(int(said.sum()), DIM, dtype=dtype),
        labels=ids[said],
        head=nn.Identity(),
        audio=Frames(audio.masked_fill(~mask.unsqueeze(-1), 0).requires_grad_(), mask, 12.5),
        answer=(table[ids.clamp_min(0)].masked_fill(~said.unsqueeze(-1), 0), said),
    )


def take(inputs, rows):
    """Some samples of a batch, padded no further than they need."""
    text, said = inputs.answer[0][rows], inputs.answer[1][rows]
    labels = inputs.labels.split(inputs.answer[1].sum(-1).tolist())
    first, time = int(said.int().argmax(-1).min()) - 1, int(inputs.audio.mask[rows].sum(-1).max())
    return replace(
        inputs,
        labels=torch.cat([labels[row] for row in rows]),
        audio=Frames(inputs.audio.x.detach()[rows, :time].requires_grad_(), inputs.audio.mask[rows, :time], 12.5),
        answer=(text[:, first:], said[:, first:]),
    )


EVERYONE = {"frames": (7, 4, 5, 0, 3, 6), "answers": ("abcd", "xy", "pqr", "mnopq", "xy", "fghijkl")}
SHARES = [([0, 1, 2, 3], [4, 5]), ([0, 1, 2], [3])]  # unlike in number and length; one process without any audio
OPTIONS = [
    {"negatives": "hardest", "directions": "both"},
    {"negatives": "all"},
    {"negatives": "random", "directions": "both", "sparsity": "ratio"},  # its expectation, out of training
]


def compute(rows, **options):
    """(value, gradient of the audio, gradients of the parameters) for some samples."""
    loss, inputs = make_loss(margin=1.9, **options), take(batch(**EVERYONE), rows)
    value = loss(inputs).value
    value.backward()
    audio = inputs.audio.x
    return (
        value.detach(),
        torch.zeros_like(audio) if audio.grad is None else audio.grad,
        [p.grad for p in loss.parameters()],
    )


def one_of_two(rank, folder):
    """A process: what it computes for every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = [compute(shares[rank], gather=True, **options) for options in OPTIONS for shares in SHARES]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
