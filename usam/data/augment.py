"""What a run does to its clips: each is changed by what its row and the epoch say, whoever reads it and when."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from usam.augmentations import Augmentation, build_augmentation
from usam.processor.audio import AudioError, Waveform


class Augment:
    """Augmentations, one after another, of the clips of training rows.

    What is drawn depends on the seed, the epoch, the row, the clip's place in it and the augmentation's place here:
    not on workers, processes, batches, or where a run was resumed.

    Args:
        steps: in their order.
        seed: the run's.
    """

    def __init__(self, steps: Sequence[Augmentation], seed: int) -> None:
        self.steps = list(steps)
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers are told as well

    @classmethod
    def of(cls, listed: Sequence[Any] | None, seed: int) -> Augment | None:
        """What `data.augment` asks for; None where it lists nothing."""
        return cls([build_augmentation(one) for one in listed], seed) if listed else None

    def set_epoch(self, epoch: int) -> None:
        """Whose choices are made from now on."""
        self._epoch.fill_(epoch)

    def most(self, samples: int) -> int:
        """How long a clip of so many samples may become."""
        for step in self.steps:
            samples = math.ceil(samples * step.stretch)
        return samples

    def __call__(self, clip: Waveform, rate: int, row: str, place: int) -> Waveform:
        """The clip as it is heard in this epoch.

        Args:
            clip: (samples,).
            rate: samples per second.
            row: file:line; of the file its name and its folder's count.
            place: of the clip among those of its row.

        Raises:
            ValueError: an augmentation cannot do its work.
        """
        name = "/".join(Path(row).parts[-2:])  # wherever the data lies, the same is drawn
        for i, step in enumerate(self.steps):
            drawn = generator(self.seed, int(self._epoch), name, place, i)
            if step.config.p < 1 and drawn.random() >= step.config.p:
                continue
            most = math.ceil(len(clip) * step.stretch)
            try:
                clip = step(clip, rate, drawn)
            except AudioError as error:
                raise ValueError(f"data.augment.{i}: {error}") from error
            if not 1 <= len(clip) <= most:
                raise ValueError(
                    f"data.augment.{i}: {type(step).__name__} made {len(clip):,} samples, and 'stretch' allows {most:,}"
                )
        return clip

    def longest(self) -> Longest:
        """Clips as long as they may become, to try what they need."""
        return Longest(self)


class Longest:
    """Silence behind each clip, as if it had been stretched the most."""

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def __call__(self, clip: Waveform, rate: int, row: str, place: int) -> Waveform:
        """The clip, and the silence."""
        return np.pad(clip, (0, self.augment.most(len(clip)) - len(clip)))


def generator(*what: Any) -> np.random.Generator:
    """Random numbers that these words and numbers name."""
    digest = hashlib.sha256("\n".join(map(str, what)).encode("utf-8", "surrogateescape")).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
