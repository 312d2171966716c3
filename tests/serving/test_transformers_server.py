"""Why transformers' own server is not used: what docs/serving.md says of it, tried."""

import pytest
from held_out_rows import save_model
from running import sound

from usam.generate import Answerer

pytestmark = pytest.mark.slow
chat = pytest.importorskip("transformers.cli.serving.utils", reason="this transformers has no such server")


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    return Answerer.load(save_model(tmp_path_factory.mktemp("model")))


def test_it_hands_the_addresses_of_clients_on():
    content = [{"type": "audio_url", "audio_url": {"url": "file:///etc/hosts"}}]
    messages = [{"role": "user", "content": content}]
    found = chat.BaseHandler.get_processor_inputs_from_messages(messages, chat.Modality.MULTIMODAL)
    assert found[0]["content"] == [{"type": "audio", "url": "file:///etc/hosts"}]


def test_its_transcriptions_ask_nothing(answerer):
    handler = pytest.importorskip(
        "transformers.cli.serving.transcription", reason="this transformers has no such route"
    )
    with pytest.raises(ValueError, match="they take text and audio"):
        handler.TranscriptionHandler._prepare_audio_inputs(sound(), answerer.processor, answerer.model)
