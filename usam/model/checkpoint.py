"""What a model is on disk: a delta with its provenance, or whole; saved, loaded, exported, known to Auto classes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from usam import __version__
from usam.component import base_name, is_adapter, with_base_layers
from usam.config import UsamConfig
from usam.model.assembly import Base, asked_dtype, assemble, outline, parts, plan_dtypes, sources
from usam.model.model import UsamForConditionalGeneration, UsamModel
from usam.processor.feature_extractor import UsamFeatureExtractor
from usam.processor.processor import UsamProcessor
from usam.registry import ComponentError, Registry, did_you_mean
from usam.saving import WEIGHTS, whole
from usam.spec.page import SpecError
from usam.spec.spec import Override, Spec
from usam.types import Prompt
from usam.weights import locate, read

# What AutoModel and pipelines pass on that has no meaning here: files are found by `locate`.
DOWNLOAD_OPTIONS = [
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "subfolder",
    "use_safetensors",
    "variant",
    "weights_only",
    "proxies",
    "trust_remote_code",
    "adapter_kwargs",
    "_from_auto",
    "_from_pipeline",
    "_commit_hash",
    "resume_download",
    "code_revision",
]


def load(
    path: str | Path,
    *overrides: Override,
    config: UsamConfig | None = None,
    spec: Spec | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> UsamForConditionalGeneration:
    """A saved model: a full checkpoint, or a delta laid over its sources.

    Args:
        path: a folder or hub id.
        overrides: patches of its spec for a next stage of training, which may bring adapters and losses.
        config: its config, when it was read before.
        spec: the whole spec of a next stage, instead of its own.
        revision: of the hub repository.
        kwargs: options of transformers' `from_pretrained`.

    Raises:
        ComponentError: a plugin is missing, a source changed since it was saved, or tensors do not fit.
    """
    for option in DOWNLOAD_OPTIONS:
        kwargs.pop(option, None)
    source = locate(str(path), revision)
    config = config if isinstance(config, UsamConfig) else UsamConfig.from_pretrained(source.folder)
    if config.spec is None:
        raise ComponentError(f"{path}: not a model that usam saved; a language model goes into a spec, as llm.path")
    if config.delta:  # the spec says how to quantise; what is read here is not quantised yet
        config.__dict__.pop("quantization_config", None)
    next_stage = bool(overrides) or spec is not None
    if spec is not None:
        config = config.with_spec(spec)
    if overrides:
        config = config.patched(*overrides)
    skeleton = outline(config)
    saved = with_base_layers(skeleton, read(source))
    if next_stage:  # which may also do without a loss of the stage before
        own = skeleton.state_dict()
        saved = {name: tensor for name, tensor in saved.items() if name in own or not name.startswith("losses.")}
    base = Base()
    if config.delta:
        check_sources(config, skeleton)
        base = sources(skeleton)
    dtypes = plan_dtypes(skeleton, base.tensors, saved, asked_dtype(kwargs))

    def may_be_missing(key: str) -> bool:
        return next_stage and (is_adapter(key) or key.startswith(("losses.", "model.cross_attention.")))

    model = assemble(skeleton, {**base.tensors, **saved}, dtypes, may_be_missing, f"{path}: its weights", **kwargs)
    model.origins = base.origins
    model.sourced = frozenset(base.tensors.keys() - saved.keys())
    model.name_or_path = model.config.name_or_path = str(path)
    if (source.folder / "generation_config.json").is_file() and "generation_config" not in kwargs:
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    return model


def save(model: UsamForConditionalGeneration, folder: str | Path, state_dict: Any, **kwargs: Any) -> None:
    """Write config.json, usam.yaml and the tensors that no source can give back; all of them, or nothing."""
    check_place(model, folder)
    main = kwargs.get("is_main_process", True)
    state = model.state_dict() if state_dict is None else dict(state_dict)
    names = delta_names(model, state)
    kept = {name: tensor for name, tensor in state.items() if name in names}
    model.config.delta = len(kept) < len(state)
    model.config.provenance = provenance(model)
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", Path(folder).name)
    with whole(folder, WEIGHTS) if main else nullcontext(Path(folder)) as place:
        with _as_given(model) if model.config.delta else nullcontext():
            PreTrainedModel.save_pretrained(model, place, state_dict=kept, **kwargs)
        if main:
            text = "# The spec of this model; use it as `base:` in another.\n" + model.config.parsed.to_yaml()
            (place / "usam.yaml").write_text(text, encoding="utf-8")


def check_place(model: UsamForConditionalGeneration, folder: str | Path) -> None:
    """Refuse to save a model in the folder of a checkpoint that it was built from, which would be gone then.

    Raises:
        SpecError: names the part and its source.
    """
    for name, origin in model.origins.items():
        if Path(folder).exists() and os.path.samefile(folder, origin.folder):
            raise SpecError(f"{folder}: holds the weights that '{name}' is built from; name another folder to save in")


@contextmanager
def _as_given(model: Any) -> Iterator[None]:
    """Without its quantiser, which would write the whole model instead of the tensors that it is given."""
    quantizer, model.hf_quantizer = getattr(model, "hf_quantizer", None), None
    try:
        yield
    finally:
        model.hf_quantizer = quantizer


def delta_names(model: UsamForConditionalGeneration, state: Mapping[str, Any]) -> set[str]:
    """What a checkpoint must hold: what trains, what came from no source, what was in the delta before."""
    ties = model.all_tied_weights_keys
    trains = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    moving = tuple(prefix for prefix, _ in parts(model) if any(name.startswith(prefix) for name in trains))
    trains |= {name for name, _ in model.named_buffers() if name.startswith(moving)}  # statistics of what trains
    return {name for name in state if name in trains or not _is_sourced(model, ties.get(name, name))}


def _is_sourced(model: UsamForConditionalGeneration, name: str) -> bool:
    """Whether a source gives the tensor, or the one that a quantiser made it from (`weight.absmax`)."""
    return any(part in model.sourced for part in accumulate(name.split("."), "{}.{}".format))


def provenance(model: UsamForConditionalGeneration) -> dict[str, Any]:
    """Versions of usam and of every package whose component is used; source and hash of every base."""
    before = model.config.provenance or {}
    return {
        "usam": __version__,
        "components": {key: str(value) for key, value in _providers(model.config.parsed).items()},
        "sources": {name: origin.provenance() for name, origin in model.origins.items()} or before.get("sources", {}),
    }


def _providers(spec: Spec) -> dict[str, str]:
    used: dict[str, str] = {}
    families: list[tuple[Registry[Any], list[Any]]] = [
        (_registry("encoders"), list(spec.encoders.values())),
        (_registry("fusions"), [spec.fusion]),
        (_registry("projectors"), spec.projector),
        (_registry("llm"), [spec.llm]),
        (_registry("losses"), list(spec.losses.values())),
    ]
    for registry, configs in families:
        for config in configs:
            entry = registry.find(config.type)
            used[f"{registry.group}:{config.type}"] = f"{entry.provider} {entry.version}".strip()
    return used


def _registry(family: str) -> Registry[Any]:
    return cast(Registry[Any], importlib.import_module(f"usam.{family}").registry)


def check_sources(config: UsamConfig, skeleton: UsamForConditionalGeneration) -> None:
    """Compare every source's hash with the one recorded.

    Raises:
        ComponentError: a base checkpoint is another one than the delta was trained on.
    """
    recorded = (config.provenance or {}).get("sources", {})
    for prefix, part in parts(skeleton):
        name = prefix.rstrip(".")
        if name not in recorded:
            continue
        origin = part.source()
        if origin is None:
            raise ComponentError(
                f"{name}: this is a delta over {recorded[name]['path']}, but the spec has no path for it"
            )
        found = origin.provenance()["sha256"]
        for file, digest in recorded[name]["sha256"].items():
            if found.get(file) != digest:
                raise ComponentError(
                    f"{name}: the base weights of {recorded[name]['path']} are not those this model was trained on: "
                    f"{file} has sha256 {found.get(file, 'none: no such file')}, expected {digest}"
                    + (f" (revision {recorded[name]['revision']})" if recorded[name].get("revision") else "")
                )


def export(source: str | Path, folder: str | Path, task: str | None = None) -> UsamForConditionalGeneration:
    """Write one self-contained folder: LoRA merged, no losses, no source needed to load it.

    Args:
        source: a folder or hub id that `save_pretrained` wrote.
        folder: where the merged model and its processor go.
        task: of the spec's `prompts`: the projector is fixed for its prompt, and needs no `prompt_mask` any more.

    Raises:
        SpecError: an unknown task, a projector that reads no prompt, or a folder that is the source itself.
        ComponentError: a stage reads the prompt in a way that cannot be fixed.
    """
    found = locate(str(source)).folder
    if Path(folder).exists() and os.path.samefile(folder, found):
        raise SpecError(f"{folder}: is the model to export, which would be overwritten; name another folder")
    config = UsamConfig.from_pretrained(found)
    cast(dict[str, Any], config.spec)["llm"].pop("quantization_config", None)  # merged in full precision
    model = load(source, config=config)
    check_place(model, folder)
    for layer in model.modules():
        if hasattr(layer, "merge") and hasattr(layer, "lora_A"):
            cast(Any, layer).merge()
    processor = processor_beside(source, model.config.parsed)
    fixed = {} if task is None else fixed_stages(model, processor, task)
    tensors = {
        base_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not is_adapter(name) and not name.startswith("losses.") and name not in model.all_tied_weights_keys
    }
    tree = model.config.parsed.to_dict()
    for i, (node, own) in fixed.items():
        prefix = f"model.projector.stages.{i}."
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        tensors |= {prefix + name: tensor for name, tensor in own.items()}
        tree["projector"][i] = node
    if task is not None:  # under the gates of one task, another's prompt would mislead
        tree["prompts"] = processor.prompts = {task: processor.prompts[task]}
    nodes = [*tree["encoders"].values(), tree["fusion"], *tree["projector"], tree["llm"]]
    for node in nodes:
        node.pop("lora", None)
        if node.get("arch") is not None:
            for option in ("path", "revision", "tokenizer"):
                node.pop(option, None)
    tree["losses"] = {}
    plain = UsamConfig(
        spec=tree,
        text_config=cast(Any, model.config.text_config).to_dict(),
        audio_token_id=model.config.audio_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    merged = assemble(outline(plain), tensors, {n: t.dtype for n, t in tensors.items()}, lambda key: False, str(source))
    merged.generation_config = model.generation_config
    with whole(folder, WEIGHTS) as place:
        merged.save_pretrained(place)
        processor.save_pretrained(place)
    return merged


def fixed_stages(
    model: UsamForConditionalGeneration, processor: UsamProcessor, task: str
) -> dict[int, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Options and tensors of the stages that read the prompt, by index, fixed for the prompt of one task."""
    if task not in processor.prompts:
        raise SpecError(
            f"--task {task}: the model's 'prompts' have no such task; {did_you_mean(task, processor.prompts)}"
        )
    stages = cast(Any, model.model.projector.stages)
    reading = {i: stage for i, stage in enumerate(stages) if stage.reads_prompt}
    if not reading:
        types = ", ".join(stage.config.type for stage in stages)
        raise SpecError(f"--task {task}: no stage of this projector ({types}) reads the prompt; export without --task")
    # The very tokens that `prompt_mask` marks beside a clip: their neighbours could change how words are cut.
    second = np.zeros(processor.feature_extractor.sampling_rate, dtype=np.float32)
    content = [{"type": "audio", "audio": second}, {"type": "text", "text": processor.prompts[task]}]
    rendered = processor.render([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor.encode([rendered]).to(model.device)
    with torch.no_grad():
        prompt = Prompt(model.model.embed(batch["input_ids"]), batch["prompt_mask"])
        return {i: stage.fixed(prompt) for i, stage in reading.items()}


def processor_beside(model: str | Path, spec: Spec) -> UsamProcessor:
    """The processor saved with a model, else the one of its spec."""
    if (locate(str(model)).folder / "processor_config.json").is_file():
        return cast(UsamProcessor, UsamProcessor.from_pretrained(model))
    return UsamProcessor.from_spec(spec)


AutoConfig.register("usam", UsamConfig)
AutoModel.register(UsamConfig, UsamModel)
AutoModelForMultimodalLM.register(UsamConfig, UsamForConditionalGeneration)
AutoModelForCausalLM.register(UsamConfig, UsamForConditionalGeneration)
AutoFeatureExtractor.register(UsamConfig, UsamFeatureExtractor)
AutoProcessor.register(UsamConfig, UsamProcessor)
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["usam"] = "UsamForConditionalGeneration"  # `transformers serve` reads this
