"""A Whisper of CTranslate2's becomes a folder that transformers, and usam's `whisper`, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from usam import ComponentError
from usam.weights import read_json
from usam_real._checkpoint import check_shapes, told_of
from usam_real.ctranslate2 import Model, read_model

ENGLISH = 51864  # tokens of a model that knows English alone
# What each option must be; another would compute something else.
FIXED = {
    "decoder/activation": 3,  # GELU
    "decoder/alibi": 0,
    "decoder/alignment_heads": 1,
    "decoder/alignment_layer": -1,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
HEADS = ("encoder/num_heads", "decoder/num_heads")
ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}
KEYS = ("suppress_ids", "suppress_ids_begin", "alignment_heads", "lang_ids", "lang_ids_begin")


def convert(source: Path, folder: Path) -> None:
    """Write a folder of transformers from one that holds model.bin, config.json, tokenizer.json and vocabulary.txt.

    Raises:
        ComponentError: something there is unknown, missing or of another shape; it is named.
    """
    model = read_model(source / "model.bin")
    with told_of(source / "model.bin"):
        config, tensors = whisper_config(model), whisper_tensors(model)
    generation = generation_config(source / "config.json")
    write_tokenizer(source, folder)
    config.save_pretrained(folder)
    generation.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def whisper_config(model: Model) -> WhisperConfig:
    """The sizes that the shapes tell.

    Raises:
        ComponentError: it is no English Whisper, or one with options that transformers' has not.
    """
    if model.spec != "WhisperSpec" or model.revision != 3:
        raise ComponentError(f"a {model.spec} of revision {model.revision}; only WhisperSpec of revision 3 is known")
    unknown = sorted(model.options.keys() - FIXED.keys() - set(HEADS))
    if unknown:
        raise ComponentError(f"unknown options {', '.join(unknown)}")
    wrong = [f"{name} {model.options.get(name)} (expected {value})" for name, value in FIXED.items()]
    wrong = [text for text, (name, value) in zip(wrong, FIXED.items(), strict=True) if model.options.get(name) != value]
    if wrong:
        raise ComponentError(f"options that are not known: {', '.join(wrong)}")
    if model.aliases != ALIASES:
        raise ComponentError(f"expected the aliases {ALIASES}, found {model.aliases}")
    missing = [name for name in (*SIZES, *HEADS) if name not in model.tensors and name not in model.options]
    if missing:
        raise ComponentError(f"has no {', '.join(missing)}")
    shapes = {name: model.tensors[name].shape for name in SIZES}
    vocabulary, width = shapes["decoder/embeddings/weight"]
    if vocabulary != ENGLISH:
        raise ComponentError(f"has {vocabulary} tokens; only models for English, which have {ENGLISH}, are known")
    return WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=shapes["encoder/conv1/weight"][1],
        encoder_layers=_depth(model, "encoder"),
        decoder_layers=_depth(model, "decoder"),
        encoder_attention_heads=model.options["encoder/num_heads"],
        decoder_attention_heads=model.options["decoder/num_heads"],
        encoder_ffn_dim=shapes["encoder/layer_0/ffn/linear_0/weight"][0],
        decoder_ffn_dim=shapes["decoder/layer_0/ffn/linear_0/weight"][0],
        max_source_positions=len(model.tensors["encoder/position_encodings/encodings"]),
        max_target_positions=len(model.tensors["decoder/position_encodings/encodings"]),
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
        dtype="float32",
    )


START, END, NO_TIMESTAMPS = 50257, 50256, 50362  # tokens of the models for English
SIZES = (
    "decoder/embeddings/weight",
    "decoder/position_encodings/encodings",
    "encoder/position_encodings/encodings",
    "encoder/conv1/weight",
    "encoder/layer_0/ffn/linear_0/weight",
    "decoder/layer_0/ffn/linear_0/weight",
)


def _depth(model: Model, side: str) -> int:
    return len({name.split("/")[1] for name in model.tensors if name.startswith(f"{side}/layer_") and "ffn" in name})


def whisper_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors under transformers' names; each of the file is used once.

    Raises:
        ComponentError: names what is unknown, missing, or of another shape.
    """
    left = dict(model.tensors)
    own: dict[str, Tensor] = {}

    def take(name: str, to: str) -> None:
        own[to] = _pop(left, name)

    def norm(name: str, to: str) -> None:
        take(f"{name}/gamma", f"{to}.weight")
        take(f"{name}/beta", f"{to}.bias")

    def linear(name: str, to: str) -> None:
        take(f"{name}/weight", f"{to}.weight")
        take(f"{name}/bias", f"{to}.bias")

    def joined(name: str, to: str, parts: tuple[str, ...]) -> None:
        weight, bias = _pop(left, f"{name}/weight"), _pop(left, f"{name}/bias")
        if len(weight) % len(parts) or len(bias) % len(parts):
            raise ComponentError(f"'{name}' has {len(weight)} rows, which are not those of {len(parts)} matrices")
        for part, rows, values in zip(parts, weight.chunk(len(parts)), bias.chunk(len(parts)), strict=True):
            own[f"{to}.{part}.weight"] = rows.clone()
            if part != "k_proj":
                own[f"{to}.{part}.bias"] = values.clone()
            elif values.any():
                raise ComponentError(f"'{name}/bias' holds a bias of the keys, and Whisper's have none")

    for i in (1, 2):
        linear(f"encoder/conv{i}", f"model.encoder.conv{i}")
    take("decoder/embeddings/weight", "model.decoder.embed_tokens.weight")
    for side in ("encoder", "decoder"):
        take(f"{side}/position_encodings/encodings", f"model.{side}.embed_positions.weight")
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(_depth(model, side)):
            theirs, ours = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            joined(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", ("q_proj", "k_proj", "v_proj"))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                joined(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn", ("k_proj", "v_proj"))
                linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
    if left:
        raise ComponentError(f"unknown tensors {', '.join(sorted(left))}")
    with torch.device("meta"):
        expected = WhisperForConditionalGeneration(whisper_config(model)).state_dict()
    expected.pop("proj_out.weight")  # tied to the tokens' embeddings
    check_shapes(own, expected)
    return own


