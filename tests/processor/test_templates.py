"""Chat templates as language models publish them: what is learned is what is generated, and nothing else.

Each template here does what a published one does, in words of its own.
"""

import itertools
import json
import re

import pytest
import soundfile
import torch
import toys  # noqa: F401
from conftest import CHATML, LLAMA3, make_tokenizer, noise
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from usam import UsamProcessor, load_spec
from usam.data.collate import Collator
from usam.data.inspection import describe_batch
from usam.data.manifest import Manifest
from usam.processor.processor import answers

BRIEF = "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}You help.{% endif %}"
# Default words of the system, where the chat has none.
QWEN2 = (
    "<|im_start|>system\n" + BRIEF + "<|im_end|>\n"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Past turns lose what they thought, the last one gets thoughts even where it has none; they can be switched off.
QWEN3 = """
{%- set last = namespace(asked=-1) -%}
{%- for m in messages if m['role'] == 'user' %}{% set last.asked = messages.index(m) %}{% endfor -%}
{%- for m in messages -%}
{%- if m['role'] != 'assistant' -%}
{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}
{%- else -%}
{%- set said = m['content'].split('</think>')[-1].lstrip('\\n') -%}
{%- set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set thought = thought if '</think>' in m['content'] else '' -%}
{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > last.asked and (loop.last or thought) -%}
{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}
{%- endif -%}
{{ said + '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}
{%- endif -%}
"""
# The prompt opens the thoughts.
QWEN3_THINKING = (
    QWEN3.split("{%- if enable_thinking")[0].replace("{{ '<|im_start|>assistant\\n' }}\n{%- endif", "").rstrip()
    + "{{ '<think>\\n' }}{%- endif -%}"
)
# The prompt opens the thoughts, and no answer is written with any: it is taught behind the prompt all the same.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}"
    "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# Thoughts are switched off in the prompt, and past answers are written without them.
SMOLLM3 = CHATML.replace(
    "assistant\n{% endif %}", "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
TAKING_TURNS = (
    "{% for m in messages if m['role'] != 'system' %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must take turns') }}{% endif %}{% endfor %}"
)
# The system's words stand before the last question.
MISTRAL = (
    "{{ bos_token }}" + TAKING_TURNS + "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{% if m == asked[-1] and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }}[/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] | trim }}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    + TAKING_TURNS
    + "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system's words open the first question.
GEMMA3 = (
    "{{ bos_token }}" + TAKING_TURNS + "{% for m in messages if m['role'] != 'system' %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if loop.first and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The text that needs no further answer ends with a token of its own, which ends no turn.
PHI3 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|done|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
# An answer stands in a channel, and the last one has an end of its own.
HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' and loop.last %}<|return|>{% else %}<|done|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# A turn ends where the next one begins.
GLM4 = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Words, not tokens, end an answer; there is no prompt to generate after.
VICUNA = (
    "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}"
    "{{ ' (over)\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
)
THOUGHT = "<think>\n\n</think>\n\n"
# Template, variables, what is learned before an answer, and behind it.
PUBLISHED = {
    "chatml": (CHATML, {}, "", "<|im_end|>"),
    "qwen2.5": (QWEN2, {}, "", "<|im_end|>"),
    "qwen3": (QWEN3, {}, THOUGHT, "<|im_end|>"),
    "qwen3 without thoughts": (QWEN3, {"enable_thinking": False}, "", "<|im_end|>"),
    "qwen3 with thoughts": (QWEN3_THINKING, {}, "\n</think>\n\n", "<|im_end|>"),
    "deepseek r1": (DEEPSEEK_R1, {}, "", "<|end|>"),
    "llama3": (LLAMA3, {}, "", "<|eot_id|>"),
    "mistral": (MISTRAL, {}, " ", "<|end|>"),
    "gemma2": (GEMMA2, {}, "", "<end_of_turn>"),
    "gemma3": (GEMMA3, {}, "", "<end_of_turn>"),
    "phi3": (PHI3, {}, "", "<|done|>"),
    "phi4": (PHI4, {}, "", "<|im_end|>"),
    "smollm3": (SMOLLM3, {"enable_thinking": False}, "", "<|im_end|>"),
    "harmony": (HARMONY, {}, "<|channel|>final<|message|>", "<|return|>"),
    "glm4": (GLM4, {}, "", "<|end|>"),
    "vicuna": (VICUNA, {}, "ASSISTANT: ", " (over)<|end|>"),
}
SPECIAL = ["<|User|>", "<|Assistant|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|im_sep|>"]
SPECIAL += ["<|done|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|user|>", "<|assistant|>"]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A processor with this chat template and these variables for it in its spec."""

    def make(template, bos=True, **llm):
        folder = tmp_path_factory.mktemp("tokenizer")
        tokenizer = make_tokenizer(template, bos)
        tokenizer.add_tokens(SPECIAL, special_tokens=True)
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.save_pretrained(folder)
        llm = {"type": "transformers", "arch": {"model_type": "llama"}, "tokenizer": str(folder), **llm}
        spec = {"encoders": {"toy": {}}, "projector": {"type": "linear", "stack": 5}, "llm": llm}
        return UsamProcessor.from_spec(load_spec(spec))

    return make


@pytest.fixture(scope="module")
def published(make):
    """A processor of each template, with what is learned before an answer and behind it."""
    made = {}

    def published(name):
        if name not in made:
            template, options, before, after = PUBLISHED[name]
            made[name] = make(template, **({"template_options": options} if options else {})), before, after
        return made[name]

    return published


every = pytest.mark.parametrize("name", PUBLISHED)
CLIP = {"type": "audio", "audio": noise(0.25, rate=24000)}


def user(text):
    return {"role": "user", "content": [CLIP, {"type": "text", "text": text}]}


def assistant(text):
    return {"role": "assistant", "content": text}


ONE = [user("What do you hear?"), assistant("A dog barks.")]
TWO = [*ONE, {"role": "user", "content": "And then?"}, assistant("A door closes.")]


def tensors(processor, chat, **options):
    return processor.apply_chat_template(chat, tokenize=True, **options)


def learned(processor, chat):
    """What each row learns, as ids."""
    return [row[row != -100] for row in tensors(processor, chat, return_labels=True)["labels"]]


@every
def test_the_answer_is_learned_with_what_is_around_it_and_nothing_else(name, published):
    processor, before, after = published(name)
    (row,) = learned(processor, ONE)
    assert processor.tokenizer.decode(row) == f"{before}A dog barks.{after}"


@every
def test_what_is_learned_is_read_as_the_answer_alone(name, published):
    processor, *_ = published(name)
    (row,) = learned(processor, ONE)
    prompt = tensors(processor, ONE[:1], add_generation_prompt=True)["input_ids"]
    assert answers(processor, torch.cat([prompt, row[None]], 1), prompt.shape[1]) == ["A dog barks."]


@every
@pytest.mark.parametrize("chat", [ONE, TWO], ids=["one turn", "two turns"])
def test_each_answer_is_learned_once_and_behind_the_prompt_that_generation_reads(name, chat, published):
    processor, *_ = published(name)
    batch = tensors(processor, chat, return_labels=True)
    found = []
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        for i in range(1, len(chat), 2):
            prompt = tensors(processor, chat[:i], add_generation_prompt=True)["input_ids"][0]
            size = len(prompt)
            if torch.equal(ids[:size], prompt) and size < len(ids) and labels[size] != -100:
                end = next((k for k in range(size, len(ids)) if labels[k] == -100), len(ids))
                assert labels[size - 1] == -100
                found.append(answers(processor, ids[None, :end], size)[0])
    assert sorted(found) == sorted(turn["content"] for turn in chat[1::2])


@every
def test_generation_stops_at_what_is_learned_last(name, published):
    processor, *_ = published(name)
    assert int(learned(processor, ONE)[0][-1]) in processor.end_ids


@every
@pytest.mark.parametrize("words", ["What do you hear?", "audio", "a", "<", "|", "<|", "o|>", "user", "answer"])
def test_the_instruction_is_what_the_user_says(name, words, published):
    processor, *_ = published(name)
    for chat in ([user(words)], [user(words), assistant(words)], [user(words), *TWO[1:]]):
        batch = tensors(processor, chat)
        assert processor.tokenizer.decode(batch["input_ids"][0][batch["prompt_mask"][0]]).strip() == words


@every
def test_a_system_turn_is_read_and_never_learned(name, published):
    processor, before, after = published(name)
    chat = [{"role": "system", "content": "Be brief."}, *ONE]
    if name == "gemma2":
        with pytest.raises(ValueError, match="refuses these messages: System role not supported"):
            tensors(processor, chat)
        return
    batch = tensors(processor, chat, return_labels=True)
    assert "Be brief." in processor.tokenizer.decode(batch["input_ids"][0])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == f"{before}A dog barks.{after}"


@every
def test_answers_with_white_space_around_them_lose_no_word(name, published):
    processor, *_ = published(name)
    for answer in (" ok", "ok\n", "a\n\nb ", "\n1. a\n2. b\n", "", "ö…"):
        (row,) = learned(processor, [ONE[0], assistant(answer)])
        assert processor.answer_text(row) == answer.strip()


def test_thoughts_in_an_answer_are_learned_where_the_template_writes_them(published):
    processor, *_ = published("qwen3")
    (row,) = learned(processor, [ONE[0], assistant("<think>hm</think>A dog.")])
    assert processor.tokenizer.decode(row) == "<think>\nhm\n</think>\n\nA dog.<|im_end|>"


def test_an_answer_that_the_template_would_cut_is_refused(published):
    processor, *_ = published("deepseek r1")
    with pytest.raises(ValueError, match=r"does not write the answer '<think>hm</think>A dog\.' of message 1 as it is"):
        learned(processor, [ONE[0], assistant("<think>hm</think>A dog.")])


@pytest.mark.parametrize("end", ["<|im_end|>", "<|end|>"])
def test_an_answer_that_holds_its_own_end_is_refused(end, published):
    processor, *_ = published("chatml")
    with pytest.raises(ValueError, match=re.escape(f"message 1 holds '{end}', at which generation ends")):
        learned(processor, [ONE[0], assistant(f"A dog.{end}A cat.")])


def test_a_past_answer_that_the_template_cuts_can_be_read(published):
    processor, *_ = published("deepseek r1")
    chat = [ONE[0], assistant("<think>hm</think>A dog."), {"role": "user", "content": "And then?"}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text.endswith("<|Assistant|>A dog.<|end|><|User|>And then?<|Assistant|><think>\n")


def test_an_answer_as_a_template_would_begin_it_keeps_its_words(published):
    processor, *_ = published("harmony")
    told = processor.tokenizer("final score: 3<|return|>", add_special_tokens=False)["input_ids"]
    assert processor.answer_text(told) == "final score: 3"


@pytest.mark.parametrize("template", [QWEN3, HARMONY, MISTRAL, VICUNA])
def test_tokenizers_that_write_spaces_of_their_own_give_the_answer_alone(template, published, tmp_path):
    """SentencePiece's way, in which a space begins every text, and follows every special token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(pieces)
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["A dog barks. What do you hear?", *map(chr, range(128))], trainer)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **tokens)
    fast.add_tokens([*SPECIAL, "<|im_start|>", "<|im_end|>"], special_tokens=True)
    fast.add_tokens(["<think>", "</think>"])
    processor = UsamProcessor(published("qwen3")[0].feature_extractor, fast)
    (row,) = learned(processor, ONE)
    assert processor.answer_text(row) == "A dog barks."


def test_other_keys_of_a_message_reach_the_template(make):
    template = CHATML.replace("{{ m['content'] }}", "{{ m['name'] if m['name'] is defined }}{{ m['content'] }}")
    text = make(template).apply_chat_template([{"role": "user", "name": "Ada: ", "content": "What?"}])
    assert text == "<|im_start|>user\nAda: What?<|im_end|>\n"


def test_characters_of_private_use_are_words_like_others(published):
    processor, *_ = published("chatml")
    batch = tensors(processor, [user("\ue000 what \ue001?"), assistant("\ue000")], return_labels=True)
    assert processor.tokenizer.decode(batch["input_ids"][0][batch["prompt_mask"][0]]) == "\ue000 what \ue001?"


@pytest.mark.parametrize("role", ["asistant", "model"])
@pytest.mark.parametrize("template", [CHATML, None])
def test_an_unknown_role_is_an_error(role, template, make):
    chat = [{"role": "user", "content": "What?"}, {"role": role, "content": "A dog."}]
    with pytest.raises(ValueError, match=f"message 1: no role {role!r}; "):
        make(template).apply_chat_template(chat)


def test_two_questions_in_a_row_are_refused_where_roles_take_turns(published):
    processor, *_ = published("gemma3")
    with pytest.raises(ValueError, match="refuses these messages: roles must take turns"):
        tensors(processor, [ONE[0], ONE[0]])


# Variables of a template


OFF = {"enable_thinking": False}


def test_the_specs_variables_reach_every_place_where_a_template_is_rendered(make, tmp_path):
    processor = make(QWEN3, template_options=OFF)
    text = f"<|im_start|>assistant\n{THOUGHT}"
    assert processor.apply_chat_template(ONE[:1], add_generation_prompt=True).endswith(text)
    assert processor.render(ONE[:1], add_generation_prompt=True).text.endswith(text)
    processor.save_pretrained(tmp_path)
    again = UsamProcessor.from_pretrained(tmp_path)
    assert again.apply_chat_template(ONE[:1], add_generation_prompt=True).endswith(text)


def test_those_of_a_call_go_before_them(make):
    processor = make(QWEN3, template_options=OFF)
    assert processor.apply_chat_template(ONE[:1], add_generation_prompt=True, enable_thinking=True).endswith(
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (QWEN3, {"enable_thinkin": False}, "reads no variable 'enable_thinkin'; did you mean 'enable_thinking'?"),
        (QWEN3, {"messages": []}, "'messages' is no variable of a template"),
        (QWEN3, {"add_generation_prompt": True}, "'add_generation_prompt' is no variable of a template"),
        (None, OFF, "'enable_thinking' is for a chat template, and this processor writes chats with a plain one"),
    ],
)
def test_a_variable_that_nothing_reads_is_an_error(template, options, message, make):
    with pytest.raises(ValueError, match=message):
        make(template, template_options=options)
    if "messages" not in options and "add_generation_prompt" not in options:
        with pytest.raises(ValueError, match=message):
            make(template).apply_chat_template(ONE, **options)


def test_a_next_stage_has_the_variables_of_its_own_spec(make):
    before = make(QWEN3)
    spec = load_spec(before.feature_extractor.spec, "llm.template_options={enable_thinking: false}")
    after = before.with_spec(spec)
    assert after.template_options == OFF
    assert after.tokenizer is before.tokenizer
    assert before.with_spec(load_spec(before.feature_extractor.spec)) is before


def test_templates_with_names(make):
    processor = make(CHATML)
    processor.chat_template = {"default": CHATML, "bare": "{{ messages[0]['content'] }}"}
    hello = [{"role": "user", "content": "Hello"}]
    assert processor.apply_chat_template(hello) == "<|im_start|>user\nHello<|im_end|>\n"
    assert processor.apply_chat_template(hello, chat_template="bare") == "Hello"
    processor.chat_template = processor.tokenizer.chat_template = {"bare": "{{ messages[0]['content'] }}"}
    assert UsamProcessor(processor.feature_extractor, processor.tokenizer).chat_template == processor.chat_template
    with pytest.raises(ValueError, match=r"several chat templates \(bare\): name one"):
        processor.apply_chat_template(hello)


# Batches


@every
def test_chats_of_one_and_two_turns_train_together(name, published, tmp_path):
    processor, *_ = published(name)
    soundfile.write(tmp_path / "a.wav", noise(0.3), 16000)
    rows = []
    for chat in (ONE, TWO):
        first = {"role": "user", "content": "<|audio|>" + chat[0]["content"][1]["text"]}
        rows.append({"messages": [first, *chat[1:]], "audio": ["a.wav"], "task": f"of {len(chat)}"})
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    samples = Manifest(tmp_path / "d.jsonl", {}).samples
    batch = Collator(processor, tasks=True)(samples)
    size = len(batch["input_ids"])
    assert len(batch["tasks"]) == len(batch["input_values"]) == size in (2, 3)
    assert batch["tasks"] == ["of 2", *["of 4"] * (size - 1)]
    assert (batch["labels"] != -100).any(1).all()
    instructions = {
        processor.tokenizer.decode(r[m]).strip() for r, m in zip(batch["input_ids"], batch["prompt_mask"], strict=True)
    }
    assert instructions == {"What do you hear?"}
    described = describe_batch(processor, samples)
    assert described.count("d.jsonl:1") == 1
    assert described.count("d.jsonl:2") == size - 1


def test_a_batch_of_chats_teaches_what_each_of_them_does(published):
    processor, *_ = published("qwen3")
    together = tensors(processor, [ONE, TWO], return_labels=True)["labels"]
    alone = list(itertools.chain(learned(processor, ONE), learned(processor, TWO)))
    assert [row[row != -100].tolist() for row in together] == [row.tolist() for row in alone]
