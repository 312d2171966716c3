"""What a model is on disk: a delta with its provenance, or whole; saved, loaded, exported, known to Auto classes."""

from __future__ import annotations

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
from usam.model.added import CONFIG as ADDED
from usam.model.added import added_adapter, load_added, save_added, without_added
from usam.model.assembly import (
    Base,
    asked_dtype,
    assemble,
    assembled,
    outline,
    parts,
    plan_dtypes,
    sources,
    with_attention,
)
from usam.model.model import UsamForConditionalGeneration, UsamModel
from usam.processor.feature_extractor import UsamFeatureExtractor
from usam.processor.processor import UsamProcessor
from usam.providers import in_full, providers
from usam.registry import ComponentError, did_you_mean
from usam.saving import WEIGHTS, weights_of, whole
from usam.spec.page import SpecError
from usam.spec.spec import Override, Spec
from usam.types import Prompt
from usam.weights import Source, check_finite, locate, read, read_config, reading

# What AutoModel and pipelines pass on that has no meaning here: nothing in a folder is executed.
WITHOUT_MEANING = ["weights_only", "trust_remote_code", "code_revision", "resume_download", "proxies"]
WITHOUT_MEANING += ["adapter_kwargs", "_from_auto", "_from_pipeline", "_commit_hash"]
HUB = ["cache_dir", "force_download", "local_files_only", "token"]

HEADING = "# The spec of this model; use it as `base:` in another.\n"


def load(
    path: str | Path | None,
    *overrides: Override,
    config: UsamConfig | None = None,
    spec: Spec | None = None,
    revision: str | None = None,
    body: bool = False,
    **kwargs: Any,
) -> Any:
    """A saved model: a full checkpoint, or a delta laid over its sources.

    With `output_loading_info=True` also what transformers tells of the loading.

    Args:
        path: a folder or hub id; None with `config` and `state_dict`.
        overrides: patches of its spec for a next stage of training, which may bring adapters and losses.
        config: its config, when it was read before.
        spec: the whole spec of a next stage, instead of its own.
        revision: of the hub repository.
        body: whether head and losses may be missing, because only the body is wanted.
        kwargs: options of transformers' `from_pretrained`, such as `variant`, `subfolder`, `state_dict`.

    Raises:
        ComponentError: a plugin is missing, a source changed since it was saved, or tensors do not fit.
    """
    for option in WITHOUT_MEANING:
        kwargs.pop(option, None)
    tells, adapter = kwargs.pop("output_loading_info", False), kwargs.pop("adapter_name", None) or "default"
    given, safe = kwargs.pop("state_dict", None), kwargs.pop("use_safetensors", None)
    where = {name: kwargs.pop(name, None) for name in (*HUB, "variant", "subfolder")}
    if path is None:
        if not isinstance(config, UsamConfig) or given is None:
            raise ComponentError("without a path, from_pretrained needs config=... and state_dict=...")
        source = Source("state_dict", None, Path(), ())
    else:
        source = locate(str(path), revision, **{name: value for name, value in where.items() if value})
        beside = read_usam_config(source.folder)
        config = config if isinstance(config, UsamConfig) else beside
    if safe is not None and any((file.suffix == ".safetensors") != safe for file in source.files):
        raise ComponentError(f"{path}: use_safetensors={safe}, but its weights are {source.files[0].name}")
    if config.spec is None:
        raise ComponentError(f"{path}: not a model that usam saved; a language model goes into a spec, as llm.path")
    if config.delta:  # the spec says how to quantise; what is read here is not quantised yet
        config.__dict__.pop("quantization_config", None)
    next_stage = bool(overrides) or spec is not None
    if spec is not None:
        config = config.with_spec(spec)
    if overrides:
        config = config.patched(*overrides)
    if "attn_implementation" in kwargs:
        config = config.with_spec(with_attention(config.parsed, kwargs["attn_implementation"]))
    skeleton = outline(config)
    found = read(source) if given is None else dict(given)
    who = f"{source.path}: its weights"
    if not any(name.startswith(("model.", "lm_head.", "losses.")) for name in found):
        who += ", a body's without its head, as UsamModel saves it,"
        found = {f"model.{name}": tensor for name, tensor in found.items()}
    own = skeleton.state_dict()
    vectors = {name for name in own.keys() & found.keys() if own[name].ndim == 1 and found[name].ndim == 0}
    found |= {name: found[name].reshape(1) for name in vectors}  # temperatures were scalars once
    saved = with_base_layers(skeleton, found)
    if next_stage:  # which may also do without a loss of the stage before
        saved = {name: tensor for name, tensor in saved.items() if name in own or not name.startswith("losses.")}
    base = Base()
    if config.delta and path is not None:
        check_sources(config, skeleton)
        base = sources(skeleton)
    dtypes = plan_dtypes(skeleton, base.tensors, saved, asked_dtype(kwargs))

    def may_be_missing(key: str) -> bool:
        new = next_stage and (is_adapter(key) or key.startswith(("losses.", "model.cross_attention.")))
        return new or (body and key.startswith(("lm_head.", "losses.")))

    model, info = assembled(skeleton, {**base.tensors, **saved}, dtypes, may_be_missing, who, **kwargs)
    model.origins = base.origins
    model.sourced = frozenset(base.tensors.keys() - saved.keys())
    model.name_or_path = model.config.name_or_path = str(path)
    if path is not None and "generation_config" not in kwargs and (source.folder / "generation_config.json").is_file():
        with reading(f"{path}: generation_config.json", source.folder):
            model.generation_config = GenerationConfig.from_pretrained(source.folder)
    if path is not None and (source.folder / ADDED).is_file():
        load_added(model, source.folder, adapter)
    return (model, info) if tells else model


