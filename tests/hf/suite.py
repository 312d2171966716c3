"""transformers' own tests, run on models and processors of this library: `make test-hf`.

What fails is named in `expected.py` with its reason; a test that passes although it is named there fails too.
"""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
from contextlib import nullcontext
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

sys.path.insert(0, str(Path(__file__).parent))

from borrowed import borrow
from expected import EXPECTED, LEFT_OUT, ON_TEXT_ALONE

from usam import UsamConfig, UsamForConditionalGeneration, UsamModel, UsamProcessor, build_model
from usam.config import resolve
from usam.processor.feature_extractor import UsamFeatureExtractor
from usam.spec.spec import load_spec
from usam.types import Prompt

ModelTesterMixin = borrow("test_modeling_common").ModelTesterMixin
GenerationTesterMixin = borrow("generation.test_utils").GenerationTesterMixin
TrainingTesterMixin = borrow("test_training_mixin").TrainingTesterMixin
PipelineTesterMixin = borrow("test_pipeline_mixin").PipelineTesterMixin
ProcessorTesterMixin = borrow("test_processing_common").ProcessorTesterMixin
ExtractorTesterMixin = borrow("test_feature_extraction_common").FeatureExtractionSavingTestMixin
ConfigTester = borrow("test_configuration_common").ConfigTester

# How the tests ask what a class is for.
MODEL_MAPPING_NAMES["usam"] = "UsamModel"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["usam"] = "UsamForConditionalGeneration"

