"""The objective part by part, and each part by task, gathered while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from usam.training.routing import UNNAMED
from usam.types import IGNORE

Gather = Callable[[list[Any]], list[Any]]
"""What each process has, in one list, the same on all of them."""


class Parts:
    """Unweighted losses over a window of steps, as the objective takes them."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"steps": 0, "sums": {}, "tasks": {}}
        self.steps: int = state["steps"]
        self._sums: dict[str, float] = dict(state["sums"])  # of losses
        self._tasks: dict[str, list[float]] = {key: list(value) for key, value in state["tasks"].items()}

    @property
    def state(self) -> dict[str, Any]:
        """What was gathered so far, to go on from: plain data."""
        return {"steps": self.steps, "sums": self._sums, "tasks": self._tasks}

    @classmethod
    def joined(cls, states: Iterable[Mapping[str, Any]]) -> Parts:
        """What several processes gathered over the same steps, from their states."""
        whole = cls()
        for state in states:
            whole.steps = max(whole.steps, state["steps"])
            for name, value in state["sums"].items():
                whole._sums[name] = whole._sums.get(name, 0.0) + value
            for key, pair in state["tasks"].items():
                before = whole._tasks.get(key, [0.0, 0.0])
                whole._tasks[key] = [a + b for a, b in zip(before, pair, strict=True)]
        return whole

    def add(self, name: str, value: float, share: float) -> None:
        """The value of a loss for a micro-batch, and the micro-batch's share of its step."""
        self._sums[name] = self._sums.get(name, 0.0) + value * share

    def add_tokens(self, name: str, tokens: Tensor, labels: Tensor, tasks: Sequence[str | None]) -> None:
        """The value of a loss at each supervised token of (batch, length) labels, and the task of each sample."""
        for task, sample in zip(tasks, by_sample(tokens, labels).tolist(), strict=True):
            total = self._tasks.setdefault(f"{name}/{task or UNNAMED}", [0.0, 0.0])
            total[0] += sample[0]
            total[1] += sample[1]

    def means(self, gather: Gather = list) -> dict[str, float]:
        """`loss_NAME`, the mean over steps, and `loss_NAME/<task>`, over the task's tokens; and starts anew.

        The parts of a step are those of the objective: micro-batches of all processes, each by its share of the step's
        supervised tokens. Where no sample has a task, there is nothing to say of tasks.
        """
        found = gather([self.state])
        logs: dict[str, float] = {}
        for name in dict.fromkeys(name for state in found for name in state["sums"]):
            logs[f"loss_{name}"] = sum(state["sums"].get(name, 0.0) for state in found) / max(self.steps, 1)
        keys = sorted({key for state in found for key in state["tasks"]})
        if any(not key.endswith(f"/{UNNAMED}") for key in keys):
            for key in keys:
                pairs = [state["tasks"][key] for state in found if key in state["tasks"]]
                logs[f"loss_{key}"] = sum(total for total, _ in pairs) / sum(count for _, count in pairs)
        self.__init__()  # type: ignore[misc]
        return logs


def by_sample(tokens: Tensor, labels: Tensor) -> Tensor:
    """(batch, 2): the sum over a sample's supervised tokens, and their number.

    Args:
        tokens: (token,), a value for each supervised token, sample by sample.
        labels: (batch, length).
    """
    owners = (labels[:, 1:] != IGNORE).nonzero()[:, 0]
    pairs = torch.stack([tokens.float(), torch.ones_like(tokens, dtype=torch.float32)], -1)
    return pairs.new_zeros(len(labels), 2).index_add_(0, owners, pairs)