def load_body(path: str | Path | None, *overrides: Override, **kwargs: Any) -> Any:
    """The model of a checkpoint without its head, which may also be missing: see `load`."""
    tells = kwargs.pop("output_loading_info", False)
    model, info = load(path, *overrides, body=True, output_loading_info=True, **kwargs)
    info["missing_keys"] = {key.removeprefix("model.") for key in info["missing_keys"] if key.startswith("model.")}
    return (model.model, info) if tells else model.model


def read_usam_config(folder: Path) -> UsamConfig:
    """The config.json in a saved model's folder.

    Raises:
        ComponentError: it is broken: names the file and the key.
    """
    found = read_config(str(folder))
    kinds = {"spec": dict, "provenance": dict, "text_config": dict, "delta": bool, "audio_token_id": int}
    for key, kind in kinds.items():
        if found.get(key) is not None and type(found[key]) is not kind:
            raise _broken(folder, key, WORDS[kind], found[key])
    for key in ("sources", "components"):
        entries = (found.get("provenance") or {}).get(key, {})
        if not isinstance(entries, dict):
            raise _broken(folder, f"provenance.{key}", WORDS[dict], entries)
        for name, entry in entries.items():
            whole = isinstance(entry, str) if key == "components" else _is_source(entry)
            if not whole:
                raise _broken(folder, f"provenance.{key}.{name}", EXPECTED[key], entry)
    with reading(f"{folder / 'config.json'}: not a config of usam", folder):
        return cast(UsamConfig, UsamConfig.from_pretrained(folder))


WORDS = {dict: "a map", bool: "true or false", int: "a whole number"}
EXPECTED = {"components": "a package and its version", "sources": "a map of 'path', 'revision' and 'sha256' by file"}


def _is_source(entry: Any) -> bool:
    digests = entry.get("sha256") if isinstance(entry, dict) else None
    return (
        isinstance(digests, dict)
        and all(isinstance(digest, str) for digest in digests.values())
        and isinstance(entry.get("path"), str)
        and isinstance(entry.get("revision"), str | None)
    )


def _broken(folder: Path, key: str, expected: str, found: Any) -> ComponentError:
    return ComponentError(
        f"{folder / 'config.json'}: '{key}': expected {expected}, found {found!r:.80}; copy the folder again, or save "
        "the model anew"
    )


