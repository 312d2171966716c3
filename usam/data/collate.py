"""Collation reads the audio of a batch and makes the tensors that the model learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from usam.data.manifest import ManifestError, Sample
from usam.processor.audio import AudioError
from usam.processor.chat import blocks
from usam.processor.clip import KINDS, Clip, names_source

if TYPE_CHECKING:
    from usam.processor.processor import UsamProcessor


class Collator:
    """Samples to tensors, with labels on the answers.

    Args:
        processor: the model's processor.
        tasks: also give `tasks`, each row's own or None, which UsamTrainer takes out before the model is called, and
            `batch`, what `passed_along` gives, which the model hands to its losses.

    Raises:
        AudioError, ManifestError: a clip cannot be read, or a chat not rendered; the row is named.
    """

    def __init__(self, processor: UsamProcessor, *, tasks: bool = False) -> None:
        self.processor = processor
        self.tasks = tasks

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        batch, owners = self.rows(samples)
        if not self.tasks:
            return batch
        return {**batch, "tasks": [sample.task for sample in owners], "batch": passed_along(owners)}

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


def passed_along(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What losses may want to know of each sample: `ids` (else file:line), `tasks`, and its user's columns, `extra`."""
    return {
        "ids": [sample.origin if sample.id is None else sample.id for sample in samples],
        "tasks": [sample.task for sample in samples],
        "extra": [dict(sample.extra) for sample in samples],
    }


def with_sound(messages: Sequence[Any], rate: int) -> list[Any]:
    """The same messages with every clip that they name read into an array at `rate`."""
    heard = []
    for message in messages:
        parts = blocks(message)
        if not isinstance(message["content"], str):
            parts = [
                Clip(Clip.of(b).read(rate)).block() if b["type"] in KINDS and names_source(b) else b for b in parts
            ]
            message = {**message, "content": parts}
        heard.append(message)
    return heard
