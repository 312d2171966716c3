"""The semantic contrastive loss: its mathematics beside the originals, its promises, and who is a negative."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import noise
from contrastive import DIM, OPTIONS, SHARES, batch, compute, make_loss, one_of_two, take
from processes import METHOD
from safetensors import safe_open
from torch import nn

from usam import SpecError, UsamProcessor, build_loss, build_model
from usam.losses._alignment import Aggregation, align, matches, max_mean, unit
from usam.losses._selection import decide, relevance, top
from usam.losses._triplet import choose, hinges
from usam.testing import loss_promises
from usam.types import IGNORE, Frames, LossInputs, prefix_mask

ORACLES = Path(__file__).parents[1] / "oracles" / "saclm"

PROMISES = {
    "defaults": {},
    "gumbel": {"decision": "gumbel", "normalize": "affine", "negatives": "hardest", "directions": "both"},
    "topk": {
        "decision": "topk",
        "relevance_gradient": True,
        "sparsity": "ratio",
        "negatives": "all",
        "gather": True,
        "normalize_frames": True,
    },
    "soft": {"decision": "soft", "alignment": "pooled", "sparsity": "none", "queue": 3, "queue_tokens": 4},
    "hard": {"decision": "hard", "normalize": "batch", "softmax_over": "slots", "similarity": "dot"},
}
PROMISES = {name: loss_promises("semantic_contrastive", **options) for name, options in PROMISES.items()}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.filterwarnings("ignore:semantic_contrastive:UserWarning")
@pytest.mark.parametrize("promise", CASES)
def test_it_keeps_the_promises_of_a_loss(promise):
    promise()


# A batch for it


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# Beside the original modules


def oracle(name):
    with safe_open(ORACLES / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def weights(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.fixture(params=["saclm_b4_t9_d32", "saclm_b3_t14_d48_margin1", "saclm_b5_t7_tt11_d24"])
def released(request):
    """(the loss with the options and weights of the released modules, what these returned)."""
    t, c = oracle(request.param)
    loss = build_loss(
        "semantic_contrastive",
        dim=c["dim"],
        hidden=c["score_hidden"],
        beta=c["beta"],
        normalize="batch",
        relevance_gradient=True,
        decision="hard",
        threshold=c["threshold"],
        ratio=c["desired_ratio"],
        similarity="dot",
        sparsity="ratio",
        sparsity_weight=1,
    )
    loss.aggregation = Aggregation(c["dim"], c["dim"], c["slots"], "slots")
    loss.score.load_state_dict(weights(t, "w.lps.score_network.mlp."))
    loss.aggregation.weigh.load_state_dict(weights(t, "w.spc.aggregation_network."))
    t["in.audio"].requires_grad_()
    t["in.text"].requires_grad_()
    return loss, t, c


def whole(x):
    """A mask without padding."""
    return torch.ones(x.shape[:2], dtype=torch.bool)


def scores_of(loss, t):
    return loss.scores(t["in.audio"], whole(t["in.audio"]), t["in.text"], whole(t["in.text"]))


def check_gradients(output, t, what, inputs):
    for name in inputs:
        (found,) = torch.autograd.grad(output, t[f"in.{name}"], retain_graph=True)
        close(found, t[f"grad.{what}.{name}"])


def test_the_predicted_score_is_the_original_s(released):
    loss, t, _ = released
    close(loss.score(t["in.audio"]).squeeze(-1).sigmoid(), t["out.predictive_score"])


def test_the_significance_is_the_original_s_with_its_gradient(released):
    loss, t, _ = released
    scores = scores_of(loss, t)
    close(scores, t["out.significance"])
    check_gradients((scores * t["cotangent.significance"]).sum(), t, "significance", ["audio", "text"])


def test_the_decision_is_the_original_s(released):
    loss, t, _ = released
    some = t["out.decision"].any(-1)  # the original may keep no frame at all
    assert torch.equal(loss.decide(t["out.significance"], whole(t["in.audio"]))[some], t["out.decision"][some])


def test_slots_that_share_out_the_frames_are_the_original_s_with_their_gradient(released):
    loss, t, _ = released
    slots = loss.aggregation(t["in.audio"], t["out.decision"])
    close(slots, t["out.aggregated"])
    check_gradients((slots * t["cotangent.aggregated"]).sum(), t, "aggregated", ["audio"])


def test_the_alignment_by_dot_products_is_the_original_s_with_its_gradient(released):
    loss, t, _ = released
    slots = loss.aggregation(t["in.audio"], t["out.decision"])
    alike = loss.align(slots, t["in.text"], whole(t["in.text"]))
    close(alike.diagonal(), t["out.positive_score"])
    close(alike.gather(1, t["in.negative_permutation"].unsqueeze(1)).squeeze(1), t["out.negative_score"])
    positive = (alike.diagonal() * t["cotangent.positive_score"]).sum()
    check_gradients(positive, t, "positive_score", ["audio", "text"])


def test_the_loss_is_the_original_s_with_every_gradient(released):
    loss, t, c = released
    scores = scores_of(loss, t)
    slots = loss.aggregation(t["in.audio"], t["out.decision"])
    alike = loss.align(slots, t["in.text"], whole(t["in.text"]))
    costs = hinges(alike, ~torch.eye(len(alike), dtype=torch.bool), c["margin"])
    triplet = costs.gather(1, t["in.negative_permutation"].unsqueeze(1)).mean()
    ratio = loss._sparsity(scores, whole(t["in.audio"])).mean()
    close(triplet, t["out.triplet"].squeeze())
    close(ratio, t["out.ratio"].squeeze())
    check_gradients(triplet + ratio, t, "loss", ["audio", "text"])
    (triplet + ratio).backward()
    for name, parameter in loss.score.named_parameters():
        close(parameter.grad, t[f"grad.loss.lps.score_network.mlp.{name}"])
    for name, parameter in loss.aggregation.weigh.named_parameters():
        close(parameter.grad, t[f"grad.loss.spc.aggregation_network.{name}"])


@pytest.fixture(params=["laps_cls17", "laps_square16"])
def laps(request):
    """(the aggregation with the original's weights, what the original returned, its settings)."""
    t, c = oracle(request.param)
    aggregation = Aggregation(c["embed_size"], c["agg_hidden"], c["slots"])
    given = {f"weigh.{name}": value for name, value in weights(t, "w.aggr_net.weight.").items()}
    given["scale"] = t["w.aggr_net.scale"].flatten()
    del given["weigh.3.bias"]  # the same for all that compete: it changes nothing
    aggregation.load_state_dict(given)
    return aggregation, t, c


def test_slots_that_average_the_kept_frames_are_the_original_s_with_their_gradient(laps):
    aggregation, t, _ = laps
    patches = t["agg.in"].requires_grad_()
    slots = aggregation(patches, t["agg.keep"])
    close(slots, t["agg.out"])
    (found,) = torch.autograd.grad((slots * t["agg.cotangent"]).sum(), patches)
    close(found, t["agg.grad"])


def test_the_highest_frames_are_the_original_s(laps):
    _, t, c = laps
    scores = t["sparse.score_x"] + t["sparse.score_y"]
    kept = decide(scores, torch.ones_like(scores, dtype=torch.bool), "topk", ratio=c["sparse_ratio"])
    assert torch.equal(kept, t["sparse.mask"])


def similarities(laps):
    """Every image beside every text, with the slots that the original has and the library leaves out."""
    aggregation, t, c = laps
    image, text = t["in.image"].requires_grad_(), t["in.text"].requires_grad_()
    patches = image[:, 1:] if c["has_cls"] else image
    columns, masks = [], []
    for words in (row[:length].unsqueeze(0) for row, length in zip(text, t["in.text_len"], strict=True)):
        with torch.no_grad():
            targets = patches.mean(1), words.mean(1).expand(len(image), -1)
            scores = sum(torch.einsum("b t d, b d -> b t", unit(patches), unit(target)) for target in targets)
        kept = top(scores, whole(patches), c["sparse_ratio"])
        fused = torch.einsum("b t, b t d -> b d", scores.masked_fill(kept, -torch.inf).softmax(-1), patches)
        slots = [image[:, :1]] * c["has_cls"] + [aggregation(patches, kept.float()), fused.unsqueeze(1)]
        of_slots, of_words = matches(unit(torch.cat(slots, 1)), unit(words), whole(words))
        columns.append(F.leaky_relu(of_slots, 0.1).mean(-1) + F.leaky_relu(of_words, 0.1).mean(-1))
        masks.append(kept.float())
    return torch.cat(columns, 1), torch.stack(masks)


def test_cosine_alignments_of_selected_frames_are_the_original_s_with_their_gradient(laps):
    _, t, _ = laps
    found, kept = similarities(laps)
    close(found, t["out.sims"])
    assert torch.equal(kept, t["out.score_mask"])
    for name in ("image", "text"):
        (gradient,) = torch.autograd.grad(found.sum(), t[f"in.{name}"], retain_graph=True)
        close(gradient, t[f"grad.sims_sum.{name}"])


@pytest.mark.parametrize("which", ["sum", "hardest"])
def test_triplets_of_both_directions_are_the_original_s_with_their_gradient(laps, which):
    _, t, c = laps
    found, _ = similarities(laps)
    allowed = t["in.ids"].unsqueeze(0) != t["in.ids"].unsqueeze(1)
    costs = [hinges(alike, allowed, c["margin"]) for alike in (found, found.mT)]
    if which == "hardest":
        costs = [choose(cost, allowed, "hardest", training=True) for cost in costs]
    triplet = sum(cost.sum() for cost in costs)
    close(triplet, t[f"out.triplet_{which}"].squeeze())
    (gradient,) = torch.autograd.grad(triplet, t["in.image"])
    close(gradient, t[f"grad.triplet_{which}.image"])


# Which frames matter


def test_relevance_is_brought_to_0_and_1_by_the_sample_the_batch_or_neither():
    half = 0.5**0.5
    x = torch.tensor([[[2.0, 0], [1, 1], [0, 3]], [[1, 1], [0, 9], [7, 7]]])  # cosines 1, half, 0; half, 0 (and half)
    mask, target = prefix_mask(torch.tensor([3, 2]), 3), torch.tensor([[1.0, 0], [5, 0]])
    close(relevance(x, mask, target, "sample"), torch.tensor([[1, half, 0], [1, 0, 0]]))
    close(relevance(x, mask, target, "batch"), torch.tensor([[1, half, 0], [half, 0, 0]]))
    close(relevance(x, mask, target, "affine"), torch.tensor([[1, (half + 1) / 2, 0.5], [(half + 1) / 2, 0.5, 0]]))


def test_where_all_frames_are_alike_none_stands_out():
    x = torch.ones(1, 4, DIM)
    assert torch.equal(relevance(x, whole(x), torch.randn(1, DIM), "sample"), torch.full((1, 4), 0.5))


def test_a_sample_s_scores_are_the_same_in_any_company():
    loss, inputs = make_loss(), batch()
    for rows in ([0, 1], [0, 3], [0, 2, 1]):
        close(loss(take(inputs, rows)).aux["scores"][0], loss(inputs).aux["scores"][0], 1e-6)


@pytest.mark.parametrize("decision", ["straight_through", "gumbel", "topk", "hard"])
def test_a_decision_is_exactly_0_or_1_and_at_least_one_frame_is_kept(decision):
    scores, mask = torch.rand(50, 9, requires_grad=True) * 0.4, prefix_mask(torch.arange(50) % 9 + 1, 9)
    kept = decide(scores, mask, decision, threshold=0.9, ratio=0.01, training=True)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert (kept.sum(-1) >= 1).all()
    assert not kept[~mask].any()


def test_a_sample_without_frames_keeps_none():
    assert not decide(torch.rand(1, 3), torch.zeros(1, 3, dtype=torch.bool), "straight_through").any()


@pytest.mark.parametrize("decision", ["straight_through", "topk"])
def test_a_decision_passes_the_gradient_straight_through(decision):
    scores, mask = torch.rand(2, 5, requires_grad=True), prefix_mask(torch.tensor([5, 3]), 5)
    cotangent = torch.randn(2, 5)
    decide(scores, mask, decision).backward(cotangent)
    assert torch.equal(scores.grad, cotangent.masked_fill(~mask, 0))


def test_topk_keeps_the_ratio_rounded_up():
    mask = prefix_mask(torch.tensor([10, 7, 1, 3]), 10)
    kept = decide(torch.rand(4, 10), mask, "topk", ratio=0.6)
    assert kept.sum(-1).tolist() == [6, 5, 1, 2]


def test_gumbel_keeps_a_frame_as_often_as_its_odds_over_the_threshold_say():
    torch.manual_seed(0)
    scores = torch.tensor([[0.8, 0.3, 0.999]]).expand(20000, 3)  # the last is the highest: one is always kept
    kept = decide(scores, torch.ones_like(scores, dtype=torch.bool), "gumbel", threshold=0.6, training=True)
    odds = [(s / (1 - s)) / (0.6 / 0.4) for s in (0.8, 0.3)]
    close(kept[:, :2].mean(0), torch.tensor([o / (1 + o) for o in odds]), 0.015)


def test_gumbel_draws_nothing_out_of_training():
    scores = torch.rand(3, 8)
    mask = torch.ones_like(scores, dtype=torch.bool)
    assert torch.equal(decide(scores, mask, "gumbel", threshold=0.3), decide(scores, mask, "hard", threshold=0.3))


# Slots


def test_a_dropped_frame_changes_no_slot_whatever_its_weight():
    torch.manual_seed(0)
    aggregation, x, kept = Aggregation(DIM, 5, 3), torch.randn(1, 4, DIM), torch.tensor([[1.0, 0, 1, 0]])
    with torch.no_grad():
        aggregation.scale.fill_(1e4)
    far = x.clone()
    far[:, [1, 3]] *= -50
    close(aggregation(far, kept), aggregation(x, kept), 0)


def test_the_decision_hears_what_a_frame_would_change():
    """With weights w that sum to 1 over kept frames: d slot / d kept[t] = w[t] * (x[t] - slot)."""
    torch.manual_seed(0)
    aggregation, x = Aggregation(DIM, 5, 1), torch.randn(1, 4, DIM)
    with torch.no_grad():
        aggregation.weigh[3].weight.zero_()  # all frames weigh the same
    kept = torch.tensor([[1.0, 0, 1, 1]], requires_grad=True)
    cotangent = torch.randn(1, 1, DIM)
    slot = x[0, [0, 2, 3]].mean(0)
    aggregation(x, kept).backward(cotangent)
    close(kept.grad[0], (x[0] - slot) @ cotangent[0, 0] / 3)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_what_slots_ask_of_the_kept_frames_sums_to_nothing(keep):
    """Their weights sum to 1: no triplet moves the mean score of what is kept, and a frame kept alone is not moved."""
    torch.manual_seed(0)
    aggregation, x = Aggregation(DIM, 5, 3), torch.randn(2, 6, DIM)
    kept = (torch.arange(6) < keep).float().expand(2, 6).clone().requires_grad_()
    aggregation(x, kept).backward(torch.randn(2, 3, DIM))
    close(kept.grad[:, :keep].sum(-1), torch.zeros(2))
    assert (kept.grad[:, keep:].abs() > 1e-4).all()  # what is dropped is asked for, or against


@pytest.mark.parametrize("normalize", [True, False])
def test_the_score_network_hears_quiet_frames_as_loud_ones_if_they_are_normalised(normalize):
    loss, frames = make_loss(normalize_frames=normalize), batch().audio.x.detach()[:, :1]
    alike = torch.allclose(loss.predicted(frames), loss.predicted(frames / 100), atol=1e-5)
    assert alike == normalize


def test_without_the_predicted_part_no_frame_of_eq_9_is_above_a_half():
    """Relevance is at most 1 and weighs a half: once nothing is predicted, a single frame is kept."""
    loss = make_loss(sparsity="none")
    nn.init.zeros_(loss.score[2].weight)
    nn.init.constant_(loss.score[2].bias, -50)
    found = loss(batch()).aux
    assert found["scores"].max() <= 0.5
    assert found["kept"].sum(-1).tolist() == [1, 1, 1, 1]


# The whole, against closed forms and finite differences


def test_orthogonal_samples_by_hand():
    """One frame each, which is its own only token: no distance to it, 1 to the other; scores of 0.5."""
    loss = make_loss(dim=2, margin=1.5)
    nn.init.zeros_(loss.score[2].weight)
    nn.init.zeros_(loss.score[2].bias)
    x = torch.eye(2).unsqueeze(1)
    audio = Frames(x, whole(x), 1.0)
    answer = torch.cat([x * 0, x], 1), torch.tensor([[False, True]] * 2)
    found = loss(LossInputs(torch.zeros(2, 2), torch.tensor([3, 4]), nn.Identity(), audio, answer))
    close(found.aux["distance"], torch.zeros(2))
    close(found.aux["triplet"], torch.full((2,), 0.5))
    close(found.value, torch.tensor(0.5 + 0.01 * 0.5))


@pytest.mark.parametrize("sparsity", ["l1", "ratio", "none"])
def test_the_sparsity_is_a_mean_over_a_sample_s_own_frames(sparsity):
    found = make_loss(sparsity=sparsity, ratio=0.3)(batch()).aux
    for row, length, sample in zip(found["scores"], (7, 4, 5, 1), found["sparsity"], strict=True):
        mean = row[:length].mean()
        close(sample, {"l1": mean, "ratio": (mean - 0.3) ** 2, "none": mean * 0}[sparsity])


def test_pooled_alignment_is_the_cosine_of_the_means():
    slots, text, mask = torch.randn(3, 4, DIM), torch.randn(2, 5, DIM), prefix_mask(torch.tensor([5, 2]), 5)
    means = torch.stack([text[0].mean(0), text[1, :2].mean(0)])
    expected = F.cosine_similarity(slots.mean(1).unsqueeze(1), means.unsqueeze(0), dim=-1)
    close(align(slots, text, mask, "pooled", "cosine"), expected)


def test_max_mean_reads_real_tokens_only():
    slots, text = torch.randn(2, 3, DIM), torch.randn(1, 5, DIM)
    padded = torch.cat([text, torch.full((1, 3, DIM), 99.0)], 1)
    close(max_mean(slots, padded, prefix_mask(torch.tensor([5]), 8)), max_mean(slots, text, whole(text)), 1e-6)


@pytest.mark.parametrize(
    ("directions", "softmax_over", "normalize"),
    [("audio", "frames", "sample"), ("both", "slots", "affine"), ("both", "frames", "batch")],
)
def test_finite_differences_of_a_soft_decision(directions, softmax_over, normalize):
    loss = make_loss(
        decision="soft",
        directions=directions,
        softmax_over=softmax_over,
        normalize=normalize,
        relevance_gradient=True,
        margin=1.9,
        sparsity_weight=0.3,
    ).double()
    inputs = batch(dtype=torch.float64)

    def value(x, *parameters):
        given = replace(inputs, audio=replace(inputs.audio, x=x))
        names = [name for name, _ in loss.named_parameters()]
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (given,)).value

    assert torch.autograd.gradcheck(value, (inputs.audio.x, *loss.parameters()))


