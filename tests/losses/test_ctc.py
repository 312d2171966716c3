"""CTC in the language model's own words: torch's own, over the whole vocabulary; and what it does with the rest."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from usam import SpecError, build_loss, build_projector, types
from usam.testing import loss_promises
from usam.types import Frames, LossInputs, Vocabulary, prefix_mask

DIM, WORDS, END = 6, 13, 12
SHAPES = {"compiles": "which tokens stand in a batch is known by their values"}
OWN = prefix_mask(torch.tensor([7, 3, 5, 1]), 7)  # the kit's clips
SCORED = {"2.ctc_frames": torch.randn(4, 7, 8), "2.ctc_blank": torch.randn(4, 7)}
SCORED = {**{name: value.requires_grad_() for name, value in SCORED.items()}, "2.ctc_mask": OWN}
PROMISES = {
    "ctc": loss_promises("ctc", too_long="skip", expected_failures=SHAPES),
    "ctc of the head, sampled": loss_promises(
        "ctc", too_long="skip", against="head", negatives=2, tasks=["asr"], expected_failures=SHAPES
    ),
    "ctc by soft tokens": loss_promises(
        "ctc", too_long="skip", against="soft_tokens", aux=SCORED, expected_failures=SHAPES
    ),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.filterwarnings("ignore:ctc. samples whose answers")
@pytest.mark.parametrize("promise", CASES)
def test_ctc_keeps_its_promises(promise):
    promise()


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


TABLE = normal(WORDS, DIM, seed=99)
WORDS_OF = Vocabulary(
    WORDS, DIM, embed=lambda ids: TABLE[ids], logits=lambda hidden, ids: 2 * hidden @ TABLE[ids].mT, ends=(END,)
)
ANSWERS, HEARD = [[3, 4], [5, 5, 0], [7]], [4, 6, 3]


def batch(answers=ANSWERS, heard=HEARD, **more):
    """One sample an answer, which the end follows; what is no frame is NaN."""
    said = torch.zeros(len(answers), 9, dtype=torch.bool)
    audio = torch.full((len(answers), max(heard), DIM), torch.nan, dtype=torch.float64)
    for i, (answer, length) in enumerate(zip(answers, heard, strict=True)):
        said[i, 1 : 2 + len(answer)] = True
        audio[i, :length] = normal(length, DIM, seed=length)
    return LossInputs(
        hidden=torch.zeros(0, DIM),
        labels=torch.tensor([token for answer in answers for token in (*answer, END)]),
        head=lambda hidden: hidden,
        audio=Frames(audio.requires_grad_(), prefix_mask(torch.tensor(heard), max(heard)), 12.5),
        answer=(torch.zeros(*said.shape, DIM), said),
        vocabulary=WORDS_OF,
        **more,
    )


def ctc(training=False, **options):
    torch.manual_seed(0)
    return build_loss("ctc", dim=DIM, **options).double().train(training)


def whole(loss, inputs, answers=ANSWERS, heard=HEARD, scale=1):
    """torch's CTC over the blank and all words."""
    x = inputs.audio.x.masked_fill(~inputs.audio.mask.unsqueeze(-1), 0)
    logits = torch.cat([loss.blank(x), scale * x @ TABLE.mT], -1).log_softmax(-1)
    targets = torch.tensor([token + 1 for answer in answers for token in answer])
    return F.ctc_loss(logits.transpose(0, 1), targets, heard, [len(answer) for answer in answers])


@pytest.mark.parametrize("training", [False, True], ids=["in evaluation", "with every other token a negative"])
def test_it_is_torchs_ctc_over_the_whole_vocabulary(training):
    loss, inputs, other = ctc(training), batch(), batch()
    value, expected = loss(inputs).value, whole(loss, other)
    torch.testing.assert_close(value, expected)
    (ours,) = torch.autograd.grad(value, inputs.audio.x)
    (reference,) = torch.autograd.grad(expected, other.audio.x)
    torch.testing.assert_close(ours, reference)


def test_the_head_may_score_the_frames():
    loss, inputs = ctc(against="head"), batch()
    torch.testing.assert_close(loss(inputs).value, whole(loss, inputs, scale=2))


def test_a_vocabulary_that_is_looked_at_in_parts_gives_the_same(monkeypatch):
    loss, inputs, other = ctc(True), batch(), batch()
    value = loss(other).value
    monkeypatch.setattr(types, "SCORES_ELSEWHERE", 40)  # two words at a time
    torch.testing.assert_close(loss(inputs).value, value)
    (ours,) = torch.autograd.grad(loss(inputs).value, inputs.audio.x)
    torch.testing.assert_close(ours, torch.autograd.grad(value, other.audio.x)[0])


def test_sampled_negatives_stand_for_all_others_on_average():
    loss, inputs = ctc(True, negatives=3), batch()
    x, words = 0.3 * inputs.audio.x[:, :3].detach(), torch.tensor([3, 4])
    drawn = torch.stack([loss._rest(x, words, WORDS_OF) for _ in range(2000)]).exp().mean(0)
    others = [word for word in range(WORDS) if word not in (3, 4)]
    torch.testing.assert_close(drawn, (x @ TABLE[others].mT).exp().sum(-1), rtol=0.1, atol=0)


