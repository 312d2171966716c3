"""Cross entropy in chunks: the plain one's value and gradients, without its logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from usam import build_loss
from usam.losses import _chunks
from usam.model.head import Head
from usam.types import Frames, LossInputs

ROWS, DIM, WORDS = 23, 8, 50


class Capped(nn.Linear):
    """A head with a soft cap, as Gemma's, that remembers the most rows it was asked for at once."""

    most = 0

    def forward(self, x):
        self.most = max(self.most, len(x))
        return 3 * torch.tanh(super().forward(x) / 3)


@pytest.fixture(autouse=True)
def chunks_of_five_rows(monkeypatch):
    monkeypatch.setattr(_chunks, "ENTRIES_ELSEWHERE", 5 * WORDS + 1)


@pytest.fixture
def hidden():
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.fixture(params=["frozen", "training"])
def head(request):
    torch.manual_seed(1)
    return Capped(DIM, WORDS).requires_grad_(request.param == "training")


def labels():
    return torch.arange(ROWS) % WORDS


def inputs(head, hidden):
    nothing = Frames(torch.zeros(1, 1, DIM), torch.ones(1, 1, dtype=torch.bool), 1.0)
    answer = (torch.zeros(1, 1, DIM), torch.ones(1, 1, dtype=torch.bool))
    return LossInputs(hidden=hidden, labels=labels(), head=Head(head), audio=nothing, answer=answer, aux={})


def loss(head, hidden, **options):
    return build_loss("cross_entropy", dim=DIM, **options)(inputs(head, hidden)).value


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_and_gradients_are_those_of_all_logits(head, hidden, smoothing):
    found = loss(head, hidden, label_smoothing=smoothing)
    wanted = F.cross_entropy(head(hidden), labels(), label_smoothing=smoothing)
    assert torch.allclose(found, wanted, atol=1e-6)
    leaves = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    for a, b in zip(torch.autograd.grad(0.3 * found, leaves), torch.autograd.grad(0.3 * wanted, leaves), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_never_more_than_a_chunk_of_logits_is_computed(head, hidden):
    loss(head, hidden).backward()
    assert head.most == 5


def test_nothing_of_a_frozen_head_is_left_for_the_backward_pass(hidden):
    found = loss(Capped(DIM, WORDS).requires_grad_(False), hidden)
    names, steps = [], [found.grad_fn]
    while steps:
        step = steps.pop()
        names.append(step.name())
        steps += [before for before, _ in step.next_functions if before is not None]
    assert [name for name in names if name.startswith(("Tanh", "Addmm", "NllLoss", "LogSoftmax"))] == []


def test_a_frozen_head_is_not_asked_again_in_the_backward_pass(hidden):
    head = Capped(DIM, WORDS).requires_grad_(False)
    found = loss(head, hidden)
    head.most = 0
    found.backward()
    assert head.most == 0


def test_without_gradients_the_value_is_the_same(head, hidden):
    with torch.no_grad():
        assert torch.allclose(loss(head, hidden), F.cross_entropy(head(hidden), labels()), atol=1e-6)


def test_states_in_half_precision_get_gradients_in_it(hidden):
    head = Capped(DIM, WORDS).bfloat16().requires_grad_(False)
    half = hidden.detach().bfloat16().requires_grad_()
    loss(head, half).backward()
    wanted = half.detach().requires_grad_()
    F.cross_entropy(head(wanted).float(), labels()).backward()
    assert half.grad.dtype == torch.bfloat16
    assert torch.allclose(half.grad.float(), wanted.grad.float(), atol=1e-3, rtol=0.05)
