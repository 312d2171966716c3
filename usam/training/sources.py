"""The sources of a run's rows: the mixture that they make, what it is made of, and how many rows of each were seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from usam.data.manifest import Manifest
from usam.data.mixture import Mixture, mixture
from usam.training.run import Run, sources_of


def mixture_of(run: Run, samples: Manifest) -> Mixture | None:
    """What `data.train` and `data.temperature` make of the rows that are learned from; None: each comes once.

    Raises:
        ManifestError, SpecError: a source has no rows left or would never come; nothing is to be weighed.
    """
    return mixture(sources_of(run, "train"), samples.sources, run.data.get("temperature"))


def made_of(run: Run) -> dict[str, Any]:
    """What a checkpoint records of the sources beside their files: what is not said is not there."""
    said: dict[str, Any] = {}
    for split in ("train", "eval"):
        each = [
            {"weight": entry.weight, "reader": entry.reader, "audio_root": entry.audio_root, "tags": dict(entry.tags)}
            for entry in sources_of(run, split)
        ]
        kept = [{key: value for key, value in one.items() if value not in (None, {})} for one in each]
        if any(kept):
            said[f"{split}_sources"] = kept
    return said


class Seen:
    """Counts the rows that were learned from, by source, over all processes and since the run began.

    Args:
        names: of the sources; one alone is not counted.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = list(names) if len(names) > 1 else []
        self._before = dict.fromkeys(self.names, 0)  # in all processes, until the last checkpoint that was taken up
        self._here: Counter[str] = Counter()  # in this process, since then

    def add(self, sources: Sequence[str]) -> None:
        """One batch of this process: the source of each sample."""
        self._here.update(sources)

    def totals(self, accelerator: Any) -> dict[str, int]:
        """The rows of each source; all processes ask together."""
        if not self.names:
            return {}
        here = torch.tensor([self._here[name] for name in self.names], device=accelerator.device)
        counts = accelerator.reduce(here, "sum").tolist()
        return {name: self._before[name] + count for name, count in zip(self.names, counts, strict=True)}

    def take_up(self, totals: Mapping[str, int]) -> None:
        """Go on from what `totals` gave."""
        self._before = {name: totals.get(name, 0) for name in self.names}
        self._here.clear()
