"""The processor: what the model reads, what counts as instruction, and what it learns to answer."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile
import torch
import toys  # noqa: F401
from conftest import CHATML, LLAMA3, make_tokenizer, noise
from transformers import AutoProcessor, AutoTokenizer

from usam import UsamProcessor, build_model, load_spec
from usam.processor.feature_extractor import UsamFeatureExtractor
from usam.processor.processor import answers

# Qwen 3: what an assistant thought is dropped from the history once the user goes on.
THINKING = CHATML.replace(
    "{{ m['content'] }}", "{% if m['role'] == 'assistant' and loop.last %}<think>\n{% endif %}{{ m['content'] }}"
)
# Nothing ends a turn but a line.
ALPACA = (
    "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
# Mistral: the system's words stand in the last turn of the user.
SYSTEM_LAST = (
    "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }} {% endif %}"
    "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
CUSTOM = "Q: {prompt} {audio}\nA: {answer}\n"
TEMPLATES = {
    "plain": (None, False),
    "plain with BOS": (None, True),
    "custom": (None, True),
    "chatml": (CHATML, False),
    "llama3": (LLAMA3, True),
    "alpaca": (ALPACA, False),
}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}


def spec_of(tokenizer, **options):
    llm = {"type": "transformers", "arch": {"model_type": "llama"}, "tokenizer": str(tokenizer)}
    return load_spec({"encoders": {"toy": {}}, "projector": {"type": "linear", "stack": 5}, "llm": llm, **options})


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A processor of a tokenizer with this chat template: 24 kHz, one token for every 1,600 samples begun."""

    def make(chat_template=None, bos=False, **options):
        folder = tmp_path_factory.mktemp("tokenizer")
        make_tokenizer(chat_template, bos).save_pretrained(folder)
        return UsamProcessor.from_spec(spec_of(folder, **options))

    return make


@pytest.fixture(scope="module", params=TEMPLATES)
def named(request, make):
    """Every template that can be trained on, with its name."""
    template, bos = TEMPLATES[request.param]
    options = {"template": CUSTOM} if request.param == "custom" else {}
    return request.param, make(template, bos, **options)


@pytest.fixture(scope="module")
def plain(make):
    return make()


@pytest.fixture(scope="module")
def chatml(make):
    return make(CHATML)


def clip(samples=4000):
    return {"type": "audio", "audio": np.zeros(samples, np.float32)}  # three tokens


