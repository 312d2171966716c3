"""The loss keeps usam's promises, and is SigLIP's where its value can be written down."""

from math import exp, log

import pytest
import torch

from usam.losses import build_loss
from usam.testing import loss_promises
from usam.types import Frames, LossInputs


@pytest.mark.parametrize("promise", loss_promises("siglip"), ids=str)
def test_it_keeps_its_promises(promise):
    promise()


def loss_of(audio, answers, **options):
    """The loss of one vector of audio and one of an answer a sample."""
    there = torch.ones(len(audio), 1, dtype=torch.bool)
    heard = Frames(audio.unsqueeze(1), there, 1.0)
    labels = torch.zeros(len(audio), dtype=torch.long)
    loss = build_loss("siglip", dim=audio.shape[1], **options)
    return loss(LossInputs(torch.zeros(len(audio), 1), labels, None, heard, (answers.unsqueeze(1), there)))


def test_of_two_samples_at_right_angles_it_is_the_papers_equation():
    """Two pairs of logit t + b that belong together, two of logit b that do not, over two samples."""
    found = loss_of(torch.eye(2), torch.eye(2), temperature=3.0, bias=-1.0)
    assert float(found.value.detach()) == pytest.approx(log(1 + exp(-2)) + log(1 + exp(-1)))


def test_vectors_count_by_their_direction():
    long, short = (loss_of(torch.eye(2) * scale, torch.eye(2)).value for scale in (100, 0.01))
    torch.testing.assert_close(long, short)


def test_samples_that_answer_the_same_are_no_negatives_of_each_other():
    found = loss_of(torch.eye(2), torch.ones(2, 2), temperature=1.0, bias=0.0)
    assert float(found.value.detach()) == pytest.approx(log(1 + exp(-(0.5**0.5))))


def test_temperature_and_bias_are_learned():
    loss = build_loss("siglip", dim=2)
    assert {name for name, p in loss.named_parameters() if p.requires_grad} == {"log_t", "b"}
    assert float(loss.log_t.detach()) == pytest.approx(log(10))
    assert float(loss.b.detach()) == -10
