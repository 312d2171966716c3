"""BEATs (Chen et al., 2022), self-supervised or fine-tuned, on audio of any length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from usam.clock import N
from usam.encoders import Encoder
from usam.encoders._kaldi import FRAME, HOP, KaldiFbank, fbank_frames
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._windows import in_windows
from usam.parts import of_saved
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.sizes import SECONDS
from usam.types import Frames, prefix_mask
from usam.weights import locate, read, read_config, read_entry

RATE = 16000
BINS, PATCH = 128, 16
BANDS = BINS // PATCH  # patches of one step, low frequencies first
STEP = PATCH * HOP  # samples from one step to the next: 0.16 s
FIELD = FRAME + (PATCH - 1) * HOP  # samples that one step sees
MEAN, SPREAD = 15.41663, 2 * 6.55582  # of the log-mel values in the original's training

# What a checkpoint's `cfg` says of the classifier and of the recipe, which the features do not depend on.
OF_NO_USE = {"finetuned_model", "predictor_dropout", "predictor_class", "layer_wise_gradient_decay_ratio"}


class Beats(Encoder):
    """A clip's log-mel spectrogram is cut into patches of 0.16 s by 16 bins: eight tokens a step, one for
    each band. Long audio is encoded in windows of `chunk` seconds. The features are the original's, except in
    a batch: there the original takes some of a shorter clip's padding for sound.
    """

    class Config(Encoder.Config):
        """Options of the BEATs encoder."""

        path: str | None = None
        """File, or folder with one file, as the authors publish it: `{cfg, model}`; or hub id. A folder that usam saved
        gives its encoder of this type."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """Options as in a checkpoint's `cfg`; null reads them from `path`."""
        bands: Literal["flatten", "mean", "concat"] = "flatten"
        """The eight bands of a step: tokens of their own (50 a second), their mean, or side by side (6.25 a second)."""
        layers: Layers = "last"
        """The last layer; a learned mix of all, which trains even when the rest is frozen; or some, concatenated."""
        chunk: float = Field(30.72, gt=0, le=SECONDS)
        """Seconds that attention spans: a multiple of 0.16."""
        windows_at_once: int = Field(4, ge=1)
        """Windows of a long clip encoded together: bounds the memory."""
        attn_implementation: Literal["sdpa", "eager"] = "sdpa"
        """Attention of PyTorch, or written out."""

        @field_validator("arch")
        @classmethod
        def _complete(cls, arch: dict[str, Any] | None) -> dict[str, Any] | None:
            return None if arch is None else arch_of({key: arch[key] for key in arch.keys() - OF_NO_USE})

        @field_validator("chunk")
        @classmethod
        def _whole_steps(cls, chunk: float) -> float:
            steps = max(1, round(chunk * RATE / STEP))
            if not math.isclose(chunk * RATE, steps * STEP):
                raise ValueError(f"{chunk:g} is no multiple of 0.16; write {steps * STEP / RATE:g}")
            return chunk

        @property
        def sample_rate(self) -> int:
            """16 kHz."""
            return RATE

        @property
        def rate(self) -> float:
            """6.25 steps per second, of eight tokens each when flattened."""
            return RATE / STEP * (BANDS if self.bands == "flatten" else 1)

        def length(self, samples: N) -> N:
            """Whole patches only: nothing below 2800 samples, then a step for every 2560 more."""
            return fbank_frames(samples) // PATCH * (BANDS if self.bands == "flatten" else 1)

        def resolved(self) -> Beats.Config:
            """The same config with its architecture filled in."""
            if self.arch is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("beats needs 'path' (weights) or 'arch' (a checkpoint's cfg)")
            return self.model_copy(update={"arch": read_arch(self.path, self.revision)})

    random = LayerMix.random

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        arch = Arch(**self.config.arch)
        self.window = round(config.chunk * RATE / STEP)
        self.fbank = Fbank()
        self.beats = Network(arch, config.attn_implementation)
        self.mix = LayerMix(config.layers, arch.encoder_layers + 1, arch.encoder_embed_dim)
        self.dim = self.mix.dim * (BANDS if config.bands == "concat" else 1)

    def pretrained(self) -> dict[str, Tensor]:
        """A checkpoint's tensors without its classifier."""
        source = self.source()
        return own_names(read(source, nested="model")) if source else {}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, length(samples), dim)."""
        size = self.config.length(audio.shape[1])
        steps = max(1, fbank_frames(audio.shape[1]) // PATCH)
        whole = slice(steps * STEP + FIELD - STEP)  # a step begun would be another window
        x = in_windows(
            audio.masked_fill(~mask, 0)[:, whole],
            mask[:, whole],
            self._encode,
            frames=min(self.window, steps),
            hop=STEP,
            field=FIELD,
            at_once=self.config.windows_at_once,
        )[:, :size]
        own = prefix_mask(self.config.length(mask.sum(-1)), size)
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, self.config.rate)

    def _encode(self, windows: Tensor, mask: Tensor) -> Tensor:
        fbank = self.fbank(windows)
        own = prefix_mask(fbank_frames(mask.sum(-1)) // PATCH * BANDS, fbank.shape[1] // PATCH * BANDS)
        x = self.beats(fbank.to(self.beats.patch_embedding.weight.dtype), own, self.mix)
        if self.config.bands == "mean":
            x = reduce(x, "b (t f) d -> b t d", "mean", f=BANDS)
        if self.config.bands == "concat":
            x = rearrange(x, "b (t f) d -> b t (f d)", f=BANDS)
        return cast(Tensor, x)


class Arch(BaseModel):
    """What of a checkpoint's `cfg` the features depend on; what a cfg leaves out is as in the original."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_patch_size: Literal[16] = 16
    embed_dim: int = Field(512, ge=1)
    conv_bias: bool = False
    encoder_layers: int = Field(12, ge=1)
    encoder_embed_dim: int = Field(768, ge=1)
    encoder_ffn_embed_dim: int = Field(3072, ge=1)
    encoder_attention_heads: int = Field(12, ge=1)
    activation_fn: Literal["relu", "gelu", "gelu_fast", "gelu_accurate", "tanh", "linear", "glu"] = "gelu"
    layer_norm_first: bool = False
    deep_norm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    dropout_input: float = 0.0
    conv_pos: int = Field(128, ge=1)
    conv_pos_groups: int = Field(16, ge=1)
    relative_position_embedding: bool = False
    num_buckets: int = Field(320, ge=4)
    max_distance: int = Field(1280, ge=1)
    gru_rel_pos: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Arch:
        for part in ("encoder_attention_heads", "conv_pos_groups"):
            if self.encoder_embed_dim % getattr(self, part):
                raise ValueError(f"{part} {getattr(self, part)} does not divide {self.encoder_embed_dim}")
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm is for layers that norm last, and layer_norm_first says otherwise")
        return self