def user(*blocks):
    return {"role": "user", "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def ids(processor, chat, **options):
    return processor.apply_chat_template(chat, tokenize=True, **options)["input_ids"]


def supervised(processor, chat, row=0):
    labels = processor.apply_chat_template(chat, tokenize=True, return_labels=True)["labels"][row]
    return processor.tokenizer.decode(labels[labels != -100])


def instruction(processor, chat):
    batch = processor.apply_chat_template(chat, tokenize=True, return_labels=True)
    return processor.tokenizer.decode(batch["input_ids"][0][batch["prompt_mask"][0]])


# How a chat is written


def test_the_plain_template(plain):
    chat = [user(clip(), "What do you hear?"), assistant("A dog.")]
    text = plain.apply_chat_template(chat)
    assert text == "What do you hear?\n<|audio|>\n---\nA dog.<|end|>"


def test_the_plain_template_with_a_system_prompt_and_without_audio(plain):
    text = plain.apply_chat_template([system("Be brief."), user("Hello")], add_generation_prompt=True)
    assert text == "Be brief.\nHello\n---\n"


def test_the_plain_template_leaves_clips_where_the_text_has_them(plain):
    text = plain.apply_chat_template([user("First", clip(), "then", clip())])
    assert text == "First<|audio|>then<|audio|>\n---\n"


def test_a_template_of_ones_own(make):
    processor = make(CHATML, template=CUSTOM)
    text = processor.apply_chat_template([user(clip(), "What?"), assistant("A dog.")])
    assert text == "Q: What? <|audio|>\nA: A dog.<|end|>\n"


def test_braces_in_a_prompt_stay(plain):
    text = plain.apply_chat_template([user(clip(), "Fill {audio} and {answer}.")])
    assert text == "Fill {audio} and {answer}.\n<|audio|>\n---\n"


@pytest.mark.parametrize("template", ["{prompt}{answer}", "{prompt}{audio}{answer}{answer}", "Hello"])
def test_a_template_with_a_slot_missing_or_twice_is_refused(template, make):
    with pytest.raises(ValueError, match="exactly once, or 'auto'"):
        make(template=template)


def test_a_template_whose_answer_comes_first_is_refused(make):
    with pytest.raises(ValueError, match=r"\{answer\} comes after \{prompt\} and \{audio\}"):
        make(template="{answer}: {prompt} {audio}")


def test_the_chat_template_is_the_tokenizers(chatml):
    text = chatml.apply_chat_template([user(clip(), "What?")], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<|audio|>What?<|im_end|>\n<|im_start|>assistant\n"


def test_a_chat_template_for_one_call(chatml):
    assert chatml.apply_chat_template([user("Hi")], chat_template=ALPACA) == "### user:\nHi\n"


def test_variables_reach_the_template(make):
    processor = make("{{ messages[0]['content'] }}{% if enable_thinking %}<think>{% endif %}")
    assert processor.apply_chat_template([user("Hi")], enable_thinking=True) == "Hi<think>"


def test_several_chats_at_once(chatml):
    chats = [[user("Hi")], [user("What?"), assistant("ok")]]
    assert chatml.apply_chat_template(chats) == [chatml.apply_chat_template(chat) for chat in chats]


def test_the_last_message_can_be_continued(named):
    _, processor = named
    chat = [user(clip(), "What?"), assistant("A do")]
    whole = processor.apply_chat_template([user(clip(), "What?"), assistant("A dog.")])
    begun = processor.apply_chat_template(chat, continue_final_message=True)
    assert whole.startswith(begun)
    assert begun.endswith("A do")


def test_what_a_template_refuses_is_said_with_its_reason(make):
    processor = make("{{ raise_exception('no system role') }}")
    with pytest.raises(ValueError, match=r"chat template of '.*' refuses these messages: no system role"):
        processor.apply_chat_template([system("Hi")])


@pytest.mark.parametrize("chat", [[], [assistant("Hello")]])
def test_a_chat_begins_with_a_question(chat, plain):
    with pytest.raises(ValueError, match="a chat begins with a message of the system or the user"):
        plain.apply_chat_template(chat)


# What is learned


MANY = [
    system("Be brief."),
    user(clip(), "What do you hear?"),
    assistant("A dog."),
    user("And", clip(), "then?"),
    assistant("A door closes."),
]


def test_the_answers_and_their_ends_are_learned(named):
    name, processor = named
    end = ENDS.get(name, "<|end|>")
    expected = {
        "alpaca": "A dog.\nA door closes.<|end|>",  # its turns end with a line, the last one with the end token
    }.get(name, f"A dog.{end}A door closes.{end}")
    assert supervised(processor, MANY) == expected


@pytest.mark.parametrize("answer", ["ok", " ok", "42", "a\n\nb ", "<b>", "ö…", "---\n"])
def test_training_reads_the_very_prompt_that_generation_reads(answer, named):
    _, processor = named
    question = [user(clip(), "What do you hear?")]
    prompt = ids(processor, question, add_generation_prompt=True)
    whole = ids(processor, [*question, assistant(answer)])
    assert torch.equal(whole[:, : prompt.shape[1]], prompt)
    labels = processor.apply_chat_template([*question, assistant(answer)], tokenize=True, return_labels=True)["labels"]
    assert (labels[:, : prompt.shape[1]] == -100).all()
    assert (labels[:, prompt.shape[1]] != -100).all()


def test_every_answer_of_a_chat_starts_where_generation_would(named):
    _, processor = named
    prompt = ids(processor, MANY[:4], add_generation_prompt=True)
    assert torch.equal(ids(processor, MANY)[:, : prompt.shape[1]], prompt)


def test_labels_are_the_tokens_themselves(named):
    _, processor = named
    batch = processor.apply_chat_template(MANY, tokenize=True, return_labels=True)
    own = batch["labels"] != -100
    assert torch.equal(batch["labels"][own], batch["input_ids"][own])


def test_a_chat_without_an_answer_has_nothing_to_learn(chatml):
    batch = chatml.apply_chat_template([user(clip(), "What?")], tokenize=True, return_labels=True)
    assert (batch["labels"] == -100).all()


def test_assistant_masks_mark_what_is_learned(chatml):
    options = {"tokenize": True, "return_labels": True, "return_assistant_tokens_mask": True}
    batch = chatml.apply_chat_template(MANY, **options)
    assert torch.equal(batch["assistant_masks"], (batch["labels"] != -100).long())
    lists = chatml.apply_chat_template(MANY, **options, return_tensors=None)
    assert lists["assistant_masks"] == batch["assistant_masks"].tolist()


def test_an_answer_that_is_rewritten_later_gets_a_row_of_its_own(make):
    processor = make(THINKING)
    chat = [user("What?"), assistant("A dog."), user("And?"), assistant("ok")]
    assert supervised(processor, chat, 0) == "<think>\nok<|im_end|>"
    assert supervised(processor, chat, 1) == "<think>\nA dog.<|im_end|>"
    assert len(ids(processor, chat)) == 1


def test_a_question_that_is_moved_later_is_read_where_it_stands(make):
    processor = make(SYSTEM_LAST)
    chat = [system("Be brief."), user("What?"), assistant("A dog."), user("And?"), assistant("ok")]
    assert [instruction(processor, chat[:2]), instruction(processor, chat)] == ["What?", "What?"]
    assert [supervised(processor, chat, row) for row in (0, 1)] == ["ok<|end|>", "A dog.<|end|>"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_generation_stops_where_answers_end(template, make):
    processor = make(*TEMPLATES[template])
    last = ids(processor, [user("What?"), assistant("ok")])[0].tolist()
    last = [i for i in last if processor.tokenizer.decode([i]).strip()][-1]
    assert last in processor.end_ids
    assert processor.tokenizer.eos_token_id in processor.end_ids


def test_the_model_stops_at_the_ends_of_its_template(qwen3):
    model = build_model(
        {"encoders": {"toy": {}}, "projector": "linear", "llm": {"type": "transformers", "path": qwen3}}
    )
    names = UsamProcessor.from_spec(model.config.parsed).tokenizer.convert_ids_to_tokens(
        model.generation_config.eos_token_id
    )
    assert names == ["<|end|>", "<|im_end|>"]


# What counts as instruction


def test_the_instruction_is_the_users_words_before_the_first_answer(named):
    _, processor = named
    assert instruction(processor, MANY).strip() == "What do you hear?"


def test_the_instruction_is_the_same_for_training_and_generation(named):
    _, processor = named
    trained = processor.apply_chat_template(MANY[:3], tokenize=True, return_labels=True)
    asked = processor.apply_chat_template(MANY[:2], tokenize=True, add_generation_prompt=True)
    size = asked["input_ids"].shape[1]
    assert torch.equal(trained["prompt_mask"][:, :size], asked["prompt_mask"])
    assert not trained["prompt_mask"][:, size:].any()


def test_words_on_both_sides_of_a_clip(named):
    _, processor = named
    chat = [user("First", clip(), "then what?"), assistant("A dog.")]
    words = instruction(processor, chat)
    assert re.sub(r"\s+", " ", words).strip() in ("Firstthen what?", "First then what?")


def test_two_questions_before_an_answer(chatml):
    assert instruction(chatml, [user("First."), user(clip(), "Then?"), assistant("ok")]) == "First.Then?"


@pytest.mark.parametrize("words", ["What?", "end", "user", "-", "assistant\n", "im", "e", "audio", "a", "<", "|", "o|"])
def test_words_that_others_say_too_are_marked_where_the_user_says_them(words, named):
    """In the system prompt, in the answer, in the template's own text."""
    _, processor = named
    chat = [system(words), user(clip(), words), assistant(words)]
    batch = processor.apply_chat_template(chat, tokenize=True)
    places = batch["prompt_mask"][0].nonzero().squeeze(-1)
    assert processor.tokenizer.decode(batch["input_ids"][0][places]).strip() == words.strip()
    other = processor.apply_chat_template([system(words), user(clip(), "XYZ"), assistant(words)])
    before = other.replace("<|audio|>", 3 * "<|audio|>").partition("XYZ")[0]
    assert processor.tokenizer.decode(batch["input_ids"][0][: places[0]]).strip() == before.strip()


def test_a_clip_without_words_has_no_instruction(named):
    _, processor = named
    batch = processor.apply_chat_template([user(clip())], tokenize=True)
    assert not batch["prompt_mask"].any()


def test_a_template_that_changes_the_words_is_refused(make):
    processor = make("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(ValueError, match="does not render the user's text 'What' as it is"):
        ids(processor, [user("What", clip())])


def test_text_without_a_template_is_all_instruction(chatml):
    batch = chatml(text="What? <|audio|><|im_end|>", audio=np.zeros(4000))
    words = batch["input_ids"][0][batch["prompt_mask"][0]]
    assert chatml.tokenizer.decode(words) == "What? "


# Tokens


def test_a_sample_is_measured_as_the_model_reads_it(named):
    _, processor = named
    tokens, (first, second) = processor.measure(processor.render(MANY), ["a.wav", "b.wav"])
    assert tokens == ids(processor, MANY).shape[1]
    assert (first.name, first.tokens, first.seconds) == ("a.wav", 3, 4000 / 24000)
    assert processor.measure(processor.render(MANY))[1][1].name == "2"
    assert second.tokens == 3


def test_a_clip_has_its_placeholders_in_its_place(plain):
    batch = plain(text=["a<|audio|>b<|audio|>", "<|audio|>c"], audio=[np.zeros(n) for n in (1, 1601, 8000)])
    text = plain.tokenizer.batch_decode(batch["input_ids"])
    assert text == ["<|pad|>a<|audio|>b<|audio|><|audio|>", 5 * "<|audio|>" + "c"]


def test_padding_is_on_the_left(plain):
    batch = plain(text=["What do you hear?", "ok"])
    mask = batch["attention_mask"]
    assert mask[0].all()
    assert mask[1].tolist() == sorted(mask[1].tolist())
    assert not mask[1].all()
    assert (batch["input_ids"][~mask.bool()] == plain.tokenizer.pad_token_id).all()
    assert not batch["prompt_mask"][~mask.bool()].any()


def test_labels_are_padded_with_what_is_not_learned(chatml):
    chats = [[user("What?"), assistant("A dog barks.")], [user("What?"), assistant("ok")]]
    batch = chatml.apply_chat_template(chats, tokenize=True, return_labels=True)
    assert (batch["labels"][~batch["attention_mask"].bool()] == -100).all()
    assert [supervised(chatml, chats, row) for row in (0, 1)] == ["A dog barks.<|im_end|>", "ok<|im_end|>"]


@pytest.mark.parametrize("template", ["plain with BOS", "llama3"])
def test_the_beginning_of_sequence_is_written_once(template, make):
    processor = make(*TEMPLATES[template])
    bos = processor.tokenizer.bos_token_id
    chat = [user(clip(), "What?"), assistant("ok"), user("And?")]
    rendered = processor.apply_chat_template(chat)
    for found in (
        ids(processor, chat),
        processor(text=rendered, audio=np.zeros(4000))["input_ids"],
        processor(text="What?")["input_ids"],
    ):
        assert (found == bos).sum() == 1
        assert found[0, 0] == bos


def test_no_beginning_of_sequence_where_the_tokenizer_writes_none(chatml):
    assert chatml(text="What?")["input_ids"].tolist() == [chatml.tokenizer("What?")["input_ids"]]


def test_special_tokens_can_be_left_to_the_caller(make):
    processor = make(None, True)
    assert processor(text="What?", add_special_tokens=False)["input_ids"].tolist() == [
        processor.tokenizer("What?", add_special_tokens=False)["input_ids"]
    ]


def test_a_rendered_chat_reads_as_the_chat_does(named):
    _, processor = named
    chat = [user(clip(), "What?")]
    rendered = processor.apply_chat_template(chat, add_generation_prompt=True)
    batch = processor(text=rendered, audio=np.zeros(4000))
    assert torch.equal(batch["input_ids"], ids(processor, chat, add_generation_prompt=True))


def test_clips_given_beside_the_messages(chatml):
    rendered = chatml.apply_chat_template([user({"type": "audio"}, "What?")])
    batch = chatml(text=rendered, audio=np.zeros(4000))
    assert torch.equal(batch["input_ids"], ids(chatml, [user(clip(), "What?")]))


@pytest.mark.parametrize(
    ("text", "clips"), [("<|audio|>", 2), ("<|audio|> <|audio|>", 1), ("What?", 1), ("<|audio|>", 0)]
)
def test_as_many_placeholders_as_clips(text, clips, plain):
    found = text.count("<|audio|>")
    with pytest.raises(ValueError, match=f"{found} placeholders for {clips} clips"):
        plain(text=text, audio=[np.zeros(100)] * clips)


def test_a_placeholder_in_the_users_words_is_an_error(chatml):
    with pytest.raises(ValueError, match="2 placeholders for 1 clips"):
        ids(chatml, [user(clip(), "What is <|audio|>?")])


def test_a_batch_of_text_alone_has_no_audio(plain):
    assert set(plain(text=["What?", "ok"])) == {"input_ids", "attention_mask", "prompt_mask"}


# Options


def test_truncation_is_refused(plain):
    with pytest.raises(ValueError, match="truncation would cut audio out of the prompt"):
        plain(text="What?", truncation=True, max_length=2)


@pytest.mark.parametrize("options", [{"padding": "max"}, {"padding": "max_length"}])
def test_padding_that_says_no_length_is_an_error(options, plain):
    with pytest.raises(ValueError, match="padding"):
        plain(text="What?", **options)


@pytest.mark.parametrize("options", [{"paddding": True}, {"text_kwargs": {"paddding": True}}])
def test_an_unknown_option_is_told_its_likely_name(options, plain):
    with pytest.raises(TypeError, match="no option 'paddding'; did you mean 'padding'"):
        plain(text="What?", **options)


def test_images_are_refused(plain):
    with pytest.raises(ValueError, match="take text and audio, no images or videos"):
        plain(images=[1], text="What?")


def test_padding_to_a_length(plain):
    batch = plain(text=["What?", "ok"], padding="max_length", max_length=12)
    assert batch["input_ids"].shape == batch["prompt_mask"].shape == (2, 12)


def test_padding_on_the_right(plain):
    mask = plain(text=["What do you hear?", "ok"], padding_side="right")["attention_mask"]
    assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=True)


def test_lists_arrays_and_tensors(plain):
    options = {"text": "a<|audio|>", "audio": np.zeros(4000)}
    tensors = plain(**options)
    arrays = plain(**options, return_tensors="np")
    lists = plain(**options, return_tensors=None)
    assert tensors["prompt_mask"].dtype == torch.bool
    for name in tensors:
        np.testing.assert_array_equal(tensors[name].numpy(), arrays[name])
        np.testing.assert_array_equal(np.asarray(lists[name]), arrays[name])


def test_options_of_the_call_reach_it_through_the_chat(chatml):
    chat = [user({"type": "audio", "audio": noise(0.1, rate=8000)}, "What?")]
    flat = chatml.apply_chat_template(chat, tokenize=True, sampling_rate=8000, padding=True)
    grouped = chatml.apply_chat_template(chat, tokenize=True, processor_kwargs={"sampling_rate": 8000})
    assert flat["input_values"].shape == grouped["input_values"].shape == (1, 2400)


def test_audio_is_token_type_3(plain):
    batch = plain(text="a<|audio|>", audio=np.zeros(4000), return_mm_token_type_ids=True)
    assert batch["mm_token_type_ids"].tolist() == [[0, 3, 3, 3]]


def test_servers_are_told_the_placeholders_of_a_clip(plain):
    batch = plain(text="<|audio|><|audio|>", audio=[np.zeros(4000), np.zeros(1)])
    assert plain.replace_audio_token(batch, 0) == "<|audio|>" * 3
    assert plain.replace_audio_token(batch, 1) == "<|audio|>"


# Audio


def wav(x, rate):
    file = io.BytesIO()
    soundfile.write(file, x, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


SOUND = noise(0.25, rate=24000)


@pytest.mark.parametrize(
    "block",
    [
        lambda path: {"type": "audio", "audio": SOUND},
        lambda path: {"type": "audio", "audio": torch.from_numpy(SOUND)},
        lambda path: {"type": "audio", "audio": SOUND.tolist()},
        lambda path: {"type": "audio", "array": SOUND},
        lambda path: {"type": "audio", "audio": {"array": SOUND, "sampling_rate": 24000}},
        lambda path: {"type": "audio", "path": str(path)},
        lambda path: {"type": "audio", "audio": path},
        lambda path: {"type": "audio", "url": path.as_uri()},
        lambda path: {"type": "audio_url", "audio_url": {"url": path.as_uri()}},
        lambda path: {"type": "audio", "audio": path.read_bytes()},
        lambda path: {
            "type": "input_audio",
            "input_audio": {"data": base64.b64encode(path.read_bytes()).decode(), "format": "wav"},
        },
        lambda path: {
            "type": "audio",
            "url": "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode(),
        },
    ],
)
def test_blocks_of_audio(block, chatml, tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(SOUND, 24000))
    chat = [user(block(tmp_path / "a.wav"), "What?")]
    batch = chatml.apply_chat_template(chat, tokenize=True)
    np.testing.assert_array_equal(batch["input_values"][0].numpy(), SOUND)


def test_a_block_that_says_its_rate(chatml):
    chat = [user({"type": "audio", "array": noise(0.25, rate=8000), "sampling_rate": 8000}, "What?")]
    assert chatml.apply_chat_template(chat, tokenize=True)["input_values"].shape == (1, 6000)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"type": "audio", "audio": SOUND, "path": "a.wav"}, "names one source"),
        ({"type": "audio_url"}, "names one source"),
        ({"type": "image", "url": "a.png"}, "a content block has type 'text' or 'audio'"),
        (7, "a content block has type 'text' or 'audio'"),
    ],
)
def test_blocks_that_are_none(block, message, chatml):
    with pytest.raises(ValueError, match=message):
        ids(chatml, [{"role": "user", "content": [block]}])


