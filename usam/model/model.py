"""The composite: encoders, fusion, projector and language model, as one transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from usam import encoders, fusions, losses
from usam.component import Parts, build_part, building, drawing, is_frozen
from usam.config import UsamConfig
from usam.llm import build_backbone, build_head
from usam.model import inputs
from usam.model.cross_attention import GatedBlock, Listening, blocks_before, hearing
from usam.model.generation import UsamGeneration
from usam.model.head import WithHead, as_head, know_head, vocabulary_of
from usam.model.inputs import Given, check_heard, check_names, check_shapes, names_of
from usam.model.lengths import wrong_length
from usam.model.objective import needed, weighted
from usam.model.outputs import UsamModelOutput, UsamOutput, may_be_tuple
from usam.model.pretrained import UsamPreTrainedModel, check_adapter, give_dtypes, in_float32
from usam.model.splice import beside, by_sample, check_counts, owners, prompts_of, scatter
from usam.projectors import Chain
from usam.types import Audio, Frames, Prompt, Vocabulary, joined
from usam.versions.compat import CACHE, cache_argument, one_cache


class UsamModel(UsamPreTrainedModel):
    """waveforms -> encoders -> fusion -> projector -> language model."""

    def __init__(self, config: UsamConfig, seed: int | None = None) -> None:
        super().__init__(config)
        self.seed = seed
        spec, llm = config.parsed, config.llm()
        with building("llm", llm.config):
            dim = llm.dim
        with in_float32():
            built = {
                n: build_part(f"encoders.{n}", encoders.registry, c, seed) for n, c in sorted(spec.encoders.items())
            }
            self.encoders = Parts(built)
            dims = {name: encoder.dim for name, encoder in built.items()}
            widths = fusions.widths_for(fusions.registry.get(spec.fusion.type), dims, dim)
            self.fusion = build_part("fusion", fusions.registry, spec.fusion, seed, **widths)
            self.projector = Chain(spec.projector, in_dim=self.fusion.dim, prompt_dim=dim, out_dim=dim, seed=seed)
        with building("llm", llm.config, seed):
            self.language_model: Any = build_backbone(llm, cast(Any, config.text_config))
        config.text_config = self.language_model.config
        self.cross_attention = blocks_before(self.language_model, llm.config.injection, dim, seed)
        self._takes_cache = cache_argument(self.language_model.forward)
        self._takes_positions = "position_ids" in inspect.signature(self.language_model.forward).parameters
        self._known = names_of(self.forward, self.language_model.forward)
        self.post_init()
        # post_init looks at direct children only: an encoder, or a layer in one, stays on one device.
        self._no_split_modules |= {GatedBlock.__name__, *(type(encoder).__name__ for encoder in built.values())}
        for module in self.encoders.modules():
            self._no_split_modules |= set(getattr(module, "_no_split_modules", None) or ())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """A saved model without its head; takes transformers' options."""
        from usam.model.checkpoint import load_body

        return load_body(pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Write config.json and every tensor, those of sources too; the head is not among them."""
        from usam.model.checkpoint import save_body

        save_body(self, save_directory, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token table."""
        return cast(nn.Module, self.language_model.get_input_embeddings())

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token table."""
        self.language_model.set_input_embeddings(value)

    def is_audio(self, input_ids: Tensor) -> Tensor:
        """True at the placeholders: (batch, length)."""
        return cast(Tensor, input_ids == self.config.audio_token_id)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (batch, length, dim); zero at placeholders, whose id may lie past the table."""
        audio = self.is_audio(input_ids)
        table = self.get_input_embeddings()
        return cast(Tensor, table(input_ids.masked_fill(audio, 0))).masked_fill(audio.unsqueeze(-1), 0)

    @property
    def vocabulary(self) -> Vocabulary:
        """The language model's words, as projectors and losses may ask for them."""
        return vocabulary_of(self)

    def encode(
        self,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        given: Given = None,
        prompt: Prompt | None = None,
    ) -> Frames:
        """The fused frames of clips (clip, samples) at the spec's rate, before projection; `given`: `audio_frames`."""
        audio = inputs.audio_of(input_values, input_values_mask, given, self.config.parsed)
        if audio is None:
            return inputs.fused_frames(cast(Any, given), self.fusion, self.config.parsed)
        return fusions.run(self.fusion, self.streams(audio, given), audio, prompt)

    def streams(self, audio: Audio, given: Given = None) -> dict[str, Frames]:
        """Each encoder's frames of clips, by name; of those in `given` none is run."""
        streams = inputs.given_frames(given, self.encoders, audio)
        for name, encoder in [part for part in self.encoders.parts() if part[0] not in streams]:
            heard = audio.at(encoder.config.sample_rate)
            with torch.no_grad() if is_frozen(encoder) else nullcontext():
                streams[name] = encoder(heard.x, heard.mask)
        return streams

    def project(self, frames: Frames, prompt: Prompt | None = None, read: bool = True) -> Frames:
        """Fused frames as tokens of the language model's width; clip i hears prompt i; `read`: not for `aux` alone."""
        lent = replace(self.vocabulary, frames_read=read) if self.projector.reads_vocabulary else None
        return cast(Frames, self.projector(frames, prompt, lent))

    @may_be_tuple
    def get_audio_features(
        self,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        prompt: Prompt | None = None,
        audio_frames: Given = None,
    ) -> BaseModelOutputWithPooling:
        """The projected clips: `last_hidden_state` (clip, time, dim) and, flat, `pooler_output` (tokens, dim).

        Args:
            input_values, input_values_mask, audio_frames: as `forward` takes them.
            prompt: each clip's instruction, for fusions and projectors that read it.
        """
        inputs.check_prompt(self, prompt is not None)
        frames = self.project(self.encode(input_values, input_values_mask, audio_frames, prompt), prompt)
        return BaseModelOutputWithPooling(last_hidden_state=frames.x, pooler_output=frames.x[frames.mask])

    @may_be_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        past_key_values: Any = None,
        audio_frames: Given = None,
        states: bool = True,
        frames: bool = True,
        **kwargs: Any,
    ) -> UsamModelOutput:
        """Put the projected clips in place of the placeholders, or beside the words, and run the language model.

        Args:
            input_ids: (batch, length) with one placeholder for each audio token; with cross-attention, for each clip.
            input_values: (clip, samples): all samples' clips, in the order of their placeholders.
            input_values_mask: (clip, samples).
            attention_mask: (batch, length); padding goes on the left.
            position_ids: (batch, length); made from the mask when not given.
            cache: the language model's; `past_key_values` is its older name.
            inputs_embeds: (batch, length, dim) instead of `input_ids`, with the audio already in place.
            prompt_mask: (batch, length), True on the instruction, for fusions and projectors that read it.
            audio_frames: what was computed of these clips before, as frames (clip, time, dim) and mask (clip, time):
                of encoders, by name, beside `input_values`, or of all of them instead, with `input_values_mask` for
                the clips' lengths; or of the fusion, instead of both.
            states: False stops before the language model, which is then not run: `last_hidden_state` is None.
            frames: False says that of `audio` nothing but mask and by-products will be read.
            kwargs: what the language model's `forward` takes, such as `use_cache` and `output_hidden_states`.

        Raises:
            ValueError: placeholders and audio tokens differ in number, shapes differ, or the prompt mask is missing.
            TypeError: an argument that would do nothing.
        """
        cache = one_cache(cache, past_key_values)
        check_names(kwargs, self._known)
        clips = input_values, input_values_mask
        check_shapes(input_ids, inputs_embeds, *clips, attention_mask, prompt_mask, cache, audio_frames)
        audio, places = None, None
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids)
            if input_values is not None or audio_frames is not None:
                given = clips, prompt_mask, audio_frames, frames
                inputs_embeds, audio, places = self._hear(input_ids, inputs_embeds, *given)
            else:
                check_heard(self.is_audio(input_ids))
                if self.training and torch.is_grad_enabled():
                    inputs_embeds = inputs_embeds + self._silence().to(inputs_embeds.dtype)
        inputs_embeds = cast(Tensor, inputs_embeds)
        if not states:
            return UsamModelOutput(audio=audio, inputs_embeds=inputs_embeds)
        heard = self._beside(inputs_embeds, audio, places, cache)
        if position_ids is None and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -inputs_embeds.shape[1] :]
        if position_ids is not None and self._takes_positions:
            kwargs["position_ids"] = position_ids
        if self._takes_cache is not None:
            kwargs[self._takes_cache] = cache
        with hearing(heard):
            outputs = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        cache = outputs.get(CACHE)
        if heard is not None:
            heard.remember(cache)
        return UsamModelOutput(
            **{CACHE: cache},
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
            audio=audio,
            inputs_embeds=inputs_embeds,
        )

    def _hear(
        self,
        input_ids: Tensor,
        embeds: Tensor,
        clips: tuple[Tensor | None, Tensor | None],
        prompt_mask: Tensor | None,
        given: Given,
        read: bool,
    ) -> tuple[Tensor, Frames, Tensor | None]:
        """Embeddings, the audio frames joined for each sample, and where they stand if not among the embeddings."""
        inputs.check_prompt(self, prompt_mask is not None)
        slots = self.is_audio(input_ids)
        prompt = None
        if prompt_mask is not None and (self.fusion.reads_prompt or self.projector.reads_prompt):
            # The count of a clip's tokens is known before they are projected.
            counts = inputs.taken(*clips, given, self.config.parsed)
            prompt = prompts_of(embeds, prompt_mask, owners(slots, counts))
        frames = self.project(self.encode(*clips, given, prompt), prompt, read)
        if frames.aux:  # by-products are a clip's: tell the sample of each
            each = frames.lengths if self.cross_attention is None else torch.ones_like(frames.lengths)
            frames = replace(frames, aux=joined(frames.aux, {"sample": owners(slots, each)}))
        if self.cross_attention is not None:
            check_counts(slots, torch.ones_like(frames.lengths), "clips")
            return embeds, *beside(slots, frames)
        check_counts(slots, frames.lengths, why=lambda: wrong_length(self, *clips, prompt))
        return scatter(embeds, slots, frames), by_sample(slots, frames), None

    def _beside(self, embeds: Tensor, audio: Frames | None, places: Tensor | None, cache: Any) -> Listening | None:
        """What the blocks of cross-attention hear."""
        if self.cross_attention is None:
            return None
        if audio is None and self.training and torch.is_grad_enabled():
            audio, places = self.cross_attention.silence(embeds)
        return self.cross_attention.listen(audio, places, cache, embeds.shape[1])

    def _silence(self) -> Tensor:
        """Zero, by way of every part that hears: distributed training waits for a rank whose batch has no audio."""
        device = cast(Tensor, self.get_input_embeddings().weight).device
        clip = torch.zeros(1, self.config.parsed.sample_rate // 10, device=device)
        words = self.embed(torch.zeros(1, 1, dtype=torch.long, device=device))
        prompt = Prompt(words, words.new_ones(1, 1, dtype=torch.bool))
        return self.project(self.encode(clip, prompt=prompt), prompt).x.sum() * 0


# The last base is one of another's, but transformers looks for its name here.
class UsamForConditionalGeneration(WithHead, UsamPreTrainedModel, UsamGeneration, GenerationMixin):
    """The model with its head and its losses: it answers, and it learns.

    Args:
        config: what to build.
        dtypes: dtype of single parameters, by name, where it is not the default.
        seed: of the weights that no source gives, drawn module by module: see `build_model`.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(
        self, config: UsamConfig, dtypes: Mapping[str, torch.dtype] | None = None, seed: int | None = None
    ) -> None:
        super().__init__(config)
        self.seed = seed
        self.model = UsamModel(config, seed)
        self._known = names_of(self.forward, self.model.language_model.forward) | {"audio_frames"}
        llm = config.llm()
        with building("llm", llm.config), drawing("llm.head", seed):  # or it would draw what the token table draws
            self.lm_head = build_head(llm, cast(Any, config.text_config))
        with in_float32():
            parts = sorted(config.parsed.losses.items())
            built = {n: build_part(f"losses.{n}", losses.registry, c, seed, dim=llm.dim) for n, c in parts}
            self.losses = Parts(built)
        table = self.model.get_input_embeddings()
        path = next(name for name, module in self.model.named_modules() if module is table)
        know_head(self.model, self.lm_head)
        self._tied_weights_keys = {"lm_head.weight": f"model.{path}.weight"}
        give_dtypes(self, dtypes or {})
        self.post_init()
        # post_init looks at direct children only: the language model's own ties would be lost.
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        self.generation_config.suppress_tokens = [config.audio_token_id]  # or prompt lookup would copy placeholders
        self.sourced: frozenset[str] = frozenset()  # tensors that came from a source and were in no delta
        self.origins: dict[str, Any] = {}  # each part's source

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *overrides: Any, **kwargs: Any) -> Any:
        """A saved model, with its sources where it is a delta; takes transformers' options.

        Args:
            pretrained_model_name_or_path: a folder or hub id.
            overrides: patches of its spec for a next stage: `"encoders.whisper.freeze=all"`, `"llm.lora={r: 8}"`.

        Raises:
            ComponentError: a plugin is missing, a source has changed, or tensors do not fit.
        """
        from usam.model.checkpoint import load

        return load(pretrained_model_name_or_path, *overrides, **kwargs)

    def save_pretrained(self, save_directory: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """Write config.json, usam.yaml and a delta: what trains and what came from no source."""
        from usam.model.checkpoint import save

        save(self, save_directory, state_dict, **kwargs)

    def get_decoder(self) -> nn.Module:
        """The language model's backbone."""
        return cast(nn.Module, self.model.language_model)

    def get_audio_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The projected clips: see UsamModel."""
        return self.model.get_audio_features(*args, **kwargs)

    @may_be_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        input_values: Tensor | None = None,
        input_values_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        past_key_values: Any = None,
        batch: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> UsamOutput:
        """Answer, or learn from an answer: the arguments of UsamModel, and

        Args:
            labels: (batch, length), the token ids where they are supervised and -100 elsewhere.
            logits_to_keep: how many last positions get logits, or which; 0 for all.
            num_items_in_batch: supervised tokens of the whole batch; the loss is then this micro-batch's share.
            batch: whatever else the losses may want to read, such as ids and tasks of the samples.

        With labels, and where no loss needs its states, the language model is run only for what else is asked of it (a
        cache, states, attentions, some logits); `logits` are None without it.

        Raises:
            ValueError: labels without one supervised token, or of another shape than the inputs; another adapter has
                switched off the model's own.
        """
        check_adapter(self)
        check_names(kwargs, self._known)
        outputs = self.model(
            input_ids=input_ids,
            input_values=input_values,
            input_values_mask=input_values_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            prompt_mask=prompt_mask,
            return_dict=True,
            **needed(self, labels, cache, past_key_values, logits_to_keep, kwargs),
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss, parts, aux = None, None, outputs.audio.aux if outputs.audio is not None else {}
        if labels is not None:
            loss, parts, more = weighted(self, outputs, labels, num_items_in_batch, batch)
            aux = joined(aux, more)
        logits = None
        if hidden is not None and (labels is None or not self.training):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(as_head(self.lm_head, hidden[:, kept]))
        return UsamOutput(
            **{CACHE: outputs.get(CACHE)},
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            losses=parts,
            aux=aux or None,
        )