def test_finite_differences_of_frames_and_weights_under_a_fixed_decision():
    torch.manual_seed(0)
    aggregation, x = Aggregation(DIM, 5, 3).double(), torch.randn(2, 6, DIM, dtype=torch.float64, requires_grad=True)
    text, mask = torch.randn(2, 4, DIM, dtype=torch.float64), prefix_mask(torch.tensor([4, 2]), 4)
    kept = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.float64)

    def alike(x, *parameters):
        names = [name for name, _ in aggregation.named_parameters()]
        slots = torch.func.functional_call(aggregation, dict(zip(names, parameters, strict=True)), (x, kept))
        return align(slots, text, mask, "max_mean", "cosine")

    assert torch.autograd.gradcheck(alike, (x, *aggregation.parameters()))


@pytest.mark.parametrize("decision", ["straight_through", "gumbel", "topk", "soft"])
def test_the_triplet_alone_teaches_the_score_network(decision):
    loss = make_loss(decision=decision, sparsity="none", margin=1.9).train()
    loss(batch()).value.backward()
    assert all(parameter.grad.any() for parameter in loss.score.parameters())


def test_a_hard_decision_leaves_the_score_network_to_the_sparsity():
    loss = make_loss(decision="hard", margin=1.9)
    loss(batch()).value.backward()
    found = [parameter.grad.clone() for parameter in loss.score.parameters()]
    loss.zero_grad()
    (0.01 * loss.scores(*scored(batch())).sum(-1) / torch.tensor([7, 4, 5, 1])).mean().backward()
    for gradient, parameter in zip(found, loss.score.parameters(), strict=True):
        close(gradient, parameter.grad, 1e-7)


