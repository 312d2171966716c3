"""The composite: each clip is heard in its own place, as if it were alone, and counted before it is heard."""

import math

import pytest
import torch
import toys  # noqa: F401
from conftest import noise
from transformers import AutoModelForCausalLM

from usam import UsamProcessor, build_model, build_projector, load_spec, losses
from usam.types import LossOutput
from usam.versions.compat import CACHE


@pytest.fixture(scope="module")
def bare(speech, llama):
    """The spec without LoRA: its language model is the checkpoint's."""
    return {**speech, "llm": {"type": "transformers", "path": llama}}


@pytest.fixture(scope="module")
def two(whisper, bare):
    """Two encoders of different sample rates, and a projector that reads the prompt."""
    encoders = {"whisper": {"path": whisper}, "toy": {}}
    return {**bare, "encoders": encoders, "fusion": {"type": "concat", "rate": 12.5}, "projector": "toy_gate"}


@pytest.fixture(scope="module", params=["bare", "two"])
def model(request):
    torch.manual_seed(0)
    model = build_model(request.getfixturevalue(request.param))
    with torch.no_grad():
        for parameter in model.model.projector.parameters():  # as loud as words are
            parameter.mul_(5)
    return model


@pytest.fixture(scope="module")
def processor(model):
    return UsamProcessor.from_spec(model.config.parsed)


@torch.no_grad()
def last_logits(model, batch):
    return model(**batch).logits[:, -1]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# Each clip in its own place


def test_the_clips_stand_in_place_of_their_placeholders(bare, llama):
    model = build_model(bare)
    text = "<|audio|> Transcribe <|audio|> and <|audio|>"
    clips = [noise(0.3, 1), noise(1.2, 2), noise(0.05, 3)]
    batch = UsamProcessor.from_spec(model.config.parsed)(text=text, audio=clips)
    language_model = AutoModelForCausalLM.from_pretrained(llama)
    heard = [model.get_audio_features(torch.from_numpy(clip)[None]).pooler_output for clip in clips]
    slots = batch["input_ids"] == model.config.audio_token_id
    embeds = language_model.get_input_embeddings()(batch["input_ids"].masked_fill(slots, 0))
    embeds[slots] = torch.cat(heard)
    with torch.no_grad():
        close(model(**batch).logits, language_model(inputs_embeds=embeds).logits)


QUESTIONS = {
    "one": ("<|audio|> What do you hear?", [0.7]),
    "last": ("Transcribe this: <|audio|>", [0.05]),
    "long": ("<|audio|> Transcribe this audio in English.", [3.5]),
    "several": ("First <|audio|> then <|audio|><|audio|> which is a dog?", [0.3, 1.1, 0.02]),
    "none": ("What is a dog?", []),
}


def ask(processor, *names):
    text = [QUESTIONS[name][0] for name in names]
    clips = [noise(s, 7 * i, 24000) for name in names for i, s in enumerate(QUESTIONS[name][1])]
    return processor(text=text, audio=clips or None, sampling_rate=24000)


def test_an_answer_is_the_same_alone_and_beside_a_clip_five_times_as_long(model, processor):
    together = last_logits(model, ask(processor, "one", "long"))
    close(together[0], last_logits(model, ask(processor, "one"))[0])
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("order", [["one", "several", "none", "last"], ["none", "last", "several", "one"]])
def test_answers_do_not_depend_on_their_place_in_the_batch(order, model, processor):
    together = last_logits(model, ask(processor, *order))
    alone = torch.cat([last_logits(model, ask(processor, name)) for name in order])
    close(together, alone)


def test_text_alone_needs_no_audio(model, processor):
    batch = ask(processor, "none", "none")
    assert "input_values" not in batch
    assert last_logits(model, batch).isfinite().all()


def test_the_audio_is_heard(model, processor):
    batch = ask(processor, "one")
    silent = {**batch, "input_values": torch.zeros_like(batch["input_values"])}
    assert (last_logits(model, batch) - last_logits(model, silent)).abs().max() > 0.01


