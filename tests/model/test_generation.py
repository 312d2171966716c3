"""However it is asked to generate, the model answers as it does one sample and one token at a time."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
import toys  # noqa: F401
from conftest import noise
from transformers import AutoModelForCausalLM

from usam import UsamProcessor, build_model
from usam.versions.compat import CACHE

STEPS = 6


@pytest.fixture(scope="module", params=["llama", "qwen3", "gated", "beside"])
def model(request, whisper, llama, qwen3):
    """A placeholder past the table, one inside it, a projector that reads the prompt, and cross-attention."""
    torch.manual_seed(0)
    llm = {"type": "transformers", "path": qwen3 if request.param == "qwen3" else llama}
    if request.param == "beside":
        llm["injection"] = {"type": "cross_attention", "heads": 2, "head_dim": 8}
    projector = "toy_gate" if request.param == "gated" else {"type": "linear", "stack": 5}
    encoders = {"whisper": {"path": whisper}}
    model = build_model({"encoders": encoders, "projector": projector, "llm": llm}, "fusion.rate=10")
    with torch.no_grad():
        for parameter in model.model.projector.parameters():  # as loud as words are
            parameter.mul_(5)
        if request.param == "beside":  # gates as open as after training
            for parameter in model.model.cross_attention.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def processor(model):
    return UsamProcessor.from_spec(model.config.parsed)


SAMPLES = [
    ("<|audio|> and <|audio|> What do you hear?", [0.3, 1.2]),
    ("What is a dog?", []),
    ("Transcribe <|audio|>", [0.9]),
]


def ask(processor, *samples):
    clips = [noise(s, 7 * i) for _, seconds in samples for i, s in enumerate(seconds)]
    return processor(text=[text for text, _ in samples], audio=clips or None)


@pytest.fixture(scope="module")
def batch(processor):
    return ask(processor, *SAMPLES)


@torch.no_grad()
def by_hand(model, inputs, penalty=1.0):
    """Greedy: the whole sequence through `forward` for every token."""
    ids = inputs["input_ids"]
    for _ in range(STEPS):
        masks = {"attention_mask": torch.ones_like(ids), "prompt_mask": pad(inputs["prompt_mask"], ids)}
        scores = model(**{**inputs, **masks, "input_ids": ids}).logits[0, -1]
        words = [i for i in set(ids[0].tolist()) if i != model.config.audio_token_id]
        scores[words] = torch.where(scores[words] < 0, scores[words] * penalty, scores[words] / penalty)
        scores[model.config.audio_token_id : model.config.audio_token_id + 1] = -torch.inf
        ids = torch.cat([ids, scores.argmax().view(1, 1)], 1)
    return ids[:, -STEPS:]


def pad(mask, ids):
    return torch.nn.functional.pad(mask, (0, ids.shape[1] - mask.shape[1]))


@pytest.fixture(scope="module")
def greedy(model, processor):
    return torch.cat([by_hand(model, ask(processor, sample)) for sample in SAMPLES])


def generate(model, batch, **options):
    options = {"max_new_tokens": STEPS, "do_sample": False, **options}
    return model.generate(**batch, **options)[:, -STEPS:]


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}],
    ids=["cache", "no cache", "static"],
)
def test_a_padded_batch_answers_as_one_by_one(options, model, batch, greedy):
    assert torch.equal(generate(model, batch, **options), greedy)


def test_the_answers_differ(greedy):
    assert len({tuple(row) for row in greedy.tolist()}) == len(SAMPLES)


@pytest.mark.parametrize("cache", [None, "static"])
def test_the_logits_of_a_batch_are_those_of_one_by_one(cache, model, processor, batch):
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    together = model.generate(**batch, **options, cache_implementation=cache).logits
    for i, sample in enumerate(SAMPLES):
        alone = model.generate(**ask(processor, sample), **options).logits
        torch.testing.assert_close(torch.stack(together)[:, i], torch.stack(alone)[:, 0], rtol=0, atol=1e-4)


def test_beams_of_a_batch_are_those_of_one_by_one(model, processor, batch):
    options = {"num_beams": 3, "num_return_sequences": 2}
    together = generate(model, batch, **options)
    alone = [generate(model, ask(processor, sample), **options) for sample in SAMPLES]
    assert torch.equal(together, torch.cat(alone))


def test_a_beam_of_one_is_greedy(model, batch, greedy):
    assert torch.equal(generate(model, batch, num_beams=1), greedy)


@torch.no_grad()
def test_every_sampled_sequence_hears_the_clips_of_its_sample(model, processor, batch):
    torch.manual_seed(0)
    options = {"num_return_sequences": 2, "return_dict_in_generate": True, "output_logits": True}
    found = model.generate(**batch, do_sample=True, max_new_tokens=4, **options)
    for i, row in enumerate(found.sequences[:, -4:]):
        inputs = ask(processor, SAMPLES[i // 2])
        ids = torch.cat([inputs["input_ids"], row[None]], 1)
        mask = {"attention_mask": torch.ones_like(ids), "prompt_mask": pad(inputs["prompt_mask"], ids)}
        expected = model(**{**inputs, **mask, "input_ids": ids}).logits[0, -5:-1]
        torch.testing.assert_close(torch.stack(found.logits)[:, i], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sample", SAMPLES, ids=["two clips", "no clip", "one clip"])
def test_prompt_lookup_gives_the_same_tokens(sample, model, processor, greedy):
    inputs = ask(processor, sample)
    found = generate(model, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(found, greedy[SAMPLES.index(sample)][None])


def test_a_repetition_penalty_falls_on_words_only(model, processor):
    inputs = ask(processor, SAMPLES[0])
    assert torch.equal(generate(model, inputs, repetition_penalty=1.5), by_hand(model, inputs, penalty=1.5))


def test_a_penalty_on_what_the_prompt_does_not_hold(model, processor):
    inputs = ask(processor, SAMPLES[2])
    found = generate(model, inputs, encoder_repetition_penalty=1e6)  # strong enough to forbid every other word
    assert set(found[0].tolist()) <= set(inputs["input_ids"][0].tolist()) - {model.config.audio_token_id}


def test_no_repeated_bigrams_in_a_prompt_that_ends_with_audio(model, processor):
    inputs = ask(processor, ("What? <|audio|>", [0.6]))
    row = generate(model, inputs, no_repeat_ngram_size=2)[0].tolist()
    bigrams = list(pairwise(row))
    assert len(set(bigrams)) == len(bigrams)


def test_a_placeholder_is_never_generated(model, batch):
    found = generate(model, batch, do_sample=True, temperature=50.0, top_k=0, num_return_sequences=20)
    assert model.generation_config.suppress_tokens == [model.config.audio_token_id]
    assert not (found == model.config.audio_token_id).any()


def test_generation_from_embeddings(model, batch, greedy):
    if model.config.parsed.beside:
        pytest.skip("embeddings do not hold what is heard from beside")
    with torch.no_grad():
        embeds = model.model(**batch).inputs_embeds
    found = generate(model, {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]})
    assert torch.equal(found, greedy)


def test_embeddings_beside_clips_are_an_error(model, processor):
    inputs = ask(processor, SAMPLES[2])
    embeds = model.model.embed(inputs["input_ids"])
    with pytest.raises(ValueError, match="do not say where the clips stand"):
        generate(model, {**inputs, "inputs_embeds": embeds})


def test_a_prompt_whose_audio_is_missing_is_an_error(model, processor):
    inputs = ask(processor, SAMPLES[2])
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError, match="audio placeholders in input_ids, but no clips"):
        generate(model, words)


def test_a_misspelt_argument_is_an_error(model, processor):
    inputs = ask(processor, SAMPLES[2])
    with pytest.raises(ValueError, match="input_value'"):
        generate(model, {**inputs, "input_value": inputs["input_values"]})


def test_whoever_suppresses_other_tokens_gets_no_placeholder(model, batch):
    found = generate(model, batch, do_sample=True, temperature=50.0, top_k=0, suppress_tokens=[5])
    assert not torch.isin(found, torch.tensor([5, model.config.audio_token_id])).any()


# A chat goes on


@pytest.fixture(scope="module")
def chat(model, processor):
    """Two chats after their first turn: the cache so far, and the whole of it with a second question."""
    first = ask(processor, SAMPLES[0], SAMPLES[2])
    answered = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    second = processor(text=["<|audio|>?", "Why?"], audio=[noise(0.4, 5)], add_special_tokens=False)
    ids = torch.cat([answered.sequences, second["input_ids"]], 1)
    masks = [first["attention_mask"], torch.ones(2, 3, dtype=torch.long), second["attention_mask"]]
    prompt = torch.cat([torch.zeros(answered.sequences.shape, dtype=torch.bool), second["prompt_mask"]], 1)
    clips = [noise(0.3, 0), noise(1.2, 7), noise(0.4, 5), noise(0.9, 0)]
    inputs = {"input_ids": ids, "attention_mask": torch.cat(masks, 1), "prompt_mask": prompt}
    return answered[CACHE], {**inputs, **processor.feature_extractor(clips, return_tensors="pt")}


@pytest.mark.parametrize("given", ["all clips", "new clips"])
def test_a_chat_goes_on_from_its_cache_as_from_its_beginning(given, chat, model, processor):
    cache, inputs = chat
    if model.model.projector.reads_prompt:  # at the beginning it would hear the second question
        pytest.skip("a clip hears the questions that are given with it: the first ones have not heard the second")
    expected = generate(model, inputs)
    if given == "new clips":
        inputs = {**inputs, **processor.feature_extractor([noise(0.4, 5)], return_tensors="pt")}
    assert torch.equal(generate(model, inputs, **{CACHE: deepcopy(cache)}), expected)


def test_clips_that_the_cache_has_heard_are_not_heard_again(chat, model):
    cache, inputs = chat
    expected = generate(model, inputs, **{CACHE: deepcopy(cache)})
    loud = inputs["input_values"].clone()
    loud[[0, 1, 3]] = 1.0
    assert torch.equal(generate(model, {**inputs, "input_values": loud}, **{CACHE: deepcopy(cache)}), expected)


def test_a_cache_that_ends_within_a_clip_is_an_error(chat, model):
    if model.config.parsed.beside:
        pytest.skip("beside the words a clip has a single placeholder")
    cache, inputs = chat
    first = int((inputs["input_ids"][1] == model.config.audio_token_id).nonzero()[0])
    short = deepcopy(cache)
    short.crop(first + 1 - cache.get_seq_length())
    with pytest.raises(ValueError, match=r"ends within clip \d, after \d+ of its \d+ tokens"):
        generate(model, inputs, **{CACHE: short})


def test_a_draft_model_is_refused(model, batch, llama):
    draft = AutoModelForCausalLM.from_pretrained(llama)
    with pytest.raises(ValueError, match="does not hear the audio; use prompt_lookup_num_tokens instead"):
        generate(model, batch, assistant_model=draft)


def test_text_alone_is_answered_as_the_language_model_does(model, processor):
    inputs = ask(processor, SAMPLES[1])
    del inputs["prompt_mask"]
    folder = model.config.parsed.llm.path
    alone = AutoModelForCausalLM.from_pretrained(folder)
    alone.generation_config.eos_token_id = None
    assert torch.equal(generate(model, inputs), generate(alone, inputs))
