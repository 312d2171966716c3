"""MERT (Li et al., 2024): music at 24 kHz, 75 frames a second, on audio of any length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from transformers import HubertConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.hubert.modeling_hubert import (
    HubertEncoder,
    HubertEncoderStableLayerNorm,
    HubertFeatureEncoder,
    HubertFeatureProjection,
)

from usam.clock import N
from usam.encoders import Encoder
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._wav2vec2 import Convolutions, WeightNormConv, attended, normalized, plain_name
from usam.parts import of_saved
from usam.registry import ComponentError
from usam.spec.page import SpecError
from usam.spec.sizes import SECONDS
from usam.types import Frames, prefix_mask
from usam.weights import parsing, read, read_config

KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
FIELD, HOP = 400, 320  # samples that a frame sees, and from one frame to the next


class Mert(Encoder):
    """HuBERT's network on music, as the MERT-v1 checkpoints have it.

    A frame is that of the whole clip, and padding changes nothing: the first norm takes its statistics
    over a clip's own time. Only attention ends at the edges of windows of `chunk` seconds. SpecAugment
    and LayerDrop belong to the pre-training and never run.
    """

    random = LayerMix.random

    class Config(Encoder.Config):
        """Options of the MERT encoder."""

        path: str | None = None
        """Hub id, folder or file of the weights. A folder that usam saved
        gives its encoder of this type."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """MERT's config, with the names of transformers' HubertConfig; null reads it from `path`."""
        do_normalize: bool | None = None
        """Whether clips are brought to zero mean and unit variance; null reads it from `path`, as `arch`."""
        layers: Layers = "last"
        """Hidden states that make the frames: last, weighted (a learned mix), or numbers to concatenate."""
        chunk: float = Field(30.0, gt=0, le=SECONDS)
        """Seconds of a window; attention does not reach further."""
        windows_at_once: int = Field(16, ge=1)
        """Windows of long clips encoded together: bounds the memory."""
        attn_implementation: Literal["sdpa", "eager"] = "sdpa"
        """Attention of transformers."""

        @property
        def sample_rate(self) -> int:
            """24 kHz."""
            return 24000

        @property
        def rate(self) -> float:
            """75 frames per second."""
            return self.sample_rate / HOP

        def length(self, samples: N) -> N:
            """Frames that lie within the clip; none below 400 samples."""
            return (samples >= FIELD) * ((samples - FIELD) // HOP + 1)

        def resolved(self) -> Mert.Config:
            """The same config with its architecture and `do_normalize` filled in."""
            if self.arch is not None:
                return self.model_copy(update={"arch": hubert_arch(self.arch)})
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("mert needs 'path' (weights) or 'arch' (options of HubertConfig)")
            found: dict[str, Any] = {"arch": hubert_arch(read_config(self.path, self.revision))}
            with parsing(self.path):
                HubertConfig(**found["arch"])
            if self.do_normalize is None:
                found["do_normalize"] = read_do_normalize(self.path, self.revision)
            return self.model_copy(update=found)

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        hubert = HubertConfig(**self.config.arch)
        hubert._attn_implementation = config.attn_implementation
        self.hubert = hubert
        self.window = max(1, round(config.chunk * config.rate))
        self.mix = LayerMix(config.layers, hubert.num_hidden_layers + 1, hubert.hidden_size)
        self.dim = self.mix.dim
        self.feature_extractor = Convolutions(
            HubertFeatureEncoder(hubert).conv_layers, self.window, config.windows_at_once
        )
        self.feature_projection = HubertFeatureProjection(hubert)
        self.encoder = (HubertEncoderStableLayerNorm if hubert.do_stable_layer_norm else HubertEncoder)(hubert)
        self.encoder.pos_conv_embed.conv = WeightNormConv(self.encoder.pos_conv_embed.conv)
        self.needed = hubert.num_hidden_layers if self.mix.weights is not None else max(self.mix.states)
        del self.encoder.layers[self.needed :]
        if hubert.do_stable_layer_norm and self.needed < hubert.num_hidden_layers:
            self.encoder.layer_norm = nn.Identity()  # it belongs to the last state

    def pretrained(self) -> dict[str, Tensor]:
        """A checkpoint's tensors, but for SpecAugment's embedding and for layers past the last one needed.

        Raises:
            ComponentError: with 'arch' given, nobody has said whether clips are normalised.
        """
        source = self.source()
        if source is None:
            return {}
        if self.config.do_normalize is None:
            raise ComponentError(f"{self.config.path}: mert with 'arch' needs 'do_normalize: true' or 'false' too")
        unused = ["masked_spec_embed"]
        unused += [f"encoder.layers.{i}." for i in range(self.needed, self.hubert.num_hidden_layers)]
        if isinstance(self.encoder.layer_norm, nn.Identity):
            unused.append("encoder.layer_norm.")
        tensors = {plain_name(name): tensor for name, tensor in read(source).items()}
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(unused))}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, (samples - 400) // 320 + 1, dim) at 75 per second."""
        size = self.config.length(audio.shape[1])
        own = prefix_mask(self.config.length(mask.sum(-1)), size)
        short = (0, max(0, FIELD - audio.shape[1]))  # a batch without a frame is encoded as one of silence
        audio, mask = F.pad(audio, short), F.pad(mask, short)
        audio = audio.masked_fill(~mask, 0)
        if self.config.do_normalize:
            audio = normalized(audio, mask)
        x = self.feature_extractor(audio, mask)
        x = self._encode(x, F.pad(own, (0, x.shape[1] - size)))[:, :size]
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, self.config.rate)

    def _encode(self, x: Tensor, own: Tensor) -> Tensor:
        x = self.feature_projection(x).masked_fill(~own.unsqueeze(-1), 0)
        x = x + self.encoder.pos_conv_embed(x)
        if not self.hubert.do_stable_layer_norm:
            x = self.encoder.layer_norm(x)
        x = self.encoder.dropout(x)
        return attended(x, own, self._attend, frames=self.window, at_once=self.config.windows_at_once)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        attention_mask = create_bidirectional_mask(self.hubert, x, mask)
        return cast(Tensor, self.mix(self._states(x, attention_mask)))

    def _states(self, x: Tensor, attention_mask: Tensor | None) -> Iterator[Tensor]:
        yield x
        for i, layer in enumerate(self.encoder.layers, 1):
            x = layer(x, attention_mask=attention_mask)
            ends = self.hubert.do_stable_layer_norm and i == self.hubert.num_hidden_layers
            yield self.encoder.layer_norm(x) if ends else x


