"""Sizes that no model has, and that would hang or fill the memory before anything could say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LAYERS = 1000  # modules are made one by one, on the meta device too; the deepest models have some 200
SECONDS = 600  # of a window, which is filled up with silence however short a clip is
FRAMES = 60_000  # of 10 ms: the same ten minutes
TOKENS = 4096  # that one window, or a clip of any length, becomes
WIDTH = 2**17
HEADS = 1024
LONG = 2**24  # words of a vocabulary, positions
HEARD = 15_000  # frames of 20 ms in one window of Whisper, which has 1500
BINS = 512  # of a mel filter bank, which is computed in float64 when the model is built

# What an `arch` calls its sizes: transformers and timm take zero, or less, and build an empty model in silence.
NAMES: dict[str, int] = {
    name: most
    for names, most in {
        "layers num_hidden_layers num_layers n_layer n_layers encoder_layers depth depths": LAYERS,
        "num_attention_heads num_key_value_heads num_heads n_head n_heads encoder_attention_heads": HEADS,
        "hidden_size d_model n_embd embed_dim encoder_embed_dim intermediate_size encoder_ffn_dim": WIDTH,
        "encoder_ffn_embed_dim head_dim n_inner patch_embeds_hidden_size patch_size": WIDTH,
        "input_patch_size time_stride conv_dim conv_kernel conv_stride conv_pos conv_pos_groups": WIDTH,
        "num_conv_pos_embeddings": WIDTH,
        "num_conv_pos_embedding_groups num_buckets max_distance max_bucket_distance frequency_stride": WIDTH,
        "vocab_size max_position_embeddings n_positions max_length left_max_position_embeddings": LONG,
        "max_source_positions": HEARD,
        "target_length": FRAMES,
        "num_mel_bins": BINS,
    }.items()
    for name in names.split()
}


def faults(arch: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each size of an architecture that no model has: its name, and what is wrong with it."""
    for name, value in arch.items():
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if name in NAMES and isinstance(each, (int, float)) and not isinstance(each, bool):
                if each < 1:
                    yield name, f"a model has at least 1; found {value!r}"
                elif each > NAMES[name]:
                    yield name, f"more than {NAMES[name]:,}, which no model has; found {value!r}"
