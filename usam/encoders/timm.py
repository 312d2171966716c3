"""Any timm backbone, ViT or convolutional, on a log-mel picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from usam.clock import N, ceil_div
from usam.encoders import Encoder
from usam.encoders._kaldi import HOP, KaldiFbank, fbank_frames
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._windows import in_windows
from usam.parts import of_saved
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.sizes import BINS, FRAMES
from usam.types import Frames, prefix_mask
from usam.weights import read, read_config


class Timm(Encoder):
    """Audio is drawn as pictures of `frames` by `mels`, time downwards as AudioMAE has it (Huang et al., 2022).

    Longer audio is several pictures; what a clip does not fill is blank (0 before normalisation), so that
    its features depend on it alone.
    """

    class Config(Encoder.Config):
        """Options of a timm encoder."""

        path: str | None = None
        """Hub id or folder of a timm model (config.json and weights). A folder that usam saved
        gives its encoder of this type."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """`architecture`, a timm model's name, and options of its constructor; null reads them from `path`."""
        frames: int | None = Field(None, ge=16, le=FRAMES)
        """Height of a picture: spectrogram frames of 10 ms; null takes the model's own `img_size`, else 1024."""
        mels: int | None = Field(None, ge=16, le=BINS)
        """Width of a picture: mel bins; null takes the model's own `img_size`, else 128."""
        window: Literal["hann", "povey"] = "hann"
        """Window of the spectrogram (AudioMAE: hann)."""
        mean: float = -4.2677393
        """Mean of the log-mel values that the model was trained on (AudioSet)."""
        std: float = Field(4.5689974, gt=0)
        """Their standard deviation; values are divided by twice of it."""
        bands: Literal["mean", "flatten", "concat"] = "mean"
        """What becomes of the frequency bands of a time step: their mean, tokens one after another, or channels."""
        layers: Layers = "last"
        """Hidden states of a ViT that make the frames: last, weighted (a learned mix), or numbers to concatenate."""
        pictures_at_once: int = Field(16, ge=1)
        """Pictures of a long clip encoded together: bounds the memory."""

        def resolved(self) -> Timm.Config:
            """The same config with its architecture and the size of its pictures filled in."""
            if self.arch is not None and self.frames is not None and self.mels is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.arch is not None:
                arch = dict(self.arch)
                if not isinstance(arch.get("architecture"), str):
                    raise SpecError("timm: 'arch' needs the 'architecture' of timm, for example vit_tiny_patch16_224")
            elif self.path is not None:
                found = read_config(self.path, self.revision)
                if not isinstance(found.get("architecture"), str):
                    raise ComponentError(f"{self.path}: config.json names no timm 'architecture'; give 'arch'")
                if not isinstance(found.get("model_args") or {}, dict):
                    raise ComponentError(f"{self.path}: config.json: 'model_args': expected a map")
                arch = {"architecture": found["architecture"], **(found.get("model_args") or {})}
            else:
                raise SpecError("timm needs 'path' (a timm model) or 'arch' ({architecture: name, ...})")
            size = arch.get("img_size", (1024, 128))
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
            if not (isinstance(height, int) and isinstance(width, int)):
                raise ComponentError(f"timm: 'img_size': expected whole numbers, found {size!r}")
            arch = {key: value for key, value in arch.items() if key not in NOT_ARCHITECTURE}
            update = {"arch": arch, "frames": self.frames or int(height), "mels": self.mels or int(width)}
            return self.model_copy(update=update)

        @cached_property
        def grid(self) -> Grid:
            """What the network makes of one picture; it is built once, without memory."""
            resolved = self.resolved()
            assert resolved.frames is not None
            assert resolved.mels is not None
            return grid(json.dumps(resolved.arch, sort_keys=True), resolved.frames, resolved.mels)

        @property
        def sample_rate(self) -> int:
            """16 kHz."""
            return 16000

        @property
        def rate(self) -> float:
            """Time steps a second, or tokens where the bands are flattened."""
            steps = self.sample_rate / HOP / self.grid.stride
            return steps * self.grid.bands if self.bands == "flatten" else steps

        def length(self, samples: N) -> N:
            """Time steps that the clip's spectrogram touches, or their tokens; 0 below 400 samples."""
            steps = ceil_div(fbank_frames(samples), self.grid.stride)
            return steps * (self.grid.bands if self.bands == "flatten" else 1)

    random = LayerMix.random

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        arch = dict(self.config.arch)
        self.grid = self.config.grid
        self.fbank = KaldiFbank(self.config.mels, config.window)
        self.network = create(arch.pop("architecture"), arch, self.config.frames, self.config.mels)
        if config.layers != "last" and not isinstance(self.network, VisionTransformer):
            raise SpecError(f"timm: layers of '{self.config.arch['architecture']}' have no common width; write 'last'")
        self.mix = LayerMix(config.layers, len(getattr(self.network, "blocks", ())) + 1, self.grid.dim)
        self.dim = self.mix.dim * (self.grid.bands if config.bands == "concat" else 1)

    def reset_parameters(self) -> None:
        """Fill what timm's modules only fill when they are made, such as positions, from a new network."""
        orphans = {name for name, m in self.network.named_modules() if not hasattr(m, "reset_parameters")}
        empty = {
            name: tensor
            for name, tensor in chain(self.network.named_parameters(), self.network.named_buffers())
            if name.rpartition(".")[0] in orphans
            and not tensor.is_meta
            and not getattr(tensor, "_is_hf_initialized", False)  # transformers has loaded it
        }
        if not empty:
            return
        arch = dict(self.config.arch)
        with torch.device("cpu"):
            fresh = create(arch.pop("architecture"), arch, self.config.frames, self.config.mels)
        new = dict(chain(fresh.named_parameters(), fresh.named_buffers()))
        with torch.no_grad():
            for name, tensor in empty.items():
                tensor.copy_(new[name])

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass, to save memory; transformers sets it."""
        return bool(getattr(self.network, "grad_checkpointing", False))

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.network.set_grad_checkpointing(enable)

    def pretrained(self) -> dict[str, Tensor]:
        """The backbone's tensors, as timm itself fits them to a picture of this size and one channel."""
        source = self.source()
        if source is None:
            return {}
        arch = dict(self.config.arch)
        heads = tuple(f"{name}." for name in classifiers(self.network))
        found = {name: tensor for name, tensor in read(source).items() if not name.startswith(heads)}
        try:
            network = create(arch.pop("architecture"), arch, self.config.frames, self.config.mels, found)
        except (RuntimeError, KeyError) as error:
            raise ComponentError(f"{source.path}: the checkpoint does not fit: {error}") from error
        return {f"network.{name}": tensor for name, tensor in network.state_dict().items()}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames in time order: (batch, config.length(samples), dim)."""
        size = self.config.length(audio.shape[1])
        x = in_windows(
            audio.masked_fill(~mask, 0),
            mask,
            self._encode,
            frames=self.grid.steps,
            hop=self.grid.stride * HOP,
            field=self.grid.stride * HOP + 240,  # the last frame of a step reaches into the next
            at_once=self.config.pictures_at_once,
        )
        if self.config.bands == "flatten":
            x = rearrange(x, "b t (f d) -> b (t f) d", f=self.grid.bands)
        x = F.pad(x, (0, 0, 0, max(0, size - x.shape[1])))[:, :size]
        own = prefix_mask(self.config.length(mask.sum(-1)), size)
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, self.config.rate)

    def _encode(self, windows: Tensor, mask: Tensor) -> Tensor:
        """Pictures to time steps: (window, steps, dim), or (window, steps, bands * dim)."""
        mel = self.fbank(windows)
        drawn = prefix_mask(fbank_frames(mask.sum(-1)), mel.shape[1])
        picture = (mel.masked_fill(~drawn.unsqueeze(-1), 0) - self.config.mean) / (2 * self.config.std)
        picture = picture.unsqueeze(1).to(next(self.network.parameters()).dtype)
        last = self.config.layers == "last"
        features = self.network.forward_features(picture) if last else self.mix(self._states(picture))
        x = as_grid(self.network, features, self.grid.steps)
        return x.mean(2) if self.config.bands == "mean" else rearrange(x, "b t f d -> b t (f d)")

    def _states(self, picture: Tensor) -> Iterator[Tensor]:
        """What enters a ViT's first block, and what each block gives; after the last one comes the final norm."""
        network: Any = self.network
        x = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(picture))))
        yield x
        for i, block in enumerate(network.blocks, start=1):
            x = block(x)
            yield network.norm(x) if i == len(network.blocks) else x


