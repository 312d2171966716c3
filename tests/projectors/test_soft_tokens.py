"""Soft tokens: the mixture in closed form, its shortcuts, and its place in a model."""

import dataclasses

import pytest
import torch

from usam import ComponentError, build_model, build_projector, types
from usam.testing import projector_promises
from usam.types import Frames, Vocabulary, prefix_mask

DIM, WORDS = 6, 9
NO_GRADIENT = dict.fromkeys(
    ("hears_every_frame", "follows_time"), "what is best is a choice, through which no gradient flows"
)
PROMISES = {
    "soft_tokens": projector_promises("soft_tokens"),
    "soft_tokens of the best": projector_promises("soft_tokens", top=3, temperature=0.5),
    "soft_tokens, sharp": projector_promises("soft_tokens", sharp=True, expected_failures=NO_GRADIENT),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_soft_tokens_keep_their_promises(promise):
    promise()


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TABLE = normal(WORDS, DIM, seed=99)
VOCABULARY = Vocabulary(WORDS, DIM, embed=lambda ids: TABLE[ids], logits=lambda hidden, ids: hidden @ TABLE[ids].mT)


def frames():
    return Frames(normal(2, 5, DIM, seed=1).requires_grad_(), prefix_mask(torch.tensor([5, 3]), 5), 12.5)


def stage(training=True, **options):
    torch.manual_seed(0)
    return build_projector("soft_tokens", in_dim=DIM, **options).double().train(training)


def mixed(projector, x, temperature=1.0, words=None):
    """The mixture of these frames (frame, dim), of all words or of some for each."""
    rows = TABLE.expand(len(x), -1, -1) if words is None else TABLE[words]
    scores = torch.cat([(rows @ x.unsqueeze(-1)).squeeze(-1), projector.blank(x)], -1)
    vectors = torch.cat([rows, projector.silence.expand(len(x), 1, -1)], 1)
    return ((scores / temperature).softmax(-1).unsqueeze(1) @ vectors).squeeze(1)


def test_a_frame_is_the_mean_of_the_embeddings_by_their_probabilities():
    projector, given = stage(temperature=1.5), frames()
    found = projector(given, None, VOCABULARY)
    torch.testing.assert_close(found.x[given.mask], mixed(projector, given.x[given.mask], 1.5))


def test_the_best_are_mixed_among_themselves():
    projector, given = stage(top=2), frames()
    x = given.x[given.mask]
    best = (x @ TABLE.mT).topk(2).indices
    torch.testing.assert_close(projector(given, None, VOCABULARY).x[given.mask], mixed(projector, x, words=best))
    everything = stage(top=WORDS)(given, None, VOCABULARY).x
    torch.testing.assert_close(everything, stage()(given, None, VOCABULARY).x)


def test_sharp_frames_are_words_outside_of_training_only():
    projector, given = stage(False, sharp=True), frames()
    found = projector(given, None, VOCABULARY).x[given.mask]
    scores = torch.cat([given.x[given.mask] @ TABLE.mT, projector.blank(given.x[given.mask])], -1)
    rows = torch.cat([TABLE, projector.silence.unsqueeze(0)])
    assert torch.equal(found, rows[scores.argmax(-1)])
    assert torch.equal(projector.train()(given, None, VOCABULARY).x, stage()(given, None, VOCABULARY).x)


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"sharp": True}])
def test_a_blank_is_the_learned_vector(options):
    projector, given = stage(False, **options), frames()
    with torch.no_grad():
        projector.blank.bias.fill_(1e4)
    found = projector(given, None, VOCABULARY).x[given.mask]
    torch.testing.assert_close(found, projector.silence.expand_as(found))


@pytest.mark.parametrize("options", [{}, {"top": 3}])
def test_a_vocabulary_that_is_looked_at_in_parts_gives_the_same(options, monkeypatch):
    found = []
    for entries in (2**24, 20):
        monkeypatch.setattr(types, "SCORES_ELSEWHERE", entries)
        projector, given = stage(**options), frames()
        out = projector(given, None, VOCABULARY).x
        found.append([out, *torch.autograd.grad(out.square().sum(), [given.x, *projector.parameters()])])
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference)


def test_frames_that_nothing_reads_are_not_mixed():
    projector, given = stage(), frames()
    out = projector(given, None, dataclasses.replace(VOCABULARY, frames_read=False))
    assert torch.equal(out.x[given.mask], given.x[given.mask])
    plain = projector(given, None, VOCABULARY).aux
    assert all(torch.equal(out.aux[name], plain[name]) for name in plain)


def test_alone_it_asks_for_a_vocabulary_of_its_width():
    with pytest.raises(ValueError, match="a model lends it"):
        stage()(frames())
    narrow = Vocabulary(WORDS, 4, embed=lambda ids: TABLE[ids, :4], logits=VOCABULARY.logits)
    with pytest.raises(ValueError, match="frames of 6 numbers, and the embeddings have 4"):
        stage()(frames(), None, narrow)


# In a model


def test_the_stage_before_it_maps_to_the_language_models_width():
    stages = [{"type": "linear", "stack": 4, "hidden": 7}, "soft_tokens"]
    model = build_model("tiny", {"projector": stages}, "llm.dim=16", weights=False)
    assert [each.dim for each in model.model.projector.stages] == [16, 16]
    plain = build_model("tiny", {"projector": stages[:1]}, "llm.dim=16", weights=False)
    names = dict(model.named_parameters())
    assert {n: p.shape for n, p in plain.named_parameters()}.items() <= {n: p.shape for n, p in names.items()}.items()


def test_without_such_a_stage_it_says_what_to_write():
    with pytest.raises(ComponentError, match=r"projector.0: soft_tokens .* of 16 numbers, .*128: write a stage before"):
        build_model("tiny", {"projector": ["soft_tokens"]}, "llm.dim=16", weights=False)