class Fbank(KaldiFbank):
    """Kaldi's filter bank of 128 bins on the scale of the original's training."""

    def __init__(self) -> None:
        super().__init__(BINS, "povey", scale=2.0**15)

    def forward(self, audio: Tensor) -> Tensor:
        """(batch, samples) at 16 kHz -> (batch, fbank_frames(samples), 128)."""
        return (super().forward(audio) - MEAN) / SPREAD


class Network(nn.Module):
    """Patches of a log-mel spectrogram through a transformer."""

    def __init__(self, arch: Arch, attention: str) -> None:
        super().__init__()
        dim = arch.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, arch.embed_dim, PATCH, PATCH, bias=arch.conv_bias)
        self.layer_norm = nn.LayerNorm(arch.embed_dim)
        self.post_extract_proj = nn.Linear(arch.embed_dim, dim) if arch.embed_dim != dim else nn.Identity()
        self.dropout_input = nn.Dropout(arch.dropout_input)
        self.encoder = Transformer(arch, attention)

    def forward(self, fbank: Tensor, own: Tensor, mix: LayerMix) -> Tensor:
        """(batch, frame, bin), and which tokens are own, to (batch, token, dim): step by step, band by band."""
        x = self.patch_embedding(rearrange(fbank, "b t f -> b 1 t f"))
        x = self.layer_norm(rearrange(x, "b d t f -> b (t f) d"))
        x = self.dropout_input(self.post_extract_proj(x))
        return cast(Tensor, self.encoder(x, own, mix))


