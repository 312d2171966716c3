"""Audio encoders of transformers: those of a waveform (wav2vec 2 and its kin), w2v-BERT, AST and CLAP.

A model type is here when two things were tested: its frames of a clip are transformers' own, and they stay the
same beside longer clips. Others are refused by name.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from usam.clock import N
from usam.component import base_name
from usam.encoders import Encoder
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._transformers import kinds
from usam.encoders._transformers.clap import FUSION
from usam.encoders._transformers.network import Network, Span
from usam.encoders._wav2vec2 import plain_name
from usam.parts import of_saved
from usam.registry import ComponentError, did_you_mean
from usam.spec.page import SpecError
from usam.spec.sizes import SECONDS
from usam.types import Frames, prefix_mask
from usam.weights import check_finite, check_stored, parsing, read_config, reading

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
REFUSED = {
    name: reason
    for reason, names in {
        "use the encoder 'whisper'": "whisper",
        "use the encoder 'mert'": "mert_model",
        "it pools frames in pairs, and a clip's last pair holds padding in a batch but not alone": "sew sew-d",
        "its convolutions over time see the padding, so that a batch changes the frames": "wav2vec2-conformer",
        "it makes audio codes for synthesis, not features": "dac encodec mimi univnet xcodec xcodec2",
        "it is not an encoder alone": "moonshine musicgen seamless_m4t seamless_m4t_v2 speech_to_text speecht5",
    }.items()
    for name in names.split()
}


class Transformers(Encoder):
    """An encoder by hub id or folder, or from its config alone.

    Padding changes nothing, also where transformers' own batches leak (group norms over time, data2vec's
    positions). Attention ends at the edges of windows. SpecAugment and LayerDrop never run.
    """

    random = LayerMix.random

    class Config(Encoder.Config):
        """Options of an encoder of transformers."""

        path: str | None = None
        """Hub id or folder of the model: its config, weights and preprocessor_config.json. A folder that usam saved
        gives its encoder of this type."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """The config with its `model_type`; null reads it from `path`."""
        preprocessor: dict[str, Any] | None = None
        """Options of the type's feature extractor; null reads them from `path`, as `arch`, else takes its defaults."""
        layers: Layers = "last"
        """Hidden states that make the frames: last, weighted (a learned mix), or numbers to concatenate."""
        chunk: float | None = Field(None, gt=0, le=SECONDS)
        """Seconds of a window, which attention does not leave; null is 30; AST and CLAP have their own."""
        windows_at_once: int = Field(16, ge=1)
        """Windows of long clips encoded together: bounds the memory."""
        attn_implementation: Literal["sdpa", "eager"] | None = None
        """Attention of transformers; null takes the model's default."""

        @property
        def sample_rate(self) -> int:
            """Samples per second that the feature extractor expects."""
            return self._span.sample_rate

        @property
        def rate(self) -> float:
            """Frames per second: for most 50, for AST 10 steps of 12 bands, for CLAP 3.2."""
            return self._span.rate

        def length(self, samples: N) -> N:
            """Frames that lie within the clip."""
            return self._span.length(samples)

        @property
        def _span(self) -> Span:
            known = self.resolved()
            return span_of(json.dumps(known.arch, sort_keys=True), json.dumps(known.preprocessor or {}))

        def resolved(self) -> Transformers.Config:
            """The same config with its architecture and feature extractor filled in."""
            if self.arch is not None:
                return self
            if (own := of_saved(self)) is not None:
                return own
            if self.path is None:
                raise SpecError("transformers needs 'path' (weights) or 'arch' (a config with its model_type)")
            arch, preprocessor = read_both(self.path, self.revision)
            if self.preprocessor is None:
                with parsing(self.path, PREPROCESSOR):
                    span_of(json.dumps(arch, sort_keys=True), json.dumps(preprocessor))
            found = {"arch": arch, "preprocessor": preprocessor if self.preprocessor is None else self.preprocessor}
            return self.model_copy(update=found)

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        kind, network = network_of(self.config.arch)
        network._attn_implementation = config.attn_implementation
        try:
            model = kind.construct(network)
        except (ValueError, ImportError) as error:
            raise ComponentError(f"transformers: '{network.model_type}' cannot be built like this: {error}") from error
        self.mix = LayerMix(config.layers, *kind.states_of(network))
        self.dim = self.mix.dim
        self.network = kind(model, self.config)
        if self.mix.weights is None:
            self.network.end_at(max(self.mix.states))

    def pretrained(self) -> dict[str, Tensor]:
        """The tensors that the frames depend on, read by transformers, which knows older names.

        Raises:
            ComponentError: a tensor is missing or of another shape, or nobody has named the feature extractor.
        """
        source = self.source()
        if source is None:
            return {}
        if self.config.preprocessor is None:
            raise ComponentError(f"{self.config.path}: transformers with 'arch' needs 'preprocessor' too, perhaps {{}}")
        dtype = self.config.dtype
        kind, network = network_of(self.config.arch)
        with reading(str(self.config.path), source.folder):
            model, info = kind.loader.from_pretrained(
                source.folder,
                config=network,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                **kind.loading,
            )
        check_stored(source, model)
        faults = [f"missing {name}" for name in sorted(info["missing_keys"] - {"masked_spec_embed"})]
        faults += [f"{name} is {tuple(a)}, expected {tuple(b)}" for name, a, b in sorted(info["mismatched_keys"])]
        if faults:
            raise ComponentError(f"{self.config.path}: the checkpoint does not fit: " + "; ".join(faults))
        own = {base_name(name) for name in self.state_dict()}  # without layers past the last one needed
        tensors = {f"network.{own_name(name)}": tensor for name, tensor in model.state_dict().items()}
        tensors = {name: tensor for name, tensor in tensors.items() if name in own}
        check_finite(tensors, str(self.config.path))
        return tensors

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, config.length(samples), dim)."""
        span = self.network.span
        size = span.length(audio.shape[1])
        own = prefix_mask(span.length(mask.sum(-1)), size)
        short = (0, max(0, span.field - audio.shape[1]))  # a batch without a frame is one of silence
        audio, mask = F.pad(audio, short), F.pad(mask, short)
        x = self.network(audio.masked_fill(~mask, 0), mask, self.mix)[:, :size]
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, span.rate)


KINDS = kinds()

# Options that change a network in a way that is not reproduced here, and what would go wrong.
UNSUPPORTED = {
    "add_adapter": "the convolutions of its adapter change the rate of the frames and see the padding",
    "use_intermediate_ffn_before_adapter": "it belongs to an adapter",
    "conv_pos_batch_norm": "its statistics would see the padding",
    "enable_fusion": FUSION,
}


def own_name(name: str) -> str:
    """Where a tensor of transformers' model is in a Network."""
    conv = "encoder.pos_conv_embed.conv."
    return f"position.{plain_name(name.removeprefix(conv))}" if name.startswith(conv) else f"model.{name}"


