"""How transformers' `generate` is told of audio: clips follow their samples, placeholders are no words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.generation import LogitsProcessorList, PromptLookupCandidateGenerator

from usam.config import UsamConfig
from usam.model.splice import check_counts, owners, unheard


class UsamGeneration(GenerationMixin):
    """transformers' generation, with clips and the prompt mask in the prefill only."""

    config: UsamConfig
    model: Any
    lm_head: Any

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat a sample's run of clips as a block, so that each copy of the sample hears all of them."""
        clips = {name: model_kwargs.pop(name, None) for name in ("input_values", "input_values_mask")}
        if expand_size > 1 and clips["input_values"] is not None and input_ids is not None:
            rows = self._clip_rows(input_ids, clips["input_values"], clips["input_values_mask"], expand_size)
            clips = {name: None if x is None else x[rows] for name, x in clips.items()}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **{name: x for name, x in clips.items() if x is not None}}

    def _clip_rows(self, input_ids: Tensor, values: Tensor, mask: Tensor | None, copies: int) -> Tensor:
        counts, slots = self._counts(values, mask), self.model.is_audio(input_ids)
        check_counts(slots, counts)
        owner = owners(slots, counts)
        runs = [(owner == i).nonzero().squeeze(-1).repeat(copies) for i in range(len(input_ids))]
        return torch.cat(runs)

    def _counts(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """How many placeholders each clip has: (clip,)."""
        samples = mask.sum(-1) if mask is not None else torch.full((len(values),), values.shape[1])
        return self.config.parsed.placeholders(samples.to(self.device))

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The clips and the prompt mask belong to the prefill only, and those that the cache has heard to none."""
        known = 0 if next_sequence_length is None else input_ids.shape[1] - next_sequence_length
        if known > 0 and kwargs.get("is_first_iteration"):
            kwargs = self._unheard(input_ids, known, kwargs)
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, inputs_embeds=inputs_embeds, **kwargs
        )
        if inputs.get("input_values") is None:
            inputs.pop("prompt_mask", None)
        elif (mask := inputs.get("prompt_mask")) is not None and inputs.get("input_ids") is not None:
            # Prompt lookup prefills its candidates with the prompt: they are no instruction.
            inputs["prompt_mask"] = nn.functional.pad(mask, (0, inputs["input_ids"].shape[1] - mask.shape[1]))
        return inputs

    def _unheard(self, input_ids: Tensor, known: int, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs without the clips whose placeholders are among the first `known` tokens, which the cache holds.

        Raises:
            ValueError: the cache ends within a clip.
        """
        values, mask, prompt = (inputs.get(name) for name in ("input_values", "input_values_mask", "prompt_mask"))
        if prompt is not None and prompt.shape == input_ids.shape:
            inputs = {**inputs, "prompt_mask": prompt[:, known:]}
        slots = self.model.is_audio(input_ids)
        if values is None or (counts := self._counts(values, mask)).sum() == slots[:, known:].sum():
            return inputs  # no clips, or only new ones
        check_counts(slots, counts)
        new = unheard(slots, counts, known).to(values.device)
        clips = {"input_values": values, "input_values_mask": mask}
        return {**inputs, **{name: x[new] if x is not None and new.any() else None for name, x in clips.items()}}

    def _get_logits_processor(
        self, *args: Any, encoder_input_ids: Tensor | None = None, **kwargs: Any
    ) -> LogitsProcessorList:
        words = None if encoder_input_ids is None else self._words(encoder_input_ids)
        return _OnWords(super()._get_logits_processor(*args, encoder_input_ids=words, **kwargs), self._words)

    def _words(self, input_ids: Tensor) -> Tensor:
        """The ids with a word that the row has anyhow in place of a placeholder whose id lies past the table."""
        token = self.config.audio_token_id
        if token is None or token < self.lm_head.out_features or input_ids.shape[1] == 0:
            return input_ids
        audio = input_ids == token
        word = input_ids.gather(1, (~audio).int().argmax(-1, keepdim=True)).masked_fill(audio.all(-1, keepdim=True), 0)
        return torch.where(audio, word, input_ids)

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        """Also whoever gives a list of tokens to suppress does not want placeholders: they are no words."""
        config, *rest = super()._prepare_generation_config(*args, **kwargs)
        if self.config.audio_token_id is not None:
            config.suppress_tokens = sorted({*(config.suppress_tokens or ()), self.config.audio_token_id})
        return config, *rest

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_candidate_generator(*args, **kwargs)
        if isinstance(found, PromptLookupCandidateGenerator) and self.config.audio_token_id is not None:
            # It looks its candidates' scores up, and what it copies from the prompt may be a placeholder.
            found.vocab_size = max(self.lm_head.out_features, self.config.audio_token_id + 1)
        return found

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' generate.

        Raises:
            ValueError: a separate assistant model was given, which cannot hear the audio; or frames of encoders.
        """
        if kwargs.get("audio_frames") is not None:
            raise ValueError("audio_frames: generation runs the encoders itself; leave them out")
        if kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model: a separate draft model does not hear the audio; use prompt_lookup_num_tokens instead"
            )
        return super().generate(*args, **kwargs)


class _OnWords(LogitsProcessorList):
    """Logits processors that look tokens up (repetition penalty) never see an id past the table."""

    def __init__(self, processors: LogitsProcessorList, words: Callable[[Tensor], Tensor]) -> None:
        super().__init__(processors)
        self.words = words

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return super().__call__(self.words(input_ids), scores, **kwargs)