@pytest.mark.parametrize("sound", [noise(0.25, rate=8000), torch.from_numpy(noise(0.25, rate=8000)), [0.0] * 2000])
def test_bare_arrays_are_at_the_rate_that_is_said(sound, plain):
    for audio in (sound, [sound]):
        assert plain(text="<|audio|>", audio=audio, sampling_rate=8000)["input_values"].shape == (1, 6000)
        assert plain(text="<|audio|>", audio=audio)["input_values"].shape == (1, 2000)


def test_pairs_of_samples_and_their_rate(plain, chatml):
    pair = (8000, (noise(0.25, rate=8000) * 2**15).astype(np.int16))
    for audio in (pair, [pair], [pair[::-1]]):
        assert plain(text="<|audio|>", audio=audio)["input_values"].shape == (1, 6000)
    chat = [user({"type": "audio", "audio": pair}, "What?")]
    assert chatml.apply_chat_template(chat, tokenize=True)["input_values"].shape == (1, 6000)


def test_a_limit_on_the_length_of_clips_is_kept_and_saved(make, tmp_path):
    processor = make()
    processor.feature_extractor.max_seconds = 0.5
    processor.save_pretrained(tmp_path)
    for limited in (processor, UsamProcessor.from_pretrained(tmp_path)):
        assert limited(text="<|audio|>", audio=np.zeros(12000))["input_values"].shape == (1, 12000)
        with pytest.raises(ValueError, match=r"at most 0\.5 s are taken"):
            limited(text="<|audio|>", audio=np.zeros(12003))


