"""What a loss promises: a finite scalar, whatever the batch holds, in whatever order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from usam.registry import ComponentError
from usam.spec.spec import Config
from usam.testing.every import BFLOAT16, EVERY, WORDS, Case, require_nothing_kept, vocabulary
from usam.testing.promises import Broken, Claim, Promise, Report, check, promises, require, require_same
from usam.types import Frames, LossInputs, LossOutput, prefix_mask

DIM, VOCAB = 8, WORDS
SAMPLES, LENGTH, TIME = 4, 9, 7  # of the batch: samples, tokens of the longest, audio frames of the longest


def check_loss(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    aux: Mapping[str, Tensor] | None = None,
    batch: Mapping[str, Sequence[Any]] | None = None,
    **options: Any,
) -> Report:
    """Run every promise of a loss: `check_loss("cross_entropy")`.

    Args:
        component: as everywhere: a name, a dict or a Config; `options` are laid over it.
        expected_failures: promises that it cannot keep, each with the reason.
        aux: by-products of the projector that it reads, for 4 samples (their first axis).
        batch: what the collator passes along that it reads, for 4 samples: `{"extra": [{"x_weight": 1.0}, ...]}`.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(loss_promises(component, expected_failures=expected_failures, aux=aux, batch=batch, **options))


def loss_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    aux: Mapping[str, Tensor] | None = None,
    batch: Mapping[str, Sequence[Any]] | None = None,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(LossCase(component, options, dict(aux or {}), dict(batch or {})), CLAIMS, expected_failures)


@dataclass(frozen=True)
class LossCase(Case):
    """A loss, and batches for it."""

    aux: Mapping[str, Tensor] = field(default_factory=dict)
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    group = "usam.losses"

    def construct(self, cls: Any, config: Any) -> Any:
        """A loss takes the language model's width."""
        return cls(config, dim=DIM)

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """Four samples, whose answers and audio have different lengths."""
        return (self.batch(range(SAMPLES), seed=seed),)

    def batch(self, samples: Sequence[int], *, seed: int = 0, constant: bool = False) -> LossInputs:
        """What the model gives the loss for these samples, in this order."""
        names: dict[str, Any] = {"ids": [f"row {i}" for i in range(SAMPLES)], "tasks": ["asr", "aac", None, "asr"]}
        names["sources"] = [None] * SAMPLES
        columns: dict[str, Sequence[Any]] = {**names, "extra": [{} for _ in range(SAMPLES)], **self.columns}
        inputs = batch(samples, self.aux, seed=seed, constant=constant)
        return replace(inputs, batch={name: [values[i] for i in samples] for name, values in columns.items()})


def batch(samples: Sequence[int], aux: Mapping[str, Tensor], *, seed: int = 0, constant: bool = False) -> LossInputs:
    """What the model computes for these samples, in this order."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (SAMPLES, LENGTH), generator=generator)
    hidden, embeds = (torch.randn(SAMPLES, LENGTH, DIM, generator=generator) for _ in range(2))
    audio = torch.randn(SAMPLES, TIME, DIM, generator=generator)
    if constant:
        tokens, hidden, embeds, audio = tokens * 0 + 1, hidden * 0 + 1, embeds * 0 + 1, audio * 0 + 1
    order = torch.tensor(list(samples))
    said = torch.arange(LENGTH) >= torch.tensor([4, 2, 6, 5]).unsqueeze(-1)  # an answer ends its sample
    heard = prefix_mask(torch.tensor([TIME, 3, 5, 1]), TIME)
    return LossInputs(
        hidden=hidden[order][said[order]].requires_grad_(),
        labels=tokens[order][said[order]],
        head=Head(),
        audio=Frames(audio[order].requires_grad_(), heard[order], 12.5),
        answer=(embeds[order], said[order]),
        aux={name: value[order] for name, value in aux.items()},
        vocabulary=vocabulary(DIM),
    )


class Head:
    """A fixed head, called as a loss calls the model's."""

    def __init__(self) -> None:
        self.weight = torch.randn(VOCAB, DIM, generator=torch.Generator().manual_seed(7))

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden @ self.weight.to(hidden.dtype).mT


