"""The composite: encoders, fusion, projector and language model, as one transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.generation import LogitsProcessorList, PromptLookupCandidateGenerator
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast

from usam import encoders, fusions, losses
from usam.compat import CACHE, cache_argument, one_cache
from usam.component import ADAPTER, adapt, is_adapter, is_frozen
from usam.config import UsamConfig
from usam.cross_attention import CrossAttention, CrossAttentionConfig, GatedBlock, Listening, decoder_layers, hearing
from usam.projectors import Chain
from usam.splice import beside, by_sample, check_counts, owners, prompts_of, scatter
from usam.types import IGNORE, Audio, Frames, LossInputs, Prompt, joined


@dataclass
class UsamModelOutput(BaseModelOutputWithPast):
    """The language model's output, and the audio it was given."""

    audio: Frames | None = None
    inputs_embeds: Tensor | None = None


@dataclass
class UsamOutput(CausalLMOutputWithPast):
    """What the whole model returns.

    `loss` is the weighted sum, `losses` the unweighted parts, `aux` the by-products of projector and
    losses. While training, `logits` is None: the head runs on the supervised positions only.
    """

    losses: dict[str, Tensor] | None = None
    aux: Mapping[str, Tensor] | None = None


class UsamPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about both models."""

    config_class = UsamConfig
    config: UsamConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _skip_keys_device_placement = [CACHE]
    _no_split_modules: Any = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Components initialise themselves; what was already loaded stays as it is."""
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        loaded = {name: t for name, t in own.items() if getattr(t, "_is_hf_initialized", False)}
        if own and len(loaded) == len(own):
            return
        if not hasattr(module, "reset_parameters"):
            super()._init_weights(module)
            return
        kept = {name: tensor.clone() for name, tensor in loaded.items()}
        cast(Any, module).reset_parameters()
        for name, tensor in kept.items():
            getattr(module, name).copy_(tensor)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Also ask modules without a tensor of their own, which transformers would pass over in custom code."""
        super()._initialize_weights(module)

    def initialize_weights(self) -> None:
        """Also restart LoRA as a no-op: nested models would give its matrices their own random values."""
        fresh = [layer for layer in _lora_layers(self) if not _is_loaded(layer)]
        super().initialize_weights()
        for layer in fresh:
            layer.reset_lora_parameters(ADAPTER, True)
            if ADAPTER in layer.lora_magnitude_vector:  # DoRA starts from the norms of the base weights
                dtype = layer.lora_magnitude_vector[ADAPTER].weight.dtype
                layer.lora_variant[ADAPTER].init(layer, adapter_name=ADAPTER)
                layer.lora_magnitude_vector[ADAPTER].to(dtype)

    def train(self, mode: bool = True) -> UsamPreTrainedModel:
        """Training mode. A frozen language model keeps the flag, which gradient checkpointing needs:
        its dropouts are 0, and its batch norms stay in eval mode.
        """
        super().train(mode)
        backbone = getattr(getattr(self, "model", self), "language_model", None)
        llm: Any = self.config.parsed.llm
        if mode and backbone is not None and llm.freeze == "all":
            for module in backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class UsamModel(UsamPreTrainedModel):
    """waveforms -> encoders -> fusion -> projector -> language model."""

    def __init__(self, config: UsamConfig) -> None:
        super().__init__(config)
        spec, llm = config.parsed, config.llm()
        with _float32():
            built = {name: encoders.registry.get(c.type)(c) for name, c in sorted(spec.encoders.items())}
            self.encoders = nn.ModuleDict({n: adapt(m, cast(Any, m).config) for n, m in built.items()})
            dims = {name: encoder.dim for name, encoder in built.items()}
            fusion: Any = spec.fusion
            self.fusion = adapt(fusions.registry.get(fusion.type)(fusion, dims=dims), fusion)
            self.projector = Chain(spec.projector, in_dim=self.fusion.dim, prompt_dim=llm.dim, out_dim=llm.dim)
        self.language_model: Any = llm.backbone(cast(Any, config.text_config))
        config.text_config = self.language_model.config
        self.cross_attention = self._cross_attention(llm.config.injection, llm.dim)
        self._takes_cache = cache_argument(self.language_model.forward)
        self._takes_positions = "position_ids" in inspect.signature(self.language_model.forward).parameters
        self.post_init()
        # post_init looks at direct children only: an encoder, or a layer in one, stays on one device.
        self._no_split_modules |= {GatedBlock.__name__, *(type(encoder).__name__ for encoder in built.values())}
        for module in self.encoders.modules():
            self._no_split_modules |= set(getattr(module, "_no_split_modules", None) or ())

    def _cross_attention(self, injection: CrossAttentionConfig | None, audio_dim: int) -> CrossAttention | None:
        """The blocks before the decoder layers, unless the audio comes in place of its placeholders."""
        if injection is None:
            return None
        layers = decoder_layers(self.language_model)
        with _float32():
            dim = self.language_model.config.hidden_size
            return adapt(CrossAttention(injection, dim=dim, audio_dim=audio_dim, layers=layers), injection)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """A saved model without its head."""
        return UsamForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, *args, **kwargs).model

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

    def encode(self, input_values: Tensor, input_values_mask: Tensor | None = None) -> Frames:
        """The fused frames of clips (clip, samples) at the spec's sample rate, before projection."""
        rate = self.config.parsed.sample_rate
        if input_values_mask is None:
            input_values_mask = torch.ones_like(input_values, dtype=torch.bool)
        audio = Audio(input_values.float(), input_values_mask.bool(), rate)
        streams = {}
        for name, encoder in cast(Iterator[tuple[str, Any]], self.encoders.items()):
            heard = audio.at(encoder.config.sample_rate)
            with torch.no_grad() if is_frozen(encoder) else nullcontext():
                streams[name] = encoder(heard.x, heard.mask)
        return cast(Frames, self.fusion(_same_dtype(streams), audio))

    def project(self, frames: Frames, prompt: Prompt | None = None) -> Frames:
        """Fused frames as tokens of the language model's width; clip i hears prompt i."""
        dtype = next((p.dtype for p in self.projector.parameters()), frames.x.dtype)
        frames = Frames(frames.x.to(dtype), frames.mask, frames.rate, frames.aux)
        return cast(Frames, self.projector(frames, prompt))

    def get_audio_features(
        self, input_values: Tensor, input_values_mask: Tensor | None = None, prompt: Prompt | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The projected clips: `last_hidden_state` (clip, time, dim) and, flat, `pooler_output` (tokens, dim).

        Args:
            input_values: (clip, samples) at the spec's sample rate.
            input_values_mask: (clip, samples); None for clips that fill their rows.
            prompt: each clip's instruction, for projectors that read it.
        """
        self._need_prompt(prompt is not None)
        frames = self.project(self.encode(input_values, input_values_mask), prompt)
        return BaseModelOutputWithPooling(last_hidden_state=frames.x, pooler_output=frames.x[frames.mask])

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
            prompt_mask: (batch, length), True on the instruction, for projectors that read it.

        Raises:
            ValueError: placeholders and audio tokens differ in number, or the prompt mask is missing.
        """
        audio, places = None, None
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            inputs_embeds = self.embed(input_ids)
            if input_values is not None:
                inputs_embeds, audio, places = self._hear(
                    input_ids, inputs_embeds, input_values, input_values_mask, prompt_mask
                )
            elif self.training and torch.is_grad_enabled():
                inputs_embeds = inputs_embeds + self._silence().to(inputs_embeds.dtype)
        elif self.cross_attention is not None and input_values is not None:
            raise ValueError("inputs_embeds do not say where the clips stand; cross-attention needs input_ids")
        cache = one_cache(cache, past_key_values)
        heard = self._beside(inputs_embeds, audio, places, cache)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
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
        input_values: Tensor,
        input_values_mask: Tensor | None,
        prompt_mask: Tensor | None,
    ) -> tuple[Tensor, Frames, Tensor | None]:
        """Embeddings, the audio frames joined for each sample, and where they stand if not among the embeddings."""
        self._need_prompt(prompt_mask is not None)
        fused = self.encode(input_values, input_values_mask)
        slots = self.is_audio(input_ids)
        prompt = None
        if self.projector.reads_prompt and prompt_mask is not None:
            # The count of a clip's tokens is known before they are projected.
            samples = input_values_mask.sum(-1) if input_values_mask is not None else None
            if samples is None:
                samples = torch.full((len(input_values),), input_values.shape[1], device=input_values.device)
            owner = owners(slots, self.config.parsed.placeholders(samples))
            prompt = prompts_of(embeds, prompt_mask, owner)
        frames = self.project(fused, prompt)
        if frames.aux:  # by-products are a clip's: tell the sample of each
            taken = frames.lengths if self.cross_attention is None else torch.ones_like(frames.lengths)
            frames = replace(frames, aux=joined(frames.aux, {"sample": owners(slots, taken)}))
        if self.cross_attention is not None:
            check_counts(slots, torch.ones_like(frames.lengths), "clips")
            return embeds, *beside(slots, frames)
        check_counts(slots, frames.lengths)
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
        heard = self.project(self.encode(clip), Prompt(words, words.new_ones(1, 1, dtype=torch.bool)))
        return heard.x.sum() * 0

    def _need_prompt(self, given: bool) -> None:
        if self.projector.reads_prompt and not given:
            names = [type(stage).__name__ for stage in self.projector.stages if cast(Any, stage).reads_prompt]
            raise ValueError(
                f"{', '.join(names)} reads the prompt: pass 'prompt_mask' (UsamProcessor makes it), or fix the "
                "gates with `usam export --task`"
            )


