"""The real weights at work, where they were fetched: `USAM_REAL=FOLDER pytest tests/test_real_fetched.py`."""

import os
from pathlib import Path

import pytest
import soundfile
import soxr
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput

from usam import build_encoder

FETCHED = Path(os.environ.get("USAM_REAL", "unset"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FETCHED / "models").is_dir(), reason="USAM_REAL names no folder that `fetch` filled"),
]
CLIPS = {
    "hello-world": "Hello world!",
    "do-not-disturb": "Do not disturb.",
    "vm-tocancel": "Or pound to cancel.",
    "conf-noempty": "No empty conferences currently exist.",
    "invalid": "I'm sorry, that is not a valid extension. Please try again.",
}


@pytest.fixture(scope="module")
def whisper():
    folder = FETCHED / "models/whisper-tiny.en"
    model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    return model, WhisperProcessor.from_pretrained(folder), build_encoder("whisper", path=str(folder))


@torch.no_grad()
@pytest.mark.parametrize("name", CLIPS)
def test_a_human_clip_is_transcribed_as_by_the_whole_model(name, whisper):
    model, processor, encoder = whisper
    wave, rate = soundfile.read(FETCHED / f"sounds/asterisk/{name}.wav", dtype="float32")
    wave = soxr.resample(wave, rate, 16000)
    mel = processor.feature_extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
    window = torch.zeros(1, 480000)
    window[0, : len(wave)] = torch.from_numpy(wave)
    frames = encoder(window, torch.ones_like(window, dtype=torch.bool)).x
    whole = model.generate(mel)
    assert model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=frames)).tolist() == whole.tolist()
    assert processor.tokenizer.decode(whole[0], skip_special_tokens=True).strip() == CLIPS[name]


@torch.no_grad()
def test_the_language_model_answers():
    folder = FETCHED / "models/smollm2-135m-instruct"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_crepe_hears_a_tone_at_its_pitch(size):
    """Bin 228 stands for 441.5 Hz: 20 cents a bin, from 31.7 Hz on."""
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(8000) / 16000).unsqueeze(0)
    encoder = build_encoder("crepe", path=str(FETCHED / f"models/crepe-{size}"), features="pitch", hop=1024)
    pitches = encoder(tone, torch.ones_like(tone, dtype=torch.bool)).x[0, 1:-1].argmax(-1)
    assert set(pitches.tolist()) <= {227, 228}


@torch.no_grad()
def test_two_snare_drums_are_more_alike_than_a_snare_drum_and_a_bell():
    encoder = build_encoder("aisfx", path=str(FETCHED / "models/aisfx"))

    def embedding(name):
        wave, rate = soundfile.read(FETCHED / f"sounds/sonic-pi/{name}.flac", dtype="float32", always_2d=True)
        assert rate == 44100
        audio = torch.from_numpy(wave.mean(1))[None]
        return encoder(audio, torch.ones_like(audio, dtype=torch.bool)).x[0].amax(0)

    one, other, bell = map(embedding, ("drum_snare_hard", "sn_generic", "perc_bell"))
    alike = torch.nn.functional.cosine_similarity
    assert alike(one, other, 0) > alike(one, bell, 0)