@lru_cache(maxsize=32)
def span_of(arch: str, preprocessor: str) -> Span:
    """The time of an encoder, from two maps in JSON.

    Raises:
        ComponentError: the feature extractor is another, or of another rate.
    """
    kind, network = network_of(json.loads(arch))
    options = json.loads(preprocessor)
    name = options.get("feature_extractor_type", kind.extractor)
    if name != kind.extractor:
        raise ComponentError(
            f"transformers: '{network.model_type}' with a {name} is not supported, because only its "
            f"{kind.extractor} is reproduced here"
        )
    if kind.sample_rate is not None and options.get("sampling_rate", kind.sample_rate) != kind.sample_rate:
        raise ComponentError(
            f"transformers: {name} at {options['sampling_rate']} Hz is not supported, because its mel filters are "
            f"for {kind.sample_rate} Hz"
        )
    span = kind.span_of(network, options)
    if span.hop < 1 or span.field > SECONDS * span.sample_rate:
        raise SpecError(
            f"transformers: a frame that sees {span.field} samples, {span.hop} from one to the next, is none; mend the "
            "convolutions of 'arch', or 'preprocessor'"
        )
    return span


def network_of(arch: dict[str, Any]) -> tuple[type[Network], PreTrainedConfig]:
    """How an architecture is run, and its config.

    Raises:
        ComponentError: the model type, or an option of it, is not supported; says why.
    """
    options = dict(arch)
    name = options.pop("model_type", None)
    if not isinstance(name, str):
        raise SpecError("transformers: 'arch' needs the 'model_type' of transformers, for example 'hubert'")
    if name == "clap":
        return network_of(audio_tower(arch))
    if name in REFUSED:
        raise ComponentError(f"transformers: model type '{name}' is not supported, because {REFUSED[name]}")
    if name not in KINDS:
        known = name in CONFIG_MAPPING
        found = "nobody has tested that padding leaves its frames alone" if known else "transformers has none such"
        raise ComponentError(
            f"transformers: model type '{name}' is not supported, because {found}; {did_you_mean(name, KINDS)}"
        )
    for key, reason in UNSUPPORTED.items():
        if options.get(key):
            raise ComponentError(f"transformers: '{key}: {options[key]}' is not supported, because {reason}")
    kind = KINDS[name]
    network = AutoConfig.for_model(name, **options)
    positions = getattr(network, "position_embeddings_type", None)
    if positions in ("relative", "rotary"):
        raise ComponentError(
            f"transformers: '{name}' with position_embeddings_type '{positions}' is not supported, because its "
            "tables are made anew while it runs; take 'relative_key', which w2v-BERT 2.0 has"
        )
    return kind, network


def audio_tower(arch: dict[str, Any]) -> dict[str, Any]:
    """The config of CLAP's audio tower, out of that of both towers."""
    return {**(arch.get("audio_config") or {}), "model_type": "clap_audio_model"}


def read_both(path: str, revision: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's config and its feature extractor's, as far as the frames depend on them.

    Raises:
        ComponentError: one of the two files is missing or no JSON.
    """
    files = [Path(path).expanduser() / name for name in (CONFIG, PREPROCESSOR)]
    return _read_both(path, revision, *(file.stat().st_mtime_ns for file in files if file.is_file()))


@lru_cache(maxsize=32)  # a spec counts every clip's frames, and a hub id is looked up over the network
def _read_both(path: str, revision: str | None, *changed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    noise = {"architectures", "auto_map", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version"}
    arch = read_config(path, revision, CONFIG)
    with parsing(path):
        arch = audio_tower(arch) if arch.get("model_type") == "clap" else arch
        arch = {k: v for k, v in arch.items() if k not in noise and k[:1] != "_"}
        network_of(arch)  # says why it is not supported before the next file is asked for
    try:
        options = read_config(path, revision, PREPROCESSOR)
    except ComponentError as error:
        raise ComponentError(
            f"{path}: no readable {PREPROCESSOR} beside the weights: give the feature extractor's options as "
            "'preprocessor', perhaps {} for its defaults"
        ) from error
    keys = ["feature_extractor_type", "sampling_rate", "do_normalize", "mean", "std", "num_mel_bins", "stride"]
    keys += ["feature_size", "fft_window_size", "hop_length", "frequency_min", "frequency_max"]  # of CLAP
    keys += ["max_length_s", "truncation"]
    return arch, {key: options[key] for key in keys if key in options}
