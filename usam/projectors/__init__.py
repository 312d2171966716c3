"""Projectors turn fused frames into tokens of the language model's width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from usam.clock import N
from usam.component import Component, ComponentConfig, build, build_part, finish, own_dtype
from usam.registry import ComponentError, Registry
from usam.spec.spec import Config
from usam.types import Frames, Prompt, joined, named


class Projector(Component):
    """One stage of the way from frames to tokens.

    Args:
        in_dim: width of the frames that come in.
        prompt_dim: width of the prompt's embeddings.
        out_dim: width of the frames that go out; None leaves the choice to the stage.
    """

    class Config(ComponentConfig):
        """Options every projector has, and the arithmetic of its time."""

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """Frames and rate that go out, for `frames` at `rate` coming in; at least 1 for at least 1.

            A rate of 0 says that frames do not follow time: as many go out for any clip.
            """
            return frames, rate

    reads_prompt: bool = False
    """Whether `forward` needs the prompt; of the class, or of one stage by its options."""
    any_dtype: bool = False
    """Whether `forward` takes frames and prompts of any dtype; inside a model they come in that of its weights else."""
    dim: int
    """Width of the frames that go out."""

    def __init__(self, config: Any, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config)

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Project frames (batch, time, in_dim) to (batch, config.length(time), dim); item i hears prompt i."""
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
            width = out_dim if i == len(configs) - 1 else None
            widths = {"in_dim": in_dim, "prompt_dim": prompt_dim, "out_dim": width}
            stage = build_part(f"projector.{i}", registry, config, seed, **widths)
            self.stages.append(stage)
            in_dim = stage.dim

    @property
    def reads_prompt(self) -> bool:
        """Whether any stage needs the prompt."""
        return any(stage.reads_prompt for stage in self.stages)

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """All stages; `aux` gathers the by-products of each under `<index>.<name>`."""
        aux = [frames.aux]
        for i, stage in enumerate(self.stages):
            frames = self.run(stage, frames, prompt)
            aux.append(named(f"{i}.", frames.aux))
        return Frames(frames.x, frames.mask, frames.rate, joined(*aux))

    def run(self, stage: Any, frames: Frames, prompt: Prompt | None) -> Frames:
        """One stage, on frames and a prompt of its own dtype."""
        dtype = None if stage.any_dtype else own_dtype(stage)
        x = frames.x if dtype is None else frames.x.to(dtype)
        read = prompt if dtype is None or prompt is None else Prompt(prompt.x.to(dtype), prompt.mask)
        found: Frames = stage(Frames(x, frames.mask, frames.rate), read)
        return found


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
    module = cls(config, in_dim=in_dim, prompt_dim=prompt_dim or out_dim or in_dim, out_dim=out_dim)
    projector: Projector = finish(module, config, weights)
    return projector
