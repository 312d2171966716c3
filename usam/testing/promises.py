"""A promise is a claim about a component that anyone can run."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from usam.registry import did_you_mean

# What a claim returns: None, or why it holds without having been put to the test.
Claim = Callable[[Any], str | None]


class BrokenPromises(AssertionError):
    """A component does not do what its family promises; the message lists every broken promise."""


class Broken(AssertionError):
    """One claim that does not hold: what was expected, what was found, and where to look."""

    def __init__(self, expected: str, found: str, look_at: str) -> None:
        super().__init__(f"expected {expected}; found {found}; look at {look_at}")


@dataclass(frozen=True)
class Promise:
    """One claim about one component; calling it raises unless the claim holds (or fails, where that is expected)."""

    case: Any
    claim: Claim
    expected_failure: str = ""

    @property
    def name(self) -> str:
        """The claim in a few words, such as `ignores_padding`."""
        return str(getattr(self.claim, "__name__", self.claim))

    def __str__(self) -> str:
        return f"{self.name} (expected to fail: {self.expected_failure})" if self.expected_failure else self.name

    def __call__(self) -> None:
        """Put the claim to the test.

        Raises:
            BrokenPromises: it does not hold; or it does, although it was expected to fail.
        """
        check([self])

    def fault(self) -> tuple[Exception | None, str]:
        """What broke the claim, and the note it left when it held without a test."""
        _ = self.case.config  # a wrong option is no broken promise: it raises as itself
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.manual_seed(0)
                return None, self.claim(self.case) or ""
        except Exception as error:
            return error, ""


@dataclass(frozen=True)
class Report:
    """What a component kept."""

    component: str
    kept: tuple[str, ...]
    expected_failures: Mapping[str, str] = field(default_factory=dict)  # promise: why it may fail
    notes: Mapping[str, str] = field(default_factory=dict)  # promise: why there was nothing to test

    def __str__(self) -> str:
        lines = [f"{self.component}: {len(self.kept)} promises kept, {len(self.expected_failures)} expected failures"]
        lines += [f"  {name} fails, as expected: {reason}" for name, reason in self.expected_failures.items()]
        lines += [f"  {name} was not put to the test: {note}" for name, note in self.notes.items()]
        return "\n".join(lines)


def promises(case: Any, claims: Iterable[Claim], expected_failures: Mapping[str, str] | None) -> list[Promise]:
    """The promises of a case, those in `expected_failures` turned around.

    Raises:
        ValueError: an expected failure without a reason, or of a promise that does not exist.
    """
    found = {claim.__name__: claim for claim in claims}
    expected = dict(expected_failures or {})
    for name, reason in expected.items():
        if name not in found:
            raise ValueError(f"expected_failures: there is no promise '{name}'; {did_you_mean(name, found)}")
        if not str(reason or "").strip():
            raise ValueError(f"expected_failures: say why '{name}' may fail")
    return [Promise(case, claim, expected.get(name, "")) for name, claim in found.items()]


def check(promises: Iterable[Promise]) -> Report:
    """Run all promises of one component.

    Raises:
        BrokenPromises: once, with every promise that is broken, and every expected failure that no longer fails.
    """
    promises = list(promises)
    component = str(promises[0].case)
    kept, notes, expected = [], {}, {}
    broken: dict[str, list[Promise]] = {}
    first: Exception | None = None
    for promise in promises:
        fault, note = promise.fault()
        if promise.expected_failure and fault is None:
            broken.setdefault(_unexpected(promise), []).append(promise)
        elif promise.expected_failure:
            expected[promise.name] = promise.expected_failure
        elif fault is not None:
            first = first or fault
            broken.setdefault(_explain(fault), []).append(promise)
        else:
            kept.append(promise.name)
        if note:
            notes[promise.name] = note
    if broken:
        raise BrokenPromises(_list(component, broken, len(promises))) from first
    return Report(component, tuple(kept), expected, notes)


def _list(component: str, broken: Mapping[str, list[Promise]], total: int) -> str:
    count = sum(len(names) for names in broken.values())
    lines = [f"{component} breaks {count} of {total} promises:"]
    for fault, which in broken.items():
        lines += [f"  {', '.join(p.name for p in which)}: {fault}"]
        lines += [f"    the promise: {p.claim.__doc__.splitlines()[0]}" for p in which[:1] if p.claim.__doc__]
    return "\n".join(lines)


def _unexpected(promise: Promise) -> str:
    return (
        f"expected to fail ({promise.expected_failure}), but it holds: take '{promise.name}' out of expected_failures"
    )


def _explain(fault: Exception) -> str:
    if isinstance(fault, Broken):
        return str(fault)
    place = traceback.extract_tb(fault.__traceback__)[-1]
    return f"it raised {type(fault).__name__}: {fault} ({place.filename}:{place.lineno}, in {place.name})"


def require(holds: bool, expected: str, found: str, look_at: str) -> None:
    """Raise Broken unless `holds`."""
    if not holds:
        raise Broken(expected, found, look_at)


def require_same(ours: Tensor, reference: Tensor, what: str, look_at: str, tolerance: float = 0.0) -> None:
    """Raise Broken unless two tensors agree: bit by bit, or to `tolerance` of the reference's largest value (or 1)."""
    require(ours.shape == reference.shape, f"{what} of shape {tuple(reference.shape)}", f"{tuple(ours.shape)}", look_at)
    if ours.numel() == 0:
        return
    a, b = ours.detach().double(), reference.detach().double()
    require(bool(a.isfinite().all()), f"{what} without NaN or infinity", "some", look_at)
    bound = tolerance * max(1.0, float(b.abs().max()))
    difference = float((a - b).abs().max())
    require(difference <= bound, f"{what} to {bound:.1g}", f"a difference of {difference:.2g}", look_at)
