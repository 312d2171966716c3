"""Audio encoders of transformers: those of a waveform (wav2vec 2 and its kin), w2v-BERT, AST and CLAP.

A model type is here when two things were tested: its frames of a clip are transformers' own, and they stay the
same beside longer clips. Others are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from pydantic import Field
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, ClapAudioModel, PreTrainedConfig
from transformers.masking_utils import create_bidirectional_mask

from usam.clock import N
from usam.component import base_name
from usam.encoders import Encoder
from usam.encoders._clap import ClapMel, FixedNorm
from usam.encoders._kaldi import FRAME, KaldiFbank, fbank_frames
from usam.encoders._kaldi import HOP as FBANK_HOP
from usam.encoders._layers import LayerMix, Layers
from usam.encoders._wav2vec2 import Convolutions, WeightNormConv, attended, field_and_hop, normalized, plain_name
from usam.encoders._windows import in_windows
from usam.registry import ComponentError, did_you_mean
from usam.spec.page import SpecError
from usam.types import Frames, prefix_mask
from usam.weights import read_config

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


@dataclass(frozen=True)
class Span:
    """Where a step of the output sees the waveform, in samples, and how many frames a step has."""

    sample_rate: int
    field: int
    hop: int
    bands: int = 1

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop * self.bands

    def length(self, samples: N) -> N:
        """Frames of the steps that lie within `samples` samples."""
        return (samples >= self.field) * ((samples - self.field) // self.hop + 1) * self.bands


class Transformers(Encoder):
    """An encoder by hub id or folder, or from its config alone.

    Padding changes nothing, also where transformers' own batches leak (group norms over time, data2vec's
    positions). Attention ends at the edges of windows. SpecAugment and LayerDrop never run.
    """

    random = LayerMix.random

    class Config(Encoder.Config):
        """Options of an encoder of transformers."""

        path: str | None = None
        """Hub id or folder of the model: its config, weights and preprocessor_config.json."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """The config with its `model_type`; None reads it from `path`."""
        preprocessor: dict[str, Any] | None = None
        """Options of the type's feature extractor; None reads them from `path`, as `arch`, else takes its defaults."""
        layers: Layers = "last"
        """Hidden states that make the frames: last, weighted (a learned mix), or numbers to concatenate."""
        chunk: float | None = Field(None, gt=0)
        """Seconds of a window, which attention does not leave; None is 30; AST and CLAP have their own."""
        windows_at_once: int = Field(16, ge=1)
        """Windows of long clips encoded together: bounds the memory."""
        attn_implementation: Literal["sdpa", "eager"] | None = None
        """Attention of transformers; None takes the model's default."""

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
            if self.path is None:
                raise SpecError("transformers needs 'path' (weights) or 'arch' (a config with its model_type)")
            arch, preprocessor = read_both(self.path, self.revision)
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
        model, info = kind.loader.from_pretrained(
            source.folder,
            config=network,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **kind.loading,
        )
        faults = [f"missing {name}" for name in sorted(info["missing_keys"] - {"masked_spec_embed"})]
        faults += [f"{name} is {tuple(a)}, expected {tuple(b)}" for name, a, b in sorted(info["mismatched_keys"])]
        if faults:
            raise ComponentError(f"{self.config.path}: the checkpoint does not fit: " + "; ".join(faults))
        own = {base_name(name) for name in self.state_dict()}  # without layers past the last one needed
        tensors = {f"network.{own_name(name)}": tensor for name, tensor in model.state_dict().items()}
        return {name: tensor for name, tensor in tensors.items() if name in own}

    def forward(self, audio: Tensor, mask: Tensor) -> Frames:
        """Frames of (batch, config.length(samples), dim)."""
        span = self.network.span
        size = span.length(audio.shape[1])
        own = prefix_mask(span.length(mask.sum(-1)), size)
        short = (0, max(0, span.field - audio.shape[1]))  # a batch without a frame is one of silence
        audio, mask = F.pad(audio, short), F.pad(mask, short)
        x = self.network(audio.masked_fill(~mask, 0), mask, self.mix)[:, :size]
        return Frames(x.masked_fill(~own.unsqueeze(-1), 0), own, span.rate)


