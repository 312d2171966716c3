"""The language model's words are lent as they are: its own embeddings, its own logits, and no parameter twice."""

import copy

import pytest
import torch
from torch import nn

from usam import build_model
from usam.llm.transformers import Head as ScaledHead
from usam.model.model import UsamModel

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLMS = {
    "untied": {"model_type": "llama", **SMALL},
    "tied": {"model_type": "llama", "tie_word_embeddings": True, **SMALL},
    "soft cap, scaled embeddings": {
        "model_type": "gemma3_text", "head_dim": 8, "final_logit_softcapping": 0.3, **SMALL,
    },
    "logit scale": {"model_type": "cohere", "logit_scale": 0.3, **SMALL},
    "divided logits": {"model_type": "granite", "logits_scaling": 1.7, "embedding_multiplier": 1.3, **SMALL},
    "head with a bias": {"model_type": "phi", **SMALL},
}  # fmt: skip
EARS = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
LORA = {"lora": {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}}
IDS = torch.tensor([5, 98, 5, 0])


def spec(arch="tied", **llm):
    return {
        "encoders": {"whisper": {"arch": EARS}},
        "projector": [{"type": "linear", "stack": 8}, "soft_tokens"],
        "llm": {"type": "transformers", "arch": LLMS[arch], **llm},
        "losses": {"ctc": {"against": "soft_tokens"}, "cross_entropy": {}},
    }


def built(*args, **kwargs):
    model = build_model(spec(*args, **kwargs), weights=False, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("llm", [{}, LORA, {"freeze": "none"}], ids=["frozen", "with LoRA", "trained"])
@pytest.mark.parametrize("arch", LLMS)
def test_embeddings_and_logits_are_the_models_own(arch, llm):
    model = built(arch, **llm)
    lent, states = model.model.vocabulary, torch.randn(3, 16)
    assert (lent.size, lent.dim, lent.ends) == (99, 16, (2,))
    assert torch.equal(lent.embed(IDS), model.model.embed(IDS))
    torch.testing.assert_close(lent.logits(states, IDS), model.lm_head(states)[:, IDS])


@pytest.mark.parametrize("arch", LLMS)
def test_logits_of_a_few_words_are_computed_alone(arch, monkeypatch):
    model = built(arch)
    calls = []
    for cls in (nn.Linear, ScaledHead):
        monkeypatch.setattr(cls, "forward", lambda *args: calls.append(args))
    model.model.vocabulary.logits(torch.randn(3, 16), IDS)
    assert not calls


def test_nothing_stands_twice_and_nothing_else_is_saved():
    model = built("untied")
    own = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    assert own == model.state_dict().keys()
    assert not any("head" in name for name in own - {"lm_head.weight"})
    table, rows = model.get_input_embeddings().weight, model.lm_head.weight
    holders = [m for m in model.modules() if any(p is table or p is rows for p in m.parameters(recurse=False))]
    assert len(holders) == 2


def test_it_follows_a_resized_table_and_a_new_head():
    model = built("untied")
    model.resize_token_embeddings(120)
    lent, states = model.model.vocabulary, torch.randn(3, 16)
    assert lent.size == 120
    assert lent.embed(torch.tensor([119])).shape == (1, 16)
    torch.testing.assert_close(lent.logits(states, torch.tensor([119])), model.lm_head(states)[:, [119]])
    model.set_output_embeddings(nn.Linear(16, 120))
    torch.testing.assert_close(model.model.vocabulary.logits(states, IDS), model.lm_head(states)[:, IDS])


def test_a_copy_lends_its_own():
    model = built("untied")
    other = copy.deepcopy(model)
    nn.init.zeros_(other.lm_head.weight)
    assert not other.model.vocabulary.logits(torch.randn(3, 16), IDS).any()
    assert model.model.vocabulary.logits(torch.randn(3, 16), IDS).all()


def test_on_the_meta_device_it_has_shapes():
    with torch.device("meta"):
        model = build_model(spec(), weights=False)
    lent, ids = model.model.vocabulary, IDS.to("meta")
    assert lent.embed(ids).shape == (4, 16)
    assert lent.logits(torch.empty(3, 16, device="meta"), ids).shape == (3, 4)


def test_a_model_without_its_head_has_embeddings_alone():
    body = UsamModel(built("untied").config)
    assert body.vocabulary.embed(IDS).shape == (4, 16)
    with pytest.raises(ValueError, match="has no head"):
        body.vocabulary.logits(torch.randn(3, 16), IDS)


def test_what_is_saved_is_loaded(tmp_path):
    model = built("untied")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    clip = torch.randn(1, 4000) * 0.1
    with torch.no_grad():
        ours, reference = (m.get_audio_features(clip).pooler_output for m in (again, model))
    torch.testing.assert_close(ours, reference)