def save(model: UsamForConditionalGeneration, folder: str | Path, state_dict: Any, **kwargs: Any) -> None:
    """Write config.json, usam.yaml and the tensors that no source can give back; all of them, or nothing."""
    check_place(model, folder)
    main = kwargs.get("is_main_process", True)
    state = model.state_dict() if state_dict is None else dict(state_dict)
    if (adapter := added_adapter(model)) is not None:
        state = without_added(model, state)
    names = delta_names(model, state)
    kept = {name: tensor for name, tensor in state.items() if name in names}
    check_finite(kept, f"{folder}: not saved")
    model.config.delta = len(kept) < len(state)
    model.config.provenance = provenance(model)
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", Path(folder).name)
    with whole(folder, weights_of(kwargs.get("variant"))) if main else nullcontext(Path(folder)) as place:
        with _as_given(model) if model.config.delta or adapter is not None else nullcontext():
            PreTrainedModel.save_pretrained(model, place, state_dict=kept, **kwargs)
        if main:
            if adapter is not None:
                save_added(model, adapter, place)
            spec = in_full(model.config.parsed).to_yaml()
            (place / "usam.yaml").write_text(HEADING + spec, encoding="utf-8")


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
    """Without its quantiser, which would write the whole model instead of the tensors that it is given; without what
    tells of an adapter, which would then be written instead.
    """
    hidden = {"hf_quantizer": None, "_hf_peft_config_loaded": False}
    before = {name: getattr(model, name, value) for name, value in hidden.items()}
    vars(model).update(hidden)
    try:
        yield
    finally:
        vars(model).update(before)


def save_body(model: UsamModel, folder: str | Path, **kwargs: Any) -> None:
    """Write config.json and all tensors of a body without head and losses; what comes from a source too."""
    before, model.config.delta = model.config.delta, False
    try:
        check_finite(model.state_dict(), f"{folder}: not saved")
        super(UsamModel, model).save_pretrained(folder, **kwargs)
    finally:
        model.config.delta = before


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
    """Versions of usam and of every package whose component is used; the file of a component that is in no package;
    source and hash of every base.
    """
    before = model.config.provenance or {}
    return {
        "usam": __version__,
        **providers(model.config.parsed),
        "sources": {name: origin.provenance() for name, origin in model.origins.items()} or before.get("sources", {}),
    }


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


def export(
    source: str | Path, folder: str | Path, task: str | None = None, target: str | None = None, seconds: float = 30.0
) -> UsamForConditionalGeneration:
    """Write one self-contained folder: LoRA merged, no losses, no source needed to load it.

    Args:
        source: a folder or hub id that `save_pretrained` wrote.
        folder: where the merged model and its processor go.
        task: of the spec's `prompts`: what reads the prompt is fixed for it, and needs no `prompt_mask` any more.
        target: `vllm` for its Transformers backend, which knows neither ids past the table nor `prompt_mask`.
        seconds: the longest clip there, for which memory is set aside.

    Raises:
        SpecError: an unknown task, nothing that reads the prompt, or a folder that is the source itself.
        ComponentError: a part reads the prompt in a way that cannot be fixed.
    """
    found = locate(str(source)).folder
    if Path(folder).exists() and os.path.samefile(folder, found):
        raise SpecError(f"{folder}: is the model to export, which would be overwritten; name another folder")
    config = read_usam_config(found)
    cast(dict[str, Any], config.spec)["llm"].pop("quantization_config", None)  # merged in full precision
    model = load(source, config=config)
    check_place(model, folder)
    if target is not None:
        check_served(model, target, task)
    for layer in model.modules():
        if hasattr(layer, "merge") and hasattr(layer, "lora_A"):
            cast(Any, layer).merge()
    processor = processor_beside(source, model.config.parsed)
    fixed = {} if task is None else fixed_parts(model, processor, task)
    tensors = {
        base_name(name): tensor
        for name, tensor in model.state_dict().items()
        if not is_adapter(name) and not name.startswith("losses.") and name not in model.all_tied_weights_keys
    }
    tree = model.config.parsed.to_dict()
    for stage, (node, own) in fixed.items():
        prefix = "model.fusion." if stage is None else f"model.projector.stages.{stage}."
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
        tensors |= {prefix + name: tensor for name, tensor in own.items()}
        if stage is None:
            tree["fusion"] = node
        else:
            tree["projector"][stage] = node
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
    if target is not None:
        with_served(merged, processor, seconds)
    with whole(folder, WEIGHTS) as place:
        merged.save_pretrained(place)
        processor.save_pretrained(place)
    return merged


