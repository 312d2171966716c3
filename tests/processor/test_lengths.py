"""How long a sample may be: the language model's positions, and what is said of one that has more tokens."""

import pytest
from transformers import BloomConfig, FalconConfig, GPT2Config, LlamaConfig, MambaConfig, MptConfig, Qwen2Config

from usam.processor.lengths import ClipLength, context_length, too_long


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (GPT2Config(n_positions=512), 512),
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (MptConfig(max_seq_len=128), 128),  # its table of distances ends there
        (FalconConfig(max_position_embeddings=2048), 2048),
        (FalconConfig(alibi=True), None),
        (BloomConfig(), None),
        (MambaConfig(), None),
    ],
)
def test_the_positions_of_a_language_model(config, length):
    assert context_length(config) == length


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
    ],
)
def test_rotations_that_were_stretched_reach_further(rope, length):
    assert context_length(Qwen2Config(max_position_embeddings=4096, rope_parameters=rope)) == length


def test_what_fits_is_fine():
    assert too_long(100, 100) is None
    assert too_long(100, 90, answer=10) is None
    assert too_long(None, 10**9) is None


def test_a_clip_that_is_too_long_is_named_with_its_length_and_what_fits():
    message = too_long(512, 1020, [ClipLength("a.wav", 1000, 40.0)])
    assert message == (
        "1,020 tokens (clip 'a.wav' (40.0 s) takes 1,000; text 20) do not fit the language model's 512 positions; at "
        "most 492 tokens of audio fit, about 19.7 s: cut the audio, or take a projector with fewer tokens a second"
    )


def test_an_answer_that_does_not_fit_beside_the_prompt_is_told_what_does():
    message = too_long(512, 400, [ClipLength("a.wav", 380, 15.2)], answer=256)
    assert "and 256 for the answer do not fit" in message
    assert "ask for an answer of at most 112 (max_new_tokens)" in message


def test_text_alone_can_be_too_long():
    assert too_long(10, 12) == (
        "12 tokens do not fit the language model's 10 positions; at most 10 tokens of text fit: shorten it"
    )
