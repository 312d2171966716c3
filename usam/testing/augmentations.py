"""What an augmentation promises: a waveform of bounded length, drawn from the generator that it is given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from usam.processor.audio import Waveform
from usam.spec.spec import Config
from usam.testing.every import Named
from usam.testing.promises import Claim, Promise, Report, check, promises, require

RATES = (16000, 24000)
SIZES = (1, 2, 3, 161, 8000, 15999)


def check_augmentation(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> Report:
    """Run every promise of an augmentation: `check_augmentation("speed", factors=[0.9, 1.1])`.

    Raises:
        BrokenPromises: once, with every promise that is broken.
        SpecError, ComponentError: the component's name or options are wrong.
    """
    return check(augmentation_promises(component, expected_failures=expected_failures, **options))


def augmentation_promises(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    expected_failures: Mapping[str, str] | None = None,
    **options: Any,
) -> list[Promise]:
    """The same promises one by one, each to be called; nothing is built before."""
    return promises(AugmentationCase(component, options), CLAIMS, expected_failures)


@dataclass(frozen=True)
class AugmentationCase(Named):
    """An augmentation, and clips for it."""

    group = "usam.augmentations"

    def build(self) -> Any:
        """The augmentation."""
        cls, config = self._named
        return cls(config)

    def clips(self) -> Iterator[Waveform]:
        """Noise of many lengths, at full scale and far below, and silence."""
        for size in SIZES:
            noise = draw(size).uniform(-1, 1, size).astype(np.float32)
            yield from (noise, noise * np.float32(1e-3), np.zeros_like(noise))


def draw(seed: int) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


def gives_a_waveform(case: AugmentationCase) -> None:
    """Of a clip of any length it makes one of float32 within full scale, no longer than `stretch` says.

    Else a batch has more sound than its budget allows, or an encoder hears what no file can hold.
    """
    step = case.build()
    require(step.stretch >= 1, "a 'stretch' of 1 or more", f"{step.stretch}", "stretch")
    for rate in RATES:
        for seed, clip in enumerate(case.clips()):
            found = step(clip, rate, draw(seed))
            what = f"of {len(clip)} samples at {rate} Hz"
            kind = f"{found.dtype} {found.shape}"
            require(found.dtype == np.float32 and found.ndim == 1, "float32 (samples,)", kind, "__call__")
            most = math.ceil(len(clip) * step.stretch)
            require(1 <= len(found) <= most, f"1 to {most} samples {what}", f"{len(found)}", "stretch")
            require(bool(np.isfinite(found).all()), f"finite samples {what}", "others", "__call__")
            peak = float(np.abs(found).max())
            require(peak <= 1, f"a peak of at most 1 {what}", f"{peak}", "what becomes louder")


def draws_from_its_generator_alone(case: AugmentationCase) -> None:
    """Equal generators give equal clips, whatever else was drawn, and whoever built the augmentation.

    Else a resumed run, or one with other workers, learns from other clips.
    """
    for seed, clip in enumerate(case.clips()):
        np.random.seed(seed)
        first = case.build()(clip, RATES[0], draw(seed))
        np.random.seed(seed + 1)
        second = case.build()(clip, RATES[0], draw(seed))
        require(np.array_equal(first, second), "the same clip", "another", "where random numbers come from")


def leaves_its_clip_alone(case: AugmentationCase) -> None:
    """The clip that it is given stays as it is.

    Else clips that several rows share change more with every epoch.
    """
    step = case.build()
    for seed, clip in enumerate(case.clips()):
        before = clip.copy()
        step(clip, RATES[0], draw(seed))[:] = 0
        require(np.array_equal(before, clip), "an unchanged clip", "a changed one", "what is written in place")


def changes_what_is_heard(case: AugmentationCase) -> None:
    """Of twenty draws one at least is another sound.

    Else an option that was accepted does nothing.
    """
    step, clip = case.build(), (draw(0).uniform(-0.5, 0.5, 16000)).astype(np.float32)
    found = [step(clip, RATES[0], draw(seed)) for seed in range(20)]
    same = all(np.array_equal(one, clip) for one in found)
    require(not same, "another sound", "the same twenty times", "options that leave nothing to do")


CLAIMS: list[Claim] = [
    gives_a_waveform,
    draws_from_its_generator_alone,
    leaves_its_clip_alone,
    changes_what_is_heard,
]