class Transformer(nn.Module):
    """Positions by convolution, then layers that share one table of relative positions."""

    def __init__(self, arch: Arch, attention: str) -> None:
        super().__init__()
        self.norm_first = arch.layer_norm_first
        self.layerdrop = arch.encoder_layerdrop
        self.pos_conv = PositionConv(arch.encoder_embed_dim, arch.conv_pos, arch.conv_pos_groups)
        self.relative_position = RelativePosition(arch) if arch.relative_position_embedding else None
        self.layers = nn.ModuleList(Layer(arch, attention) for _ in range(arch.encoder_layers))
        self.layer_norm = nn.LayerNorm(arch.encoder_embed_dim)
        self.dropout = nn.Dropout(arch.dropout)

    def forward(self, x: Tensor, own: Tensor, mix: LayerMix) -> Tensor:
        """What `mix` makes of the hidden states."""
        return cast(Tensor, mix(self._states(x, own)))

    def _states(self, x: Tensor, own: Tensor) -> Iterator[Tensor]:
        x = x.masked_fill(~own.unsqueeze(-1), 0)
        x = x + self.pos_conv(x)
        x = self.dropout(x if self.norm_first else self.layer_norm(x))
        yield x
        bias = x.new_zeros(1, 1, 1) if self.relative_position is None else self.relative_position(x.shape[1])
        for layer in self.layers[:-1]:
            x = self._unless_dropped(x, layer(x, bias, own))
            yield x
        x = self._unless_dropped(x, self.layers[-1](x, bias, own))
        yield self.layer_norm(x) if self.norm_first else x

    def _unless_dropped(self, before: Tensor, after: Tensor) -> Tensor:
        """LayerDrop, but a dropped layer still gets gradients (of zero): processes that train together must agree."""
        if not self.training or self.layerdrop == 0:
            return after
        return torch.where(torch.rand((), device=after.device) < self.layerdrop, before, after)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_fast": partial(nn.GELU, "tanh"),
    "gelu_accurate": partial(nn.GELU, "tanh"),
    "tanh": nn.Tanh,
    "linear": nn.Identity,
    "glu": nn.Identity,  # the gate is inside the linear layer
}