def check_served(model: UsamForConditionalGeneration, target: str, task: str | None) -> None:
    """Refuse what a server cannot run.

    Raises:
        SpecError: an unknown server, clips that are heard beside the text, or a prompt that is read.
    """
    if target != "vllm":
        raise SpecError(f"--for {target}: there is only vllm")
    if model.config.parsed.beside:
        raise SpecError("--for vllm: llm.injection is cross_attention, where clips have no place among the tokens")
    reads = model.model.fusion.reads_prompt or any(cast(Any, s).reads_prompt for s in model.model.projector.stages)
    if reads and task is None:
        raise SpecError("--for vllm: the fusion or the projector reads the prompt, which vLLM does not hand on; --task")


@torch.no_grad()
def with_served(model: UsamForConditionalGeneration, processor: UsamProcessor, seconds: float) -> None:
    """Give the placeholder a row in table and head, and say how long clips are, where servers look for it.

    The row is the mean of all: the score that it gives a placeholder is the mean of all scores, never the best.
    """
    token, rows = cast(int, model.config.audio_token_id), cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if token >= rows:
        model.resize_token_embeddings(token + 1, mean_resizing=False)
    new = slice(min(rows, token), token + 1)
    words = [i for i in range(rows) if not new.start <= i < new.stop]
    for layer in (model.get_input_embeddings(), model.lm_head):
        for tensor in layer.parameters(recurse=False):
            if len(tensor) > token:  # a row a word
                tensor[new] = tensor[words].float().mean(0).to(tensor.dtype)
    ears = processor.feature_extractor
    ears.chunk_length = ears.max_seconds = seconds
    cast(Any, model.config).max_source_positions = int(ears.placeholders(int(seconds * ears.sampling_rate)))


def fixed_parts(
    model: UsamForConditionalGeneration, processor: UsamProcessor, task: str
) -> dict[int | None, tuple[dict[str, Any], dict[str, Tensor]]]:
    """Options and tensors of what reads the prompt, fixed for that of one task: stages by index; None, the fusion."""
    if task not in processor.prompts:
        raise SpecError(
            f"--task {task}: the model's 'prompts' have no such task; {did_you_mean(task, processor.prompts)}"
        )
    fusion, stages = cast(Any, model.model.fusion), cast(Any, model.model.projector.stages)
    reading: dict[int | None, Any] = {i: stage for i, stage in enumerate(stages) if stage.reads_prompt}
    if fusion.reads_prompt:
        reading[None] = fusion
    if not reading:
        types = ", ".join(stage.config.type for stage in stages)
        raise SpecError(
            f"--task {task}: no stage of this projector ({types}) reads the prompt, nor does the fusion "
            f"({fusion.config.type}); export without --task"
        )
    # The very tokens that `prompt_mask` marks beside a clip: their neighbours could change how words are cut.
    second = np.zeros(processor.feature_extractor.sampling_rate, dtype=np.float32)
    content = [{"type": "audio", "audio": second}, {"type": "text", "text": processor.prompts[task]}]
    rendered = processor.render([{"role": "user", "content": content}], add_generation_prompt=True)
    batch = processor.encode([rendered]).to(model.device)
    with torch.no_grad():
        prompt = Prompt(model.model.embed(batch["input_ids"]), batch["prompt_mask"])
        return {place: part.fixed(prompt) for place, part in reading.items()}


def processor_beside(model: str | Path, spec: Spec) -> UsamProcessor:
    """The processor saved with a model, with what a next stage's spec says of it; else the one of the spec."""
    folder = locate(str(model)).folder
    if (folder / "processor_config.json").is_file():
        with reading(f"{folder}: no processor of usam", folder):
            found = UsamProcessor.from_pretrained(folder, trust_remote_code=False)
        return cast(UsamProcessor, found).with_spec(spec)
    return UsamProcessor.from_spec(spec)


AutoConfig.register("usam", UsamConfig)
AutoModel.register(UsamConfig, UsamModel)
AutoModelForMultimodalLM.register(UsamConfig, UsamForConditionalGeneration)
AutoModelForCausalLM.register(UsamConfig, UsamForConditionalGeneration)
AutoFeatureExtractor.register(UsamConfig, UsamFeatureExtractor)
AutoProcessor.register(UsamConfig, UsamProcessor)
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["usam"] = "UsamForConditionalGeneration"  # `transformers serve` reads this
