"""CED, an audio-tagging transformer of any size (Dinkel et al., 2024), on audio of any length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from pydantic import Field, field_validator, model_validator
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from usam.clock import N, ceil_div
from usam.encoders import Encoder
from usam.encoders._front_end import FrontEnd
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._windows import encode_heard
from usam.parts import of_saved
from usam.registry import ComponentError, did_you_mean
from usam.spec.page import SpecError
from usam.spec.spec import Config
from usam.types import Frames, prefix_mask
from usam.weights import Source, locate, parsing, read, read_config

FFT, HOP, MELS = 512, 160, 64
PATCH = 16  # mel bins and mel frames of a patch
BANDS = MELS // PATCH
CHUNK = 1012  # mel frames of a chunk
HEAD_DIM = 64  # of every released size

# What a checkpoint's config.json may not say otherwise.
FIXED = {"patch_size": PATCH, "patch_stride": PATCH, "n_mels": MELS, "n_fft": FFT, "win_size": FFT, "hop_size": HOP}
FIXED |= {"f_min": 0, "f_max": 8000, "center": True}


class Arch(Config):
    """Sizes of a CED, with the original's names; the defaults are CED-base."""

    embed_dim: int = Field(768, ge=1)
    """Width; tiny 192, mini 256, small 384, base 768."""
    depth: int = Field(12, ge=1)
    """Blocks."""
    num_heads: int = Field(12, ge=1)
    """Attention heads; tiny 3, mini 4, small 6, base 12."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Width of the feed-forward layers, as a multiple of `embed_dim`."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    target_length: int = Field(CHUNK, ge=PATCH)
    """Mel frames (10 ms each) of a chunk; what is left over after the last whole patch of a chunk is not heard."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Arch:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
        return self


SIZES = Arch.model_fields.keys() - {"type"}


