"""The attention that a caller asks for reaches every part that has it."""

import pytest

from usam import UsamForConditionalGeneration, build_model

HUBERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
HUBERT |= {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
WHISPER = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
SPEC = {
    "encoders": {
        "whisper": {"arch": {**WHISPER, "max_source_positions": 50}},
        "mert": {"arch": HUBERT},
        "hubert": {"type": "transformers", "arch": {"model_type": "hubert", **HUBERT}},
        "ced": {"arch": {"embed_dim": 16, "depth": 1, "num_heads": 2}},
    },
    "projector": "linear",
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
}


def attentions(model):
    whisper, mert, hubert, ced = (model.model.encoders[name] for name in ("whisper", "mert", "hubert", "ced"))
    return [
        whisper.encoder.config._attn_implementation,
        mert.hubert._attn_implementation,
        hubert.network.model.config._attn_implementation,
        "sdpa" if ced.blocks[0].attn.fused_attn else "eager",
        model.model.language_model.config._attn_implementation,
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_reaches_every_part(attention, tmp_path):
    assert attentions(build_model(SPEC, attn_implementation=attention)) == [attention] * 5
    build_model(SPEC).save_pretrained(tmp_path)
    loaded = UsamForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=attention)
    assert attentions(loaded) == [attention] * 5
    assert attentions(build_model(tmp_path, attn_implementation=attention)) == [attention] * 5


def test_what_is_not_asked_for_stays_as_the_spec_says():
    assert attentions(build_model(SPEC, "encoders.mert.attn_implementation=eager"))[:2] == ["sdpa", "eager"]


def test_a_part_that_does_not_have_it_says_so():
    with pytest.warns(UserWarning, match=r"encoders\.ced: 'ced' has no attention 'flex_attention', and keeps sdpa"):
        model = build_model(SPEC, attn_implementation="flex_attention")
    assert attentions(model)[3] == "sdpa"
    assert attentions(model)[4] == "flex_attention"
