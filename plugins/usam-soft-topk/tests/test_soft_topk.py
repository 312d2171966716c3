"""The mixture keeps usam's promises; its choice is a projection, between the built-in's hard choice and none."""

import pytest
import torch
from usam_soft_topk import soft_top_k

from usam import ComponentError, SpecError
from usam.projectors import build_projector
from usam.testing import projector_promises
from usam.types import Frames, Prompt

SIZES = {"experts": 4, "hidden": 6, "router_hidden": 5}
PROMISES = [
    *projector_promises("soft_topk", k=2, **SIZES),
    *projector_promises("soft_topk", k=1, router="prompt_audio", softness=0.1, **SIZES),
]


@pytest.mark.parametrize("promise", PROMISES, ids=str)
def test_it_keeps_its_promises(promise):
    promise()


@pytest.fixture
def heard():
    """Frames and the instructions of two clips."""
    torch.manual_seed(0)
    there = torch.ones(2, 5, dtype=torch.bool)
    return Frames(torch.randn(2, 5, 12), there, 25.0), Prompt(torch.randn(2, 5, 10), there)


def mixture(type, **options):
    """A mixture; equal options and seeds give equal weights."""
    torch.manual_seed(1)
    return build_projector(type, in_dim=12, prompt_dim=10, out_dim=8, **SIZES, **options).eval()


@torch.no_grad()
def test_with_little_softness_it_is_the_built_in_choice(heard):
    ours = mixture("soft_topk", k=2, softness=1e-6, router="audio")(*heard)
    torch.testing.assert_close(ours.x, mixture("moe", top_k=2, router="audio")(*heard).x)


@torch.no_grad()
def test_with_all_experts_chosen_it_is_the_dense_mixture(heard):
    torch.testing.assert_close(mixture("soft_topk", k=4)(*heard).x, mixture("moe")(*heard).x)


def bisected(scores, k):
    """The projection by halving: found by trying, not by sorting."""
    low, high = scores.min() - 1, scores.max()
    for _ in range(200):
        t = (low + high) / 2
        low, high = (t, high) if (scores - t).clamp(0, 1).sum() > k else (low, t)
    return (scores - t).clamp(0, 1)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_the_choice_is_the_projection_onto_what_sums_to_k(k):
    scores = torch.randn(20, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) * 2
    ours = soft_top_k(scores, k)
    torch.testing.assert_close(ours, torch.stack([bisected(row, k) for row in scores]))
    torch.testing.assert_close(ours.sum(-1), torch.full((20,), k, dtype=torch.float64))


def test_equal_scores_share_the_choice_and_distant_ones_are_chosen_whole():
    assert soft_top_k(torch.tensor([1.0, 1.0, 1.0, 1.0]), 2).tolist() == [0.5] * 4
    assert soft_top_k(torch.tensor([9.0, 5.0, 0.0]), 2).tolist() == [1, 1, 0]


def test_its_gradient_is_that_of_small_changes():
    scores = torch.tensor([[0.3, 0.9, -0.2, 0.1], [0.0, 2.0, 0.4, -3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: soft_top_k(x, 2), scores)


@torch.no_grad()
def test_exported_for_a_task_it_is_a_plain_mixture(heard):
    frames, prompts = heard
    same = Prompt(prompts.x[:1].expand(2, -1, -1), prompts.mask)
    ours = mixture("soft_topk", k=1, softness=0.5)
    options, tensors = ours.fixed(Prompt(prompts.x[:1], prompts.mask[:1]))
    assert options["type"] == "moe"
    plain = build_projector(options, in_dim=12, prompt_dim=10, out_dim=8)
    plain.load_state_dict(tensors)
    torch.testing.assert_close(plain(frames).x, ours(frames, same).x)


def test_more_chosen_than_there_are_and_a_hard_choice_besides_are_refused():
    with pytest.raises(SpecError, match=r"k=5 of 4 experts: write at most 4"):
        mixture("soft_topk", k=5)
    with pytest.raises(SpecError, match=r"top_k is the hard choice: write k, or take 'moe'"):
        mixture("soft_topk", top_k=1)


def test_one_that_weighs_every_frame_anew_cannot_be_exported_for_a_task(heard):
    with pytest.raises(ComponentError, match="router 'audio' weighs every frame anew"):
        mixture("soft_topk", router="audio").fixed(heard[1])