def read_do_normalize(path: str, revision: str | None) -> bool:
    """What preprocessor_config.json beside the weights says.

    Raises:
        ComponentError: there is no such file.
    """
    name = "preprocessor_config.json"
    try:  # transformers' own default is True
        return bool(read_config(path, revision, name).get("do_normalize", True))
    except ComponentError as error:
        raise ComponentError(
            f"{path}: no readable {name} beside the weights: say with 'do_normalize: true' or 'false' how clips "
            "were treated in training (MERT-v1: false)"
        ) from error


def hubert_arch(config: dict[str, Any]) -> dict[str, Any]:
    """What of a MERT config the features depend on, as options of HubertConfig.

    Raises:
        ComponentError: the config is of another network or another rate.
    """
    refused = {
        "deepnorm": "no MERT-v1 checkpoint has it, and HuBERT's layers, which are used here, do not",
        "feature_extractor_cqt": "the constant-Q spectrogram beside the convolutions is not implemented",
        "conv_pos_batch_norm": "no MERT checkpoint has it, and statistics over padding would change the frames",
    }
    for key, reason in refused.items():
        if config.get(key):
            raise ComponentError(f"mert: '{key}: {config[key]}' is not supported, because {reason}")
    fixed = {"conv_kernel": KERNELS, "conv_stride": STRIDES, "sample_rate": 24000}
    for key, value in fixed.items():
        found = config.get(key, value)
        if (list(found) if isinstance(found, (list, tuple)) else found) != value:
            raise ComponentError(
                f"mert: '{key}: {found}' is not supported, because MERT-v1 has {value}, which gives 75 frames a second"
            )
    keys = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "hidden_dropout",
        "activation_dropout",
        "attention_dropout",
        "feat_proj_layer_norm",
        "feat_proj_dropout",
        "layer_norm_eps",
        "feat_extract_norm",
        "feat_extract_activation",
        "conv_dim",
        "conv_kernel",
        "conv_stride",
        "conv_bias",
        "num_conv_pos_embeddings",
        "num_conv_pos_embedding_groups",
        "do_stable_layer_norm",
    ]
    return {key: config[key] for key in keys if key in config}
