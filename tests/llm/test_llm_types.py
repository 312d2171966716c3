"""Every causal LM type of transformers is either reproduced from embeddings or refused by name."""

from typing import Any

import pytest
import torch
from conftest import needs_transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from usam import ComponentError, build_llm
from usam.llm import transformers as builder
from usam.llm.transformers import Head, logit_factor
from usam.testing import llm_promises

# Options by the names they go under, made small; an option that a type does not have is left out.
SMALL = {
    32: "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim embedding_size",
    48: "intermediate_size ffn_dim n_inner d_ff decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dff",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_key_value_heads "
    "n_kv_heads num_kv_heads num_experts_per_tok moe_topk moe_k top_k_experts",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts rotary_dim qk_rope_head_dim mamba_d_conv",
    8: "head_dim kv_channels kv_lora_rank q_lora_rank qk_nope_head_dim v_head_dim mamba_d_state mamba_n_heads "
    "mamba_d_head mamba_chunk_size state_size sliding_window",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",
    64: "max_position_embeddings n_positions n_ctx max_seq_len seq_length",
    1: "n_group topk_group n_shared_experts first_k_dense_replace mamba_n_groups bos_token_id",
    99: "vocab_size",
}
# Neutral by default, but not in published models.
LOUD = {
    "logits_scaling": 1.7,
    "logit_scale": 0.3,
    "embedding_multiplier": 1.3,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.4,
    "lm_head_multiplier": 0.6,
    "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 3.0,
    "attn_logit_softcapping": 5.0,
    "mup_enabled": True,
    "scale_embedding": True,
    "scale_emb": 1.4,
    "unpadded_vocab_size": 90,
}
LATENT = {"head_dim": 4, "num_key_value_heads": 4}  # multi-head latent attention: no groups, and its own head size
LATENT_TYPES = "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"
NESTED = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LATENT_TYPES.split(), LATENT),
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "global_config": {**NESTED, "hidden_size": 64},
        **{f"{part}_config": {**NESTED, "hidden_size_global": 64} for part in ("encoder", "decoder", "patcher")},
    },
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE},
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 99, "laurel_rank": 8},
    "gemma4_text": {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 99},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "git": {"vision_config": {**NESTED, "image_size": 32}},
    "phi4_multimodal": {
        "vision_config": {**NESTED, "num_hidden_layers": 2, "image_size": 28},
        "audio_config": {**NESTED, "num_blocks": 1, "ext_pw_out_channel": 32, "nemo_conv_channels": 32},
    },
    "sarvam_mla": {"head_dim": None, "num_key_value_heads": 4},  # a head_dim is taken for that of older files
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local"], "local_attn_chunk_length": 8},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "hybrid"], "n_mamba_heads": 2},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1], "mamba_headdim": 8},
    "zaya": {"num_experts_per_tok": 1},
}
MAIN = ["llama", "qwen3", "gemma3_text", "gpt2", "opt", "cohere", "granite"]
PROMISED = {
    "true_width",
    "keeps_its_text_config",
    "matches_the_causal_lm",
    "hears_embeddings_as_ids",
    "looks_only_back",
    "ignores_left_padding",
    "stays_frozen",
}


@pytest.fixture(autouse=True)
def one_thread():
    """Such small tensors run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shrunk(model_type):
    """A small architecture of a type, whose every scale is heard."""
    config = AutoConfig.for_model(model_type)
    own, renamed = config.to_dict(), config.attribute_map
    options = {**{name: value for value, names in SMALL.items() for name in names.split()}, **LOUD}
    arch = {renamed.get(name, name): value for name, value in options.items() if renamed.get(name, name) in own}
    specials = {"pad_token_id": 0, "eos_token_id": 2}
    return {"model_type": model_type, **arch, **specials, **SPECIAL.get(model_type, {})}


def fault(model_type):
    """What a type breaks of what the composite needs; None if it keeps all."""
    try:
        for promise in llm_promises("transformers", arch=shrunk(model_type)):
            if promise.name in PROMISED:
                promise()
    except Exception as error:  # whatever a type raises, it is not reproduced
        return error
    return None


@pytest.mark.parametrize("model_type", MAIN)
def test_the_main_types_are_reproduced(model_type):
    assert fault(model_type) is None


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_type_is_refused_exactly_when_it_is_not_reproduced(model_type, monkeypatch):
    refused = builder.REFUSED.get(model_type)
    monkeypatch.setattr(builder, "REFUSED", {})
    found = fault(model_type)
    if "multimodal config" in str(found):
        return  # refused as such, with the name of its text model
    assert (found is not None) == (refused is not None), f"REFUSED says {refused!r}; the sweep found {found}"


@needs_transformers(24, "the last of these types came with it")
def test_every_refused_type_exists():
    assert builder.REFUSED.keys() <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


def test_a_refused_type_says_why():
    with pytest.raises(ComponentError, match="'falcon_h1' is not supported: it scales the embeddings of token ids"):
        build_llm("transformers", arch={"model_type": "falcon_h1"})


def test_a_model_that_reads_ids_in_its_layers_is_refused():
    llm = build_llm("transformers", arch={"model_type": "gemma4_text", "hidden_size_per_layer_input": 256})
    with pytest.raises(ComponentError, match="'gemma4_text' with hidden_size_per_layer_input=256 reads token ids"):
        llm.text_config()


@pytest.mark.parametrize(
    ("model_type", "option", "factor"),
    [
        ("llama", {}, 1.0),
        ("cohere", {"logit_scale": 0.25}, 0.25),
        ("granite", {"logits_scaling": 4.0}, 0.25),
        ("hyperclovax", {"logits_scaling": 4.0}, 4.0),
        ("inkling_text", {"logits_mup_width_multiplier": 4.0}, 0.25),
        ("mpt", {"logit_scale": 0.25}, 1.0),
    ],
)
def test_the_factor_of_the_logits(model_type, option, factor):
    assert logit_factor(AutoConfig.for_model(model_type, **option)) == factor


@pytest.mark.parametrize(
    ("model_type", "option"),
    [
        ("gemma2", "final_logit_softcapping"),
        ("recurrent_gemma", "logits_soft_cap"),
        ("xlstm", "output_logit_soft_cap"),
    ],
)
def test_the_soft_cap_of_the_logits(model_type, option):
    head = Head(2, 1, False, AutoConfig.for_model(model_type, **{option: 5.0}))
    torch.nn.init.constant_(head.weight, 100.0)
    assert head(torch.ones(2)).item() == pytest.approx(5.0)


def test_a_type_that_is_no_causal_language_model_is_refused():
    with pytest.raises(ComponentError, match="no causal language model of type 'lama'; did you mean 'llama'"):
        build_llm("transformers", arch={"model_type": "lama"}).text_config()
