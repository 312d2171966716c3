"""Fusions that weigh encoders: by the prompt, and by what the strong one hears; against closed forms."""

import pytest
import torch
from test_fusions import clips, stream

from usam import SpecError, build_fusion
from usam.types import Prompt, prefix_mask

DIMS = {"a": 1, "b": 1, "c": 1}


def three(*values):
    """One frame of each encoder: (clip, 1, 1) at one rate."""
    return {name: stream([[float(v)] for v in row], 50) for name, row in zip("abc", values, strict=True)}


def said(*rows):
    x = torch.tensor(rows, dtype=torch.float32)
    return Prompt(x, prefix_mask(torch.full((len(x),), x.shape[1]), x.shape[1]))


def pam(**options):
    """Experts that are the identity, and a router that gives expert i the prompt's i-th number."""
    fusion = build_fusion("pam", dims=DIMS, prompt_dim=3, dim=1, layer_norm=False, router_hidden=0, **options)
    with torch.no_grad():
        for _, expert in fusion.experts.parts():
            expert[0].weight.fill_(1.0)
            expert[0].bias.zero_()
        if fusion.router is not None:
            fusion.router.normalize = False
            fusion.router.map[0].weight.copy_(torch.eye(3))
            fusion.router.map[0].bias.zero_()
    return fusion


def test_the_prompt_weighs_the_encoders():
    fused = pam()(three([1], [10], [100]), clips(320), said([[0.0, torch.tensor(2.0).log(), torch.tensor(5.0).log()]]))
    assert fused.x.item() == pytest.approx((1 + 2 * 10 + 5 * 100) / 8)
    torch.testing.assert_close(fused.aux["router_probs"], torch.tensor([[1.0, 2.0, 5.0]]) / 8)
    assert fused.aux["router_rows"].tolist() == [1]
    assert fused.aux["router_z"].item() == pytest.approx(torch.tensor(8.0).log().item() ** 2)


def test_fixed_gates_read_no_prompt():
    fusion = pam(gates=[1.0, 0.0, 0.5])
    assert not fusion.reads_prompt
    assert fusion(three([1], [10], [100]), clips(320)).x.item() == 51.0


def test_experts_may_read_all_encoders_side_by_side():
    fusion = pam(experts=3)
    fused = fusion(three([1], [10], [100]), clips(320), said([[0.0, 0.0, 0.0]]))
    assert fused.x.item() == pytest.approx(111)
    assert [expert[0].weight.shape for _, expert in fusion.experts.parts()] == [(1, 3)] * 3


def test_the_scale_of_the_embeddings_does_not_change_the_gates():
    fusion = build_fusion("pam", dims=DIMS, prompt_dim=5)
    words = torch.randn(1, 4, 5)
    small, large = (fusion(three([1], [2], [3]), clips(320), said(*(words * s).tolist())) for s in (1e-3, 1e3))
    torch.testing.assert_close(small.aux["router_probs"], large.aux["router_probs"])


def test_without_a_prompt_it_says_what_to_do():
    with pytest.raises(ValueError, match="fusion 'pam' reads the prompt: pass one, or fix its `gates`"):
        pam()(three([1], [2], [3]), clips(320))


def test_gates_are_one_an_expert():
    with pytest.raises(SpecError, match=r"2 gates for 3 encoders \(a, b, c\): write one for each"):
        build_fusion("pam", dims=DIMS, gates=[1.0, 1.0])


def test_of_one_encoder_there_is_nothing_to_weigh():
    fusion = build_fusion("pam", dims={"a": 1})
    assert not fusion.reads_prompt
    assert not any("router" in name for name, _ in fusion.named_parameters())


# MoWE


def mowe(**options):
    """A strong encoder `a`, whose frame's sign chooses between `b` and `c`; the other router prefers `c`, 3 to 1."""
    fusion = build_fusion("mowe", dims={"a": 2, "b": 1, "c": 1}, layer_norm=False, **options)
    with torch.no_grad():
        for _, each in fusion.maps.parts():
            each.weight.fill_(1.0)
            each.bias.zero_()
        fusion.logits.copy_(torch.tensor([0.0, torch.tensor(3.0).log()]))
        fusion.router.normalize = False
        fusion.router.map[0].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        fusion.router.map[0].bias.zero_()
    return fusion


def heard(*base):
    streams = three([0] * len(base), [10] * len(base), [100] * len(base))
    x = torch.tensor([[[value, 7.0]] for value in base])
    return {**streams, "a": type(streams["a"])(x, streams["a"].mask, 50)}


def test_what_the_strong_encoder_hears_chooses_a_weak_one():
    half = torch.tensor(3.0).log().item() / 2  # gates of 3 to 1
    fused = mowe(top_k=1)(heard(half, -half), clips(320, 320))
    assert fused.x[0, 0].tolist() == pytest.approx([half, 7.0, 0.75 * 100 + 0.75 * 10])
    assert fused.x[1, 0].tolist() == pytest.approx([-half, 7.0, 0.75 * 100 + 0.75 * 100])
    assert fused.aux["router_load"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    torch.testing.assert_close(fused.aux["weights"], torch.tensor([[0.0, 0.75], [0.0, 0.75]]))


def test_all_weak_encoders_may_be_mixed():
    fused = mowe()(heard(0.0), clips(320))
    assert fused.x[0, 0, 2].item() == pytest.approx(0.25 * 10 + 0.75 * 100 + 0.5 * 10 + 0.5 * 100)


def test_the_strong_encoder_is_the_widest_or_the_named_one():
    assert mowe().strong == "a"
    assert build_fusion("mowe", dims={"a": 2, "b": 1}, strong="b").strong == "b"
    with pytest.raises(SpecError, match="strong: there is no encoder 'd'; write one of a, b, c"):
        build_fusion("mowe", dims=DIMS, strong="d")


def test_more_cannot_be_chosen_than_there_are():
    with pytest.raises(SpecError, match="top_k=3 of 2 weak encoders: write fewer, or leave it out for all"):
        build_fusion("mowe", dims=DIMS, top_k=3)


def test_a_router_learns_by_the_gate_of_what_it_chose():
    fusion = mowe(top_k=1)
    fusion(heard(1.0), clips(320)).x.sum().backward()
    assert fusion.logits.grad.abs().min() > 0
    assert fusion.router.map[0].weight.grad.abs().max() > 0
