"""A mixture of encoders that the instruction weighs, after PaM (Shan et al., 2025, arXiv 2502.15178)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from usam.component import Parts, base_name, is_adapter
from usam.fusions import Fusion
from usam.fusions._router import ClipRouter, said
from usam.spec.page import SpecError
from usam.spec.sizes import TOKENS, WIDTH
from usam.types import Audio, Frames, Prompt


class PaM(Fusion):
    """Experts read the encoders' frames on one clock; the prompt's mean says how much each counts, once a clip.

    By-products, one a clip: `router_probs` and `router_load` (clip, expert), which are equal, `router_z` and
    `router_entropy` (clip,), and `router_rows` (clip,); of fixed gates, and of one expert, none.
    """

    reads_prompt = True
    any_dtype = True  # the router reads it in float32

    class Config(Fusion.Config):
        """Options of the mixture."""

        experts: int | None = Field(None, ge=1, le=TOKENS)
        """null: one an encoder, which reads that encoder alone; else so many, which read all of them side by side."""
        dim: int | None = Field(None, ge=1, le=WIDTH)
        """Width of the fused frames; null takes the widest stream's."""
        hidden: int = Field(0, ge=0, le=WIDTH)
        """Width of the experts' hidden layer; 0 for linear experts."""
        layer_norm: bool = True
        """Normalise each stream first, so that gates and not scales say how much an encoder counts."""
        router_hidden: int = Field(256, ge=0, le=WIDTH)
        """Width of the router's hidden layer; 0 for a linear router."""
        normalize_prompt: bool = True
        """Whether the router reads the instruction's mean through a layer norm without parameters."""
        gates: list[Annotated[float, Field(ge=0)]] | None = None
        """Fixed gates, one an expert: there is no router then, and the prompt is not read (`usam export --task`)."""

        @model_validator(mode="after")
        def _fits(self) -> PaM.Config:
            if self.gates is not None and self.experts is not None and len(self.gates) != self.experts:
                raise ValueError(f"{len(self.gates)} gates for {self.experts} experts: write one for each")
            return self

    def __init__(self, config: Config, *, dims: Mapping[str, int], prompt_dim: int) -> None:
        super().__init__(config, dims=dims)
        self.dim = config.dim or max(dims.values())
        self.norms = Parts({n: nn.LayerNorm(dims[n]) for n in self.names} if config.layer_norm else {})
        self.alone = config.experts is None  # each expert reads an encoder alone
        every = sum(dims.values())
        widths = {n: dims[n] for n in self.names} if self.alone else {str(i): every for i in range(config.experts or 0)}
        if config.gates is not None and len(config.gates) != len(widths):
            what = f"encoders ({', '.join(self.names)})" if self.alone else "experts"
            raise SpecError(f"{len(config.gates)} gates for {len(widths)} {what}: write one for each")
        self.experts = Parts({name: self._expert(width) for name, width in widths.items()})
        self.reads_prompt = config.gates is None and len(widths) > 1
        self.gates: Tensor | None
        self.register_buffer("gates", None if self.reads_prompt else torch.empty(len(widths)), persistent=False)
        self.router: ClipRouter | None = None
        if self.reads_prompt:
            self.router = ClipRouter(prompt_dim, len(widths), config.router_hidden, config.normalize_prompt)
        self.reset_parameters()

    def _expert(self, width: int) -> nn.Sequential:
        hidden = self.config.hidden
        first = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
        return nn.Sequential(*first, nn.Linear(hidden or width, self.dim))

    def reset_parameters(self) -> None:
        """The gates that the config fixes."""
        if self.gates is not None:
            with torch.no_grad():
                self.gates.copy_(torch.tensor(self.config.gates or [1.0]))

    def forward(self, streams: Mapping[str, Frames], audio: Audio, prompt: Prompt | None = None) -> Frames:
        """Frames of (clip, time, dim). An empty prompt counts as one of zeros.

        Raises:
            ValueError: the router reads the prompt, and there is none.
        """
        if self.norms:
            streams = {n: Frames(self.norms[n](f.x), f.mask, f.rate) for n, f in streams.items()}
        aligned, mask, rate = self.align(streams, audio)
        reads = aligned if self.alone else [torch.cat(aligned, -1)] * len(self.experts)
        aux: dict[str, Tensor] = {}
        if self.router is None:
            assert self.gates is not None
            gates = self.gates.expand(len(mask), -1)
        elif prompt is None:
            raise ValueError("fusion 'pam' reads the prompt: pass one, or fix its `gates`")
        else:
            gates, z = self.router(prompt.mean())
            aux = said(gates, z, gates, mask)
        x = torch.stack([expert(read) for (_, expert), read in zip(self.experts.parts(), reads, strict=True)], -1)
        fused = (x * gates.to(x.dtype)[:, None, None]).sum(-1)
        return Frames(fused.masked_fill(~mask.unsqueeze(-1), 0), mask, rate, aux)

    def fixed(self, prompt: Prompt) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The mixture with the gates that one prompt gives."""
        assert self.router is not None
        gates, _ = self.router(prompt.mean())
        kept = {name: value for name, value in self.config.to_dict().items() if name != "router_hidden"}
        if isinstance(kept["freeze"], list):  # patterns of names that may be gone
            del kept["freeze"]
        tensors = {base_name(n): t for n, t in self.state_dict().items() if not is_adapter(n)}
        tensors = {n: t for n, t in tensors.items() if not n.startswith("router.")}
        return {**kept, "gates": gates[0].tolist(), "dim": self.dim}, tensors