def scored(inputs):
    return inputs.audio.x, inputs.audio.mask, *inputs.answer


def test_without_any_gradient_for_the_score_network_it_is_refused():
    with pytest.raises(SpecError, match="straight_through"):
        make_loss(decision="hard", sparsity="none")


def test_louder_audio_is_no_nearer():
    loss, inputs = make_loss(decision="topk"), batch()
    louder = replace(inputs, audio=replace(inputs.audio, x=inputs.audio.x * 10))
    nn.init.zeros_(loss.score[2].weight)  # else the frames that are kept may be others
    close(loss(louder).aux["distance"], loss(inputs).aux["distance"])


def test_what_stands_in_padding_changes_nothing():
    loss, inputs = make_loss(), batch()
    x = F.pad(inputs.audio.x.detach().masked_fill(~inputs.audio.mask.unsqueeze(-1), torch.nan), (0, 0, 0, 3))
    text, said = inputs.answer
    text = F.pad(text.masked_fill(~said.unsqueeze(-1), torch.nan), (0, 0, 0, 2), value=torch.nan)
    padded = replace(
        inputs,
        audio=Frames(x.requires_grad_(), F.pad(inputs.audio.mask, (0, 3)), 12.5),
        answer=(text, F.pad(said, (0, 2))),
    )
    found, expected = loss(padded), loss(inputs)
    close(found.value, expected.value, 1e-6)
    close(found.aux["scores"], F.pad(expected.aux["scores"], (0, 3)), 1e-6)
    found.value.backward()
    expected.value.backward()
    close(x.grad, F.pad(inputs.audio.x.grad, (0, 0, 0, 3)), 1e-6)


