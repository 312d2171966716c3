"""What is served is what the model generates: OpenAI's own client asks a server on this machine."""

import pytest
from held_out_rows import save_model
from running import NAME, block, running, sound

from usam.generate import Answerer

openai = pytest.importorskip("openai", reason="the extra 'serve' and the package openai are not installed")
pytest.importorskip("starlette", reason="the extra 'serve' is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder):
    return Answerer.load(folder)


@pytest.fixture(scope="module")
def client(folder):
    with running(folder) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, *content, **options):
    messages = [{"role": "user", "content": list(content)}]
    return client.chat.completions.create(model=NAME, messages=messages, **{"max_tokens": 12, **options})


def text(words):
    return {"type": "text", "text": words}


def generated(model, *content, **options):
    """What the model says without a server."""
    (reply,) = model.replies([[{"role": "user", "content": list(content)}]], **{"max_new_tokens": 12, **options})
    return reply


def clip(data):
    return {"type": "audio", "audio": data}


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg"])
def test_a_chat_about_a_clip_is_answered_as_the_model_answers(client, model, kind):
    data = sound(0.6, kind=kind.upper())
    said = ask(client, block(data, kind), text("What do you hear?"))
    expected = generated(model, clip(data), text("What do you hear?"))
    assert said.choices[0].message.content == expected.text
    assert expected.text


def test_a_chat_without_audio_is_answered(client, model):
    assert ask(client, text("Hello?")).choices[0].message.content == generated(model, text("Hello?")).text


def test_clips_stand_where_they_were_sent(client, model):
    one, other = sound(0.4, seed=1), sound(0.7, seed=2)
    said = ask(client, text("This"), block(one), text("or this"), block(other))
    expected = generated(model, text("This"), clip(one), text("or this"), clip(other))
    assert said.choices[0].message.content == expected.text
    assert said.usage.prompt_tokens == expected.asked > 0
    assert said.usage.completion_tokens == expected.tokens > 0


def test_turns_before_the_last_are_read(client, model):
    turns = [("system", "Be short."), ("user", "Hello?"), ("assistant", "Yes."), ("user", "Who?")]
    chat = [{"role": role, "content": words} for role, words in turns]
    said = client.chat.completions.create(model=NAME, messages=chat, max_tokens=12)
    (expected,) = model.replies([chat], max_new_tokens=12)
    assert said.choices[0].message.content == expected.text


def test_what_the_client_was_answered_can_be_sent_back(client):
    first = ask(client, text("Hello?")).choices[0].message
    turns = [{"role": "user", "content": "Hello?"}, first, {"role": "user", "content": "And?"}]
    assert client.chat.completions.create(model=NAME, messages=turns, max_tokens=2).choices


def test_pieces_of_a_stream_join_to_the_answer(client):
    question = [block(sound()), text("What do you hear?")]
    whole = ask(client, *question)
    stream = list(ask(client, *question, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(list(filter(None, pieces))) > 1
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert stream[-1].usage == whole.usage


def test_an_answer_that_is_cut_off_says_so(client):
    assert ask(client, text("Hello?"), max_completion_tokens=2, max_tokens=None).choices[0].finish_reason == "length"


def test_an_answer_ends_before_a_stop_word(client):
    whole = ask(client, text("Hello?")).choices[0].message.content
    stop = whole[3:5]
    for stream in (False, True):
        said = ask(client, text("Hello?"), stop=[stop, "never to be seen"], stream=stream)
        if stream:
            assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == whole[: whole.find(stop)]
        else:
            assert said.choices[0].message.content == whole[: whole.find(stop)]
            assert said.choices[0].finish_reason == "stop"


def test_an_answer_drawn_with_a_seed_can_be_drawn_again(client):
    def drawn(seed):
        return ask(client, text("Hello?"), temperature=1.5, top_p=0.9, seed=seed).choices[0].message.content

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_a_transcript_is_the_answer_to_the_prompt_of_the_task(client, model):
    data = sound(0.6)
    (expected,) = model.replies([model.ask(data, task="asr")])
    said = client.audio.transcriptions.create(model=NAME, file=("../../etc/passwd", data))
    assert said.text == expected.text
    assert said.usage.output_tokens == expected.tokens
    events = list(client.audio.transcriptions.create(model=NAME, file=("a", data), stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == expected.text
    plain = client.audio.transcriptions.create(model=NAME, file=("a", data), response_format="text")
    assert plain == expected.text


def test_the_server_lists_its_model(client):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_refusal_is_one_that_the_client_understands(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, text("Hello?"), n=2)
    assert (caught.value.param, caught.value.type) == ("n", "invalid_request_error")
