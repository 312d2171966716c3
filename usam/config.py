"""The spec as a transformers config, with the text model's config inside it and the weights' provenance."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from usam.clock import ratio
from usam.component import building
from usam.llm import LLM, build_llm
from usam.providers import as_saved, named, registry_of, with_each
from usam.registry import ComponentError
from usam.registry.files import how_to_get, written_in
from usam.saving import SavedWhole
from usam.spec.page import SpecError
from usam.spec.spec import Override, Spec, SpecSource, component_config, load_spec
from usam.versions.compat import CACHE

AUDIO_TOKEN = "<|audio|>"


class UsamConfig(SavedWhole, PreTrainedConfig):
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
        if self.spec is not None:
            self.spec = as_saved(self.spec, self.provenance or {})
            self.text_config = self._text_config()
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

    def _text_config(self) -> PreTrainedConfig | dict[str, Any]:
        """The language model's config, or what transformers makes one of, with the type's provider imported."""
        node = cast(dict[str, Any], self.spec).get("llm")
        if isinstance(node, Mapping) and isinstance(node.get("type"), str):
            with self._explained():
                registry_of("usam.llm").get(node["type"])
        given = self.text_config
        if given is not None and (not isinstance(given, dict) or given.get("model_type") in CONFIG_MAPPING):
            return given
        llm = self.llm()
        with building("llm", llm.config):
            config = llm.text_config()
        return config if given is None else cast(PreTrainedConfig, type(config).from_dict(given))

    @cached_property
    def parsed(self) -> Spec:
        """The checked spec.

        Raises:
            SpecError: written for a newer usam, or options that this version does not know.
            ComponentError: a component's package is not installed.
        """
        if self.spec is None:
            raise ValueError("this UsamConfig has no spec; make one with UsamConfig.from_spec(...)")
        self.spec = as_saved(self.spec, self.provenance or {})
        with self._explained():
            spec = Spec.from_tree(self.spec)
        self._compare_files(spec)
        return spec

    def _compare_files(self, spec: Spec) -> None:
        """Warn of each file of components that is not as it was when the model was saved."""
        plugins = (self.provenance or {}).get("plugins", {})
        saved = {(key.partition(":")[0], key.rpartition(":")[2]): written for key, written in plugins.items()}
        for group, config in named(spec):
            name, now = config.type.rpartition(":")[2], written_in(config.component)
            then = saved.get((group, name), {})
            if "sha256" in then and "sha256" in now and then["sha256"] != now["sha256"]:
                warnings.warn(
                    f"{now['file']} is not as it was when this model was saved (sha256 {then['sha256'][:12]} then, "
                    f"{now['sha256'][:12]} now): its '{name}' may do something else",
                    stacklevel=2,
                )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Let a component that is missing say what to install or to import."""
        try:
            yield
        except ComponentError as error:
            raise ComponentError("; ".join([str(error), *self._not_installed()])) from error

    def _not_installed(self) -> Iterator[str]:
        written = (self.provenance or {}).get("plugins", {})
        for key, package in (self.provenance or {}).get("components", {}).items():
            group, _, name = key.partition(":")
            provider, _, version = package.partition(" ")
            try:
                registry_of(group).find(name)
            except ComponentError:
                upgrade = "--upgrade " if provider == "usam" else ""
                if version:
                    yield f"'{name}' was saved with {package}: pip install {upgrade}{provider}"
                elif key in written:
                    yield how_to_get(name, written[key])
                else:
                    yield f"'{name}' was saved with {package}: import {provider}, which registers it"

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


RATES = (1_000, 384_000)  # samples per second that sound is recorded with
LARGEST = 2**24  # entries of a resampler's filter


def _check_time(encoder: Any) -> None:
    """Ask for an encoder's rates and lengths, so that what is wrong with its arithmetic is told of its place.

    Raises:
        SpecError: it hears at a rate at which no sound is recorded.
    """
    if not RATES[0] <= encoder.sample_rate <= RATES[1]:
        raise SpecError(f"it hears {encoder.sample_rate} samples a second; sound has {RATES[0]:,} to {RATES[1]:,}")
    encoder.length(encoder.sample_rate)


def _check_resampling(rates: dict[str, int]) -> None:
    """The filter from the highest rate to another holds an entry for each pair of phases."""
    highest = max(rates.values())
    for name, rate in rates.items():
        step = ratio(rate, highest)
        if step.numerator * step.denominator > LARGEST:
            raise SpecError(
                f"encoders.{name}: it hears {rate} samples a second, and another encoder {highest}: their ratio, "
                f"{step}, is too long to resample by; take rates with a common divisor"
            )


def resolve(spec: Spec) -> Spec:
    """The same spec with every component's architecture filled in from its source."""

    def full(group: str, config: Any, place: str) -> Any:
        with building(place, config):
            known = config.resolved() if hasattr(config, "resolved") else config
            if place.startswith("encoders."):
                _check_time(known)
            return known

    whole = with_each(spec, full)
    _check_resampling({name: cast(Any, config).sample_rate for name, config in whole.encoders.items()})
    return whole
