"""Language models read the projected audio between the words of a prompt, and answer."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from usam.component import ComponentConfig, adapt, base_name, build, is_adapter, own_config, source_of
from usam.registry import ComponentError, Registry, did_you_mean
from usam.spec.sizes import HEADS, LAYERS, TOKENS, WIDTH
from usam.spec.spec import Config
from usam.weights import Source


class CrossAttentionConfig(ComponentConfig):
    """Options of cross-attention, whose blocks train even beside a frozen language model."""

    type: Literal["cross_attention"] = "cross_attention"
    """The one way that has options; `prefix` has none."""
    every: int = Field(1, ge=1, le=LAYERS)
    """A block stands before every so many-th decoder layer: the second, the fourth ... for 2."""
    heads: int = Field(8, ge=1, le=HEADS)
    """Attention heads."""
    head_dim: int = Field(64, ge=1, le=WIDTH)
    """Width of each head."""
    feed_forward: int = Field(4, ge=1, le=TOKENS)
    """Width of a block's feed-forward layer, as a multiple of the language model's."""
    clips: Literal["all", "last"] = "all"
    """Which clips a token hears: all before it in its sample, or the last of them alone, as in Flamingo."""
    lora: None = None
    """null: the blocks are new, and train whole."""


def _injection(value: Any) -> Any:
    """`prefix` is None, for it has no options; a bare name is `{type: it}`."""
    node = {"type": value} if isinstance(value, str) else value
    if not isinstance(node, Mapping):
        return value
    name = node.get("type", "cross_attention")
    if name not in INJECTIONS:
        raise ValueError(f"no such way for the audio into a language model; {did_you_mean(str(name), INJECTIONS)}")
    if name == "prefix" and len(node) > 1:
        raise ValueError("'prefix' has no options")
    return None if name == "prefix" else node


INJECTIONS = ("prefix", "cross_attention")
Injection = Annotated[
    CrossAttentionConfig | None,
    BeforeValidator(_injection, json_schema_input_type=Literal["prefix", "cross_attention"] | CrossAttentionConfig),
]


class LLM:
    """A builder, because its two halves live in two places of the model: the backbone and the head."""

    class Config(ComponentConfig):
        """Options every language model has."""

        freeze: Literal["all", "none"] | list[str] = "all"
        """What does not train: all, none, or patterns of parameter names; the head's is `lm_head.weight`."""
        injection: Injection = None
        """How the audio comes in: prefix, in place of its placeholders; or cross_attention, from beside the words."""
        template_options: dict[str, Any] | None = None
        """Variables of the tokenizer's chat template, in training and generation: {enable_thinking: false}."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own_config(cls)

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def dim(self) -> int:
        """Width of the token embeddings, which is the width of a projected audio frame."""
        raise NotImplementedError(f"{type(self).__name__} has no dim")

    def text_config(self) -> PreTrainedConfig:
        """A new transformers config of the causal language model."""
        raise NotImplementedError(f"{type(self).__name__} has no text_config()")

    def backbone(self, text_config: PreTrainedConfig) -> nn.Module:
        """Embeddings in, `last_hidden_state` out, no head; a transformers model whose config is `text_config`.

        Adapters, and what `freeze` says, are added to it outside.
        """
        raise NotImplementedError(f"{type(self).__name__} has no backbone(text_config)")

    def head(self, text_config: PreTrainedConfig) -> nn.Linear:
        """States to logits: a Linear, or a subclass that adds the model's logit scale or soft cap.

        One that has a method `shaped(logits)`, what is done to each logit of the linear map, is asked for the logits of
        a few words without those of all others.

        Whether it trains is decided outside, by `freeze`: not under `all`, nor where a pattern fits `lm_head.weight`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no head(text_config)")

    def source(self) -> Source | None:
        """Where the weights come from: the config's `path`, if it has one; None when they are random."""
        return source_of(self.config)

    def pretrained(self) -> dict[str, Tensor]:
        """The source's tensors, under `backbone.` and `head.`; nothing when there is no source."""
        return {}

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """A new tokenizer."""
        raise ComponentError(f"llm: {type(self).__name__} has no tokenizer()")


def build_backbone(llm: LLM, text_config: PreTrainedConfig) -> nn.Module:
    """A builder's backbone with the adapters of its config, and frozen where that says so."""
    backbone, config = llm.backbone(text_config), llm.config
    changes: dict[str, Any] = {}
    if any(is_adapter(name) for name, _ in backbone.named_parameters()):  # it has called `adapt` by itself
        changes["lora"] = None
    if isinstance(config.freeze, list):  # what means the head alone matches nothing here
        here = [base_name(name) for name, _ in backbone.named_parameters()]
        head = [pattern for pattern in config.freeze if _means_head(pattern)]
        changes["freeze"] = [p for p in config.freeze if p not in head or any(fnmatchcase(name, p) for name in here)]
    return adapt(backbone, config.model_copy(update=changes))


def build_head(llm: LLM, text_config: PreTrainedConfig) -> nn.Linear:
    """A builder's head, frozen where its config says so."""
    freeze = llm.config.freeze
    named = isinstance(freeze, list) and any(_means_head(pattern) for pattern in freeze)
    return llm.head(text_config).requires_grad_(freeze != "all" and not named)


def _means_head(pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in ("lm_head", "lm_head.weight", "lm_head.bias"))


registry: Registry[LLM] = Registry(LLM, "usam.llm")
register = registry.register


def build_llm(component: str | Mapping[str, Any] | Config, /, **options: Any) -> LLM:
    """One language model's builder, outside any spec: `build_llm("transformers", path="Qwen/Qwen3-0.6B")`."""
    cls, config = build("usam.llm", component, options)
    llm: LLM = cls(config)
    return llm
