"""A Q-Former on windows of frames (Tang et al., 2024, SALMONN, section 3.1; U-SAM, eq. 2)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from usam.clock import N, ceil_div, whole_frames
from usam.projectors import Projector
from usam.projectors._qformer import QFormer
from usam.registry import ComponentError
from usam.spec.sizes import HEADS, LAYERS, SECONDS, TOKENS, WIDTH
from usam.types import Frames, Prompt, prefix_mask
from usam.weights import read

OVERLAP = 64  # windows that a frame is in at most: each holds a copy of it
WAVES = 32  # of which positions are made: enough to tell 33 frames of a window apart in any way


class WindowQFormer(Projector):
    """Learned queries read each window of frames by cross-attention; window after window, query after query.

    A window begins every `stride` seconds for as long as the clip lasts, and sees the clip's own frames
    only: nothing is dropped at its end, and a clip of one frame has a window.
    """

    random = ("map.*", "positions.*")

    class Config(Projector.Config):
        """Options of the window Q-Former."""

        window: float = Field(0.68, gt=0, le=SECONDS)
        """Seconds that the queries see at once: rounded to whole frames, half a frame up, at least one."""
        stride: float | None = Field(None, gt=0, le=SECONDS)
        """Seconds from one window to the next, rounded like `window`; null takes the window, smaller ones overlap."""
        queries: int = Field(1, ge=1, le=TOKENS)
        """Learned queries, each of which makes one token of each window."""
        layers: int = Field(2, ge=1, le=LAYERS)
        """Transformer layers."""
        dim: int = Field(768, ge=1, le=WIDTH)
        """Width of the queries, and of the output where the next stage leaves the choice."""
        heads: int = Field(12, ge=1, le=HEADS)
        """Attention heads; no checkpoint tells how many it was trained with."""
        intermediate: int | None = Field(None, ge=1, le=WIDTH)
        """Width of the hidden layer that ends a transformer layer; null takes 4 * dim."""
        cross_attention_frequency: int = Field(1, ge=1)
        """The queries read the frames in every so many layers, the first included (BLIP-2: 2)."""
        dropout: float = Field(0.1, ge=0, lt=1)
        """Dropout in training, on what each map gives and on attention's shares."""
        positions: bool = False
        """Add learned positions to a window's frames; without them their order is not seen."""
        path: str | None = None
        """File, folder or hub id of a Q-Former: of U-SAM, SALMONN, BLIP-2, InstructBLIP or Granite Speech."""
        revision: str | None = None
        """Revision of the hub repository."""

        @model_validator(mode="after")
        def _consistent(self) -> WindowQFormer.Config:
            if self.stride is not None and self.stride > self.window:
                raise ValueError(
                    f"a stride of {self.stride:g} s with a window of {self.window:g} s would skip frames: "
                    f"write a stride of at most {self.window:g}"
                )
            if self.stride is not None and self.window > OVERLAP * self.stride:
                raise ValueError(
                    f"with a stride of {self.stride:g} s and a window of {self.window:g} s a frame would be read more "
                    f"than {OVERLAP} times; write a stride of at least {self.window / OVERLAP:g}"
                )
            if self.dim % self.heads:
                raise ValueError(f"{self.heads} heads do not divide a dim of {self.dim}")
            return self

        def whole(self, rate: float) -> tuple[int, int]:
            """Frames of a window, and from one to the next, at `rate` per second."""
            return whole_frames(self.window, rate), whole_frames(self.stride or self.window, rate)

        def length(self, frames: N, rate: float) -> tuple[N, float]:
            """As many frames as queries for each window, of which one begins every `stride` while the clip lasts."""
            _, stride = self.whole(rate)
            return ceil_div(frames, stride) * self.queries, rate * self.queries / stride

    def __init__(self, config: Config, *, in_dim: int, prompt_dim: int, out_dim: int | None = None) -> None:
        super().__init__(config, in_dim=in_dim, prompt_dim=prompt_dim, out_dim=out_dim)
        self.dim = out_dim or config.dim
        self.positions = Positions(in_dim) if config.positions else None
        self.qformer = QFormer(
            in_dim=in_dim,
            dim=config.dim,
            queries=config.queries,
            layers=config.layers,
            heads=config.heads,
            intermediate=self._option("intermediate"),
            cross_attention_frequency=config.cross_attention_frequency,
            dropout=config.dropout,
        )
        self.map = nn.Linear(config.dim, out_dim) if out_dim else nn.Identity()

    def pretrained(self) -> dict[str, Tensor]:
        """A checkpoint's Q-Former, and its map to a language model if both have one.

        Raises:
            ComponentError: it holds no Q-Former, or one of other options.
        """
        source = self.source()
        if source is None:
            return {}
        tensors = own_names(read(source, nested="model"), source.path)
        wrong = [f"{key}: {value}" for key, value in options_of(tensors).items() if value != self._option(key)]
        if wrong:
            raise ComponentError(f"{source.path}: its Q-Former is of other options: write `{', '.join(wrong)}`")
        unused = ["cross_attention.key.bias", "self_attention.key.bias"]  # as Attention says
        if self.config.queries == 1:
            unused += ["self_attention.query.", "self_attention.key."]  # as Alone says
        if isinstance(self.map, nn.Identity):
            unused.append("map.")
        return {name: tensor for name, tensor in tensors.items() if not any(part in name for part in unused)}

    def _option(self, name: str) -> int:
        """An option as it comes out: with its default, and no frequency beyond the number of layers."""
        config = self.config
        if name == "intermediate":
            return int(config.intermediate or 4 * config.dim)
        if name == "cross_attention_frequency":
            return int(min(config.cross_attention_frequency, config.layers))
        return int(getattr(config, name))

    def forward(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Frames of (batch, windows * queries, dim)."""
        size, stride = self.config.whole(frames.rate)
        count = ceil_div(frames.x.shape[1], stride)
        behind = (count - 1) * stride + size - frames.x.shape[1]
        x = pad(frames.x.masked_fill(~frames.mask.unsqueeze(-1), 0), (0, 0, 0, behind))
        x = rearrange(x.unfold(1, size, stride), "b w d t -> (b w) t d")
        if self.positions is not None:
            x = x + self.positions(size)
        mask = rearrange(pad(frames.mask, (0, behind)).unfold(1, size, stride), "b w t -> (b w) t")
        x = rearrange(self.map(self.qformer(x, mask)), "(b w) q d -> b (w q) d", w=count)
        lengths, rate = self.config.length(frames.lengths, frames.rate)
        own = prefix_mask(lengths, x.shape[1])
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, rate)


class Positions(nn.Module):
    """A vector for each frame of a window, as a sum of learned waves over it, so that windows of any rate fit."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(WAVES, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No positions, until some are learned."""
        nn.init.zeros_(self.weight)

    def forward(self, size: int) -> Tensor:
        """(size, dim)."""
        time = (torch.arange(size, device=self.weight.device) + 0.5) / size
        wave = torch.arange(1, WAVES + 1, device=self.weight.device)
        return torch.cos(torch.pi * time.unsqueeze(-1) * wave).to(self.weight.dtype) @ self.weight


# How checkpoints call their queries, and the map to a language model that stands beside them.
BESIDE = {
    "speech_query_tokens": ["speech_llama_proj"],  # U-SAM, which has no such map, and SALMONN
    "query_tokens": ["language_projection", "opt_proj", "t5_proj", "llm_proj", "llama_proj"],  # BLIP-2, InstructBLIP
    "query": ["linear"],  # Granite Speech
}
NORMS = ("embeddings.LayerNorm", "embeddings.layernorm", "layernorm")
PARTS = {
    "attention.output.dense": "self_attention.out",
    "attention.output.LayerNorm": "self_norm",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_norm",
    "intermediate_query.dense": "up",
    "output_query.dense": "down",
    "output_query.LayerNorm": "norm",
}
for theirs, ours in {"attention": "self_attention", "crossattention": "cross_attention"}.items():
    for inner in ("self", "attention"):  # the original's name, and that of transformers
        PARTS |= {f"{theirs}.{inner}.{part}": f"{ours}.{part}" for part in ("query", "key", "value")}

# What a Q-Former has for text, which is not read here.
OF_TEXT = re.compile(r"embeddings\.|pooler\.|encoder\.layer\.\d+\.(intermediate|output)\.")
NETWORK = re.compile(r"(.*?)encoder\.layer\.\d+\.(?:intermediate|output)_query\.")  # names only a Q-Former has
LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")


def own_names(tensors: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """A checkpoint's Q-Former, its queries and their map under the names they have here.

    Raises:
        ComponentError: there is no Q-Former in it, or more than one.
    """
    networks = sorted({found[1] for found in map(NETWORK.match, tensors) if found})
    if len(networks) != 1:
        some = ", ".join(networks or list(tensors)[:3])
        raise ComponentError(f"{path}: one Q-Former was expected, found {len(networks)}; names look like {some}")
    (network,) = networks
    found = dict(_beside(network, tensors))
    for name, tensor in tensors.items():
        part = name.removeprefix(network)
        if name.startswith(network) and (ours := _own_name(part)) is not None:
            found[f"qformer.{ours}"] = tensor
    return found


def _beside(network: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The queries and their map, which stand beside the network or beside what holds it."""
    holders = network.split(".")
    for depth in reversed(range(len(holders))):
        holder = "".join(f"{part}." for part in holders[:depth])
        for query, maps in BESIDE.items():
            if holder + query in tensors:
                yield "qformer.query", tensors[holder + query].flatten(0, -2)
                names = [(f"{holder}{m}.{kind}", f"map.{kind}") for m in maps for kind in ("weight", "bias")]
                yield from ((ours, tensors[theirs]) for theirs, ours in names if theirs in tensors)
                return


def _own_name(part: str) -> str | None:
    """The name here of a part of the network; None for what text alone needs; itself if it is unknown."""
    module, _, kind = part.rpartition(".")
    if module in NORMS:
        return f"norm.{kind}"
    if OF_TEXT.match(part):
        return None
    layer = LAYER.fullmatch(part)
    return f"layers.{layer[1]}.{PARTS[layer[2]]}.{layer[3]}" if layer and layer[2] in PARTS else part


def options_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The options that shapes and names tell, as far as they do."""
    names = [name.split(".") for name in tensors if name.startswith("qformer.layers.")]
    layers = 1 + max(int(name[2]) for name in names)
    reads = sorted({int(name[2]) for name in names if name[3] == "cross_attention"})
    found = {"layers": layers, "cross_attention_frequency": (reads[1:] or [layers])[0]}
    if (query := tensors.get("qformer.query")) is not None:
        found |= {"queries": query.shape[0], "dim": query.shape[1]}
    if (up := tensors.get("qformer.layers.0.up.weight")) is not None:
        found["intermediate"] = up.shape[0]
    return found