def test_under_autocast_it_computes_in_float32():
    loss, inputs = make_loss(), batch(dtype=torch.bfloat16)
    exact = replace(
        inputs,
        audio=replace(inputs.audio, x=inputs.audio.x.float()),
        answer=(inputs.answer[0].float(), inputs.answer[1]),
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(inputs).value
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(exact).value)


# Who is a negative


def test_samples_without_audio_or_without_an_answer_take_no_part():
    loss = make_loss(negatives="hardest", directions="both", normalize="batch")
    some = batch((7, 0, 4, 5), ("abcd", "xy", "", "pqr"))
    found, expected = loss(some), loss(take(some, [0, 3]))
    close(found.value, expected.value, 1e-6)
    for name, value in found.aux.items():
        close(value[[0, 3]], expected.aux[name], 1e-6)
        assert not value[[1, 2]].any(), name


@pytest.mark.parametrize("directions", ["audio", "both"])
@pytest.mark.parametrize("inputs", [batch((7,), ("abcd",)), batch((7, 4, 5), ("ab", "ab", "ab"))], ids=["one", "equal"])
def test_without_negatives_only_the_sparsity_is_left_and_it_is_said_once(inputs, directions):
    loss = make_loss(directions=directions).train()
    with pytest.warns(UserWarning, match="use a larger batch"):
        found = loss(inputs)
    close(found.value, 0.01 * found.aux["sparsity"].mean())
    assert not found.aux["triplet"].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(inputs)