class Network(nn.Module):
    """A model of transformers as a function of clips.

    Args:
        model: as AutoModel builds it.
        config: the component's.
    """

    extractor: ClassVar[str]
    """The feature extractor that is reproduced here."""
    sample_rate: ClassVar[int | None] = 16000
    """The only one that its filters are for; None: any."""
    loader: ClassVar[Any] = AutoModel
    """What reads a checkpoint."""
    loading: ClassVar[dict[str, Any]] = {}
    """Options for it."""

    def __init__(self, model: Any, config: Transformers.Config) -> None:
        super().__init__()
        if hasattr(model, "masked_spec_embed"):
            del model.masked_spec_embed  # SpecAugment's
        self.model = model
        self.options = config.preprocessor or {}
        self.span = config._span
        self.window = max(1, round((config.chunk or 30.0) * self.span.sample_rate / self.span.hop))
        self.at_once = config.windows_at_once

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """The arithmetic of its time."""
        raise NotImplementedError("a network has a span_of(network, preprocessor)")

    @staticmethod
    def construct(network: Any) -> Any:
        """The model without a checkpoint's weights."""
        return AutoModel.from_config(network)

    @staticmethod
    def states_of(network: Any) -> tuple[int, int]:
        """How many hidden states it has, and their width."""
        return network.num_hidden_layers + 1, network.hidden_size

    def end_at(self, state: int) -> None:
        """Drop the layers that come after a hidden state, and the norm of the last one."""
        raise NotImplementedError(f"{type(self).__name__} has no end_at(state)")

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """Clips (batch, samples), zero where masked, to (batch, frames, dim), one frame at least."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(audio, mask, mix)")


class Waveform(Network):
    """wav2vec 2 (Baevski et al., 2020) and what has its structure."""

    extractor = "Wav2Vec2FeatureExtractor"
    sample_rate = None

    def __init__(self, model: Any, config: Transformers.Config) -> None:
        super().__init__(model, config)
        model.feature_extractor = Convolutions(model.feature_extractor.conv_layers, self.window, self.at_once)
        self.position: WeightNormConv | None = None
        positions = model.encoder.pos_conv_embed
        if hasattr(positions, "conv"):  # torch's parametrisation cannot be pickled
            self.position, self.activation = WeightNormConv(positions.conv), positions.activation
            del model.encoder.pos_conv_embed
        self.last = model.config.num_hidden_layers
        self.stable = getattr(model.config, "do_stable_layer_norm", False)

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """By the convolutions."""
        field, hop = field_and_hop(list(network.conv_kernel), list(network.conv_stride))
        return Span(int(preprocessor.get("sampling_rate", 16000)), field, hop)

    def end_at(self, state: int) -> None:
        """Layers, and where the norm is the last, that too."""
        encoder = self.model.encoder
        if self.stable and state < self.last:
            encoder.layer_norm = nn.Identity()
        del encoder.layers[state:]

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, frames, dim)."""
        if self.options.get("do_normalize", True):
            audio = normalized(audio, mask)
        x = self.model.feature_extractor(audio, mask)
        own = prefix_mask(self.span.length(mask.sum(-1)), x.shape[1])
        x = self.model.feature_projection(x)
        x = x[0] if isinstance(x, tuple) else x
        x = self._placed(x, ~own.unsqueeze(-1))
        return attended(x, own, lambda x, mask: mix(self._states(x, mask)), frames=self.window, at_once=self.at_once)

    def _placed(self, x: Tensor, outside: Tensor) -> Tensor:
        """The frames with their positions, by convolutions that see nothing past a clip's end."""
        encoder = self.model.encoder
        x = x.masked_fill(outside, 0)
        place = x
        if self.position is not None:
            place = self.activation(self.position(place.mT)[..., : x.shape[1]]).mT
        else:
            for layer in encoder.pos_conv_embed.layers:
                place = layer(place.mT).mT.masked_fill(outside, 0)
        x = x + place
        return cast(Tensor, encoder.dropout(x if self.stable else encoder.layer_norm(x)))

    def _states(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        yield x
        for i, state in enumerate(self._layers(x, mask), 1):
            yield self.model.encoder.layer_norm(state) if self.stable and i == self.last else state

    def _layers(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        attention_mask = create_bidirectional_mask(self.model.config, x, mask)
        for layer in self.model.encoder.layers:
            x = layer(x, attention_mask=attention_mask)
            yield x


class WavLM(Waveform):
    """WavLM (Chen et al., 2022), whose layers share a bias for positions."""

    def _layers(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        bias = None
        for i, layer in enumerate(self.model.encoder.layers):
            x, bias = layer(x, attention_mask=mask, position_bias=bias, index=i)
            yield x


class W2vBert(Network):
    """w2v-BERT 2.0 (Seamless Communication, 2023): a conformer on pairs of mel frames."""

    extractor = "SeamlessM4TFeatureExtractor"

    def __init__(self, model: Any, config: Transformers.Config) -> None:
        super().__init__(model, config)
        self.fbank = KaldiFbank(self.options.get("num_mel_bins", 80), "povey", scale=2.0**15)
        width, stride = model.config.feature_projection_input_dim, self.span.hop // FBANK_HOP
        if width != self.fbank.bins * stride:
            raise ComponentError(
                f"transformers: {stride} frames of {self.fbank.bins} mel bins do not make "
                f"feature_projection_input_dim {width}; look at 'num_mel_bins' and 'stride' in 'preprocessor'"
            )

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """Frames of 10 ms, by twos."""
        stride = preprocessor.get("stride", 2)
        return Span(16000, FRAME + (stride - 1) * FBANK_HOP, stride * FBANK_HOP)

    def end_at(self, state: int) -> None:
        """Layers; there is no norm after them."""
        del self.model.encoder.layers[state:]

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, frames, dim); each mel bin is normalised over the clip."""
        stride = self.span.hop // FBANK_HOP
        lengths = fbank_frames(mask.sum(-1))
        x = per_bin(self.fbank(audio), lengths)
        x = rearrange(x[:, : x.shape[1] // stride * stride], "b (t s) m -> b t (s m)", s=stride)
        own = prefix_mask(lengths // stride, x.shape[1])
        x = self.model.feature_projection(x.to(self.model.feature_projection.projection.weight.dtype))[0]
        x = self.model.encoder.dropout(x.masked_fill(~own.unsqueeze(-1), 0))
        return attended(x, own, lambda x, mask: mix(self._states(x, mask)), frames=self.window, at_once=self.at_once)

    def _states(self, x: Tensor, mask: Tensor) -> Iterator[Tensor]:
        attention_mask = create_bidirectional_mask(self.model.config, x, mask)
        yield x
        for layer in self.model.encoder.layers:
            x = layer(x, attention_mask=attention_mask, conv_attention_mask=mask)
            yield x


class Ast(Network):
    """The Audio Spectrogram Transformer (Gong et al., 2021), in its own windows, each padded as in training.

    A step of time is one token for each band of frequency, from the lowest to the highest.
    """

    extractor = "ASTFeatureExtractor"

    def __init__(self, model: Any, config: Transformers.Config) -> None:
        super().__init__(model, config)
        if config.chunk is not None:
            raise SpecError("chunk: AST has windows of its own, as long as its table of positions; leave it out")
        self.fbank = KaldiFbank(model.config.num_mel_bins, "hann")
        self.steps = (model.config.max_length - model.config.patch_size) // model.config.time_stride + 1
        self.last = model.config.num_hidden_layers

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """Patches of 16 frames of 10 ms, every 10 frames, in 12 bands."""
        field = FRAME + (network.patch_size - 1) * FBANK_HOP
        bands = (network.num_mel_bins - network.patch_size) // network.frequency_stride + 1
        return Span(16000, field, network.time_stride * FBANK_HOP, bands)

    def end_at(self, state: int) -> None:
        """Layers, and the norm after the last."""
        if state < self.last:
            self.model.layernorm = nn.Identity()
        del self.model.layers[state:]

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, steps of bands, dim)."""
        return in_windows(
            audio,
            mask,
            lambda audio, mask: self._encode(audio, mask, mix),
            frames=self.steps,
            hop=self.span.hop,
            field=self.span.field,
            at_once=self.at_once,
        )

    def _encode(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        x = self.fbank(audio)
        own = prefix_mask(fbank_frames(mask.sum(-1)), x.shape[1])
        x = x.masked_fill(~own.unsqueeze(-1), 0)
        x = F.pad(x, (0, 0, 0, self.model.config.max_length - x.shape[1]))
        if self.options.get("do_normalize", True):
            x = (x - self.options.get("mean", -4.2677393)) / (2 * self.options.get("std", 4.5689974))
        x = self.model.embeddings(x.to(self.model.embeddings.cls_token.dtype))
        x = mix(self._states(x))[:, 2:]  # without the two tokens of the whole window
        return cast(Tensor, rearrange(x, "b (f t) d -> b (t f) d", t=self.steps))

    def _states(self, x: Tensor) -> Iterator[Tensor]:
        yield x
        for i, layer in enumerate(self.model.layers, 1):
            x = layer(x)
            yield self.model.layernorm(x) if i == self.last else x


class Clap(Network):
    """CLAP's audio tower (Wu et al., 2023; HTS-AT, Chen et al., 2022), in its own windows, padded with silence.

    The tower folds a window's spectrogram into a square, and unfolds what it made of it: a step of time is the
    mean over the bands of frequency. Steps share a window evenly, 32 in ten seconds. Short clips are padded, not
    repeated as for the embedding of a clip, and long ones are several windows, not a crop.
    """

    extractor = "ClapFeatureExtractor"
    sample_rate = 48000
    loader = ClapAudioModel
    loading: ClassVar[dict[str, Any]] = {"key_mapping": {r"^audio_model\.": ""}}  # in a model with a text tower too

    def __init__(self, model: Any, config: Transformers.Config) -> None:
        super().__init__(model, config)
        if config.chunk is not None:
            raise SpecError("chunk: CLAP has windows of its own, as long as its spectrogram; leave it out")
        if config.layers != "last":
            raise SpecError("layers: CLAP's hidden states differ in width and rate, so that only its last makes frames")
        bins = self.options.get("feature_size", 64)
        if bins != model.config.num_mel_bins:
            raise ComponentError(
                f"transformers: {bins} mel bins are not the {model.config.num_mel_bins} of 'num_mel_bins'; "
                "look at 'feature_size' in 'preprocessor'"
            )
        self.mel = ClapMel(
            bins,
            sample_rate=self.span.sample_rate,
            fft=self.options.get("fft_window_size", 1024),
            hop=self.options.get("hop_length", 480),
            lowest=self.options.get("frequency_min", 0),
            highest=self.options.get("frequency_max", 14000),
        )
        model.audio_encoder.batch_norm = FixedNorm(bins)
        self.steps = clap_steps(model.config)

    @staticmethod
    def span_of(network: Any, preprocessor: dict[str, Any]) -> Span:
        """A step for every share of a window begun, so that no clip is without one."""
        if preprocessor.get("truncation") == "fusion":
            raise ComponentError(f"transformers: 'truncation: fusion' is not supported, because {FUSION}")
        steps, seconds = clap_steps(network), preprocessor.get("max_length_s", 10)
        samples, hop = round(seconds * Clap.sample_rate), preprocessor.get("hop_length", 480)
        columns = network.spec_size * (network.spec_size // network.num_mel_bins)
        if samples % steps or samples // hop + 1 > columns:
            raise ComponentError(
                f"transformers: CLAP with windows of {seconds} s is not supported, because they are not {steps} "
                f"equal steps, or are more than the {columns} mel frames of its square; look at 'max_length_s' in "
                "'preprocessor'"
            )
        return Span(Clap.sample_rate, 1, samples // steps)

    @staticmethod
    def construct(network: Any) -> Any:
        """Only the audio tower."""
        return ClapAudioModel(network)

    @staticmethod
    def states_of(network: Any) -> tuple[int, int]:
        """The last, as wide as the channels of the last stage."""
        return 1, network.patch_embeds_hidden_size * 2 ** (len(network.depths) - 1)

    def end_at(self, state: int) -> None:
        """There is only the last."""

    def forward(self, audio: Tensor, mask: Tensor, mix: LayerMix) -> Tensor:
        """(batch, samples) to (batch, steps, dim)."""
        return in_windows(
            audio,
            mask,
            lambda audio, mask: mix([self._encode(audio)]),
            frames=self.steps,
            hop=self.span.hop,
            field=self.span.hop,
            at_once=self.at_once,
        )

    def _encode(self, audio: Tensor) -> Tensor:
        mel = rearrange(self.mel(audio), "b t m -> b 1 t m")
        return cast(Tensor, reduce(self.model.audio_encoder(mel).last_hidden_state, "b d f t -> b t d", "mean"))


KINDS: dict[str, type[Network]] = {
    "wav2vec2": Waveform,
    "hubert": Waveform,
    "data2vec-audio": Waveform,
    "unispeech": Waveform,
    "unispeech-sat": Waveform,
    "wavlm": WavLM,
    "wav2vec2-bert": W2vBert,
    "audio-spectrogram-transformer": Ast,
    "clap_audio_model": Clap,
}

FUSION = "its crops of a long clip are drawn at random and mixed with the whole clip, so that no frame has a time"

# Options that change a network in a way that is not reproduced here, and what would go wrong.
UNSUPPORTED = {
    "add_adapter": "the convolutions of its adapter change the rate of the frames and see the padding",
    "use_intermediate_ffn_before_adapter": "it belongs to an adapter",
    "conv_pos_batch_norm": "its statistics would see the padding",
    "enable_fusion": FUSION,
}


def per_bin(x: Tensor, lengths: Tensor) -> Tensor:
    """Mel frames (batch, time, bin) with zero mean and unit variance in each bin over a clip; zero past its end."""
    outside = ~prefix_mask(lengths, x.shape[1]).unsqueeze(-1)
    count = lengths.clamp_min(1)[:, None, None]
    x = (x - x.masked_fill(outside, 0).sum(1, keepdim=True) / count).masked_fill(outside, 0)
    variance = x.square().sum(1, keepdim=True) / (count - 1).clamp_min(1)
    return x * (variance + 1e-7).rsqrt()


def clap_steps(network: Any) -> int:
    """Steps of time that CLAP's tower makes of a window: the columns of each fold of its square, one after another."""
    stride = network.patch_stride if isinstance(network.patch_stride, int) else network.patch_stride[1]
    columns = network.spec_size // 2 ** (len(network.depths) - 1) // stride
    return int(columns * (network.spec_size // network.num_mel_bins))


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
    return kind.span_of(network, options)


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
    arch = audio_tower(arch) if arch.get("model_type") == "clap" else arch
    arch = {k: v for k, v in arch.items() if k not in noise and k[0] != "_"}
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
