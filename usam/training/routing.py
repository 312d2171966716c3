"""What the routers of mixtures do with each task, gathered while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

NAMES = ("router_rows", "router_probs", "router_load", "router_entropy")
UNNAMED = "other"  # samples without a task


class Routing:
    """Means over a window of steps; by-products stay on their device until they are asked for."""

    def __init__(self, state: tuple[list[str], dict[str, list[tuple[Tensor, Tensor]]]] | None = None) -> None:
        self._tasks: list[str] = []  # of all samples
        self._clips: dict[str, list[tuple[Tensor, Tensor]]] = {}  # stage: (sample of each clip, what its router said)
        if state is not None:
            self._tasks, self._clips = state

    @property
    def state(self) -> tuple[list[str], dict[str, list[tuple[Tensor, Tensor]]]]:
        """What was gathered so far, to go on from."""
        return self._tasks, self._clips

    @classmethod
    def joined(cls, states: Iterable[tuple[list[str], dict[str, list[tuple[Tensor, Tensor]]]]]) -> Routing:
        """What several processes gathered, as one."""
        whole = cls()
        for tasks, clips in states:
            for stage, batches in clips.items():
                shifted = [(sample + len(whole._tasks), columns) for sample, columns in batches]
                whole._clips.setdefault(stage, []).extend(shifted)
            whole._tasks += tasks
        return whole

    def add(self, tasks: Sequence[str | None], aux: Mapping[str, Tensor]) -> None:
        """One batch: each sample's task, and the model's by-products; nothing happens where nothing routes."""
        stages = [key.removesuffix(".router_rows") for key in aux if key.endswith(".router_rows")]
        for stage in stages:
            said = [aux[f"{stage}.{name}"].detach().float() for name in NAMES]
            columns = torch.cat([rearrange(value, "clip ... -> clip (...)") for value in said], -1)
            self._clips.setdefault(stage, []).append((aux["sample"] + len(self._tasks), columns))
        if stages:
            self._tasks += [task or UNNAMED for task in tasks]

    def means(self, gather: Callable[[list[Any]], list[Any]] = list) -> dict[str, float]:
        """`router/<task>/expert0`, its mean gate; `.../load0`, its share of choices; `.../entropy`; and starts anew.

        The mean is over routed rows: clips, or frames. With several mixtures the name is `router<stage>`, and
        `router_fusion`. A dense mixture chooses nothing: its loads are its gates, and only these are told.

        Args:
            gather: what each process has, in one list; the means are then those of all processes.
        """
        found = gather([{stage: self._sums(batches) for stage, batches in self._clips.items()}])
        logs: dict[str, float] = {}
        stages = sorted({stage for own in found for stage in own})
        for stage in stages:
            name = "router" if len(stages) == 1 else f"router{stage}" if stage.isdigit() else f"router_{stage}"
            owns = [own[stage] for own in found if stage in own and own[stage][1]]
            if not owns:  # batches without a clip
                continue
            count = (len(next(iter(owns[0][1].values()))) - 2) // 2
            labels = [*(f"expert{e}" for e in range(count)), *(f"load{e}" for e in range(count)), "entropy"]
            told = labels if any(chooses for chooses, _ in owns) else [*labels[:count], labels[-1]]
            for task in sorted({task for _, tasks in owns for task in tasks}):
                rows, *sums = (sum(column) for column in zip(*(t[task] for _, t in owns if task in t), strict=True))
                if rows > 0:
                    means = {label: value / rows for label, value in zip(labels, sums, strict=True)}
                    logs |= {f"{name}/{task}/{label}": means[label] for label in told}
        self._tasks, self._clips = [], {}
        return logs

    def _sums(self, batches: list[tuple[Tensor, Tensor]]) -> tuple[bool, dict[str, list[float]]]:
        """Whether a mixture chooses, and for each task its rows and, weighted by them, the sums of its columns."""
        samples = torch.cat([sample for sample, _ in batches]).tolist()
        columns = torch.cat([columns for _, columns in batches]).double().cpu()
        count = (columns.shape[1] - 2) // 2
        chooses = not torch.equal(columns[:, 1 : count + 1], columns[:, count + 1 : -1])
        weighted = torch.cat([columns[:, :1], columns[:, 1:] * columns[:, :1]], -1)
        tasks = [self._tasks[sample] for sample in samples]
        own = {task: weighted[[i for i, t in enumerate(tasks) if t == task]].sum(0).tolist() for task in set(tasks)}
        return chooses, own
