"""`usam generate`: one line for each file, whatever is in the files and in the answers."""

import json
from contextlib import contextmanager

import pytest
import soundfile
import torch
from conftest import CHATML, make_tokenizer, noise

from usam import UsamProcessor, build_model
from usam.generate import Answerer

PROMPT = "Transcribe this audio."
SMALL = ("llm.dim=32", "llm.heads=2", "encoders.whisper.freeze=all")


@pytest.fixture
def usam(usam):
    """Run `usam generate`; returns (exit status, lines of standard output, standard error)."""

    def run(*arguments):
        status, out, err = usam("generate", *arguments)
        return status, [line for line in out.split("\n") if "\t" in line or line.startswith("{")], err

    return run


def teach(folder, answer, *overrides, steps=40):
    """A saved model that gives this answer to everything."""
    model = build_model("tiny", *SMALL, *overrides, seed=0)
    processor = UsamProcessor.from_spec(model.config.parsed)
    clip = {"type": "audio", "audio": noise(0.4)}
    user = {"role": "user", "content": [clip, {"type": "text", "text": "Transcribe this audio."}]}
    chat = [user, {"role": "assistant", "content": answer}]
    batch = processor.apply_chat_template(chat, tokenize=True, return_labels=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that answers in two lines."""
    return teach(tmp_path_factory.mktemp("model"), "a\n\tb\\")


@pytest.fixture
def files(tmp_path):
    """Three files, of which the second is no sound."""
    for name in ("a.wav", "c.wav"):
        soundfile.write(tmp_path / name, noise(0.4), 16000)
    (tmp_path / "bad.wav").write_text("no sound")
    return [tmp_path / name for name in ("a.wav", "bad.wav", "c.wav")]


def test_an_answer_of_two_lines_is_printed_in_one(usam, saved, files):
    status, lines, err = usam(saved, files[0])
    assert (status, lines) == (0, [f"{files[0]}\ta\\n\\tb\\\\"]), err


def test_json_gives_the_answer_as_it_is(usam, saved, files):
    _, lines, _ = usam(saved, files[0], files[2], "--json")
    assert [json.loads(line) for line in lines] == [
        {"task": "asr", "prompt": PROMPT, "audio": [str(file)], "answer": "a\n\tb\\", "complete": True}
        for file in (files[0], files[2])
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_file_that_is_no_sound_does_not_keep_the_others_from_their_answers(usam, saved, files, batch_size):
    status, lines, err = usam(saved, *files, "--batch-size", batch_size)
    assert status == 1
    assert [line.split("\t")[0] for line in lines] == [str(files[0]), str(files[2])]
    assert err.count("error: ") == 1
    assert str(files[1]) in err.split("error: ")[1].splitlines()[0]
    assert "1 of 3 questions were not answered" in err
    assert "Traceback" not in err


def test_a_file_that_is_missing_is_named(usam, saved, files, tmp_path):
    status, lines, err = usam(saved, tmp_path / "none.wav", files[0])
    assert (status, len(lines)) == (1, 1)
    assert "none.wav" in err


def test_files_asked_about_together_are_one_question(usam, saved, files):
    status, lines, _ = usam(saved, files[0], files[2], "--together", "--json")
    assert status == 0
    assert json.loads(lines[0])["audio"] == [str(files[0]), str(files[2])]
    assert len(lines) == 1
    status, lines, err = usam(saved, *files, "--together")
    assert (status, lines) == (1, [])
    assert "bad.wav" in err


def test_a_name_with_a_line_break_stays_on_its_line(usam, saved, files):
    odd = files[0].with_name("a\nb.wav")
    files[0].rename(odd)
    _, lines, _ = usam(saved, odd)
    assert lines == [f"{odd}".replace("\n", "\\n") + "\ta\\n\\tb\\\\"]


def test_an_answer_that_was_cut_off_is_said_to_be(usam, saved, files):
    status, lines, err = usam(saved, files[0], "--max-new-tokens", 2, "--json")
    assert status == 0
    assert not json.loads(lines[0])["complete"]
    assert f"note: {files[0]}: the answer was cut off at 2 tokens" in err


def test_a_clip_that_is_too_long_is_named_with_its_length(usam, saved, files):
    long = files[0].with_name("long.wav")
    soundfile.write(long, noise(30.0), 16000)
    config = json.loads((saved / "config.json").read_text())
    status, lines, err = usam(saved, long, files[0], "--max-new-tokens", 32500)
    assert config["text_config"]["max_position_embeddings"] == 32768
    assert (status, len(lines)) == (1, 1)
    assert f"clip '{long}' (30.0 s) takes" in err
    assert "do not fit the language model's 32,768 positions" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name at least one audio file"),
        (["a.wav", "--prompt", "What?", "--task", "asr"], "give either --prompt or --task, not both"),
        (["a.wav", "--together", "--batch-size", "2"], "--batch-size does nothing with --together"),
        (["a.wav", "--task", "asrr"], "no prompt for task 'asrr'; did you mean 'asr'?"),
        (["a.wav", "--device", "abacus"], "--device abacus: "),
    ],
)
def test_options_that_would_do_nothing_are_errors(usam, saved, options, message):
    status, lines, err = usam(saved, *options)
    assert (status, lines) == (2, [])
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err


def test_which_of_several_tasks_must_be_said(usam, tmp_path):
    folder = teach(tmp_path / "m", "a", "prompts.count=How many?", steps=0)
    status, _, err = usam(folder, "a.wav")
    assert status == 2
    assert "give either a prompt or a task; tasks that this model knows: asr, count" in err


def test_a_variable_of_the_template_can_be_given(usam, qwen3, files, tmp_path):
    make_tokenizer(CHATML + "{{ raise_exception(note) if note is defined }}").save_pretrained(tmp_path / "tokenizer")
    llm = {"type": "transformers", "path": qwen3, "tokenizer": str(tmp_path / "tokenizer")}
    folder = teach(tmp_path / "m", "a", {"llm": None}, {"llm": llm}, "projector.0.stack=5", steps=0)
    _, _, err = usam(folder, files[0], "--template-option", "note=the note was read")
    assert "refuses these messages: the note was read" in err
    status, _, err = usam(folder, files[0], "--template-option", "notes=1")
    assert status == 2
    assert "reads no variable 'notes'; did you mean 'note'?" in err


# In Python


@pytest.fixture(scope="module")
def answerer(saved):
    return Answerer.load(saved)


@contextmanager
def hooked(hook):
    yield
    hook.remove()


@pytest.mark.parametrize(("audio", "clips"), [(None, 0), ("a.wav", 1), ([0.0, 0.5], 1), (["a.wav", noise(0.1)], 2)])
def test_a_question_is_about_one_or_several_clips(answerer, audio, clips):
    (message,) = answerer.ask(audio, prompt="What?")
    assert [block["type"] for block in message["content"]] == ["audio"] * clips + ["text"]


def test_replies_come_in_the_order_of_the_chats(answerer):
    good, bad = answerer.ask(noise(0.4), task="asr"), answerer.ask("none.wav", task="asr")
    replies = list(answerer.replies([bad, good, bad, bad, good], batch_size=2))
    assert [reply.fault is None for reply in replies] == [False, True, False, False, True]
    assert [reply.text for reply in replies] == ["", "a\n\tb\\", "", "", "a\n\tb\\"]


def test_chats_of_one_length_are_answered_together_and_given_in_order(answerer):
    seconds = [0.2, 1.5, 0.3, 1.4, 0.25, 1.6]
    chats = [answerer.ask(noise(s, seed=i), task="asr") for i, s in enumerate(seconds)]
    batches = []
    hook = answerer.model.model.register_forward_pre_hook(
        lambda _, args, given: batches.append(given.get("input_values")), with_kwargs=True
    )
    with hooked(hook):
        sorted_ = list(answerer.answer(chats, batch_size=2, max_new_tokens=5))
        sizes = [x.shape[1] / 16000 for x in batches if x is not None]
        as_they_come = list(answerer.answer(chats, batch_size=2, max_new_tokens=5, ahead=1))
    assert sizes == [1.6, 1.4, 0.25]
    assert sorted_ == as_they_come == [next(answerer.answer([chat], max_new_tokens=5)) for chat in chats]


def test_longer_answers_go_together_where_they_are_expected(answerer):
    chats = [answerer.ask(noise(0.2 + i / 10, seed=i), task="asr") for i in range(4)]
    lengths = []
    hook = answerer.model.model.register_forward_pre_hook(
        lambda _, args, given: lengths.append(given.get("input_values_mask")), with_kwargs=True
    )
    with hooked(hook):
        list(answerer.replies(chats, batch_size=2, expected=[9, 2, 9, 2], max_new_tokens=2))
    heard = [(mask.sum(-1) / 16000).tolist() for mask in lengths if mask is not None]
    assert heard == [pytest.approx([0.4, 0.2]), pytest.approx([0.5, 0.3])]


def test_answers_before_a_fault_are_given(answerer):
    found = answerer.answer([answerer.ask(noise(0.4), task="asr"), answerer.ask("none.wav", task="asr")])
    assert next(found) == "a\n\tb\\"
    with pytest.raises(ValueError, match=r"none\.wav"):
        next(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "a chat has one answer here"),
        ({"max_length": 20}, "say max_new_tokens"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"ahead": 0}, "ahead is at least 1"),
    ],
)
def test_options_under_which_chats_and_answers_do_not_pair_are_errors(answerer, options, message):
    with pytest.raises(ValueError, match=message):
        list(answerer.answer([answerer.ask(noise(0.4), task="asr")], **options))


def test_lengths_are_compared_before_any_work(gpt2):
    """A table of 512 positions, which gpt2 would read past."""
    model = build_model("tiny", {"llm": {"type": "transformers", "path": gpt2}, "projector": {0: {"stack": 1}}})
    answerer = Answerer(model, UsamProcessor.from_spec(model.config.parsed))
    long, short = answerer.ask(noise(12.0), prompt="What?"), answerer.ask(noise(1.0), prompt="What?")
    first, second = answerer.replies([long, short], max_new_tokens=4)
    assert "(clip '1' (12.0 s) takes 600; text " in str(first.fault)
    assert "do not fit the language model's 512 positions; at most" in str(first.fault)
    assert second.fault is None


THINKING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}",
)


@pytest.mark.parametrize("options", [{}, {"template_options": {"enable_thinking": False}}])
def test_what_a_template_wraps_around_an_answer_is_learned_and_taken_off(qwen3, tmp_path, options):
    """In generation, and in the text that pipelines ask for."""
    template = (
        THINKING + "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    llm = {"type": "transformers", "path": qwen3, "tokenizer": str(tmp_path / "tokenizer"), "freeze": "none", **options}
    folder = teach(tmp_path / "m", "seven three", {"llm": None}, {"llm": llm}, "projector.0.stack=5")
    answerer = Answerer.load(folder)
    question = answerer.ask(noise(0.4), task="asr")
    assert list(answerer.answer([question])) == ["seven three"]
    assert "".join(answerer.stream(question)) == "seven three"
    batch = answerer.processor.apply_chat_template(question, tokenize=True, add_generation_prompt=True)
    generated = answerer.model.generate(**batch, max_new_tokens=20)
    assert ("<think>" in answerer.processor.batch_decode(generated[:, batch["input_ids"].shape[1] :])[0]) == (
        not options
    )
    prompt, whole = (answerer.processor.post_process_multimodal_output(ids) for ids in (batch["input_ids"], generated))
    assert whole == [prompt[0] + "seven three"]
