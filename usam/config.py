"""The spec as a transformers config, with the text model's config inside it and the weights' provenance."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from usam.component import building
from usam.llm import LLM, build_llm
from usam.registry import ComponentError, Registry
from usam.spec.spec import Override, Spec, SpecSource, component_config, load_spec
from usam.versions.compat import CACHE

AUDIO_TOKEN = "<|audio|>"


class UsamConfig(PreTrainedConfig):
    """A model's spec with every architecture filled in, so that it reloads without the hub.

    `text_config` is built once and becomes the very object that the language model's `config` is: a copy
    would lose its attention implementation, and a static cache would then ignore left padding.
    """

    model_type = "usam"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}
    keys_to_ignore_at_inference = [CACHE, "losses", "aux"]

    spec: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_token_id: int | None = None
    tie_word_embeddings: bool = False
    delta: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("spec", "text_config", "provenance"):
            value = getattr(self, name)
            if not isinstance(value, dict | PreTrainedConfig | None):
                raise ComponentError(f"config.json: '{name}': expected a map, found {value!r:.80}")
        if self.spec is not None and self.text_config is None:
            llm = self.llm()
            with building("llm", llm.config):
                self.text_config = llm.text_config()
        super().__post_init__(**kwargs)
        text: Any = self.text_config
        if self.spec is not None and text._attn_implementation is None:
            text._attn_implementation = self.spec["llm"].get("attn_implementation")
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))
        if self.audio_token_id is None:
            self.audio_token_id = text.vocab_size
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(self, name, None) is None:
                setattr(self, name, getattr(text, name, None))

    @classmethod
    def from_spec(cls, spec: SpecSource, *overrides: Override, audio_token_id: int | None = None) -> UsamConfig:
        """The config of a spec; reads the architectures of its sources, no weights.

        Args:
            spec: a bundled name, a file, a saved model's folder, a dict or a Spec.
            overrides: patches such as `"encoders.mert=null"`.
            audio_token_id: the placeholder's id; None takes the first id past the embedding table.
        """
        return cls(spec=resolve(load_spec(spec, *overrides)).to_dict(), audio_token_id=audio_token_id)

    @cached_property
    def parsed(self) -> Spec:
        """The checked spec.

        Raises:
            SpecError: written for a newer usam, or options that this version does not know.
            ComponentError: a component's package is not installed.
        """
        if self.spec is None:
            raise ValueError("this UsamConfig has no spec; make one with UsamConfig.from_spec(...)")
        try:
            return Spec.from_tree(self.spec)
        except ComponentError as error:
            raise ComponentError("; ".join([str(error), *self._not_installed()])) from error

    def _not_installed(self) -> Iterator[str]:
        for key, package in (self.provenance or {}).get("components", {}).items():
            group, _, name = key.partition(":")
            registry: Registry[Any] = importlib.import_module(group).registry
            provider, _, version = package.partition(" ")
            try:
                registry.find(name)
            except ComponentError:
                upgrade = "--upgrade " if provider == "usam" else ""
                remedy = f"pip install {upgrade}{provider}" if version else f"import {provider}, which registers it"
                yield f"'{name}' was saved with {package}: {remedy}"

    def patched(self, *overrides: Override) -> UsamConfig:
        """A copy with patches laid over its spec, as `load_spec` takes them."""
        return self.with_spec(load_spec(self.parsed, *overrides))

    def with_spec(self, spec: Spec) -> UsamConfig:
        """A copy for another spec, whose tensors are those of this one."""
        return cast(UsamConfig, UsamConfig.from_dict({**self.to_dict(), "spec": resolve(spec).to_dict()}))

    def llm(self) -> LLM:
        """The builder of the language model."""
        assert self.spec is not None
        config = component_config("usam.llm", self.spec["llm"], ("llm",))
        with building("llm", config):
            return build_llm(config)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "parsed"}

    def to_dict(self) -> dict[str, Any]:
        """The config as data, without what is derived."""
        data: dict[str, Any] = super().to_dict()
        data.pop("parsed", None)
        return data


def resolve(spec: Spec) -> Spec:
    """The same spec with every component's architecture filled in from its source."""

    def full(config: Any, place: str) -> Any:
        with building(place, config):
            return config.resolved() if hasattr(config, "resolved") else config

    return spec.model_copy(
        update={
            "encoders": {name: full(config, f"encoders.{name}") for name, config in spec.encoders.items()},
            "fusion": full(spec.fusion, "fusion"),
            "projector": [full(stage, f"projector.{i}") for i, stage in enumerate(spec.projector)],
            "llm": full(spec.llm, "llm"),
            "losses": {name: full(config, f"losses.{name}") for name, config in spec.losses.items()},
        }
    )
