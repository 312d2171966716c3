"""Collation reads the audio of a batch and makes the tensors that the model learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from usam.data.manifest import ManifestError, Sample
from usam.processor.audio import AudioError, read_audio

if TYPE_CHECKING:
    from usam.processor.processor import UsamProcessor


class Collator:
    """Samples to tensors, with labels on the answers.

    Args:
        processor: the model's processor.
        tasks: also give `tasks`, each sample's own or None, which UsamTrainer takes out before the model is called,
            and `batch`, what `passed_along` gives, which the model hands to its losses.

    Raises:
        AudioError, ManifestError: a clip cannot be read, or a chat not rendered; the row is named.
    """

    def __init__(self, processor: UsamProcessor, *, tasks: bool = False) -> None:
        self.processor = processor
        self.tasks = tasks

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch = self.processor.encode([self._render(sample) for sample in samples], labels=True)
        if not self.tasks:
            return dict(batch)
        return {**batch, "tasks": [sample.task for sample in samples], "batch": passed_along(samples)}

    def _render(self, sample: Sample) -> Any:
        try:
            return self.processor.render(with_sound(sample.messages, self.processor.feature_extractor.sampling_rate))
        except AudioError as error:
            raise AudioError(f"{sample.origin}: {error}") from error
        except ValueError as error:
            raise ManifestError(f"{sample.origin}: {error}") from error


def passed_along(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What losses may want to know of each sample: `ids` (else file:line), `tasks`, and its user's columns, `extra`."""
    return {
        "ids": [sample.origin if sample.id is None else sample.id for sample in samples],
        "tasks": [sample.task for sample in samples],
        "extra": [dict(sample.extra) for sample in samples],
    }


def with_sound(messages: Sequence[Any], rate: int) -> list[Any]:
    """The same messages with every clip read into an array at `rate`."""
    heard = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": "audio", "audio": _sound(b, rate)} if b["type"] != "text" else b for b in content]
        heard.append({**message, "content": content})
    return heard


def _sound(block: Any, rate: int) -> NDArray[np.float32]:
    source = next(block[key] for key in ("audio", "path", "url", "audio_url") if key in block)
    return read_audio(source, rate, start=block.get("start", 0.0), duration=block.get("duration"))
