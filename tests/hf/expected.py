"""Which of transformers' tests fail here, and why; and which are about words, and are given no audio."""

from typing import NamedTuple

ON_TEXT_ALONE = {
    "test_eager_matches_sdpa_inference": "makes its inputs from `input_ids` alone",
    "test_resize": "cuts the ids to the new table, the placeholders among them",
    "test_inputs_embeds": "looks the ids up in the table, past whose end the placeholder's may lie",
    "test_training_overfit": "makes its own ids",
}


LEFT_OUT = {
    "test_model_rope_*": "of the language model's own positions, which transformers tests there, with 49,000 tokens",
}


class Fails(NamedTuple):
    """Why a test fails, and which of transformers' own audio models leave it out as well."""

    why: str
    also: str = "no audio model of transformers"

    def __str__(self) -> str:
        return f"{self.why}; left out by {self.also}"


STRICT = Fails("weights that are missing are an error here, not random numbers with a warning")
SEVERAL = Fails("frames of several encoders have no one list of states: get_audio_features gives the projected ones")
TEXT_ONLY = Fails("its inputs hold images and videos, because `__call__` has transformers' order of arguments")

# By the tests of a kind, or of one spec; a star stands for any ending.
EXPECTED: dict[str, dict[str, Fails]] = {
    "ModelTests": {
        "test_correct_missing_keys": STRICT,
        "test_base_model_prefix_loads_base_weights": STRICT,
        "test_causal_lm_loss_honors_shift_labels": Fails(
            "`shift_labels` are of context parallelism, which the losses do not know: the argument is refused by name"
        ),
        "test_model_weights_reload_no_missing_tied_weights": STRICT,
        "test_get_audio_features_attentions": SEVERAL,
        "test_get_audio_features_hidden_states": SEVERAL,
        "test_bc_cache_name_forward": Fails(
            "`past_key_values` stays a name of the cache without a warning, for this library runs on versions that "
            "know no other"
        ),
        "test_attn_implementation_composite_models": Fails(
            "an encoder's attention is an option of its own in the spec; a config's attribute is the language model's"
        ),
        "test_can_set_attention_dynamically": Fails("as test_attn_implementation_composite_models"),
    },
    "TinyModelTest": {
        "test_model_is_small": Fails("the bundled `tiny` has 1.1 million parameters, and a test may have one million"),
    },
    "ProcessorTests": {
        "test_replacement_offsets": Fails(
            "looks for `replace_image_token` on the first base class, which here is the one that saves whole; no "
            "images are replaced"
        ),
        "test_model_input_names": TEXT_ONLY,
        "test_flat_kwarg_applied_when_modality_dict_lacks_it": TEXT_ONLY,
        "test_if_input_has_mismatching_tokens_and_mm_data": Fails("says the same in other words, with both counts"),
        "test_subprocessor_defaults_preserved_by_kwargs_2_audio": Fails(
            "padding is an option of the call: a tokenizer's own defaults are not asked"
        ),
    },
}
