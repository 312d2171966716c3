"""Projectors turn fused frames into tokens of the language model's width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from usam.clock import N
from usam.component import Component, ComponentConfig, build, build_part, finish, own_dtype
from usam.registry import ComponentError, Registry
from usam.spec.page import SpecError
from usam.spec.spec import Config
from usam.types import Frames, Prompt, Vocabulary, joined, named


class Projector(Component):
    """One stage of the way from frames to tokens.

    Args:
        in_dim: width of the frames that come in.
        prompt_dim: width of the prompt's embeddings.
        out_dim: width of the frames that go out; None leaves the choice to the stage.
    """

    class Config(ComponentConfig):
        """Options every projector has, and the arithmetic of its time."""

        match_embeddings: bool = False
        """Of the last stage: every frame gets one norm, that of the language model's embeddings (their mean) at the
        start, and what is learned from there."""

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """Frames and rate that go out, for `frames` at `rate` coming in; at least 1 for at least 1.

            A rate of 0 says that frames do not follow time: as many go out for any clip.
            """
            return frames, rate

    reads_prompt: bool = False
    """Whether `forward` needs the prompt; of the class, or of one stage by its options."""
    reads_vocabulary: bool = False
    """Whether `forward` takes a third argument, the language model's `Vocabulary`; it is lent for the call."""
    keeps_width: bool = False
    """Of a class whose frames go out as wide as they come in: the stage before it gets the width that it would get."""
    any_dtype: bool = False
    """Whether `forward` takes frames and prompts of any dtype; inside a model they come in that of its weights else."""
    dim: int
    """Width of the frames that go out."""

    def __init__(self, config: Any, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config)

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Project frames (batch, time, in_dim) to (batch, config.length(time), dim); item i hears prompt i.

        One that `reads_vocabulary` takes it as a third argument.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward(frames, prompt)")

    def fixed(self, prompt: Prompt) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Options and tensors of a stage that needs no prompt and does what this one does with it (1, token, dim).

        Raises:
            ComponentError: there is none.
        """
        raise ComponentError(
            f"projector '{self.config.type}' reads the prompt in a way that cannot be fixed for a task"
        )


class Chain(nn.Module):
    """Stages in order; the last one gets the language model's width."""

    def __init__(
        self, configs: Sequence[Any], *, in_dim: int, prompt_dim: int, out_dim: int, seed: int | None = None
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for i, config in enumerate(configs):
            later = [registry.get(c.type).keeps_width for c in configs[i + 1 :]]
            width = out_dim if all(later) else None
            widths = {"in_dim": in_dim, "prompt_dim": prompt_dim, "out_dim": width}
            stage = build_part(f"projector.{i}", registry, config, seed, **widths)
            if config.match_embeddings:
                stage.matched = Matched()
            self.stages.append(stage)
            in_dim = stage.dim

    @property
    def reads_prompt(self) -> bool:
        """Whether any stage needs the prompt."""
        return any(stage.reads_prompt for stage in self.stages)

    @property
    def reads_vocabulary(self) -> bool:
        """Whether any stage needs the vocabulary."""
        return any(stage.reads_vocabulary for stage in self.stages)

    def forward(self, frames: Frames, prompt: Prompt | None = None, vocabulary: Vocabulary | None = None) -> Frames:
        """All stages; `aux` gathers the by-products of each under `<index>.<name>`."""
        aux = [frames.aux]
        for i, stage in enumerate(self.stages):
            frames = self.run(stage, frames, prompt, vocabulary)
            aux.append(named(f"{i}.", frames.aux))
        return Frames(frames.x, frames.mask, frames.rate, joined(*aux))

    def run(self, stage: Any, frames: Frames, prompt: Prompt | None, vocabulary: Vocabulary | None = None) -> Frames:
        """One stage, on frames and a prompt of its own dtype."""
        dtype = None if stage.any_dtype else own_dtype(stage)
        x = frames.x if dtype is None else frames.x.to(dtype)
        read = prompt if dtype is None or prompt is None else Prompt(prompt.x.to(dtype), prompt.mask)
        more = (vocabulary,) if stage.reads_vocabulary else ()
        found: Frames = stage(Frames(x, frames.mask, frames.rate), read, *more)
        matched = getattr(stage, "matched", None)
        return found if matched is None else replace(found, x=matched(found.x))

    @torch.no_grad()
    def match(self, table: nn.Module) -> None:
        """Start the norm of frames that shall match embeddings at the mean norm of a table's."""
        matched: Matched | None = getattr(self.stages[-1], "matched", None)
        if matched is None:
            return
        weight: Any = table.weight
        rows = torch.split(torch.arange(len(weight), device=matched.log_rms.device), ROWS)
        matched.start(torch.cat([table(some).float().norm(dim=-1) for some in rows]).mean(), weight.shape[-1])


ROWS = 8192  # of a token table that are looked at together


class Matched(nn.Module):
    """Frames of one norm, which is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_rms = nn.Parameter(torch.empty(1))  # FSDP2 takes no scalar
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A root mean square of 1, until the embeddings are known."""
        nn.init.zeros_(self.log_rms)

    def start(self, norm: Tensor, dim: int) -> None:
        """Frames of this width get this norm."""
        self.log_rms.copy_(norm.log() - math.log(dim) / 2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same, computed in float32; zeros stay zeros."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (F.rms_norm(wide, wide.shape[-1:], eps=EPS) * self.log_rms.exp()).to(x.dtype)


EPS = 1e-6  # Llama's


registry: Registry[Projector] = Registry(Projector, "usam.projectors")
register = registry.register


def build_projector(
    component: str | Mapping[str, Any] | Config,
    /,
    *,
    in_dim: int,
    prompt_dim: int | None = None,
    out_dim: int | None = None,
    weights: bool = True,
    **options: Any,
) -> Projector:
    """One projector, outside any spec: `build_projector("linear", in_dim=1280, out_dim=4096, stack=5)`.

    `prompt_dim` defaults to `out_dim`, else to `in_dim`.
    """
    cls, config = build("usam.projectors", component, options)
    if config.match_embeddings:
        raise SpecError("match_embeddings: there is no language model outside a spec; leave it out")
    module = cls(config, in_dim=in_dim, prompt_dim=prompt_dim or out_dim or in_dim, out_dim=out_dim)
    projector: Projector = finish(module, config, weights)
    return projector