def test_clips_in_any_turn_of_a_chat(model, processor):
    def turn(role, *blocks):
        return {
            "role": role,
            "content": [
                {"type": "text", "text": b} if isinstance(b, str) else {"type": "audio", "audio": b} for b in blocks
            ],
        }

    chat = [turn("user", noise(0.2), "What?"), turn("assistant", "A dog."), turn("user", "And", noise(1.4), "?")]
    other = [turn("user", "Transcribe", noise(0.5))]
    options = {"add_generation_prompt": True, "tokenize": True}
    together = last_logits(model, processor.apply_chat_template([chat, other], **options))
    close(together[0], last_logits(model, processor.apply_chat_template(chat, **options))[0])
    close(together[1], last_logits(model, processor.apply_chat_template(other, **options))[0])


def test_samples_beyond_the_mask_are_not_heard(model, processor):
    batch = ask(processor, "one", "long")
    loud = batch["input_values"].masked_fill(~batch["input_values_mask"], 1.0)
    close(last_logits(model, {**batch, "input_values": loud}), last_logits(model, batch))


def test_clips_that_fill_their_rows_need_no_mask(model, processor):
    batch = ask(processor, "one")
    del batch["input_values_mask"]
    close(last_logits(model, batch), last_logits(model, ask(processor, "one")))


def test_positions_are_made_from_the_mask(gpt2, bare):
    model = build_model({**bare, "llm": {"type": "transformers", "path": gpt2}})
    processor = UsamProcessor.from_spec(model.config.parsed)
    together = last_logits(model, ask(processor, "several", "last"))
    close(together[1], last_logits(model, ask(processor, "last"))[0])


def test_each_encoder_hears_at_its_own_rate(whisper, llama):
    """A tone is the same tone at 16 and at 24 kHz."""

    def tone(rate):
        return torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)[None] / 2

    alone = build_model(specs(whisper, llama, ["whisper"], 1), {"fusion": {"rate": 25}})
    both = build_model(specs(whisper, llama, ["toy", "whisper"], 1))
    with torch.no_grad():
        expected, found = alone.model.encode(tone(16000)).x, both.model.encode(tone(24000)).x[..., 6:]
    torch.testing.assert_close(found[:, 2:-2], expected[:, 2:-2], rtol=0, atol=0.02)


# Projectors that read the prompt


@pytest.fixture(scope="module")
def gated(two):
    return build_model(two)


def test_a_clip_is_given_the_prompt_of_its_sample(gated):
    processor = UsamProcessor.from_spec(gated.config.parsed)
    batch = ask(processor, "several", "none", "one")
    aux = gated(**batch).aux["0.gate"]
    table = gated.get_input_embeddings()
    for i, row in enumerate([0, 0, 0, 2]):
        words = batch["input_ids"][row][batch["prompt_mask"][row]]
        torch.testing.assert_close(aux[i], gated.model.projector.stages[0].gate(table(words).mean(0)))


def test_a_projector_that_reads_the_prompt_asks_for_it(gated):
    batch = ask(UsamProcessor.from_spec(gated.config.parsed), "one")
    del batch["prompt_mask"]
    with pytest.raises(ValueError, match="Gate reads the prompt: pass 'prompt_mask'"):
        gated(**batch)
    with pytest.raises(ValueError, match="Gate reads the prompt"):
        gated.get_audio_features(batch["input_values"])


# Counts that do not fit


def drop(batch, row, token):
    """The batch with one placeholder of a row turned into padding on its left."""
    ids = batch["input_ids"].clone()
    first = int((ids[row] == token).nonzero()[0])
    ids[row] = torch.cat([ids[row, :1], ids[row, :first], ids[row, first + 1 :]])
    return {**batch, "input_ids": ids}


def test_a_placeholder_too_few_is_an_error_with_both_counts(model, processor):
    batch = ask(processor, "one", "several")
    slots = int((batch["input_ids"] == model.config.audio_token_id).sum())
    with pytest.raises(ValueError, match=f"{slots - 1} audio placeholders for {slots} audio tokens"):
        model(**drop(batch, 1, model.config.audio_token_id))


def test_a_placeholder_that_moved_to_another_sample_is_an_error(model, processor):
    batch = drop(ask(processor, "one", "several"), 1, model.config.audio_token_id)
    batch["input_ids"][0, 0] = model.config.audio_token_id
    slots = (batch["input_ids"] == model.config.audio_token_id).sum(-1).tolist()
    with pytest.raises(ValueError, match=rf"the 2 rows \[{slots[0]}, {slots[1]}\] placeholders"):
        model(**batch)


# What is given is checked