NOT_ARCHITECTURE = {"img_size", "in_chans", "num_classes", "global_pool", "pretrained"}  # ours to say


@dataclass(frozen=True)
class Grid:
    """One picture as the network sees it."""

    steps: int  # in time
    stride: int  # spectrogram frames a step
    bands: int  # in frequency
    dim: int


def create(
    name: str, options: Mapping[str, Any], frames: int, mels: int, weights: Mapping[str, Tensor] | None = None
) -> Any:
    """A timm model for pictures of `frames` by `mels` with one channel, without its classifier.

    Raises:
        ComponentError: timm has no such model, or it cannot take that size.
    """
    if not timm.is_model(name):
        close = [m for m in timm.list_models() if m.startswith(name.split("_")[0])][:3]
        raise ComponentError(f"timm has no model '{name}'" + (f"; it has {', '.join(close)} ..." if close else ""))
    common: dict[str, Any] = {"in_chans": 1, "num_classes": 0, "global_pool": "", **options}
    if weights is not None:
        # No classifier is expected in them, so that timm compares the names strictly.
        common |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights), "num_classes": 0}}
    try:
        network = timm.create_model(name, img_size=(frames, mels), **common)
    except TypeError:  # a convolutional network takes any size, and no such option
        try:
            network = timm.create_model(name, **common)
        except TypeError as error:
            raise ComponentError(f"timm's '{name}' has no such option: {error}") from error
    except (AssertionError, ValueError) as error:
        raise ComponentError(f"timm's '{name}' cannot take a picture of {frames} x {mels}: {error}") from error
    for head in classifiers(network):
        setattr(network, head, nn.Identity())  # what stands there besides the classifier would never train
    return network