def test_negatives_are_drawn_in_training_only():
    loss, inputs = ctc(True, negatives=3), batch()
    assert len({float(loss(inputs).value.detach()) for _ in range(5)}) == 5
    torch.testing.assert_close(loss.eval()(inputs).value, whole(loss, inputs))


def test_all_negatives_leave_nothing_to_chance():
    loss, inputs = ctc(True, negatives="all"), batch()
    torch.testing.assert_close(loss(inputs).value, whole(loss, inputs))


def test_a_clips_loss_is_its_own_whatever_stands_beside_it():
    loss = ctc()
    together = loss(batch()).aux["samples"]
    alone = [loss(batch([answer], [heard])).value for answer, heard in zip(ANSWERS, HEARD, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone).detach())


def test_an_empty_answer_is_said_by_blanks():
    loss, inputs = ctc(), batch([[]], [3])
    x = inputs.audio.x[0]
    logits = torch.cat([loss.blank(x), x @ TABLE.mT], -1)
    torch.testing.assert_close(loss(inputs).value, -logits.log_softmax(-1)[:, 0].sum())


# Which samples count


def test_an_answer_that_is_longer_than_its_clip_is_named():
    inputs = batch([[3], [5, 5]], [3, 2], batch={"ids": ["a", "row 7"]})
    with pytest.raises(ValueError, match=r"'row 7' has 2 frames, and its answer of 2 tokens needs 3: .*too_long: skip"):
        ctc(True)(inputs)


@pytest.mark.parametrize("options", [{"training": True, "too_long": "skip"}, {"training": False}])
def test_or_it_is_left_out_as_in_evaluation(options):
    loss = ctc(**options)
    with pytest.warns(UserWarning, match="are left out"):
        found = loss(batch([[3, 4], [5, 5]], [4, 2]))
    assert found.aux["counted"].tolist() == [True, False]
    torch.testing.assert_close(found.value, loss(batch([[3, 4]], [4])).value)


def test_samples_without_audio_or_answer_are_left_out():
    loss, inputs = ctc(), batch([[3, 4], [5]], [4, 4])
    silent = inputs.audio.mask.clone()
    silent[1] = False
    found = loss(dataclasses.replace(inputs, audio=Frames(inputs.audio.x, silent, 12.5)))
    torch.testing.assert_close(found.value, loss(batch([[3, 4]], [4])).value)


def test_it_looks_at_the_tasks_that_it_is_told():
    found = ctc(tasks=["asr"])(batch(batch={"tasks": ["asr", "aac", None]}))
    assert found.aux["counted"].tolist() == [True, False, False]
    with pytest.raises(ValueError, match="does not say the tasks"):
        ctc(tasks=["asr"])(batch())


def test_without_a_vocabulary_it_says_so():
    with pytest.raises(ValueError, match="reads the language model's vocabulary"):
        ctc()(dataclasses.replace(batch(), vocabulary=None))


def test_no_negative_at_all_is_refused():
    with pytest.raises(SpecError, match="negatives"):
        ctc(negatives=0)


# By soft tokens


def scored(clips=(4, 6, 3)):
    """What soft_tokens tells of clips."""
    stage = build_projector("soft_tokens", in_dim=DIM).double()
    rows = torch.nn.utils.rnn.pad_sequence([normal(n, DIM, seed=n) for n in clips], batch_first=True)
    frames = stage(Frames(rows, prefix_mask(torch.tensor(clips), max(clips)), 12.5), None, WORDS_OF)
    return stage, {f"1.{name}": value for name, value in frames.aux.items()}


def test_frames_are_scored_as_soft_tokens_score_them():
    stage, aux = scored()
    loss, own = ctc(against="soft_tokens"), ctc()
    own.blank = stage.blank
    assert not list(loss.parameters())
    torch.testing.assert_close(loss(batch(aux=aux)).value, own(batch()).value)


def test_clips_of_one_sample_are_one_stream():
    stage, aux = scored((4, 6, 3))
    value = ctc(against="soft_tokens")(batch([[3, 4, 5], [7]], [10, 3], aux=aux)).value
    joined = torch.cat([normal(4, DIM, seed=4), normal(6, DIM, seed=6)])
    own, inputs = ctc(), batch([[3, 4, 5], [7]], [10, 3])
    own.blank = stage.blank
    with torch.no_grad():
        inputs.audio.x[0] = joined
    torch.testing.assert_close(value, own(inputs).value)


@pytest.mark.parametrize(
    ("options", "aux", "message"),
    [
        ({}, scored()[1], "projector.1 scores its own frames: write losses.ctc.against: soft_tokens"),
        ({"against": "soft_tokens"}, {}, "needs one stage of this name in the projector, found 0"),
        ({"against": "soft_tokens"}, scored((4, 6, 2))[1], "has scored 12 frames, and the projector gives 13"),
    ],
)
def test_what_does_not_go_with_the_projector_is_refused(options, aux, message):
    with pytest.raises(ValueError, match=message):
        ctc(**options)(batch(aux=aux))