def _pop(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ComponentError(f"has no '{name}'")
    return tensors.pop(name)


def generation_config(file: Path) -> GenerationConfig:
    """How answers are decoded, from the config.json beside model.bin.

    Raises:
        ComponentError: it has entries that are not known.
    """
    found: dict[str, Any] = read_json(file)
    unknown = sorted(found.keys() - set(KEYS))
    missing = [key for key in KEYS[:3] if key not in found]
    if unknown or missing:
        raise ComponentError(
            f"{file}: " + "; ".join([f"unknown '{k}'" for k in unknown] + [f"no '{k}'" for k in missing])
        )
    return GenerationConfig(
        suppress_tokens=found["suppress_ids"],
        begin_suppress_tokens=found["suppress_ids_begin"],
        alignment_heads=found["alignment_heads"],
        is_multilingual=False,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        no_timestamps_token_id=NO_TIMESTAMPS,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        max_length=448,
    )


def write_tokenizer(source: Path, folder: Path) -> None:
    """tokenizer.json with all of the model's tokens: those of times stand in vocabulary.txt alone.

    Raises:
        ComponentError: the two files do not agree, or lack a token that decoding needs.
    """
    file, words = source / "tokenizer.json", source / "vocabulary.txt"
    try:
        tokenizer = Tokenizer.from_file(str(file))
        vocabulary = words.read_text(encoding="utf-8").split("\n")
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ComponentError(f"{source}: its tokenizer cannot be read: {error}") from error
    if vocabulary[-1] == "":
        vocabulary.pop()
    for line, word in enumerate(vocabulary[: tokenizer.get_vocab_size()], start=1):
        if tokenizer.id_to_token(line - 1) != word:
            known = tokenizer.id_to_token(line - 1)
            raise ComponentError(f"{words}, line {line}: {word!r}, where {file.name} has {known!r}")
    times = vocabulary[tokenizer.get_vocab_size() :]
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in times])
    named = {"<|startoftranscript|>": START, "<|endoftext|>": END, "<|notimestamps|>": NO_TIMESTAMPS}
    for word, number in named.items():
        if tokenizer.token_to_id(word) != number:
            raise ComponentError(f"{file}: expected {word} to be token {number}, found {tokenizer.token_to_id(word)}")
    if tokenizer.get_vocab_size() != ENGLISH:
        raise ComponentError(f"{words}: {tokenizer.get_vocab_size()} tokens, expected {ENGLISH}")
    tokenizer.save(str(folder / "tokenizer.json"))
    options = {
        "tokenizer_class": "WhisperTokenizer",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": 448,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