def test_an_equal_answer_is_no_negative():
    found = make_loss()(batch((7, 4, 5, 3), ("ab", "xy", "ab", "abc")))
    assert found.aux["negatives"].tolist() == [2, 3, 2, 3]


def test_random_negatives_are_uniform_over_those_allowed():
    torch.manual_seed(0)
    allowed = torch.tensor([[False, True, True, False, True]])
    costs = torch.arange(5.0).expand(1, 5)
    drawn = torch.cat([choose(costs, allowed, "random", training=True) for _ in range(6000)])
    counts = torch.bincount(drawn.long(), minlength=5) / 6000
    close(counts, torch.tensor([0, 1, 1, 0, 1]) / 3, 0.02)


def test_random_negatives_follow_torch_s_seed():
    loss, inputs = make_loss(margin=1.9).train(), batch()

    def draw(seed):
        torch.manual_seed(seed)
        return loss(inputs).value.item()

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(8)}) > 1


def test_an_evaluation_takes_the_expectation_of_the_draw():
    loss, inputs = make_loss(margin=1.9), batch()
    torch.manual_seed(0)
    drawn = torch.stack([loss.train()(inputs).aux["triplet"] for _ in range(300)])
    close(loss.eval()(inputs).aux["triplet"], drawn.mean(0), 4 * float(drawn.std(0).max()) / 300**0.5)


