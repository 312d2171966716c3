"""A batch is the same whatever was collated before it, and however its clips were read."""

import time

import numpy as np
import pytest
import soundfile
import torch
from conftest import CHATML, noise

from usam import UsamProcessor
from usam.data.collate import Collator
from usam.data.manifest import Sample
from usam.processor import drawing
from usam.processor.audio import read_audio


@pytest.fixture(scope="module")
def processor():
    return UsamProcessor.from_spec("tiny")


@pytest.fixture
def rows(tmp_path):
    def row(name, seconds, **options):
        soundfile.write(tmp_path / name, noise(seconds), 16000, **options)
        asked = [{"type": "audio", "path": str(tmp_path / name)}, {"type": "text", "text": "What is said?"}]
        chat = ({"role": "user", "content": asked}, {"role": "assistant", "content": name})
        return Sample(name, chat)

    return [
        row("plain.wav", 0.5),
        row("floats.wav", 0.3, subtype="FLOAT"),
        row("wide.wav", 0.2, subtype="PCM_24"),
        row("a.flac", 0.4),
        row("long.wav", 17),  # more than one block
    ]


def test_the_memory_of_a_batch_is_used_again_and_no_batch_is_touched(processor, rows):
    collate = Collator(processor)
    first = collate(rows)
    kept = first["input_values"].clone()
    collate(rows[::-1])
    torch.testing.assert_close(first["input_values"], kept, rtol=0, atol=0)
    torch.testing.assert_close(collate(rows)["input_values"], kept, rtol=0, atol=0)


def test_clips_are_those_that_read_audio_gives(processor, rows):
    batch = Collator(processor)(rows)
    for row, values, mask in zip(rows, batch["input_values"], batch["input_values_mask"], strict=True):
        expected = read_audio(row.messages[0]["content"][0]["path"], 16000)
        np.testing.assert_array_equal(values[mask].numpy(), expected)


def test_what_an_augmentation_makes_is_looked_at(processor, rows):
    with pytest.raises(ValueError, match=r"full scale is 1"):
        Collator(processor, augment=lambda clip, *_: clip * 1000)(rows)


def test_a_template_that_asks_for_the_time_is_asked_every_time(processor):
    timed = UsamProcessor(
        processor.feature_extractor, processor.tokenizer, "{{ strftime_now('%f') }}" + CHATML, prompts={}
    )
    turns = [{"role": "user", "content": "?"}]
    draw = timed._drawer()
    before = draw(turns, True, False)
    time.sleep(0.01)  # of which the template writes the microseconds
    assert draw(turns, True, False) != before


def test_a_question_is_drawn_once_until_the_template_reads_something_else(processor):
    own = UsamProcessor(processor.feature_extractor, processor.tokenizer, "{{ eos_token }}" + CHATML, prompts={})
    chat = [{"role": "user", "content": "?"}]
    before, eos = own.render(chat, add_generation_prompt=True).text, own.tokenizer.eos_token
    assert len(drawing.DRAWN[own]) > 0
    own.tokenizer.eos_token = "<|pad|>"
    try:
        after = own.render(chat, add_generation_prompt=True).text
    finally:
        own.tokenizer.eos_token = eos
    assert (before.startswith(eos), after.startswith("<|pad|>")) == (True, True)


def test_only_so_many_texts_are_remembered(processor):
    own = UsamProcessor(processor.feature_extractor, processor.tokenizer, CHATML, prompts={})
    for i in range(drawing.REMEMBERED):
        own.render([{"role": "user", "content": f"{i}?"}], add_generation_prompt=True)
    assert len(drawing.DRAWN[own]) == drawing.REMEMBERED


def test_a_tokenizer_that_takes_the_placeholder_apart_is_refused(processor, rows, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "split_special_tokens", True)
    with pytest.raises(ValueError, match=r"must keep special tokens whole"):
        processor.encode([processor.render(rows[0].messages)])