def nothing_supervised() -> LossInputs:
    """A batch of texts without an answer and without audio."""
    hidden = torch.zeros(0, DIM, requires_grad=True)
    silent = Frames(torch.zeros(2, 0, DIM), torch.zeros(2, 0, dtype=torch.bool), 0.0)
    answer = torch.zeros(2, LENGTH, DIM), torch.zeros(2, LENGTH, dtype=torch.bool)
    return LossInputs(hidden, torch.zeros(0, dtype=torch.long), Head(), silent, answer)


def _value(loss: Any, inputs: LossInputs) -> Tensor:
    found: LossOutput = loss(inputs)
    return found.value


def gives_a_finite_scalar(case: LossCase) -> None:
    """The value is one finite number with a gradient.

    Else the run stops at its first step.
    """
    found = case.build()(*case.inputs())
    value = found.value
    require(value.shape == (), "a scalar", f"shape {tuple(value.shape)}", "the mean in forward")
    require(bool(value.isfinite()), "a finite value", f"{value.item()}", "logarithms and divisions")
    require(value.requires_grad, "a gradient", "none", "detach or no_grad in forward")
    held = [name for name, tensor in found.aux.items() if tensor.requires_grad]
    require(not held, "by-products without a gradient", f"one in {', '.join(held)}", "detach what stands in aux")


def pulls_at_something(case: LossCase) -> None:
    """What it says depends on the states, on the audio or on the by-products that it was given.

    Else it costs time and teaches nothing.
    """
    (inputs,) = case.inputs()
    aux = {n: v.detach().clone().requires_grad_() if v.is_floating_point() else v for n, v in inputs.aux.items()}
    inputs = replace(inputs, aux=aux)
    torch.autograd.backward(_value(case.build(), inputs))
    pulled = [inputs.hidden, inputs.audio.x, *aux.values()]
    moved = any(tensor.grad is not None and bool(tensor.grad.any()) for tensor in pulled)
    require(moved, "a gradient that is not zero for what it was given", "none", "what forward reads of its inputs")


def is_a_mean(case: LossCase) -> None:
    """The same samples twice do not count twice: it is a mean, not a sum.

    Else its weight depends on the size of the batch.
    """
    loss = case.build()
    once = abs(float(_value(loss, case.batch(range(SAMPLES))).detach()))
    twice = abs(float(_value(loss, case.batch([*range(SAMPLES), *range(SAMPLES)])).detach()))
    require(
        twice <= 1.75 * once + 1e-6, f"about {once:.3g} for the same samples twice", f"{twice:.3g}", "a sum in forward"
    )


def says_nothing_without_supervision(case: LossCase) -> None:
    """With nothing supervised it is 0, with a path to every parameter and to the states.

    Else such a batch stops the run, or processes wait for each other.
    """
    loss, inputs = case.build(freeze="none"), nothing_supervised()
    value = _value(loss, inputs)
    look_at = "forward: return self.nothing(inputs)"
    require(value.shape == () and not value.detach().any(), "0", f"{value.tolist()}", look_at)
    require(value.requires_grad, "a gradient", "none", look_at)
    torch.autograd.backward(value)
    without = [name for name, p in loss.named_parameters() if p.requires_grad and p.grad is None]
    require(not without, "gradients for every parameter", f"none for {', '.join(without)}", look_at)
    require(inputs.hidden.grad is not None, "a gradient for the states", "none", look_at)