class UsamForConditionalGeneration(UsamPreTrainedModel, GenerationMixin):
    """The model with its head and its losses: it answers, and it learns.

    Args:
        config: what to build.
        dtypes: dtype of single parameters, by name, where it is not the default.
    """

    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: UsamConfig, dtypes: Mapping[str, torch.dtype] | None = None) -> None:
        super().__init__(config)
        self.model = UsamModel(config)
        llm = config.llm()
        self.lm_head = llm.head(cast(Any, config.text_config))
        with _float32():
            built = {
                name: (losses.registry.get(c.type)(cast(Any, c), dim=llm.dim), cast(Any, c))
                for name, c in sorted(config.parsed.losses.items())
            }
            self.losses = nn.ModuleDict({name: adapt(loss, c) for name, (loss, c) in built.items()})
        table = self.model.get_input_embeddings()
        path = next(name for name, module in self.model.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"model.{path}.weight"}
        for name, parameter in self.named_parameters():
            dtype = (dtypes or {}).get(name, torch.float32 if is_adapter(name) else parameter.dtype)
            if parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
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
        from usam.hf import load

        return load(pretrained_model_name_or_path, *overrides, **kwargs)

    def save_pretrained(self, save_directory: Any, state_dict: Any = None, **kwargs: Any) -> None:
        """Write config.json, usam.yaml and a delta: what trains and what came from no source."""
        from usam.hf import save

        save(self, save_directory, state_dict, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token table."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token table."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head's weights."""
        self.lm_head = new_embeddings  # type: ignore[assignment]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """transformers' resize; table and head are then in every checkpoint, for no source has them any more."""
        before = self.lm_head.out_features
        table = super().resize_token_embeddings(*args, **kwargs)
        if self.lm_head.out_features != before:
            resized = {id(p) for module in (table, self.lm_head) for p in module.parameters()}
            self.sourced -= {n for n, p in self.named_parameters(remove_duplicate=False) if id(p) in resized}
        return cast(nn.Embedding, table)

    def _get_resized_lm_head(self, old_lm_head: Any, *args: Any, **kwargs: Any) -> nn.Linear:
        new = super()._get_resized_lm_head(old_lm_head, *args, **kwargs)
        new.requires_grad_(old_lm_head.weight.requires_grad)
        # The same head with other weights: a new Linear would drop its logit scale or soft cap.
        old_lm_head.weight, old_lm_head.bias, old_lm_head.out_features = new.weight, new.bias, new.out_features
        return cast(nn.Linear, old_lm_head)

    def get_decoder(self) -> nn.Module:
        """The language model's backbone."""
        return cast(nn.Module, self.model.language_model)

    def get_audio_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The projected clips: see UsamModel."""
        return self.model.get_audio_features(*args, **kwargs)

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
        **kwargs: Any,
    ) -> UsamOutput:
        """Answer, or learn from an answer: the arguments of UsamModel, and

        Args:
            labels: (batch, length), the token ids where they are supervised and -100 elsewhere.
            logits_to_keep: how many last positions get logits, or which; 0 for all.
            num_items_in_batch: supervised tokens of the whole batch; the loss is then this micro-batch's share.

        Raises:
            ValueError: labels without one supervised token; another adapter has switched off the model's own.
        """
        _check_adapter(self)
        outputs = self.model(
            input_ids=input_ids,
            input_values=input_values,
            input_values_mask=input_values_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=one_cache(cache, past_key_values),
            inputs_embeds=inputs_embeds,
            prompt_mask=prompt_mask,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss, parts, aux = None, None, outputs.audio.aux if outputs.audio is not None else {}
        if labels is not None:
            loss, parts, more = self._losses(hidden, labels, outputs.audio, num_items_in_batch)
            aux = joined(aux, more)
        logits = None
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(_head_dtype(self.lm_head, hidden[:, kept]))
        return UsamOutput(
            **{CACHE: outputs.get(CACHE)},
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            losses=parts,
            aux=aux or None,
        )

    def _losses(
        self, hidden: Tensor, labels: Tensor, audio: Frames | None, total: Tensor | int | None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        supervised = labels[:, 1:] != IGNORE  # the state at t predicts the token at t + 1
        wanted = labels[:, 1:][supervised]
        if torch.compiler.is_compiling():
            torch._check(wanted.numel() > 0)  # tells the losses, which may ask, without a graph break
        elif wanted.numel() == 0:
            raise ValueError(
                "labels have no supervised token: every label is -100 (or only the first position is not); "
                "check the data with `usam check SPEC DATA`"
            )
        answer_mask = labels != IGNORE
        answer = self.model.embed(labels.masked_fill(~answer_mask, 0)).detach()
        if audio is None:
            empty = hidden.new_zeros(hidden.shape[0], 0, hidden.shape[2])
            audio = Frames(empty, empty.new_zeros(empty.shape[:2], dtype=torch.bool), 0.0)
        inputs = LossInputs(
            hidden=hidden[:, :-1][supervised],
            labels=wanted,
            head=_Head(self.lm_head),
            audio=audio,
            answer=(answer, answer_mask),
            aux=audio.aux,
        )
        # This micro-batch's share of the supervised tokens: gradient accumulation then sums to the mean.
        share = 1.0 if total is None else wanted.numel() / total
        parts: dict[str, Tensor] = {}
        aux: dict[str, Tensor] = {}
        loss = hidden.new_zeros((), dtype=torch.float32)
        for name, module in cast(Iterator[tuple[str, Any]], self.losses.items()):
            found = module(inputs)
            parts[name] = found.value.detach()
            aux |= {f"{name}.{key}": value for key, value in found.aux.items()}
            loss = loss + module.config.weight * found.value.float()
        return loss * share, parts, aux

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
        samples = mask.sum(-1) if mask is not None else torch.full((len(values),), values.shape[1])
        counts = self.config.parsed.placeholders(samples.to(input_ids.device))
        owner = owners(self.model.is_audio(input_ids), counts)
        runs = [(owner == i).nonzero().squeeze(-1).repeat(copies) for i in range(len(input_ids))]
        return torch.cat(runs)

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The clips and the prompt mask belong to the prefill only."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)
        if inputs.get("input_values") is None:
            inputs.pop("prompt_mask", None)
        elif (mask := inputs.get("prompt_mask")) is not None and inputs.get("input_ids") is not None:
            # Prompt lookup prefills its candidates with the prompt: they are no instruction.
            inputs["prompt_mask"] = nn.functional.pad(mask, (0, inputs["input_ids"].shape[1] - mask.shape[1]))
        return inputs

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

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_candidate_generator(*args, **kwargs)
        if isinstance(found, PromptLookupCandidateGenerator) and self.config.audio_token_id is not None:
            # It looks its candidates' scores up, and what it copies from the prompt may be a placeholder.
            found.vocab_size = max(self.lm_head.out_features, self.config.audio_token_id + 1)
        return found

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' generate.

        Raises:
            ValueError: a separate assistant model was given, which cannot hear the audio.
        """
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


class _Head:
    """The head as losses call it: any dtype in, logits out."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def __call__(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.head(_head_dtype(self.head, hidden)))


def _head_dtype(head: nn.Module, hidden: Tensor) -> Tensor:
    weight = getattr(head, "weight", hidden)
    return hidden.to(weight.dtype) if weight.dtype.is_floating_point else hidden


@contextmanager
def _float32() -> Iterator[None]:
    """Our own parts start in float32, whatever dtype the language model is loaded in."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _same_dtype(streams: dict[str, Frames]) -> dict[str, Frames]:
    if len({frames.x.dtype for frames in streams.values()}) == 1:
        return streams
    return {name: Frames(f.x.float(), f.mask, f.rate, f.aux) for name, f in streams.items()}


def _lora_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer) and ADAPTER in m.lora_A]


def _is_loaded(layer: nn.Module) -> bool:
    return all(
        getattr(p, "_is_hf_initialized", False) or p.device.type == "meta"
        for name, p in layer.named_parameters()
        if is_adapter(name)
    )


def _check_adapter(model: Any) -> None:
    if torch.compiler.is_compiling():
        return
    probe = model.__dict__.get("_adapter_probe")
    if probe is None:
        probe = model.__dict__["_adapter_probe"] = _lora_layers(model)[:1]
    if probe and ADAPTER not in probe[0].active_adapters:
        raise ValueError(
            f"another adapter ({', '.join(probe[0].active_adapters)}) has switched off the model's own LoRA: "
            f"keep both active with set_adapter(['{ADAPTER}', ...]), or take 'lora' out of the spec"
        )
