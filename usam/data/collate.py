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
        tasks: also give `tasks`, each row's own or None; UsamTrainer takes it out before the model is called.

    Raises:
        AudioError, ManifestError: a clip cannot be read, or a chat not rendered; the row is named.
    """

    def __init__(self, processor: UsamProcessor, *, tasks: bool = False) -> None:
        self.processor = processor
        self.tasks = tasks

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch, owners = self.rows(samples)
        return {**batch, "tasks": [sample.task for sample in owners]} if self.tasks else batch

    def rows(self, samples: Sequence[Sample]) -> tuple[dict[str, Any], list[Sample]]:
        """The tensors, and the sample of each row: a chat has several where its template rewrites past answers."""
        rows = [(sample, row) for sample in samples for row in self._render(sample).rows]
        batch = self.processor.encode([row for _, row in rows], labels=True)
        return dict(batch), [sample for sample, _ in rows]

    def _render(self, sample: Sample) -> Any:
        try:
            return self.processor.render(with_sound(sample.messages, self.processor.feature_extractor.sampling_rate))
        except AudioError as error:
            raise AudioError(f"{sample.origin}: {error}") from error
        except ValueError as error:
            raise ManifestError(f"{sample.origin}: {error}") from error


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