def survives_degenerate_batches(case: LossCase) -> None:
    """One sample alone, and samples that are all alike, give finite values and gradients.

    Else the last, smaller batch of an epoch stops the run.
    """
    loss = case.build(freeze="none")
    for what, inputs in {
        "one sample": case.batch([1]),
        "constant inputs": case.batch(range(SAMPLES), constant=True),
        "one constant sample": case.batch([3], constant=True),
    }.items():
        value = _value(loss, inputs)
        look_at = "logarithms, square roots, divisions and variances at 0"
        require(bool(value.isfinite()), f"a finite value for {what}", f"{value.item()}", look_at)
        if value.requires_grad:
            torch.autograd.backward(value)
        for name, tensor in {"hidden": inputs.hidden, "audio": inputs.audio.x, **dict(loss.named_parameters())}.items():
            finite = tensor.grad is None or bool(tensor.grad.isfinite().all())
            require(finite, f"finite gradients for {what}", f"NaN or infinity in {name}", look_at)


def ignores_the_order_of_samples(case: LossCase) -> None:
    """The same samples in another order give the same value.

    Else shuffling changes what is learned.
    """
    loss = case.build()
    value, other = (_value(loss, case.batch(order)).reshape(1) for order in ([0, 1, 2, 3], [2, 0, 3, 1]))
    require_same(other, value, "the value of reordered samples", "what depends on a sample's place", 1e-5)


def does_without_what_is_not_given(case: LossCase) -> None:
    """Without by-products and without columns it says nothing, or that they are missing: by a ValueError.

    Else an evaluation, or a model without a router, fails with an error that explains nothing.
    """
    (inputs,) = case.inputs()
    look_at = "what it reads of inputs.aux and inputs.batch"
    try:
        value = _value(case.build(), replace(inputs, aux={}, batch={}))
    except (ValueError, ComponentError):
        return
    except Exception as error:
        raise Broken("a ValueError that says what is missing", f"{type(error).__name__}: {error}", look_at) from error
    require(bool(value.isfinite()), "a finite value", f"{value.item()}", look_at)


def reads_states_or_says_so(case: LossCase) -> str | None:
    """Where it says that it needs no states, or no frames, it gives the same without them and without the head.

    Else it is given nothing to read where the language model is not run.
    """
    loss = case.build()
    (inputs,) = case.inputs()
    if not loss.needs_frames:
        unread = replace(inputs.audio, x=torch.zeros_like(inputs.audio.x))
        value, reference = (_value(loss, given).reshape(1) for given in (replace(inputs, audio=unread), inputs))
        require_same(value, reference, "the value with other frames", "needs_frames, which is False", 1e-6)
    if loss.needs_states:
        return "it needs them"

    def head(hidden: Tensor) -> Tensor:
        raise Broken("that the head is not called", "a call", "needs_states, which is False")

    without = replace(inputs, hidden=inputs.hidden[:0], head=head)
    value, reference = (_value(loss, given).reshape(1) for given in (without, inputs))
    require_same(value, reference, "the value with states", "needs_states, which is False", 1e-6)
    return None


def borrows_the_vocabulary(case: LossCase) -> None:
    """It keeps nothing of the vocabulary that it is lent.

    Else the token table stands twice in checkpoints, or is an old one after adapters trained.
    """
    loss = case.build()
    (inputs,) = case.inputs()
    _value(loss, inputs)
    require_nothing_kept(loss, vocabulary(DIM))


def takes_states_of_another_dtype(case: LossCase) -> None:
    """In float32 it takes a model's bfloat16 states, to within a tenth of the value.

    Else it cannot be used beside a model in bfloat16.
    """
    loss, inputs = case.build(), case.inputs()
    value, other = (_value(loss, *given).double() for given in (inputs, case.at_dtype(inputs, torch.bfloat16)))
    error = float(((other - value).abs() / value.abs().clamp_min(1e-12)).detach())
    require(
        error <= BFLOAT16, f"an error of at most {BFLOAT16:.0%}", f"{error:.0%}", "what must be computed in float32"
    )


CLAIMS: list[Claim] = [
    gives_a_finite_scalar,
    pulls_at_something,
    is_a_mean,
    says_nothing_without_supervision,
    survives_degenerate_batches,
    ignores_the_order_of_samples,
    does_without_what_is_not_given,
    takes_states_of_another_dtype,
    reads_states_or_says_so,
    borrows_the_vocabulary,
    *EVERY,
]
