"""Every built-in component keeps every promise of its family: one case a promise."""

import pytest
import torch

from usam.testing import (
    encoder_promises,
    fusion_promises,
    llm_promises,
    loss_promises,
    metric_promises,
    projector_promises,
)

WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "max_source_positions": 20,  # a window of 0.4 s, so that a clip of a second has three
}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLMS = {
    "llama": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "gemma3_text": {**SMALL, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 3.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 16, "max_position_embeddings": 64},
    "cohere": {**SMALL, "logit_scale": 0.3},
    "granite": {**SMALL, "logits_scaling": 1.7, "embedding_multiplier": 1.3, "residual_multiplier": 0.7},
}

# Texts of a special kind, for metrics that know only such.
ENGLISH = (
    ("a dog barks twice and then a door is shut", ["a dog barks and a door is shut", "two barks and then a door"]),
    ("the rain falls on a tin roof", ["the rain falls on a tin roof"]),
    ("six birds", ["sixteen birds sing in the trees at dawn", "six birds sing at dawn", "birds at dawn"]),
)
ONE_REFERENCE = [(said, right[:1]) for said, right in ENGLISH]  # so that a perfect score can be reached
WORDS = (("dog", ["dog"]), ("rain", ["dog", "cat"]), ("Cat", ["cat"]), ("a wolf", ["rain"]))
CHOICES = (("b", ["dog"]), ("A", ["rain", "A"]), ("who knows", ["dog"]), ("(a) rain", ["rain"]), ("dog", ["rain"]))
LETTERS = (("the answer is B", ["B"]), ("A", ["A"]), ("who knows", ["B"]), ("(A) rain", ["A"]), ("dog", ["A"]))
BY_TEXT = (("B", ["dog"]), ("A dog", ["dog"]), ("A. rain", ["rain"]), ("who knows", ["rain", "dog"]), ("rain", ["dog"]))
CLOSED = {"takes_empty_texts": "a reference that is none of the labels, or choices, is an error"}

WHOLE_CLIP = {"aligns_time": "its router reads the whole clip, and by its gates every frame hears that"}
PROMISES = {
    "whisper": encoder_promises("whisper", arch=WHISPER),
    "whisper in layers": encoder_promises("whisper", arch=WHISPER, layers="weighted"),
    "whisper's first layers": encoder_promises("whisper", arch=WHISPER, layers=[0, 1]),
    "whisper on the clip": encoder_promises("whisper", arch=WHISPER, context="clip"),
    "whisper's layers on the clip": encoder_promises("whisper", arch=WHISPER, context="clip", layers="weighted"),
    "whisper, eager, on the clip": encoder_promises(
        "whisper", arch=WHISPER, context="clip", attn_implementation="eager"
    ),
    "whisper in one window": encoder_promises("whisper", arch={**WHISPER, "max_source_positions": 60}),
    "concat": fusion_promises("concat"),
    "concat at 25": fusion_promises("concat", rate=25),
    "concat with norms": fusion_promises("concat", layer_norm=True),
    "sum": fusion_promises("sum"),
    "pam": fusion_promises("pam"),
    "pam of experts that read all": fusion_promises("pam", experts=2, hidden=5, router_hidden=0, rate=25),
    "pam with fixed gates": fusion_promises("pam", experts=3, gates=[0.2, 0.3, 0.5], layer_norm=False),
    "mowe": fusion_promises("mowe", rate=25, expected_failures=WHOLE_CLIP),
    "mowe of a named strong one": fusion_promises(
        "mowe", strong="a", dim=3, router_hidden=4, layer_norm=False, expected_failures=WHOLE_CLIP
    ),
    "mowe that chooses": fusion_promises("mowe", top_k=1, expected_failures=WHOLE_CLIP),
    "sum at 25": fusion_promises("sum", rate=25, dim=7, layer_norm=True),
    "linear": projector_promises("linear"),
    "linear stack 5": projector_promises("linear", stack=5),
    "linear hidden": projector_promises("linear", stack=2, hidden=16),
    "cross_entropy": loss_promises("cross_entropy"),
    "cross_entropy smoothed": loss_promises("cross_entropy", label_smoothing=0.1),
    "wer": metric_promises("wer"),
    "wer normalised": metric_promises("wer", normalizer="basic"),
    "wer in English": metric_promises("wer", normalizer="english"),
    "cer": metric_promises("cer"),
    "bleu": metric_promises("bleu"),
    "bleu by characters": metric_promises("bleu", tokenize="char", smooth_method="floor", max_ngram_order=2),
    "bleu in Chinese": metric_promises("bleu", tokenize="zh", lowercase=True),
    "chrf": metric_promises("chrf"),
    "chrf++": metric_promises("chrf", word_order=2, whitespace=True),
    "rouge_l": metric_promises("rouge_l", samples=ENGLISH),
    "coco_rouge_l": metric_promises("coco_rouge_l"),
    "coco_bleu": metric_promises("coco_bleu"),
    "coco_bleu 1": metric_promises("coco_bleu", order=1),
    "cider_d": metric_promises("cider_d", samples=ONE_REFERENCE),
    "accuracy": metric_promises("accuracy"),
    "accuracy normalised": metric_promises("accuracy", lowercase=True, punctuation=False),
    "f1": metric_promises("f1"),
    "f1 of lists": metric_promises("f1", separator=","),
    "f1 by label": metric_promises(
        "f1", average="macro", labels=["dog", "cat", "rain"], samples=WORDS, expected_failures=CLOSED
    ),
    "f1 weighted": metric_promises(
        "f1", average="weighted", labels=["dog", "cat", "rain"], samples=WORDS, expected_failures=CLOSED
    ),
    "token_f1": metric_promises("token_f1"),
    "map": metric_promises("map"),
    **{
        f"multiple_choice by {parser}": metric_promises(
            "multiple_choice", parser=parser, choices=["rain", "dog"], samples=samples, expected_failures=CLOSED
        )
        for parser, samples in {
            "strict": CHOICES,
            "letter": LETTERS,
            "first_mention": CHOICES,
            "words": CHOICES,
        }.items()
    },
    "multiple_choice of each sample": metric_promises(
        "multiple_choice",
        samples=[(*sample, {"x_choices": ["rain", "dog"]}) for sample in CHOICES],
        expected_failures=CLOSED,
    ),
    **{
        f"benchmark_choice as {rule}": metric_promises(
            "benchmark_choice",
            rule=rule,
            samples=[(said, right, {"x_choices": ["rain", "dog"]}) for said, right in BY_TEXT],
            expected_failures=failures,
        )
        for rule, failures in {
            "mmau": {},
            "air_bench": {**CLOSED, "a_perfect_answer_is_best": "its script reads letters, and no texts"},
            "muchomusic": CLOSED,
        }.items()
    },
    "tiny": llm_promises("tiny", dim=32),
    "tiny tied": llm_promises("tiny", dim=32, tie_word_embeddings=True),
    **{name: llm_promises("transformers", arch={"model_type": name, **arch}) for name, arch in LLMS.items()},
}


@pytest.fixture(autouse=True)
def one_thread():
    """Such small tensors run faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_a_component_keeps_its_promises(promise):
    promise()
