"""Learning-rate groups: which parameters train at another rate than the run's, or with another weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from usam.component import base_name
from usam.model.assembly import parts, place_of
from usam.model.model import UsamForConditionalGeneration
from usam.registry import did_you_mean
from usam.spec.page import Places, SpecError

OPTIONS = ("learning_rate", "lr_scale", "weight_decay")


@dataclass(frozen=True)
class Group:
    """What the parameters of a group have for themselves; None: what the run says."""

    name: str
    learning_rate: float | None = None
    lr_scale: float = 1.0  # of the run's learning rate
    weight_decay: float | None = None

    def rate(self, base: float) -> float:
        """Its learning rate, beside the run's."""
        return base * self.lr_scale if self.learning_rate is None else self.learning_rate


def check_groups(groups: Any, places: Places) -> None:
    """Compare `groups` of a run file with what it may say.

    Raises:
        SpecError: the key, and what to write instead.
    """
    if not isinstance(groups, Mapping):
        raise SpecError(f"{places.at(('groups',))}expected a map of places or patterns of names, found {groups!r}")
    for name, options in groups.items():
        where = places.at(("groups", name))
        if not isinstance(options, Mapping) or not options:
            raise SpecError(f"{where}expected a map of {', '.join(OPTIONS)}; found {options!r}")
        for key, value in options.items():
            where = places.at(("groups", name, key))
            if key not in OPTIONS:
                raise SpecError(f"{where}no such option of a group; {did_you_mean(str(key), OPTIONS)}")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value < float("inf") or (key == "learning_rate" and value == 0):
                least = "0 or more" if key != "learning_rate" else "more than 0"
                raise SpecError(f"{where}expected a number, {least}; found {value!r}")
        if "learning_rate" in options and "lr_scale" in options:
            raise SpecError(f"{places.at(('groups', name))}learning_rate and lr_scale say the same: write one of them")


def grouped(model: nn.Module, groups: Mapping[str, Mapping[str, Any]]) -> dict[int, Group]:
    """The group of every parameter that trains and is in one, by its identity.

    A name is a place in the spec (`projector`, `encoders.whisper`, `llm`), with all that is in it, or a pattern of
    parameters' names. What no group names and whose component has an `lr_scale` of its own is a group by itself.

    Raises:
        SpecError: a name that fits nothing that trains, or two that fit the same parameter.
    """
    inner = next((m for m in model.modules() if isinstance(m, UsamForConditionalGeneration)), None)
    if inner is None:
        return {}
    named = {prefix: (place_of(prefix), part.config) for prefix, part in parts(inner)}
    head = "llm", inner.config.llm().config
    asked = {name: Group(name, **options) for name, options in groups.items()}
    unused, found = dict.fromkeys(asked), {}
    frozen: set[str] = set()
    known: dict[str, None] = {}
    for name, parameter in inner.named_parameters():
        place, config = next((p for prefix, p in named.items() if name.startswith(prefix)), head)
        hits = [key for key in asked if _fits(key, place, base_name(name))]
        if not parameter.requires_grad:
            frozen.update(hits)
            continue
        known[place] = None
        if len(hits) > 1:
            raise SpecError(f"groups: '{hits[0]}' and '{hits[1]}' both name {name}; write one that leaves it out")
        for hit in hits:
            unused.pop(hit, None)
            found[id(parameter)] = asked[hit]
        if not hits and config.lr_scale != 1:
            found[id(parameter)] = Group(place, lr_scale=float(config.lr_scale))
    for name in unused:
        why = "all that it names is frozen" if name in frozen else "it names no parameter"
        raise SpecError(f"groups.{name}: {why}; what trains stands at {', '.join(known)}, and patterns are of names")
    return found


def _fits(key: str, place: str, name: str) -> bool:
    return place == key or place.startswith(f"{key}.") or fnmatchcase(name, key)


def split(optimizer: torch.optim.Optimizer, found: Mapping[int, Group]) -> None:
    """Split an optimizer's groups by those of a run; what is in none comes first.

    Biases and norms, which the Trainer does not decay, do not decay in any group.
    """
    if not found:
        return
    new: list[dict[str, Any]] = []
    for own in [None, *dict.fromkeys(found.values())]:
        for group in optimizer.param_groups:
            inside = [p for p in group["params"] if found.get(id(p)) == own]
            if not inside:
                continue
            changed = {**group, "params": inside}
            if own is not None:
                changed |= {"group": own.name, "lr": own.rate(group["lr"])}
                if own.weight_decay is not None and group.get("weight_decay"):
                    changed["weight_decay"] = own.weight_decay
            new.append(changed)
    optimizer.param_groups[:] = new


def rates(optimizer: Any) -> dict[str, float]:
    """The learning rate of each group that has a name, as `learning_rate/NAME`."""
    named = [group for group in optimizer.param_groups if "group" in group]
    return {f"learning_rate/{group['group']}": float(group["lr"]) for group in named}