class Layer(GradientCheckpointingLayer):
    """A transformer layer that norms first, or last with DeepNorm's residual (Wang et al., 2022)."""

    def __init__(self, arch: Arch, attention: str) -> None:
        super().__init__()
        dim, hidden = arch.encoder_embed_dim, arch.encoder_ffn_embed_dim
        self.norm_first = arch.layer_norm_first
        self.alpha = (2 * arch.encoder_layers) ** 0.25 if arch.deep_norm else 1.0
        self.self_attn = Attention(arch, attention)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = SwishGate(dim, hidden) if arch.activation_fn == "glu" else nn.Linear(dim, hidden)
        self.activation = ACTIVATIONS[arch.activation_fn]()
        self.fc2 = nn.Linear(hidden, dim)
        self.final_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(arch.dropout)
        self.activation_dropout = nn.Dropout(arch.activation_dropout)

    def forward(self, x: Tensor, bias: Tensor, own: Tensor) -> Tensor:
        """(batch, token, dim) to the same; `bias` is (head, token, token)."""
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), bias, own))
            return x + self._feed_forward(self.final_layer_norm(x))
        x = self.self_attn_layer_norm(x * self.alpha + self.dropout(self.self_attn(x, bias, own)))
        return cast(Tensor, self.final_layer_norm(x * self.alpha + self._feed_forward(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.dropout(self.fc2(self.activation_dropout(self.activation(self.fc1(x))))))


class Attention(nn.Module):
    """Self-attention where each query scales the bias of its relative positions (gru_rel_pos)."""

    def __init__(self, arch: Arch, implementation: str) -> None:
        super().__init__()
        dim = arch.encoder_embed_dim
        self.heads = arch.encoder_attention_heads
        self.implementation = implementation
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(arch.attention_dropout)
        self.gated = arch.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(dim // self.heads, 8)
            self.grep_a = nn.Parameter(torch.empty(1, self.heads, 1, 1))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head's gate at one."""
        if self.gated:
            nn.init.ones_(self.grep_a)

    def forward(self, x: Tensor, bias: Tensor, own: Tensor) -> Tensor:
        """(batch, token, dim) to the same; tokens that are not a clip's own are not attended to."""
        q, k, v = (
            rearrange(proj(x), "b t (h d) -> b h t d", h=self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.gated:
            bias = self._gate(q) * bias
        # Not minus infinity: the softmax of a clip without a single token would be NaN.
        mask = torch.where(own[:, None, None], bias.to(q.dtype), torch.finfo(q.dtype).min)
        attend = eager_attention if self.implementation == "eager" else F.scaled_dot_product_attention
        x = attend(q, k, v, attn_mask=mask, dropout_p=self.dropout.p if self.training else 0.0)
        return cast(Tensor, self.out_proj(rearrange(x, "b h t d -> b t (h d)")))

    def _gate(self, q: Tensor) -> Tensor:
        """How much of the bias each query takes: (batch, head, query, 1)."""
        sums = reduce(self.grep_linear(q), "b h t (gate four) -> b h t gate", "sum", four=4)
        update, reset = sums.sigmoid().split(1, -1)
        return cast(Tensor, update * (reset * self.grep_a - 1) + 2)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
    """Softmax attention with an additive mask, written out."""
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5 + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p).to(v.dtype) @ v


class RelativePosition(nn.Module):
    """A bias for each head and distance, in buckets that widen with the distance (Raffel et al., 2020)."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.max_distance = arch.max_distance
        self.weight = nn.Parameter(torch.empty(arch.num_buckets, arch.encoder_attention_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random biases."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, size: int) -> Tensor:
        """The bias of every query and key: (head, query, key)."""
        distance = torch.arange(1 - size, size, device=self.weight.device)  # from query to key
        bias = rearrange(F.embedding(self.bucket(distance), self.weight), "n h -> h n")
        return bias.unfold(1, size, 1).flip(1)  # the last query's distances begin at 1 - size, the first's at 0

    def bucket(self, distance: Tensor) -> Tensor:
        """Half of the buckets for each direction; of these, half hold one distance each, the rest grow by a factor."""
        half = len(self.weight) // 2
        exact = half // 2
        steps = distance.abs()
        grown = (steps.clamp_min(exact).float() / exact).log() / math.log(self.max_distance / exact) * (half - exact)
        bucket = torch.where(steps < exact, steps, (exact + grown.long()).clamp_max(half - 1))
        return bucket + (distance > 0) * half


class PositionConv(nn.Module):
    """Positions by a grouped convolution. Its weight is normed over all channels at each tap and kept as
    the norm `g` and the direction `v`.
    """

    def __init__(self, dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight_g = nn.Parameter(torch.empty(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.empty(dim, dim // groups, kernel))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the original starts: the spread keeps the input's scale."""
        dim, _, kernel = self.weight_v.shape
        nn.init.normal_(self.weight_v, std=(4 / (kernel * dim)) ** 0.5)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight_g.copy_(self._norm())

    def _norm(self) -> Tensor:
        norm = torch.linalg.vector_norm(self.weight_v, dim=(0, 1), keepdim=True, dtype=torch.float32)
        return cast(Tensor, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, dim) to the same."""
        weight = (self.weight_v * (self.weight_g / self._norm())).to(self.weight_v.dtype)
        taps = weight.shape[-1]
        y = F.conv1d(rearrange(x, "b t d -> b d t"), weight, self.bias, padding=taps // 2, groups=self.groups)
        y = F.gelu(y[..., : x.shape[1]])  # an even number of taps gives one token too many
        return rearrange(y, "b d t -> b t d")


class SwishGate(nn.Module):
    """A linear layer gated by the swish of another (activation_fn `glu`)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., hidden)."""
        value, gate = self.linear(x).chunk(2, -1)
        return cast(Tensor, value * F.silu(gate))


def arch_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A cfg, checked and completed.

    Raises:
        ValueError: lists options that are unknown or wrong.
    """
    try:
        return Arch(**cfg).model_dump()
    except ValidationError as error:
        raise ValueError("; ".join(" ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors())) from error


def read_arch(path: str, revision: str | None) -> dict[str, Any]:
    """The `cfg` in a PyTorch checkpoint, or the config.json beside safetensors.

    Raises:
        ComponentError: there is none, or it is not one of BEATs.
    """
    source = locate(path, revision)
    flat = source.files[0].suffix == ".safetensors"
    cfg = read_config(path, revision) if flat else read_entry(source, "cfg")
    if not isinstance(cfg, dict) or not cfg.keys() & Arch.model_fields.keys():
        raise ComponentError(f"{path}: its cfg is not one of BEATs")
    try:
        return arch_of({key: value for key, value in cfg.items() if key in Arch.model_fields})
    except ValueError as error:
        raise ComponentError(f"{path}: cfg: {error}") from error


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names they have here.

    Raises:
        ComponentError: the layers' tables of relative positions, which are one and the same, differ.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith("predictor."):
            continue
        if name.endswith(".relative_attention_bias.weight"):  # repeated under every layer
            first = found.setdefault("beats.encoder.relative_position.weight", tensor)
            if not torch.equal(first, tensor):
                raise ComponentError(f"beats: {name} is not the table that the layers before it have")
            continue
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        found[f"beats.{name.replace('pos_conv.0.', 'pos_conv.')}"] = tensor
    return found