WHISPER = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16}
BEATS = {"encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 32, "encoder_attention_heads": 2}
BEATS |= {"embed_dim": 16, "conv_pos": 16, "conv_pos_groups": 4}
MERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MERT |= {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SMALL = {
    "encoders": {"whisper": {"arch": {**WHISPER, "max_source_positions": 50}, "freeze": "none"}},
    "projector": {"type": "linear", "stack": 5},
    "llm": {"type": "tiny", "dim": 32, "layers": 2, "heads": 4},
    "prompts": {"asr": "Transcribe this audio."},
}
SPECS = {
    "tiny": "tiny",
    "beside": {**SMALL, "llm": {**SMALL["llm"], "injection": {"type": "cross_attention", "heads": 2, "head_dim": 8}}},
    "three": {
        **SMALL,
        "encoders": {
            **SMALL["encoders"],
            "beats": {"arch": BEATS, "freeze": "none"},
            "mert": {"arch": MERT, "freeze": "none", "layers": "weighted"},
        },
        "fusion": {"type": "concat", "rate": 25, "layer_norm": True},
        "projector": [{"type": "linear", "stack": 5}, {"type": "moe", "experts": 3}],
    },
}


class ModelTester:
    """Gives the tests a config and a batch: three samples, a clip each, of as many tokens as the encoders make."""

    batch_size, clip, words = 3, 3200, 8
    is_training = True

    def __init__(self, spec, audio=True):
        self.spec, self.audio = spec, audio
        config = self.get_config()
        self.placeholders = config.parsed.placeholders(self.clip)
        self.seq_length = self.encoder_seq_length = self.placeholders + self.words
        text = config.get_text_config()
        self.text_config = text.to_dict()
        self.num_hidden_layers, self.hidden_size = text.num_hidden_layers, text.hidden_size
        self.num_attention_heads, self.vocab_size = text.num_attention_heads, text.vocab_size

    def get_config(self):
        config = UsamConfig.from_spec(self.spec)
        if not self.audio:
            config.vocab_size = config.text_config.vocab_size  # of a language model, which this is then taken for
        return config

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(1, self.vocab_size - 2, (self.batch_size, self.seq_length), generator=draw)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if not self.audio:
            return config, inputs
        ids[:, 1 : 1 + self.placeholders] = config.audio_token_id
        return config, {
            **inputs,
            "input_values": 0.1 * torch.randn(self.batch_size, self.clip, generator=draw),
            "input_values_mask": torch.ones(self.batch_size, self.clip, dtype=torch.bool),
            "prompt_mask": torch.arange(self.seq_length).expand_as(ids) > self.placeholders + 2,
        }


class ModelTests(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin, PipelineTesterMixin):
    """What transformers asks of every model."""

    all_model_classes = (UsamModel, UsamForConditionalGeneration)
    pipeline_model_mapping = {"any-to-any": UsamForConditionalGeneration}
    skip_test_audio_features_output_shape = True  # it looks for the width in places that are others' config
    _is_composite = True
    name: str

    @property
    def model_tester(self):
        return ModelTester(SPECS[self.name], not self._testMethodName.startswith(tuple(ON_TEXT_ALONE)))

    def subTest(self, *args, **kwargs):
        """The first failure is the test's: an expected one is then expected as a whole."""
        return nullcontext()

    def test_config(self):
        spec = resolve(load_spec(SPECS[self.name])).to_dict()
        ConfigTester(self, config_class=UsamConfig, has_text_modality=False, spec=spec).run_common_tests()

    def _get_trainable_model_class(self):
        return UsamForConditionalGeneration

    def _audio_features_prepare_config_and_inputs(self):
        config, inputs = super()._audio_features_prepare_config_and_inputs()
        if self.name == "three":  # its projector reads the prompt
            clips = len(inputs["input_values"])
            width = config.text_config.hidden_size
            inputs["prompt"] = Prompt(torch.ones(clips, 2, width), torch.ones(clips, 2, dtype=torch.bool))
        return config, inputs

    def run_task_tests(self, task, dtype="float32"):
        """A pipeline of a saved model, one sample at a time and in batches: its own runner loads from the hub."""
        if task not in self.pipeline_model_mapping:
            self.skipTest(f"no pipeline for '{task}'")
        model = build_model(SPECS[self.name], dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            UsamProcessor.from_spec(model.config.parsed).save_pretrained(folder)
            pipe = pipeline(task, model=folder, dtype=dtype)
        content = [{"type": "audio", "audio": np.zeros(3200, np.float32)}, {"type": "text", "text": "What?"}]
        chat = [{"role": "user", "content": content}]
        options = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
        alone = pipe(text=chat, **options)[0]["generated_text"]
        several = pipe(text=[chat] * 10, batch_size=4, **options)
        assert [found[0]["generated_text"] for found in several] == [alone] * 10


class ProcessorTests(ProcessorTesterMixin):
    """What transformers asks of every processor."""

    processor_class = UsamProcessor
    audio_input_name = "input_values"
    name: str

    @classmethod
    def _setup_feature_extractor(cls):
        return UsamFeatureExtractor(resolve(load_spec(SPECS[cls.name])).to_dict())

    @classmethod
    def _setup_tokenizer(cls):
        return UsamProcessor.from_spec(SPECS[cls.name]).tokenizer

    def subTest(self, *args, **kwargs):
        return nullcontext()


class ExtractorTests(ExtractorTesterMixin):
    """What transformers asks of every feature extractor."""

    feature_extraction_class = UsamFeatureExtractor
    name: str

    @property
    def feat_extract_dict(self):
        return {"spec": json.loads(json.dumps(resolve(load_spec(SPECS[self.name])).to_dict()))}


def _own(inherited, name):
    """A method to mark, which is not that of every other class."""

    def test(self, *args, **kwargs):
        return inherited(self, *args, **kwargs)

    test.__name__ = name
    return test


def _tests(kind, name):
    """The tests of one kind for one spec, those that are expected to fail marked as such."""
    made = type(f"{name.title()}{kind.__name__.removesuffix('s')}", (kind, unittest.TestCase), {"name": name})
    fails = {**EXPECTED.get(kind.__name__, {}), **EXPECTED.get(made.__name__, {})}
    marks = {test: pytest.mark.xfail(reason=str(why), strict=True) for test, why in fails.items()}
    if issubclass(made, ModelTesterMixin):
        marks |= {test: pytest.mark.skip(reason=why) for test, why in LEFT_OUT.items()}
    for pattern, mark in marks.items():
        found = [method for method in dir(made) if fnmatchcase(method, pattern)]
        if not found:
            raise LookupError(f"expected.py names {made.__name__}.{pattern}, which transformers does not have any more")
        for method in found:
            setattr(made, method, mark(_own(getattr(made, method), method)))
    return made


for _kind in (ModelTests, ProcessorTests, ExtractorTests):
    for _name in SPECS:
        _made = _tests(_kind, _name)
        globals()[_made.__name__] = _made
        _made.__module__ = __name__
del _made, _kind, ModelTests, ProcessorTests, ExtractorTests
