"""Any causal language model of transformers: frozen, with LoRA, or trained whole."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.quantizers.auto import AutoQuantizationConfig

from usam.llm import LLM
from usam.registry import ComponentError, did_you_mean
from usam.spec.page import SpecError
from usam.weights import check_finite, check_stored, read_config, reading

# Model types whose causal LM is more than `Head(backbone(embed(ids)))`, and why; test_llm_types.py compares all.
REFUSED: dict[str, str] = {
    name: why
    for why, names in {
        "it is half of an encoder-decoder": "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus "
        "plbart prophetnet trocr whisper",
        "it is an encoder, in its attention or in its head": "bert bert-generation big_bird "
        "camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm roc_bert roformer "
        "xlm xlm-roberta xlm-roberta-xl xlnet xmod",
        "its head has layers of its own": "modernbert-decoder",
        "its head scales every word by a weight of its own": "dory",
        "it reads token ids beside their embeddings": "blt cpmant deepseek_v4 gemma3n_text",
        "it scales the embeddings of token ids, but not inputs_embeds": "falcon_h1",
        "it writes into inputs_embeds": "ctrl git",
        "its recurrence runs over padding too, so that a batch changes the answer": "recurrent_gemma rwkv xlstm",
        "it trains at one fixed length only": "reformer",
        "it predicts audio codes, not words": "musicgen musicgen_melody",
        "it drafts for another model and has no backbone of its own": "gemma4_assistant gemma4_unified_assistant",
    }.items()
    for name in names.split()
}

# Options that make a model read token ids in some layers, where audio frames have none.
READS_IDS = ("hidden_size_per_layer_input", "ple_layer_ids")


class Transformers(LLM):
    """A causal LM by hub id or folder, or from its architecture alone."""

    class Config(LLM.Config):
        """Options of a transformers language model."""

        path: str | None = None
        """Hub id or folder of the causal LM: its config, weights and tokenizer."""
        revision: str | None = None
        """Revision of the hub repository."""
        arch: dict[str, Any] | None = None
        """The config with its `model_type`, for a model without weights; null reads it from `path`."""
        tokenizer: str | None = None
        """Hub id or folder of the tokenizer; null takes `path`."""
        attn_implementation: str | None = None
        """Attention of transformers: sdpa, eager, flash_attention_2 ...; null takes the model's default."""
        quantization_config: dict[str, Any] | None = None
        """Quantisation of the backbone, with transformers' names: {quant_method: bitsandbytes, load_in_4bit: true}."""
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """Dtype of the weights; auto: as stored."""

        def resolved(self) -> Transformers.Config:
            """The same config with its architecture filled in."""
            if self.arch is not None:
                return self
            if self.path is None:
                raise SpecError("llm: transformers needs 'path' (a causal LM) or 'arch' (its config)")
            return self.model_copy(update={"arch": read_arch(self.path, self.revision)})

    def __init__(self, config: Config) -> None:
        super().__init__(config.resolved())
        model_type = self.config.arch.get("model_type")
        if not isinstance(model_type, str):
            raise SpecError("llm.arch: needs the 'model_type' of transformers, for example 'llama'")
        if model_type in REFUSED:
            raise ComponentError(f"llm: model type '{model_type}' is not supported: {REFUSED[model_type]}")
        if self.config.quantization_config is not None:
            try:
                AutoQuantizationConfig.from_dict(dict(self.config.quantization_config))
            except (ValueError, TypeError) as error:
                raise SpecError(f"llm.quantization_config: {error}") from error

    @property
    def dim(self) -> int:
        """Width of the token embeddings."""
        return int(self._outline.get_input_embeddings().weight.shape[1])

    def text_config(self) -> PreTrainedConfig:
        """The causal LM's config; a frozen model's dropouts are 0, for it stays in training mode."""
        arch = dict(self.config.arch)
        model_type = arch.pop("model_type")
        if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            close = did_you_mean(model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
            raise ComponentError(
                f"llm: transformers knows no causal language model of type '{model_type}'"
                + (f"; {close}" if close.startswith("did") else "")
            )
        config = AutoConfig.for_model(model_type, **arch)
        if config.get_text_config() is not config:
            raise ComponentError(
                f"llm: '{config.model_type}' is a multimodal config; give its text model alone "
                f"('{config.get_text_config().model_type}')"
            )
        for name in READS_IDS:
            if getattr(config, name, None):
                raise ComponentError(
                    f"llm: '{config.model_type}' with {name}={getattr(config, name)} reads token ids beside their "
                    "embeddings, and audio frames have none; take a model of this type without it"
                )
        if self.config.freeze == "all":
            for name, value in vars(config).items():
                if re.search(r"drop(out|$)|layerdrop", name) and isinstance(value, float):
                    setattr(config, name, 0.0)
        config._attn_implementation = self.config.attn_implementation
        return config

    @cached_property
    def _outline(self) -> Any:
        """The whole causal LM without weights, to read widths and names off."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.text_config())

    def backbone(self, text_config: PreTrainedConfig) -> nn.Module:
        """The causal LM without its head."""
        backbone: nn.Module = AutoModel.from_config(text_config)
        return backbone

    def head(self, text_config: PreTrainedConfig) -> nn.Linear:
        """The causal LM's head, with its logit scale or soft cap."""
        output = self._outline.get_output_embeddings()
        if not isinstance(output, nn.Linear):
            raise ComponentError(f"llm: '{text_config.model_type}' has no linear head")
        added = text_config.vocab_size - self._outline.config.vocab_size  # by resize_token_embeddings
        return Head(output.in_features, output.out_features + added, output.bias is not None, text_config)

    def pretrained(self) -> dict[str, Tensor]:
        """The checkpoint's tensors under `backbone.` and `head.`.

        Raises:
            ComponentError: a tensor is missing or of another shape; all are named.
        """
        source = self.source()
        if source is None:
            return {}
        dtype = self.config.dtype
        with reading(f"llm: {self.config.path}", source.folder):
            model, info = AutoModelForCausalLM.from_pretrained(
                source.folder,
                config=self.text_config(),
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        check_stored(source, model)
        faults = [f"missing {name}" for name in sorted(info["missing_keys"])]
        faults += [f"{name} is {tuple(a)}, expected {tuple(b)}" for name, a, b in sorted(info["mismatched_keys"])]
        if faults:
            raise ComponentError(f"{self.config.path}: the checkpoint does not fit: " + "; ".join(faults))
        tensors = {f"backbone.{name}": tensor for name, tensor in backbone_of(model).state_dict().items()}
        if not getattr(model.config, "tie_word_embeddings", False):
            tensors |= {f"head.{n}": t for n, t in model.get_output_embeddings().state_dict().items()}
        elif (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
            tensors["head.bias"] = bias.detach()
        check_finite(tensors, f"llm: {self.config.path}")
        return tensors

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer beside the weights, or the one named."""
        path = self.config.tokenizer or self.config.path
        if path is None:
            raise SpecError("llm: give 'tokenizer' (hub id or folder), for there is no 'path' to take it from")
        with reading(f"llm: no tokenizer at '{path}'", path):
            return AutoTokenizer.from_pretrained(here(path), revision=self.config.revision, trust_remote_code=False)


def backbone_of(causal_lm: Any) -> nn.Module:
    """The part of a causal LM that `AutoModel` builds; Llama 4's `base_model` is the causal LM itself."""
    backbone: nn.Module = causal_lm.model if causal_lm.base_model is causal_lm else causal_lm.base_model
    return backbone


class Head(nn.Linear):
    """A language model's head with what some models do to the logits: a factor, a soft cap, a padded vocabulary."""

    def __init__(self, in_dim: int, vocab: int, bias: bool, text_config: PreTrainedConfig) -> None:
        super().__init__(in_dim, vocab, bias=bias)
        self.factor = logit_factor(text_config)
        caps = (getattr(text_config, name, None) for name in LOGIT_CAPS)
        self.cap: float | None = next((cap for cap in caps if cap is not None), None)
        self.words: int | None = getattr(text_config, "unpadded_vocab_size", None)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., vocab) of states (..., in_dim)."""
        return self.shaped(super().forward(input)[..., : self.words])

    def shaped(self, logits: Tensor) -> Tensor:
        """What is done to each logit that the linear map gives."""
        if self.factor != 1:
            logits = logits * self.factor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def logit_factor(config: PreTrainedConfig) -> float:
    """What a causal LM multiplies its logits with (or divides its last states by, which is the same)."""
    if config.model_type == "mpt":  # has the option, and transformers ignores it
        return 1.0
    if config.model_type == "hyperclovax":  # named as Granite's divisor, but multiplies
        return float(config.logits_scaling)
    divisor = getattr(config, "logits_scaling", None) or getattr(config, "logits_mup_width_multiplier", None)
    return float(getattr(config, "logit_scale", None) or 1.0) / float(divisor or 1.0)


def read_arch(path: str, revision: str | None) -> dict[str, Any]:
    """A causal LM's config as data: what differs from its type's defaults, and the type."""
    with reading(f"llm: no config of a language model at '{path}'", path):
        if Path(here(path)).exists():
            found = read_config(path)
            if not isinstance(found.get("model_type"), str):
                raise ComponentError(
                    f"{path}: config.json: 'model_type': expected transformers' name of a language model, found "
                    f"{found.get('model_type')!r}"
                )
        config = AutoConfig.from_pretrained(here(path), revision=revision, trust_remote_code=False)
    arch = {name: value for name, value in config.to_diff_dict().items() if name not in NOT_ARCHITECTURE}
    return {"model_type": config.model_type, **arch}


def here(path: str) -> str:
    """The folder of a path on this machine, which transformers would not find under `~` or from a file; or a hub id."""
    local = Path(path).expanduser()
    if not local.exists():
        return path
    return str(local.parent if local.is_file() else local)


NOT_ARCHITECTURE = {"architectures", "transformers_version", "_name_or_path", "auto_map", "torch_dtype", "dtype"}