def test_the_hardest_negative_is_the_nearest_other_answer():
    loss, inputs = make_loss(margin=1.9, negatives="hardest"), batch()
    found = loss(inputs).aux["triplet"]
    each = [loss(take(inputs, [0, other])).aux["triplet"][0] for other in (1, 2, 3)]
    close(found[0], torch.stack(each).max())


def test_both_directions_are_averaged():
    alike = torch.tensor([[0.0, 0.4], [0.9, 0.3]])
    allowed = ~torch.eye(2, dtype=torch.bool)
    close(hinges(alike, allowed, 0.2).sum(-1), torch.tensor([0.6, 0.8]))
    loss, inputs = make_loss(margin=1.9, negatives="all", directions="both"), batch()
    audio = make_loss(margin=1.9, negatives="all")(inputs).aux
    pairs = loss.align(*aligned(loss, inputs))
    answers = hinges(pairs.mT, ~torch.eye(4, dtype=torch.bool), 1.9).sum(-1) / 3
    close(loss(inputs).aux["triplet"], (audio["triplet"] + answers) / 2)


def aligned(loss, inputs):
    kept = loss.decide(loss.scores(*scored(inputs)), inputs.audio.mask)
    return loss.aggregation(inputs.audio.x, kept), *inputs.answer


# A memory of past samples


