"""CLAP's audio tower (Wu et al., 2023)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from einops import rearrange, reduce
from torch import Tensor
from transformers import ClapAudioModel

from usam.encoders._clap import ClapMel, FixedNorm
from usam.encoders._layers import LayerMix
from usam.encoders._transformers.network import Network, Span
from usam.encoders._windows import in_windows
from usam.registry import ComponentError
from usam.spec.page import SpecError


class Clap(Network):
    """CLAP's audio tower (Wu et al., 2023; HTS-AT, Chen et al., 2022), in its own windows, padded with silence.

    The tower folds a window's spectrogram into a square, and unfolds what it made of it: a step of time is the
    mean over the bands of frequency. Steps share a window evenly, 32 in ten seconds. Short clips are padded, not
    repeated as for the embedding of a clip, and long ones are several windows, not a crop.
    """

    types: ClassVar[tuple[str, ...]] = ("clap_audio_model",)
    extractor = "ClapFeatureExtractor"
    sample_rate = 48000
    loader = ClapAudioModel
    loading: ClassVar[dict[str, Any]] = {"key_mapping": {r"^audio_model\.": ""}}  # in a model with a text tower too

    def __init__(self, model: Any, config: Any) -> None:
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


FUSION = "its crops of a long clip are drawn at random and mixed with the whole clip, so that no frame has a time"


def clap_steps(network: Any) -> int:
    """Steps of time that CLAP's tower makes of a window: the columns of each fold of its square, one after another."""
    stride = network.patch_stride if isinstance(network.patch_stride, int) else network.patch_stride[1]
    columns = network.spec_size // 2 ** (len(network.depths) - 1) // stride
    return int(columns * (network.spec_size // network.num_mel_bins))
