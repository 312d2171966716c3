"""From a spec to a model: `build_model`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from usam.component import is_adapter
from usam.config import UsamConfig
from usam.model.assembly import (
    BACKBONE,
    HEAD,
    Base,
    asked_dtype,
    assemble,
    is_own,
    outline,
    parts,
    plan_dtypes,
    sources,
    with_attention,
)
from usam.model.checkpoint import load
from usam.model.model import UsamForConditionalGeneration
from usam.processor.processor import UsamProcessor
from usam.registry import ComponentError
from usam.spec.spec import Override, Spec, SpecSource, load_spec
from usam.weights import local_path


def build_model(
    spec: SpecSource,
    *overrides: Override,
    weights: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> UsamForConditionalGeneration:
    """The model of a spec, with its sources' weights, in eval mode; of a saved model's folder, with that model's.

    Args:
        spec: a bundled name, a file, a saved model's folder, a dict or a Spec.
        overrides: patches such as `"encoders.mert=null"` or `"llm.lora.r=16"`.
        weights: False builds the structure alone, with random weights, also under `torch.device("meta")`; where the
            tokenizer is not on this machine, it does without: the placeholder is then the first id past the table.
        seed: draws what no source gives (LoRA, new parts, with weights=False everything) module by module, each from
            a generator that the seed and the module's place name (`projector.1`, and what is in it): a part that two
            specs have at one place starts equal in both, whatever else differs, and the global generator is left
            alone. None draws it all from the global generator, where each part's weights depend on those before it.
        kwargs: options of transformers' `from_pretrained`, such as `device_map`, `dtype`.

    Raises:
        SpecError, ComponentError: the spec, or a source, is wrong; the message says what to write.
    """
    for option in ("output_loading_info", "ignore_mismatched_sizes", "state_dict", "config"):
        if option in kwargs:
            raise TypeError(f"build_model takes no '{option}', which belongs to from_pretrained of a saved model")
    if weights and isinstance(spec, (str, Path)) and (Path(spec) / "config.json").is_file():
        return cast(UsamForConditionalGeneration, load(spec, *overrides, seed=seed, **kwargs))
    config = config_of(with_attention(load_spec(spec, *overrides), kwargs.get("attn_implementation")), weights)
    skeleton = outline(config)
    base = sources(skeleton) if weights else Base()
    dtypes = plan_dtypes(skeleton, base.tensors, (), asked_dtype(kwargs))
    if not weights:
        if kwargs:
            raise TypeError(f"with weights=False only dtype can be given, not {', '.join(sorted(kwargs))}")
        model = UsamForConditionalGeneration(config, dtypes, seed)
        model.model.projector.match(model.get_input_embeddings())
        return cast(UsamForConditionalGeneration, model.eval())
    random = [prefix for prefix, part in parts(skeleton) if part.source() is None]
    if BACKBONE in random:
        random.append(HEAD)
    matched = [f"model.projector.stages.{i}.matched." for i in range(len(skeleton.model.projector.stages))]

    def may_be_missing(key: str) -> bool:
        return is_adapter(key) or key.startswith((*random, *matched)) or is_own(skeleton, key)

    model = assemble(skeleton, base.tensors, dtypes, may_be_missing, "the sources' weights", seed=seed, **kwargs)
    model.model.projector.match(model.get_input_embeddings())
    model.origins = base.origins
    model.sourced = frozenset(base.tensors)
    return model


def processor_of(spec: Spec, weights: bool = True) -> UsamProcessor | None:
    """The spec's processor; None when the spec names no tokenizer.

    Args:
        spec: what to build.
        weights: False for a structure, which asks no hub and does without a tokenizer that is not at hand.
    """
    path = getattr(spec.llm, "tokenizer", None) or getattr(spec.llm, "path", "")
    if path is None or not (weights or local_path(path).exists()):
        return None
    try:
        return UsamProcessor.from_spec(spec)
    except ComponentError:
        if weights:
            raise
        return None


def config_of(spec: Spec, weights: bool = True) -> UsamConfig:
    """The config of a spec, with the ids that the tokenizer decides: the placeholder, the end of an answer, padding."""
    processor = processor_of(spec, weights)
    if processor is None:
        return UsamConfig.from_spec(spec)
    config = UsamConfig.from_spec(spec, audio_token_id=processor.audio_token_id)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = list(dict.fromkeys(i for i in (*ends, *processor.end_ids) if i is not None))
    config.eos_token_id = ends[0] if len(ends) == 1 else ends
    if config.pad_token_id is None:
        config.pad_token_id = processor.tokenizer.pad_token_id
    return config
