"""Losses: against their formulas written out in loops, and by the conformance kit."""

import dataclasses
import math

import pytest
import torch
from conftest import noise

from usam import SpecError, UsamProcessor, build_loss, build_model
from usam.losses._answers import same_answer
from usam.testing import loss_promises
from usam.types import Frames, LossInputs, prefix_mask

ANSWERS = [[3, 4], [5], [3, 4, 6], [7, 7]]
CONTRASTIVE = ("info_nce", "sigmoid_contrastive")
ROUTED = ("load_balance", "router_z")


def router(stage="1", rows=(4, 2, 5, 1), experts=3, seed=0):
    """What a `moe` stage reports of four clips."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(len(rows), experts, generator=generator).softmax(-1)
    load = torch.randn(len(rows), experts, generator=generator).softmax(-1)
    reported = {
        "router_probs": probs.requires_grad_(),
        "router_load": load,
        "router_rows": torch.tensor(rows),
        "router_z": torch.rand(len(rows), generator=generator).requires_grad_(),
    }
    return {f"{stage}.{name}": value for name, value in reported.items()}


TWO = {**router("0", experts=5, seed=1), **router("2")}
PROMISES = {
    "info_nce": loss_promises("info_nce"),
    "info_nce mapped": loss_promises("info_nce", dim=5, temperature=0.5),
    "sigmoid_contrastive": loss_promises("sigmoid_contrastive"),
    "sigmoid_contrastive mapped": loss_promises("sigmoid_contrastive", dim=5, temperature=1.0, bias=0.0),
    "load_balance": loss_promises("load_balance", aux=router()),
    "load_balance of two": loss_promises("load_balance", aux=TWO),
    "router_z": loss_promises("router_z", aux=router()),
    "router_z of two": loss_promises("router_z", aux=TWO),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Such small tensors run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_a_loss_keeps_its_promises(promise):
    promise()


def normal(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(answers=ANSWERS, heard=(3, 1, 4, 2), *, dim=6, starts=None, length=9, time=4, aux=None):
    """One sample an answer; what is no audio and no answer is NaN, and must not be read."""
    said = torch.zeros(len(answers), length, dtype=torch.bool)
    audio = torch.full((len(answers), time, dim), math.nan, dtype=torch.float64)
    embeds = torch.full((len(answers), length, dim), math.nan, dtype=torch.float64)
    for i, answer in enumerate(answers):
        start = starts[i] if starts else 1 + i
        said[i, start : start + len(answer)] = True
        audio[i, : heard[i]] = normal(heard[i], dim, seed=i)
        embeds[i, start : start + len(answer)] = normal(len(answer), dim, seed=100 + i)
    labels = torch.tensor([token for answer in answers for token in answer], dtype=torch.long)
    return LossInputs(
        hidden=torch.zeros(len(labels), dim, dtype=torch.float64, requires_grad=True),
        labels=labels,
        head=lambda hidden: hidden,
        audio=Frames(audio, prefix_mask(torch.tensor(heard), time), 12.5),
        answer=(embeds, said),
        aux=aux or {},
    )


def only(inputs, samples):
    """The batch that has these samples alone."""
    rows = inputs.answer[1].nonzero()[:, 0]
    chosen = [inputs.labels[rows == i] for i in samples]
    return dataclasses.replace(
        inputs,
        labels=torch.cat(chosen),
        audio=Frames(inputs.audio.x[samples], inputs.audio.mask[samples], 12.5),
        answer=(inputs.answer[0][samples], inputs.answer[1][samples]),
    )


def loss_of(name, inputs, **options):
    loss = build_loss(name, dim=6, **options).double()
    return loss(inputs).value


def cosines(inputs):
    """Cosines of the means, one by one."""
    (embeds, said), audio = inputs.answer, inputs.audio
    heard = [audio.x[i][audio.mask[i]].mean(0) for i in range(len(said))]
    meant = [embeds[i][said[i]].mean(0) for i in range(len(said))]
    return [[float(a @ b / a.norm() / b.norm()) for b in meant] for a in heard]


# which answers are the same


def test_answers_are_the_same_wherever_they_stand():
    inputs = batch([[3, 4], [3, 4], [3, 4, 5], [4, 3], [3]], [1] * 5, starts=[1, 7, 2, 3, 8])
    expected = torch.eye(5, dtype=torch.bool)
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(same_answer(inputs), expected)


def test_padding_does_not_change_which_answers_are_the_same():
    short, long = (batch([[3, 4], [3], [3, 4]], [1] * 3, length=n) for n in (6, 30))
    assert torch.equal(same_answer(short), same_answer(long))


def test_what_is_supervised_at_the_very_first_position_has_no_label():
    inputs = batch([[9, 3], [8, 3]], [1, 1], starts=[0, 0])
    inputs = dataclasses.replace(inputs, labels=torch.tensor([3, 3]))
    assert same_answer(inputs).all()


# the contrastive losses


def nce(table, scale, negatives):
    """InfoNCE in loops: the mean, over samples with negatives, of both directions."""
    terms = []
    for i, others in enumerate(negatives):
        if others:
            row = sum(math.exp(scale * table[i][j]) for j in [i, *others])
            column = sum(math.exp(scale * table[j][i]) for j in [i, *others])
            terms.append((math.log(row) + math.log(column)) / 2 - scale * table[i][i])
    return sum(terms) / len(terms)


def siglip(table, scale, bias, negatives):
    """The sigmoid loss in loops."""
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    terms = []
    for i, others in enumerate(negatives):
        if others:
            terms.append(-math.log(sigmoid(scale * table[i][i] + bias)))
            terms[-1] -= sum(math.log(sigmoid(-(scale * table[i][j] + bias))) for j in others)
    return sum(terms) / len(terms)


OTHERS = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_info_nce_is_its_formula():
    inputs = batch()
    found = loss_of("info_nce", inputs, temperature=0.2)
    assert found.item() == pytest.approx(nce(cosines(inputs), 5.0, OTHERS), rel=1e-6)


def test_sigmoid_contrastive_is_its_formula():
    inputs = batch()
    found = loss_of("sigmoid_contrastive", inputs)
    assert found.item() == pytest.approx(siglip(cosines(inputs), 10.0, -10.0, OTHERS), rel=1e-6)


def test_equal_answers_are_no_negatives():
    inputs = batch([[3, 4], [5], [3, 4], [7, 7]])
    others = [[1, 3], [0, 2, 3], [1, 3], [0, 1, 2]]
    assert loss_of("info_nce", inputs).item() == pytest.approx(nce(cosines(inputs), 1 / 0.07, others), rel=1e-6)
    expected = siglip(cosines(inputs), 10.0, -10.0, others)
    assert loss_of("sigmoid_contrastive", inputs).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_samples_without_audio_or_without_answer_take_no_part(name):
    inputs = batch([[3, 4], [], [5], [6], []], [2, 3, 4, 0, 0])
    assert loss_of(name, inputs).item() == pytest.approx(loss_of(name, only(inputs, [0, 2])).item())


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("answers", [[[3, 4]], [[3, 4], [3, 4]], [[3], []]], ids=["one", "equal", "one and none"])
def test_without_a_negative_there_is_nothing_to_say(name, answers):
    inputs = batch(answers, [2] * len(answers))
    inputs.audio.x.requires_grad_()
    loss = build_loss(name, dim=6).double()
    value = loss(inputs).value
    value.backward()
    assert value.item() == 0
    assert not inputs.audio.x.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_the_gradient_is_the_derivative(name):
    inputs = batch([[3, 4], [5], [3, 4], []], dim=3)
    loss = build_loss({"type": name, "dim": 2, "temperature": 0.5}, dim=3).double()
    names, parameters = zip(*loss.named_parameters(), strict=True)

    def run(x, *values):
        given = dataclasses.replace(inputs, audio=Frames(x, inputs.audio.mask, 12.5))
        return torch.func.functional_call(loss, dict(zip(names, values, strict=True)), (given,)).value

    x = inputs.audio.x.nan_to_num().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_padding_reaches_neither_the_value_nor_a_gradient(name):
    short, long = batch(), batch(length=20, time=12)
    long.audio.x.requires_grad_()
    value = loss_of(name, long)
    value.backward()
    assert value.item() == pytest.approx(loss_of(name, short).item(), rel=1e-12)
    assert long.audio.x.grad[long.audio.mask].abs().sum() > 0
    assert not long.audio.x.grad[~long.audio.mask].any()


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_autocast_does_not_make_it_coarse(name):
    inputs = batch()
    loss = build_loss(name, dim=6)
    inputs = dataclasses.replace(
        inputs,
        audio=Frames(inputs.audio.x.float(), inputs.audio.mask, 12.5),
        answer=(inputs.answer[0].float(), inputs.answer[1]),
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(inputs).value
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(inputs).value)


def test_the_temperature_never_falls_below_a_hundredth_while_it_trains():
    loss = build_loss("info_nce", dim=6).double().train()
    with torch.no_grad():
        loss.log_scale.fill_(9.0)  # as too large a step would leave it
    found = loss(batch())
    found.value.backward()
    assert found.aux["scale"].item() == pytest.approx(100)
    assert loss.log_scale.grad.item() != 0  # it can come back


def test_a_temperature_out_of_reach_is_an_error():
    with pytest.raises(SpecError, match="temperature"):
        build_loss("info_nce", dim=6, temperature=0.001)


def test_a_frozen_temperature_stays():
    loss = build_loss("info_nce", dim=6, freeze=["log_scale"])
    assert not loss.log_scale.requires_grad


# the losses of routers


def test_load_balance_is_one_when_all_experts_work_alike():
    even = {name: torch.full((4, 5), 0.2) for name in ("1.router_probs", "1.router_load")}
    assert loss_of("load_balance", batch(aux={**router(), **even})).item() == pytest.approx(1.0)


def test_load_balance_is_the_number_of_experts_when_one_does_all():
    one = torch.tensor([[0.0, 1.0, 0.0]] * 4)
    aux = {**router(), "1.router_probs": one, "1.router_load": one}
    assert loss_of("load_balance", batch(aux=aux)).item() == pytest.approx(3.0)


def test_load_balance_is_its_formula_over_all_rows():
    aux = router(rows=(4, 0, 5, 1))
    rows = [4, 0, 5, 1]
    probs, load = (
        [sum(n * aux[f"1.{name}"][i, e].item() for i, n in enumerate(rows)) / 10 for e in range(3)]
        for name in ("router_probs", "router_load")
    )
    expected = 3 * sum(p * f for p, f in zip(probs, load, strict=True))
    assert loss_of("load_balance", batch(aux=aux)).item() == pytest.approx(expected)


def test_a_clip_weighs_as_many_rows_as_it_has():
    """Two clips of 2 rows are as one clip of 4 rows that are alike."""
    aux = router(rows=(2, 2, 5, 1))
    for name in ("router_probs", "router_load", "router_z"):
        aux[f"1.{name}"] = aux[f"1.{name}"].detach()[torch.tensor([0, 0, 2, 3])]
    joined = {name: value[1:] for name, value in aux.items()} | {"1.router_rows": torch.tensor([4, 5, 1])}
    for name in ROUTED:
        assert loss_of(name, batch(aux=aux)).item() == pytest.approx(loss_of(name, batch(aux=joined)).item())


def test_load_balance_moves_probability_away_from_the_busy_expert():
    load = torch.tensor([[0.8, 0.1, 0.1]] * 4)
    aux = {**router(), "1.router_load": load}
    loss_of("load_balance", batch(aux=aux)).backward()
    gradient = aux["1.router_probs"].grad.sum(0)
    assert gradient.tolist() == pytest.approx([2.4, 0.3, 0.3])  # experts times load


def test_router_z_is_a_mean_over_rows():
    aux = router(rows=(4, 2, 5, 1))
    expected = sum(n * z for n, z in zip((4, 2, 5, 1), aux["1.router_z"].tolist(), strict=True)) / 12
    assert loss_of("router_z", batch(aux=aux)).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ROUTED)
def test_several_stages_count_alike(name):
    first, second = router("0", experts=5, seed=1), router("2")
    both = loss_of(name, batch(aux={**first, **second, "3.other": torch.zeros(4)}))
    each = [loss_of(name, batch(aux=aux)).item() for aux in (first, second)]
    assert both.item() == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("name", ROUTED)
def test_a_clip_without_a_routed_row_is_not_read(name):
    aux = router(rows=(4, 0, 5, 1))
    spoilt = {key: value.detach().clone().requires_grad_(value.requires_grad) for key, value in aux.items()}
    with torch.no_grad():
        for key in ("1.router_probs", "1.router_load", "1.router_z"):
            spoilt[key][1] = math.nan
    value = loss_of(name, batch(aux=spoilt))
    value.backward()
    assert value.item() == loss_of(name, batch(aux=aux)).item()
    read = spoilt["1.router_probs" if name == "load_balance" else "1.router_z"].grad
    assert not read[1].any()
    assert read[0].all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_gradient_of_the_cross_entropy_is_the_derivative(label_smoothing):
    inputs = batch([[3, 4], [5]], dim=3)
    loss = build_loss("cross_entropy", dim=3, label_smoothing=label_smoothing)
    hidden = torch.randn(len(inputs.labels), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(hidden):
        return loss(dataclasses.replace(inputs, hidden=hidden, head=lambda states: states.repeat(1, 3))).value

    assert torch.autograd.gradcheck(run, hidden.requires_grad_())


@pytest.mark.parametrize("name", ROUTED)
def test_no_routed_row_at_all_is_zero(name):
    assert loss_of(name, batch(aux=router(rows=(0, 0, 0, 0)))).item() == 0


@pytest.mark.parametrize("name", ROUTED)
def test_the_gradient_of_a_routed_loss_is_the_derivative(name):
    aux = {key: value.detach().double() for key, value in router().items()}
    loss = build_loss(name, dim=6)

    def run(probs, z):
        given = {**aux, "1.router_probs": probs, "1.router_z": z}
        return loss(batch(aux=given)).value

    wanted = [aux["1.router_probs"].requires_grad_(), aux["1.router_z"].requires_grad_()]
    assert torch.autograd.gradcheck(run, wanted)


@pytest.mark.parametrize("name", ROUTED)
def test_a_projector_that_routes_nothing_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} needs a `moe` projector.*by-products of this model: 0.gate"):
        loss_of(name, batch(aux={"0.gate": torch.zeros(4)}))


# in a model


def asked(processor, *answers):
    """One clip a sample, and its answer supervised."""
    batch = processor(
        text=[f"<|audio|> Transcribe {answer}" for answer in answers],
        audio=[noise(0.3, i) for i in range(len(answers))],
    )
    said = prefix_mask(torch.tensor([3] * len(answers)), batch["input_ids"].shape[1]).flip(-1)
    return {**batch, "labels": batch["input_ids"].masked_fill(~said, -100)}


def test_a_step_with_every_loss_compiles_without_a_break(speech):
    projector = [{"type": "conv", "dim": 8}, {"type": "moe", "experts": 2, "router": "audio"}]
    losses = {name: {} for name in ("cross_entropy", *CONTRASTIVE, *ROUTED)}
    model = build_model({**speech, "projector": projector, "losses": losses}).train()
    batch = asked(UsamProcessor.from_spec(model.config.parsed), "a dog", "a door", "a dog")
    plain = model(**batch)
    assert all(value > 0 for value in plain.losses.values())
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        found = torch.compile(model, fullgraph=True, backend="eager")(**batch)
    torch.testing.assert_close(found.losses, plain.losses)
    found.loss.backward()
    assert all(p.grad is not None for p in model.losses.parameters())