@pytest.fixture
def remembering():
    return make_loss(queue=3, queue_tokens=4, directions="both", negatives="hardest", margin=1.9).train()


def test_a_single_sample_is_contrasted_with_past_ones(remembering):
    inputs, plain = batch(), make_loss(directions="both", negatives="hardest", margin=1.9)
    assert not remembering(take(inputs, [0])).aux["negatives"].any()
    found = remembering(take(inputs, [1]))
    close(found.aux["triplet"], plain(take(inputs, [0, 1])).aux["triplet"][1:])


def test_the_memory_forgets_the_oldest_and_leaves_out_equal_answers(remembering):
    counts = []
    for answer in ("ab", "cd", "ef", "cd", "gh", "ab"):
        counts += remembering(batch((3,), (answer,))).aux["negatives"].tolist()
    assert counts == [0, 1, 2, 2, 3, 3]


def test_long_answers_are_told_apart_by_what_the_memory_keeps(remembering):
    remembering(batch((3,), ("abcdefg",)))
    assert remembering(batch((3,), ("abcdxyz",))).aux["negatives"].tolist() == [0]  # to be safe


def test_the_memory_is_in_no_checkpoint_and_rests_in_evaluation(remembering):
    assert not any(name.startswith("queue") for name in remembering.state_dict())
    remembering(batch())
    before = remembering.queue.text.clone()
    remembering.eval()
    assert remembering(batch()).aux["negatives"].tolist() == [3, 3, 3, 3]
    assert torch.equal(remembering.queue.text, before)