@pytest.mark.parametrize("training", [True, False])
def test_placeholders_without_clips_are_an_error(training, model, processor):
    batch = ask(processor, "one", "none")
    del batch["input_values"], batch["input_values_mask"]
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.audio_token_id, -100)
    with pytest.raises(ValueError, match=r"\d+ audio placeholders in input_ids, but no clips: pass 'input_values'"):
        model.train(training)(**batch)
    with pytest.raises(ValueError, match="but no clips"):
        model.eval().model(input_ids=batch["input_ids"])


def changed(name, change):
    return lambda batch: {**batch, name: change(batch.get(name))}


FAULTS = {
    "nothing": (lambda batch: {}, "give input_ids or inputs_embeds"),
    "both": (changed("inputs_embeds", lambda _: torch.zeros(2, 3, 32)), "give one of the two"),
    "one row": (changed("input_ids", lambda x: x[0]), r"input_ids is \(batch, length\), found"),
    "attention": (changed("attention_mask", lambda x: x[:, 1:]), r"attention_mask is \(2, .* what goes with input_ids"),
    "rows": (changed("attention_mask", lambda x: x[:1]), "attention_mask is"),
    "prompt": (changed("prompt_mask", lambda x: x[:, 1:]), "prompt_mask is"),
    "samples": (changed("input_values_mask", lambda x: x[:, 1:]), r"input_values_mask is .* goes with input_values"),
    "clips": (changed("input_values_mask", lambda x: x[1:]), "input_values_mask is"),
    "padding": (changed("input_values_mask", lambda x: x.flip(1)), "a clip's own samples come first"),
    "one clip": (changed("input_values", lambda x: x[0]), r"input_values is \(clip, samples\).* found \(\d+,\)"),
    "no clip": (changed("input_values", lambda x: x[:0]), "without a clip, leave it out"),
    "16 bit": (changed("input_values", lambda x: (x * 32768).short()), "divide 16-bit samples by 32768"),
    "mask": (lambda batch: {**batch, "input_values": None}, "give input_values"),
    "labels": (changed("labels", lambda _: torch.zeros(2, 3, dtype=torch.long)), r"labels is \(2, 3\)"),
    "audio": (lambda batch: {**batch, "labels": batch["input_ids"]}, "audio placeholders .* cannot be predicted"),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_inputs_that_do_not_fit_each_other_are_an_error(fault, message, model, processor):
    with pytest.raises(ValueError, match=message):
        model(**fault(ask(processor, "one", "long").data))


def test_embeddings_beside_clips_are_an_error(model, processor):
    batch = ask(processor, "one")
    embeds = model(**batch, output_hidden_states=True).hidden_states[0]
    del batch["input_ids"]
    with pytest.raises(ValueError, match="do not say where the clips stand"):
        model(**batch, inputs_embeds=embeds)


@pytest.mark.parametrize("half", ["whole", "body"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [("input_value", "input_values"), ("atention_mask", "attention_mask"), ("promptmask", "prompt_mask")],
)
def test_a_misspelt_key_of_a_batch_is_an_error_with_the_right_name(half, name, meant, model, processor):
    batch = {**ask(processor, "one"), name: torch.zeros(1)}
    with pytest.raises(TypeError, match=f"no argument '{name}'; did you mean '{meant}'"):
        (model if half == "whole" else model.model)(**batch)


def test_arguments_of_transformers_reach_the_language_model(model, processor):
    batch = ask(processor, "one")
    found = model(**batch, use_cache=False, output_hidden_states=True, is_causal=True, num_items_in_batch=3)
    assert len(found.hidden_states) == model.config.text_config.num_hidden_layers + 1
    assert found.get(CACHE) is None


def test_a_mask_covers_the_tokens_in_the_cache(model, processor):
    batch = ask(processor, "none")
    cache = model(**batch, use_cache=True).get(CACHE)
    word = {"input_ids": torch.tensor([[5]]), CACHE: cache}
    with pytest.raises(ValueError, match=r"it covers the \d+ tokens in the cache as well"):
        model(**word, attention_mask=torch.ones(1, 1))
    whole = torch.cat([batch["attention_mask"], torch.ones(1, 1)], 1)
    assert model(**word, attention_mask=whole).logits.isfinite().all()


def test_an_output_may_be_a_tuple(model, processor):
    batch = ask(processor, "one")
    expected = model(**batch)
    logits, *_ = model(**batch, return_dict=False)
    assert torch.equal(logits, expected.logits)
    hidden, *_ = model.model(**batch, return_dict=False)
    close(model.lm_head(hidden), logits)
    clips = {name: batch[name] for name in ("input_values", "input_values_mask")}
    if not model.model.projector.reads_prompt:
        assert torch.equal(
            model.get_audio_features(**clips, return_dict=False)[1], model.get_audio_features(**clips)[1]
        )


# What only a loss reads


@losses.register("toy_weighted")
class Weighted(losses.Loss):
    """Cross-entropy of samples with weights, which stand in a column of the data."""

    def forward(self, inputs):
        return LossOutput(inputs.hidden.mean() * inputs.batch["weight"].sum())


def test_a_loss_reads_what_the_collator_passes_along(speech):
    model = build_model({**speech, "losses": {"toy_weighted": {}}})
    batch = ask(UsamProcessor.from_spec(model.config.parsed), "none")
    once = model(**batch, labels=batch["input_ids"], batch={"weight": torch.tensor([1.0])}).loss
    twice = model(**batch, labels=batch["input_ids"], batch={"weight": torch.tensor([2.0])}).loss
    torch.testing.assert_close(twice, 2 * once)


# Counted before they are heard


def specs(whisper, llama, encoders, stack):
    named = {"whisper": {"path": whisper}, "toy": {}}
    fusion = {"type": "concat", "rate": 25} if len(encoders) > 1 else "concat"
    return load_spec(
        {
            "encoders": {name: named[name] for name in encoders},
            "fusion": fusion,
            "projector": {"type": "linear", "stack": stack},
            "llm": {"type": "transformers", "path": llama},
        }
    )


LENGTHS = list(range(1, 60001))
SAMPLES_PER_FRAME = {("whisper",): 320, ("toy", "whisper"): 24000 // 25, ("toy",): 320}


@pytest.mark.parametrize("stack", [1, 4, 5])
@pytest.mark.parametrize("encoders", SAMPLES_PER_FRAME, ids="+".join)
def test_audio_tokens_of_every_length(encoders, stack, whisper, llama):
    spec = specs(whisper, llama, encoders, stack)
    samples_per_token = SAMPLES_PER_FRAME[encoders] * stack
    expected = torch.tensor([math.ceil(n / samples_per_token) for n in LENGTHS])
    assert torch.equal(spec.audio_tokens(torch.tensor(LENGTHS)), expected)
    few = LENGTHS[:2000] + LENGTHS[-2000:]
    assert [spec.audio_tokens(n) for n in few] == expected[[n - 1 for n in few]].tolist()


@pytest.mark.parametrize("encoders", SAMPLES_PER_FRAME, ids="+".join)
def test_as_many_frames_come_out_as_were_counted(encoders, whisper, llama):
    """Lengths in steps of 187, which is coprime to every hop: all remainders of 320 are among them."""
    model = build_model(specs(whisper, llama, encoders, 1))
    lengths = torch.tensor(LENGTHS[::187])
    assert len(set((lengths % 320).tolist())) == 320
    for some in lengths.split(40):
        mask = torch.arange(int(some.max())) < some[:, None]
        with torch.no_grad():
            frames = model.model.encode(torch.rand(mask.shape), mask)
        for stack in (1, 4, 5):
            projector = build_projector("linear", in_dim=frames.x.shape[-1], stack=stack)
            counted = specs(whisper, llama, encoders, stack).audio_tokens(some)
            assert torch.equal(projector(frames).lengths, counted)


# Compiled


@pytest.mark.parametrize("names", [["one", "several", "none"], ["none"], ["long"]])
def test_forward_compiles_without_a_break(names, model, processor):
    batch = ask(processor, *names)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch._dynamo.reset()
    with torch.no_grad():
        found = compiled(**batch).logits
    assert torch.equal(found[:, -1], last_logits(model, batch))


def test_training_compiles_without_a_break(speech):
    model = build_model(speech).train()
    processor = UsamProcessor.from_spec(model.config.parsed)
    batch = ask(processor, "one", "several")
    batch["labels"] = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.audio_token_id, -100)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        found = torch.compile(model, fullgraph=True, backend="eager")(**batch).loss
    torch.testing.assert_close(found, model(**batch).loss)
