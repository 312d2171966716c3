"""One way to answer: a model, its processor, and chats in; text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from usam.data.collate import with_sound
from usam.model.checkpoint import processor_beside
from usam.model.model import UsamForConditionalGeneration
from usam.processor.processor import UsamProcessor, answers

Chat = Sequence[Mapping[str, Any]]


class Answerer:
    """A loaded model that answers chats in batches.

    Args:
        model: the model, in eval mode.
        processor: its processor.
    """

    def __init__(self, model: UsamForConditionalGeneration, processor: UsamProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def load(cls, path: str | Path, **kwargs: Any) -> Answerer:
        """The model and processor in a saved folder; `kwargs` as `from_pretrained` takes them."""
        model = UsamForConditionalGeneration.from_pretrained(path, **kwargs)
        return cls(model, processor_beside(path, model.config.parsed))

    def ask(self, audio: Any = None, prompt: str | None = None, task: str | None = None) -> list[dict[str, Any]]:
        """The messages of one question about one or several clips.

        Raises:
            ValueError: neither or both of `prompt` and `task`, or a task that the model does not know.
        """
        if (prompt is None) == (task is None):
            raise ValueError("give either a prompt or a task")
        if task is not None:
            if task not in self.processor.prompts:
                known = ", ".join(sorted(self.processor.prompts)) or "none"
                raise ValueError(f"this model has no prompt for task '{task}'; known: {known}")
            prompt = self.processor.prompts[task]
        clips = [] if audio is None else list(audio) if isinstance(audio, (list, tuple)) else [audio]
        content = [{"type": "audio", "audio": clip} for clip in clips] + [{"type": "text", "text": prompt}]
        return [{"role": "user", "content": content}]

    def answer(self, chats: Iterable[Chat], *, batch_size: int = 8, **kwargs: Any) -> Iterator[str]:
        """One answer a chat, in order; `kwargs` as transformers' `generate` takes them (greedy by default)."""
        batch: list[Chat] = []
        for chat in chats:
            batch.append(chat)
            if len(batch) == batch_size:
                yield from self._answer(batch, kwargs)
                batch = []
        if batch:
            yield from self._answer(batch, kwargs)

    @torch.inference_mode()
    def _answer(self, chats: Sequence[Chat], kwargs: Mapping[str, Any]) -> list[str]:
        rate = self.processor.feature_extractor.sampling_rate
        rendered = [self.processor.render(with_sound(chat, rate), add_generation_prompt=True) for chat in chats]
        batch = self.processor.encode(rendered).to(self.model.device)
        options = {"do_sample": False, "max_new_tokens": 256, **kwargs}
        generated = self.model.generate(**batch, **options)
        copies = len(generated) // len(chats)
        found = answers(self.processor, generated, batch["input_ids"].shape[1])
        return [text for i in range(len(chats)) for text in found[i * copies : (i + 1) * copies]]