def test_no_gradient_flows_into_the_past(remembering):
    first = batch((7,), ("abcd",))
    remembering(first)
    remembering(batch((4,), ("xy",))).value.backward()
    assert first.audio.x.grad is None


def test_training_compiles_as_one_graph():
    loss, inputs = make_loss(decision="gumbel", queue=3, directions="both").train(), batch()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        value = compiled(inputs).value
    value.backward()
    assert value.isfinite()
    assert inputs.audio.x.grad.any()
    torch._dynamo.reset()


# Several processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two processes found, case by case."""
    folder = str(tmp_path_factory.mktemp("gather"))
    mp.start_processes(one_of_two, (folder,), nprocs=2, start_method=METHOD)
    found = zip(*(torch.load(f"{folder}/{rank}.pt") for rank in range(2)), strict=True)
    return dict(zip(((str(options), i) for options in OPTIONS for i in range(len(SHARES))), found, strict=True))


@pytest.mark.parametrize("shares", range(len(SHARES)))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_two_processes_that_gather_are_one_with_the_whole_batch(two_processes, options, shares):
    first, second = two_processes[str(options), shares]
    value, audio, parameters = compute([row for rows in SHARES[shares] for row in rows], **options)
    close((first[0] + second[0]) / 2, value, 1e-6)
    close(torch.cat([F.pad(x, (0, 0, 0, 7 - x.shape[1])) for x in (first[1], second[1])]) / 2, audio, 1e-6)
    for a, b, expected in zip(first[2], second[2], parameters, strict=True):
        close((a + b) / 2, expected, 1e-6)


# In a model


def test_its_parameters_fit_the_paper_s_budget():
    """Score 4096 -> 256 -> 1 and aggregation 4096 -> 256 -> 8, and no matrix of 4096 x 4096: 2.16 M are left for it."""
    with torch.device("meta"):
        loss = build_loss("semantic_contrastive", dim=4096, weights=False)
    assert sum(parameter.numel() for parameter in loss.parameters()) == 2_108_162


def test_in_a_model_it_teaches_the_projector():
    torch.manual_seed(0)
    arch = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    arch |= {"num_mel_bins": 80, "max_source_positions": 50}
    spec = {
        "encoders": {"whisper": {"arch": arch}},
        "projector": {"type": "linear", "stack": 5},
        "llm": {"type": "tiny", "dim": 32},
        "losses": {"cross_entropy": {"weight": 0}, "semantic_contrastive": {"weight": 0.5, "margin": 1.9}},
    }
    model = build_model(spec).train()
    clips = [noise(seconds, i) for i, seconds in enumerate((0.7, 1.2, 0.4))]
    given = UsamProcessor.from_spec(model.config.parsed)(text=["<|audio|> Transcribe."] * 3, audio=clips)
    labels = torch.full_like(given["input_ids"], IGNORE)
    labels[:, -3:] = torch.tensor([[40, 41, 42], [50, 51, 52], [60, 61, 62]])
    out = model(**given, labels=labels)
    out.loss.backward()
    close(out.loss, out.losses["semantic_contrastive"] / 2)
    assert out.aux["semantic_contrastive.negatives"].tolist() == [2, 2, 2]
    assert model.model.projector.stages[0].map[0].weight.grad.any()
