"""CLAP's audio tower (Wu et al., 2023; HTS-AT, Chen et al., 2022) from the checkpoints that LAION published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapAudioModel
from transformers.audio_utils import mel_filter_bank

from usam import ComponentError
from usam.encoders import Encoder
from usam.types import Frames, prefix_mask
from usam.weights import read

RATE, WINDOW, STEP = 48000, 480_000, 15_000  # samples: a second, a window of ten, one of its 32 steps
FFT, HOP, BINS, BAND = 1024, 480, 64, (50, 14000)  # LAION's front-end; the band in Hz
HEADS = [4, 8, 16, 32]
SIZES = {
    "HTSAT-tiny": {"patch_embeds_hidden_size": 96, "depths": [2, 2, 6, 2], "num_attention_heads": HEADS},
    "HTSAT-base": {"patch_embeds_hidden_size": 128, "depths": [2, 2, 12, 2], "num_attention_heads": HEADS},
}
BRANCH = "audio_branch."
OURS = (  # LAION's names of tensors, and transformers'; the longer ones first
    ("attn.proj.", "attention.output.dense."),
    ("attn.", "attention.self."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("bn0.", "batch_norm."),
)
# The front-end's tables, AudioSet's sound events, and masks that follow from the size.
UNUSED = re.compile(r"spectrogram_extractor|logmel_extractor|tscam_conv|head\.|.*\.attn_mask$")
# Beside its tensors a checkpoint holds learning rates as numpy's numbers. They execute nothing.
NUMBERS = [np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8"))]
NUMBERS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


class Clap(Encoder):
    """A frame is the mean over the bands of frequency at one of 32 steps in a window of ten seconds.

    The last window of a clip is filled with silence. (For one embedding of a whole clip LAION repeats a short clip and
    crops a long one, which would leave frames without a time.)
    """

    class Config(Encoder.Config):
        """Options of CLAP's audio tower."""

        path: str | None = None
        """A `.pt` file of LAION's, or a folder with one; null draws the weights."""
        amodel: Literal["HTSAT-tiny", "HTSAT-base"] = "HTSAT-tiny"
        """The size, by LAION's name: base for `music_*.pt`, tiny for `630k-*.pt`."""
        arch: dict[str, Any] | None = None
        """Options of transformers' ClapAudioConfig, in place of `amodel`'s."""

        def resolved(self) -> Clap.Config:
            """The same config with its architecture filled in."""
            return self if self.arch is not None else self.model_copy(update={"arch": SIZES[self.amodel]})

    sample_rate = RATE
    frame_rate = RATE / STEP

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        arch = ClapAudioConfig(**{"hidden_dropout_prob": 0.0, **self.config.arch})  # LAION's has no dropout
        found = (arch.spec_size, arch.num_mel_bins, arch.patch_size, len(arch.depths), arch.enable_fusion)
        if found != (256, BINS, 4, 4, False):
            raise ComponentError(f"clap: only towers of four stages without fusion, over 256 x 256, are taken; {found}")
        self.mel = Mel()
        self.tower = ClapAudioModel(arch).audio_encoder
        self.tower.batch_norm = FixedNorm(BINS)
        self.dim = self.tower.num_features

    def pretrained(self) -> dict[str, Tensor]:
        """The tensors of the audio branch under transformers' names.

        Raises:
            ComponentError: it is no checkpoint of LAION's, of another size, with fusion, or with other mel filters.
        """
        source = self.source()
        if source is None:
            return {}
        with torch.serialization.safe_globals(NUMBERS):  # learning rates lie beside the tensors
            stored = read(source, nested="state_dict")
        names = {name: name.removeprefix("module.") for name in stored}
        branch = {own.removeprefix(BRANCH): stored[n] for n, own in names.items() if own.startswith(BRANCH)}
        self._check(branch)
        return {f"tower.{name}": tensor for name, tensor in _renamed(branch)}

    def _check(self, branch: dict[str, Tensor]) -> None:
        path = self.config.path
        if "patch_embed.proj.weight" not in branch:
            raise ComponentError(f"{path}: holds no audio branch of LAION's CLAP with HTS-AT (module.audio_branch.*)")
        if any("fusion_model" in name or "mel_conv" in name for name in branch):
            raise ComponentError(
                f"{path}: was trained with feature fusion, which mixes random crops of a long clip with the whole, so "
                "that no frame has a time: take a checkpoint without, such as 630k-audioset-best.pt"
            )
        wide, own = len(branch["patch_embed.proj.weight"]), self.config.arch["patch_embeds_hidden_size"]
        if wide != own:
            hints = [f": write amodel: {n}" for n, size in SIZES.items() if size["patch_embeds_hidden_size"] == wide]
            raise ComponentError(f"{path}: its tower begins {wide} wide, this one {own}{''.join(hints)}")
        filters = branch.get("logmel_extractor.melW")
        if filters is not None and not torch.allclose(filters.float(), Mel().filters, atol=1e-4):
            own_filters = f"{BINS} from {BAND[0]} to {BAND[1]} Hz"
            raise ComponentError(f"{path}: was trained with other mel filters than {own_filters}")

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, ceil(samples / 15000), 768 or 1024) at 3.2 per second."""
        size = self.config.length(audio.shape[1])
        x = F.pad(audio.masked_fill(~mask, 0), (0, -audio.shape[1] % WINDOW))
        x = torch.cat([self._window(window) for window in x.split(WINDOW, 1)], 1)[:, :size]
        return Frames(x, prefix_mask(self.config.length(mask.sum(-1)), size), self.config.rate)

    def _window(self, audio: Tensor) -> Tensor:
        """(batch, 480000) to (batch, 32, dim)."""
        mel = rearrange(self.mel(audio), "b t m -> b 1 t m")
        return reduce(self.tower(mel).last_hidden_state, "b d f t -> b t d", "mean")


def _renamed(branch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The branch's tensors by transformers' names."""
    for name, tensor in branch.items():
        if UNUSED.match(name):
            continue
        for theirs, ours in OURS:
            name = name.replace(theirs, ours)
        if ".qkv." in name:  # one map for all three
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                yield name.replace("qkv", part), rows
        else:
            yield name, tensor


class Mel(nn.Module):
    """Mel frames in decibels, in float32 whatever the model is cast to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.empty(FFT), persistent=False)
        self.register_buffer("filters", torch.empty(FFT // 2 + 1, BINS), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A Hann window, and Slaney's filters as librosa makes them."""
        device = self.filters.device
        filters = mel_filter_bank(FFT // 2 + 1, BINS, *BAND, RATE, norm="slaney", mel_scale="slaney")
        self.window = torch.hann_window(FFT, dtype=torch.float32, device=device)
        self.filters = torch.from_numpy(filters.astype(np.float32)).to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> Mel:
        super()._apply(fn, recurse)
        if self.filters.dtype != torch.float32:
            self.reset_parameters()
        return self

    def forward(self, audio: Tensor) -> Tensor:
        """(batch, samples) to (batch, 1 + samples // 480, 64); frame i is centred on sample 480 i."""
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(audio.float(), FFT, HOP, window=self.window, pad_mode="reflect", return_complex=True)
            power = spectrum.real.square() + spectrum.imag.square()
            return 10 * (power.mT @ self.filters).clamp_min(1e-10).log10()


class FixedNorm(nn.BatchNorm2d):
    """A batch norm that keeps its statistics while it trains, for a clip's frames depend on that clip alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, bins, time, 1), in float32: eight bits are too few for decibels."""
        tables = (t.float() for t in (self.running_mean, self.running_var, self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.batch_norm(x.float(), *tables, eps=self.eps).to(self.weight.dtype)