def test_shorter_clips_are_masked(plain):
    batch = plain(text="<|audio|><|audio|>", audio=[np.ones(2, np.float32), np.ones(3, np.float32)])
    assert batch["input_values"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["input_values_mask"].tolist() == [[True, True, False], [True, True, True]]


def test_the_feature_extractor_alone(plain):
    extractor = plain.feature_extractor
    assert extractor.sampling_rate == 24000
    assert extractor([0.0, 0.5], return_tensors="pt")["input_values"].tolist() == [[0, 0.5]]
    assert extractor([[0.0], [0.5, 0.5]])["input_values_mask"].tolist() == [[True, False], [True, True]]


# Save, load, decode


def test_a_saved_processor_is_the_same(named, tmp_path):
    _, processor = named
    processor.save_pretrained(tmp_path)
    for again in (UsamProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert again.template == processor.template
        assert again.chat_template == processor.chat_template
        assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
        expected = processor.apply_chat_template(MANY, tokenize=True, return_labels=True)
        found = again.apply_chat_template(MANY, tokenize=True, return_labels=True)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_prompts_are_saved(make, tmp_path):
    make(prompts={"asr": "Transcribe."}).save_pretrained(tmp_path)
    assert UsamProcessor.from_pretrained(tmp_path).prompts == {"asr": "Transcribe."}


def test_the_feature_extractor_is_saved(plain, tmp_path):
    plain.feature_extractor.save_pretrained(tmp_path)
    again = UsamFeatureExtractor.from_pretrained(tmp_path)
    assert again.sampling_rate == 24000
    assert again.audio_tokens(4000) == 3


def test_a_tokenizer_without_an_end_is_refused(plain, make, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="the tokenizer has no 'eos_token'"):
        UsamProcessor(plain.feature_extractor, tokenizer)


def test_a_tokenizer_without_padding_pads_with_its_end(plain):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    processor = UsamProcessor(plain.feature_extractor, tokenizer)
    batch = processor(text=["What do you hear?", "ok"])
    assert batch["input_ids"][1, 0] == tokenizer.eos_token_id
    assert not batch["prompt_mask"][1, 0]


def test_a_tokenizer_that_has_the_placeholder_keeps_its_id(plain, tmp_path):
    plain.tokenizer.save_pretrained(tmp_path)
    assert UsamProcessor(plain.feature_extractor, AutoTokenizer.from_pretrained(tmp_path)).audio_token_id == 308


def test_answers_are_the_generated_text_alone(chatml):
    prompt = ids(chatml, [user("What?")], add_generation_prompt=True)
    told = chatml.tokenizer(" A dog. <|im_end|><|pad|>")["input_ids"]
    generated = torch.cat([prompt, torch.tensor([told])], 1)
    assert answers(chatml, generated, prompt.shape[1]) == ["A dog."]
