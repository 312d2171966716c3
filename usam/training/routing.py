"""What the routers of mixtures do with each task, gathered while training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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

    def means(self) -> dict[str, float]:
        """`router/<task>/expert0`, its mean gate; `.../load0`, its share of choices; `.../entropy`; and starts anew.

        The mean is over routed rows: clips, or frames. With several mixtures the name is `router<stage>`. A dense
        mixture chooses nothing: its loads are its gates, and only these are told.
        """
        logs: dict[str, float] = {}
        for stage, batches in self._clips.items():
            name = "router" if len(self._clips) == 1 else f"router{stage}"
            samples = torch.cat([sample for sample, _ in batches]).tolist()
            columns = torch.cat([columns for _, columns in batches]).double().cpu()
            count = (columns.shape[1] - 2) // 2
            labels = [f"expert{e}" for e in range(count)] + [f"load{e}" for e in range(count)] + ["entropy"]
            if torch.equal(columns[:, 1 : count + 1], columns[:, count + 1 : -1]):
                columns, labels = columns[:, [*range(count + 1), -1]], [*labels[:count], labels[-1]]
            tasks = [self._tasks[sample] for sample in samples]
            for task in sorted(set(tasks)):
                own = columns[[i for i, t in enumerate(tasks) if t == task]]
                rows = own[:, :1]
                if rows.sum() > 0:
                    means = ((own[:, 1:] * rows).sum(0) / rows.sum()).tolist()
                    logs |= {f"{name}/{task}/{label}": mean for label, mean in zip(labels, means, strict=True)}
        self._tasks, self._clips = [], {}
        return logs
