"""A SmolLM2 out of a GGUF file becomes a folder that transformers, and usam's `llm`, read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from usam import ComponentError
from usam_real._checkpoint import check_shapes, told_of
from usam_real.gguf import read_gguf

ENTRIES = {  # what LlamaConfig calls them
    "llama.vocab_size": "vocab_size",
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.block_count": "num_hidden_layers",
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
ROPE, ROPE_WIDTH = "llama.rope.freq_base", "llama.rope.dimension_count"
# What each must be; another would compute, or read text, differently.
FIXED: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.add_bos_token": False,
}
SPECIAL = {
    f"tokenizer.ggml.{name}_token_id": token
    for name, token in {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}.items()
}
WORDS, KINDS, MERGES, TEMPLATE = (
    "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.chat_template",
)  # fmt: skip
NORMAL, CONTROL = 1, 3  # kinds of tokens
TOLD_NOTHING = re.compile(r"general\.(?!architecture$).+")  # names, licences, how it was quantised

TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def convert(file: Path, folder: Path) -> None:
    """Write a folder of transformers, with tokenizer and chat template.

    Raises:
        ComponentError: something in the file is unknown, missing or of another shape; it is named.
    """
    entries, tensors = read_gguf(file)
    with told_of(file):
        config = llama_config(entries, tied="output.weight" not in tensors)
        tokenizer = make_tokenizer(entries)
        own = llama_tensors(tensors, config)
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_file(own, folder / "model.safetensors", {"format": "pt"})


def llama_config(entries: dict[str, Any], *, tied: bool) -> LlamaConfig:
    """The config that the entries tell.

    Args:
        entries: those of the file.
        tied: whether the head is the table of tokens.

    Raises:
        ComponentError: names the entries that are missing, unknown, or of values that are not known.
    """
    known = {*ENTRIES, ROPE, ROPE_WIDTH, *FIXED, *SPECIAL, WORDS, KINDS, MERGES, TEMPLATE}
    faults = [f"unknown entry '{name}'" for name in entries.keys() - known if not TOLD_NOTHING.fullmatch(name)]
    faults += [f"no entry '{name}'" for name in known - entries.keys()]
    faults += [
        f"'{name}' is {entries[name]!r}, and only {value!r} is known"
        for name, value in FIXED.items()
        if name in entries and entries[name] != value
    ]
    if faults:
        raise ComponentError("; ".join(sorted(faults)))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": entries[ROPE]},
        bos_token_id=entries["tokenizer.ggml.bos_token_id"],
        eos_token_id=entries["tokenizer.ggml.eos_token_id"],
        pad_token_id=entries["tokenizer.ggml.padding_token_id"],
        dtype="float32",
        **{theirs: entries[name] for name, theirs in ENTRIES.items()},
    )
    if entries[ROPE_WIDTH] * config.num_attention_heads != config.hidden_size:
        raise ComponentError(f"'{ROPE_WIDTH}' is {entries[ROPE_WIDTH]}; only rotations of whole heads are known")
    return config


def llama_tensors(tensors: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """The tensors under transformers' names, the halves of each head's queries and keys as transformers has them.

    Raises:
        ComponentError: names what is unknown, missing, or of another shape.
    """
    own: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = LAYER.fullmatch(name)
        if name in TENSORS:
            own[TENSORS[name]] = tensor
        elif match and match[2] in OF_A_LAYER:
            own[f"model.layers.{match[1]}.{OF_A_LAYER[match[2]]}.weight"] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ComponentError(f"unknown tensors {', '.join(sorted(unknown))}")
    with torch.device("meta"):
        expected = LlamaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        expected.pop("lm_head.weight")
    check_shapes(own, expected)
    for name, tensor in own.items():
        if name.endswith((".q_proj.weight", ".k_proj.weight")):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            own[name] = rearrange(tensor, "(head d two) x -> (head two d) x", head=heads, two=2).contiguous()
    return own


def make_tokenizer(entries: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte pairs over single digits and words, as SmolLM2's own.

    Raises:
        ComponentError: lists of other lengths, or tokens of a kind that is not known.
    """
    words, kinds = entries[WORDS], entries[KINDS]
    if not len(words) == len(kinds) == entries["llama.vocab_size"]:
        raise ComponentError(
            f"{len(words)} tokens and {len(kinds)} kinds, for {entries['llama.vocab_size']} embeddings"
        )
    others = [(word, kind) for word, kind in zip(words, kinds, strict=True) if kind not in (NORMAL, CONTROL)]
    if others:
        raise ComponentError(f"token {others[0][0]!r} is of kind {others[0][1]}; known are {NORMAL} and {CONTROL}")
    merges = [tuple(merge.split(" ")) for merge in entries[MERGES]]
    table = {word: number for number, word in enumerate(words)}
    broken = [merge for merge in merges if len(merge) != 2 or "".join(merge) not in table]
    if len(table) != len(words) or broken:
        raise ComponentError(f"its tokens are no table of byte pairs: {broken[:1] or 'a token stands twice'}")
    tokenizer = Tokenizer(models.BPE(table, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    named = {}
    for entry, token in SPECIAL.items():
        if not 0 <= entries[entry] < len(words):
            raise ComponentError(f"'{entry}' is {entries[entry]}, and there are {len(words)} tokens")
        named[token] = words[entries[entry]]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=entries[TEMPLATE],
        model_max_length=entries["llama.context_length"],
        clean_up_tokenization_spaces=False,
        **named,
    )
