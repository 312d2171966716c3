"""The feature extractor reads sound into one padded batch; the encoders' front-ends are in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

from usam.processor.audio import INT16, Room, is_pair
from usam.processor.clip import Clip
from usam.providers import as_saved
from usam.saving import SavedWhole
from usam.spec.spec import Spec


@dataclass(frozen=True, eq=False)
class Heard:
    """A clip that `fetch_audio` gave, which needs no second look."""

    samples: NDArray[Any]


class UsamFeatureExtractor(SavedWhole, FeatureExtractionMixin):
    """Waveforms as one padded batch at the rate the model takes; the encoders' front-ends are in the model.

    Args:
        spec: the model's spec as plain data, which says how many tokens a clip becomes.
        max_seconds: longest clip that is read; a longer one is an AudioError. None, the default, sets no limit:
            set one where strangers give the files, for a small file can hold days of silence.
        provenance: who provided its components when it was saved.
    """

    model_input_names = ["input_values", "input_values_mask"]

    def __init__(
        self,
        spec: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
        max_seconds: float | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("sampling_rate", None)
        super().__init__(**kwargs)
        self.max_seconds = max_seconds
        self.provenance = dict(provenance or {})
        self.spec = as_saved(spec or {}, self.provenance)
        self._parsed = Spec.from_tree(self.spec) if spec else None
        self.sampling_rate = self._parsed.sample_rate if self._parsed else 16000

    def audio_tokens(self, samples: int) -> int:
        """Tokens that a clip of `samples` samples becomes."""
        return self._spec().audio_tokens(samples)

    def placeholders(self, samples: int) -> int:
        """Placeholders in the text for a clip of `samples` samples."""
        return self._spec().placeholders(samples)

    def _spec(self) -> Spec:
        assert self._parsed is not None, "a feature extractor needs its spec"
        return self._parsed

    def fetch_audio(self, audio: Any, sampling_rate: int | None = None, room: Room | None = None) -> Any:
        """Sound from a file, bytes, a dict or an array, at the model's rate; a list of them gives a list.

        Args:
            audio: one clip, or a list of them; one that was fetched before, in a Heard, is as it was.
            sampling_rate: of bare arrays; None for the model's own.
            room: where samples are read to, as `read_audio` takes it; 16 bits stay what they are until `padded`.

        Raises:
            AudioError: it cannot be read; the message names the file.
        """
        if isinstance(audio, Heard):
            return audio.samples
        if not is_clip(audio):
            return [self.fetch_audio(clip, sampling_rate, room) for clip in audio]
        clip = Clip.of(audio)
        x = clip.source
        if isinstance(x, (np.ndarray, Tensor, list, tuple)) and sampling_rate is not None and not is_pair(x):
            clip = replace(clip, source={"array": x, "sampling_rate": sampling_rate})
        return clip.read(self.sampling_rate, max_seconds=self.max_seconds, room=room)

    def __call__(
        self, audio: Any, sampling_rate: int | None = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """`input_values` (clip, samples), zero on the right of shorter clips, and `input_values_mask`.

        Args:
            audio: one clip, or a list of them, as `fetch_audio` takes.
            sampling_rate: of bare arrays; None for the model's own.
            return_tensors: "pt", "np" or None.
        """
        return self.padded(self.fetch_audio(clips_of(audio), sampling_rate), return_tensors)

    def padded(self, clips: Sequence[NDArray[Any]], return_tensors: str | None = None) -> BatchFeature:
        """The batch of what `fetch_audio` gave."""
        size = max(len(clip) for clip in clips)
        values = np.empty((len(clips), size), dtype=np.float32)
        mask = np.empty((len(clips), size), dtype=bool)
        for i, clip in enumerate(clips):
            if clip.dtype == np.int16:
                np.multiply(clip, INT16, out=values[i, : len(clip)])
            else:
                values[i, : len(clip)] = clip
            values[i, len(clip) :] = 0
            mask[i, : len(clip)], mask[i, len(clip) :] = True, False
        batch: dict[str, Any] = {"input_values": values, "input_values_mask": mask}
        if return_tensors == "pt":  # transformers would copy them
            batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        return BatchFeature(batch, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """The extractor as data."""
        data: dict[str, Any] = super().to_dict()
        data.pop("_parsed", None)
        return data


def is_clip(audio: Any) -> bool:
    """Whether it is one clip, and not a list of them."""
    if not isinstance(audio, (list, tuple)):
        return True
    return is_pair(audio) or (len(audio) > 0 and isinstance(audio[0], Number))


def clips_of(audio: Any) -> list[Any]:
    return [audio] if is_clip(audio) else list(audio)