def classifiers(network: Any) -> set[str]:
    """The top-level modules that hold a model's classifier."""
    names = network.pretrained_cfg.get("classifier") or ()
    return {name.split(".")[0] for name in ([names] if isinstance(names, str) else names)}


@cache
def grid(arch: str, frames: int, mels: int) -> Grid:
    """Steps, bands and width that a model makes of one picture.

    Raises:
        ComponentError: the model needs another size, or its steps do not divide the picture.
    """
    options = json.loads(arch)
    name = options.pop("architecture")
    with torch.device("meta"):
        network = create(name, options, frames, mels)
        try:
            with torch.no_grad():
                found = network.eval().forward_features(torch.empty(1, 1, frames, mels))
        except (AssertionError, RuntimeError) as error:
            raise ComponentError(
                f"timm's '{name}' cannot take a picture of {frames} x {mels}: {error}; set 'frames' and 'mels'"
            ) from error
    if found.ndim == 3:
        steps, bands = (int(n) for n in network.patch_embed.grid_size)
        stride, dim = int(network.patch_embed.patch_size[0]), int(found.shape[-1])
        if found.shape[1] - _prefix(network) != steps * bands:
            raise ComponentError(f"timm's '{name}': its {found.shape[1]} tokens are no grid of {steps} x {bands}")
    else:
        _, steps, bands, dim = (int(n) for n in as_grid(network, found, 0).shape)
        stride = 2 ** round(math.log2(frames / steps))
    if steps * stride != frames:
        raise ComponentError(f"timm's '{name}' steps by {stride} frames, of which {frames} are no multiple")
    return Grid(steps, stride, bands, dim)


def as_grid(network: nn.Module, features: Tensor, steps: int) -> Tensor:
    """A network's features as (batch, time, band, dim)."""
    if features.ndim == 3:
        return rearrange(features[:, _prefix(network) :], "b (t f) d -> b t f d", t=steps)
    if str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC"):
        return features
    return rearrange(features, "b d t f -> b t f d")


def _prefix(network: Any) -> int:
    """Class and register tokens before the patches."""
    return cast(int, getattr(network, "num_prefix_tokens", 0))