class Ced(Encoder):
    """Tokens are 16 x 16 patches of a mel spectrogram: four bands, 6.25 steps a second, in order of time.

    Clips longer than a chunk (10.12 s) are cut into chunks that do not see each other; the last one is
    filled up as the original fills it, and only frames of real audio come out. A shorter clip is encoded
    as it is. Where the original lets a clip depend on its batch, this does not: the 120 dB floor, the
    reflected end and attention are the clip's own, and the batch norm keeps to its stored statistics.
    """

    class Config(Encoder.Config):
        """Options of the CED encoder."""

        path: str | None = None
        """Hub id, folder or file of the weights: the original's `.pt`, the hub's layout, or U-SAM's. A folder that usam
        saved gives its encoder of this type."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """Sizes (`embed_dim`, `depth`, `num_heads` ...); null reads them from `path`."""
        layers: Layers = "last"
        """Hidden states the frames are made of; the last one is normalised."""
        bands: Literal["flatten", "mean", "concat"] = "flatten"
        """A time step's four bands: one frame each, low to high; their mean; or side by side in one frame."""
        attn_implementation: Literal["sdpa", "eager"] = "sdpa"
        """Attention: torch's fused kernel, or written out."""
        chunks_at_once: int = Field(16, ge=1)
        """Chunks encoded together: bounds the memory."""

        @field_validator("arch")
        @classmethod
        def _known_sizes(cls, arch: dict[str, Any] | None) -> dict[str, Any] | None:
            for name in arch or {}:
                if name not in SIZES:
                    raise ValueError(f"ced has no '{name}'; {did_you_mean(name, SIZES)}")
            return arch if arch is None else Arch.model_validate(arch).to_dict()

        @property
        def chunk(self) -> int:
            """Mel frames of a chunk."""
            return int((self.arch or {}).get("target_length", CHUNK))

        @property
        def sample_rate(self) -> int:
            """16 kHz."""
            return 16000

        @property
        def rate(self) -> float:
            """25 frames a second (6.25 unless `bands` is flatten), less what chunks leave out: 24.9 (6.23)."""
            return self.frames_per_step * (self.chunk // PATCH) * self.sample_rate / (self.chunk * HOP)

        def length(self, samples: N) -> N:
            """Every whole patch of every chunk; clips under 2400 samples (0.15 s) have none."""
            mel = samples // HOP + 1
            return (mel // self.chunk * (self.chunk // PATCH) + mel % self.chunk // PATCH) * self.frames_per_step

        @property
        def frames_per_step(self) -> int:
            """Frames of a time step: its bands, or one."""
            return BANDS if self.bands == "flatten" else 1

        def resolved(self) -> Ced.Config:
            """The same config with its architecture filled in."""
            if self.arch is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("ced needs 'path' (weights) or 'arch' (embed_dim, depth, num_heads)")
            local = Path(self.path).expanduser()
            folder = local if local.is_dir() else local.parent
            if local.exists() and not (folder / "config.json").is_file():
                arch = arch_of_tensors(own_tensors(locate(self.path)), self.path)
            else:
                with parsing(self.path):
                    arch = arch_of_config(read_config(self.path, self.revision), self.path)
            return self.model_copy(update={"arch": arch})

    random = LayerMix.random

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        arch = Arch.model_validate(self.config.arch)
        self.mel = MelDecibels()
        self.init_bn = StoredNorm(MELS)
        self.patch_embed = nn.Conv2d(1, arch.embed_dim, PATCH, PATCH)
        self.time_pos_embed = nn.Parameter(torch.empty(1, arch.embed_dim, 1, arch.target_length // PATCH))
        self.freq_pos_embed = nn.Parameter(torch.empty(1, arch.embed_dim, BANDS, 1))
        norm = partial(nn.LayerNorm, eps=1e-6)
        blocks = [
            Layer(arch.embed_dim, arch.num_heads, arch.mlp_ratio, arch.qkv_bias, norm_layer=norm)
            for _ in range(arch.depth)
        ]
        for block in blocks:
            block.attn.fused_attn = config.attn_implementation == "sdpa"
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(arch.embed_dim)
        self.mix = LayerMix(config.layers, arch.depth + 1, arch.embed_dim)
        self.dim = self.mix.dim * (BANDS if config.bands == "concat" else 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random positions."""
        nn.init.normal_(self.time_pos_embed, std=0.02)
        nn.init.normal_(self.freq_pos_embed, std=0.02)

    def pretrained(self) -> dict[str, Tensor]:
        """The tensors of a CED checkpoint, without its front-end and its classifier."""
        source = self.source()
        if source is None:
            return {}
        tensors = own_tensors(source)
        if "time_pos_embed" in tensors:
            tensors["time_pos_embed"] = resized(tensors["time_pos_embed"], self.time_pos_embed.shape[-1])
        return tensors

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, config.length(samples), dim)."""
        config, chunk = self.config, self.config.chunk
        samples = mask.sum(-1)
        size = config.length(audio.shape[1])
        own = prefix_mask(config.length(samples), size)

        mel = self.mel(audio, samples, max(1, config.chunks_at_once // len(audio)) * chunk)
        inside = prefix_mask(samples // HOP + 1, mel.shape[-1]).unsqueeze(1)
        mel = self.init_bn(mel).masked_fill(~inside, 0)

        patches = max(1, min(mel.shape[-1], chunk) // PATCH)  # of a chunk
        count = max(1, ceil_div(size, patches * config.frames_per_step))
        mel = F.pad(mel, (0, count * chunk - mel.shape[-1]))
        chunks = rearrange(mel, "b m (c t) -> (b c) 1 m t", c=count)[..., : patches * PATCH]
        heard = rearrange(self._heard(samples, count, patches), "b c t -> (b c) t")
        if torch.compiler.is_compiling():
            x = self._encode(chunks, heard)
        else:
            x = encode_heard(chunks, heard, self._encode, config.chunks_at_once)
        x = in_time_order(x, config.bands, count)[:, :size]
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, config.rate)

    def _heard(self, samples: Tensor, count: int, patches: int) -> Tensor:
        """Which time steps of which chunks are attended to: (batch, chunk, time)."""
        chunk = self.config.chunk
        mel_frames = (samples // HOP + 1).unsqueeze(-1)
        start = torch.arange(count, device=samples.device) * chunk
        own = ((mel_frames - start) // PATCH).clamp(0, patches)
        # The last chunk of a long clip attends to the zeros that fill it, as the original's does.
        return prefix_mask(own.masked_fill((mel_frames > chunk) & (own > 0), patches), patches)

    def _encode(self, chunks: Tensor, heard: Tensor) -> Tensor:
        """(chunk, 1, mels, frames), (chunk, time) -> (chunk, time, bands, width of the mix)."""
        x = self.patch_embed(chunks.to(self.patch_embed.weight.dtype))
        x = x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed
        seen = heard | ~heard.any(-1, keepdim=True)  # a softmax over nothing is not a number
        seen = repeat(seen, "b t -> b 1 1 (f t)", f=BANDS)
        x = cast(Tensor, self.mix(self._states(rearrange(x, "b d f t -> b (f t) d"), seen)))
        return rearrange(x, "b (f t) d -> b t f d", f=BANDS)

    def _states(self, x: Tensor, seen: Tensor) -> Iterator[Tensor]:
        yield x
        for block in self.blocks[:-1]:
            x = block(x, attn_mask=seen)
            yield x
        yield self.norm(self.blocks[-1](x, attn_mask=seen))


def in_time_order(x: Tensor, bands: str, count: int) -> Tensor:
    """(batch x chunk, time, bands, dim) -> (batch, time, dim), chunks one after another."""
    if bands == "flatten":
        return rearrange(x, "(b c) t f d -> b (c t f) d", c=count)
    if bands == "concat":
        return rearrange(x, "(b c) t f d -> b (c t) (f d)", c=count)
    return reduce(x, "(b c) t f d -> b (c t) d", "mean", c=count)


class Layer(Block, GradientCheckpointingLayer):
    """timm's block, which can be computed again in the backward pass to save memory."""


class MelDecibels(FrontEnd):
    """CED's mel spectrogram in decibels, in float32 whatever the model's dtype; each item as if it were alone."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.empty(FFT, dtype=torch.float32), persistent=False)
        self.register_buffer("filters", torch.empty(FFT // 2 + 1, MELS, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A periodic Hann window and triangles on the HTK mel scale, 0 to 8000 Hz, rounded as the original's."""
        device = self.filters.device
        # In float32 throughout, and on the CPU: filters made in float64 move quiet bins by 0.001 dB.
        exact = partial(torch.linspace, dtype=torch.float32, device="cpu")
        bins = exact(0, 8000, FFT // 2 + 1)
        corners = 700 * (10 ** (exact(0, 2595 * math.log10(1 + 8000 / 700), MELS + 2) / 2595) - 1)
        widths = corners.diff()
        distance = corners - bins.unsqueeze(-1)  # bin corner
        rise, fall = -distance[:, :-2] / widths[:-1], distance[:, 2:] / widths[1:]
        self.filters = torch.minimum(rise, fall).clamp_min(0).to(device)
        self.window = torch.hann_window(FFT, dtype=torch.float32, device="cpu").to(device)

    def forward(self, audio: Tensor, samples: Tensor, at_once: int) -> Tensor:
        """Decibels of (batch, 64, 1 + samples // 160), none more than 120 below its own item's loudest.

        Args:
            audio: (batch, samples) at 16 kHz.
            samples: (batch,), each item's own.
            at_once: mel frames made together, which bounds the memory.
        """
        frames = audio.shape[1] // HOP + 1
        with torch.autocast(audio.device.type, enabled=False):
            pieces = [
                self._power(reflected(audio, samples, start * HOP, min(start + at_once, frames) * HOP).float())
                for start in range(0, frames, at_once)
            ]
            mel = 10 * torch.cat(pieces, -1).clamp_min(1e-10).log10()
            own = prefix_mask(samples // HOP + 1, frames).unsqueeze(1)
            loudest = mel.masked_fill(~own, -torch.inf).amax((-2, -1), keepdim=True)
            return torch.maximum(mel, loudest - 120)

    def _power(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(audio, FFT, HOP, window=self.window, center=False, return_complex=True)
        return self.filters.mT @ (spectrum.real.square() + spectrum.imag.square())


def reflected(audio: Tensor, samples: Tensor, start: int, stop: int) -> Tensor:
    """What the FFT windows centred on every 160th sample of start .. stop see: items mirrored at both their ends."""
    index = torch.arange(start - FFT // 2, stop - HOP + FFT // 2, device=audio.device).abs()
    last = (samples - 1).unsqueeze(-1)
    index = torch.where(index > last, 2 * last - index, index)
    audio = audio if audio.shape[1] else F.pad(audio, (0, 1))  # an index must point at something
    return audio.gather(1, index.clamp(0, audio.shape[1] - 1))


class StoredNorm(nn.Module):
    """Batch normalisation over mel bins by stored statistics alone, which never move.

    Args:
        bins: mel bins.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bins))
        self.bias = nn.Parameter(torch.empty(bins))
        self.register_buffer("running_mean", torch.empty(bins))
        self.register_buffer("running_var", torch.empty(bins))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, bins, frames), normalised in float32."""
        mean, var, weight, bias = (t.float() for t in (self.running_mean, self.running_var, self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.batch_norm(x.float(), mean, var, weight, bias)


def own_tensors(source: Source) -> dict[str, Tensor]:
    """A checkpoint's tensors under this encoder's names: the original's layout, the hub's or U-SAM's."""
    tensors = read(source, nested="model")
    if any(name.startswith("encoder.") for name in tensors):
        tensors = {n.removeprefix("encoder."): t for n, t in tensors.items() if not n.startswith("outputlayer.")}
    own = {
        name.replace("init_bn.1.", "init_bn.").replace("patch_embed.proj.", "patch_embed."): tensor
        for name, tensor in tensors.items()
        if not name.startswith(("front_end.", "outputlayer.")) and not name.endswith(".num_batches_tracked")
    }
    for name in [name for name in own if ".attn.q_proj." in name]:
        parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in own for part in parts):
            own[name.replace(".q_proj.", ".qkv.")] = torch.cat([own.pop(part) for part in parts])
    return own


def resized(positions: Tensor, size: int) -> Tensor:
    """(1, dim, 1, time) positions cut to `size`, or stretched to it where there are too few, as the original does."""
    if size <= positions.shape[-1]:
        return positions[..., :size]
    return F.interpolate(positions, (1, size), mode="bilinear")


def arch_of_config(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What of a CED's config.json the encoder depends on.

    Raises:
        ComponentError: it is not CED's, or of a CED whose spectrogram or patches are others.
    """
    if not {"embed_dim", "depth", "num_heads"} <= config.keys():
        raise ComponentError(f"{path}: the config.json there is not CED's; give the sizes as 'arch' instead")
    others = [f"{name} {config[name]}" for name, value in FIXED.items() if config.get(name) not in (None, value)]
    if others:
        known = ", ".join(f"{name} {value}" for name, value in FIXED.items())
        raise ComponentError(f"{path}: its config.json has {', '.join(others)}; usam's ced has {known}")
    return Arch.model_validate({name: config[name] for name in Arch.model_fields.keys() & config.keys()}).to_dict()


def arch_of_tensors(tensors: Mapping[str, Tensor], path: str) -> dict[str, Any]:
    """The sizes that the shapes of a checkpoint tell; heads are 64 wide, as in every released one.

    Raises:
        ComponentError: it is not CED's, or its heads cannot be counted.
    """
    needed = ("patch_embed.weight", "time_pos_embed", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in tensors]
    if missing:
        some = ", ".join(sorted(tensors)[:3])
        raise ComponentError(f"{path}: no checkpoint of CED: it has {some} ..., but no {', '.join(missing)}")
    dim, patches = len(tensors["patch_embed.weight"]), tensors["time_pos_embed"].shape[-1]
    if dim % HEAD_DIM:
        raise ComponentError(f"{path}: a width of {dim} does not tell the number of heads; give the sizes as 'arch'")
    arch = {
        "embed_dim": dim,
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "num_heads": dim // HEAD_DIM,
        "mlp_ratio": len(tensors["blocks.0.mlp.fc1.weight"]) / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "target_length": CHUNK if patches == CHUNK // PATCH else patches * PATCH,
    }
    return Arch.model_validate(arch).to_dict()
