"""What vLLM's Transformers backend asks of a model and its processor, as far as it can be tried without vLLM."""

import json
import re
import subprocess
import sys
import tomllib
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise
from held_out_rows import save_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from usam import UsamProcessor, build_model
from usam.generate import Answerer
from usam.model.checkpoint import export
from usam.spec.page import SpecError

ROOT = Path(__file__).parents[2]
CLIPS = [noise(0.5, 1), noise(0.83, 2)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    export(saved, folder, target="vllm", seconds=2.0)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return AutoConfig.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    """The model without its head, as vLLM has it; it applies the head itself."""
    return AutoModel.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def asked(processor):
    """What the processor gives for the text that vLLM makes up to have its clips processed."""
    token = processor.audio_token
    options = {"truncation": False, "add_special_tokens": False, "return_text_replacement_offsets": True}
    return processor(text=f"{token} {token}", audio=CLIPS, return_tensors="pt", **options)


def test_the_placeholder_is_a_row_of_the_table(config, model, processor, folder):
    rows = config.get_text_config().vocab_size
    assert processor.audio_token_id == config.audio_token_id < rows
    assert model.get_input_embeddings().weight.shape[0] == rows
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert head.shape[0] == rows


def test_the_answers_are_those_from_before(saved, folder):
    before, after = Answerer.load(saved), Answerer.load(folder)
    for clip in CLIPS:
        chat = before.ask(clip, task="asr")
        assert list(after.answer([chat], max_new_tokens=8)) == list(before.answer([chat], max_new_tokens=8))


def test_the_placeholder_is_never_the_best_word(model, folder, config):
    head = load_file(folder / "model.safetensors")["lm_head.weight"].double()
    x = torch.randn(500, head.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 9
    p = (x @ head.T).softmax(-1)[:, config.audio_token_id]
    assert (p <= 1 / (head.shape[0] - 1) + 1e-9).all()


def test_the_processor_gives_the_clips_and_what_stands_for_them_alone(asked, processor):
    names = {"input_values", "input_values_mask"}
    assert set(asked) == {"input_ids", "attention_mask", "text_replacement_offsets", *names}
    assert names == set(processor.feature_extractor.model_input_names)
    assert all(len(asked[name]) == len(CLIPS) for name in names)  # a row a clip


def test_what_stands_for_a_clip_has_as_many_tokens_as_the_clip(asked, processor, model):
    ids = [
        processor.tokenizer.encode(entry["replacement"], add_special_tokens=False)
        for entry in asked["text_replacement_offsets"][0]
    ]
    assert {token for one in ids for token in one} == {processor.audio_token_id}
    counted = processor._get_num_multimodal_tokens(audio_lengths=[len(clip) for clip in CLIPS])
    assert [len(one) for one in ids] == counted["num_audio_tokens"]
    assert "num_image_tokens" not in counted
    values, mask = asked["input_values"], asked["input_values_mask"]
    flat = model.get_audio_features(values, return_dict=True, input_values_mask=mask).pooler_output
    assert flat.shape == (sum(map(len, ids)), model.config.get_text_config().hidden_size)


def test_places_in_the_text_before_and_after_are_told(asked, processor):
    token = processor.audio_token
    text = f"{token} {token}"
    written = processor.tokenizer.decode(asked["input_ids"][0])
    for entry in asked["text_replacement_offsets"][0]:
        assert entry["type"] == "audio"
        assert text[slice(*entry["span"])] == entry["text"] == token
        assert written[slice(*entry["new_span"])] == entry["replacement"]


def test_a_clip_has_the_features_that_it_has_alone(asked, processor, model):
    values, mask = asked["input_values"], asked["input_values_mask"]
    together = model.get_audio_features(values, return_dict=True, input_values_mask=mask).pooler_output
    alone = []
    for clip in CLIPS:
        own = processor(text=processor.audio_token, audio=[clip], return_text_replacement_offsets=True)
        values, mask = own["input_values"], own["input_values_mask"]
        alone.append(model.get_audio_features(values, return_dict=True, input_values_mask=mask).pooler_output)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_text_alone_is_processed(processor):
    batch = processor(text="Hello", return_tensors="pt", return_text_replacement_offsets=True)
    assert batch["text_replacement_offsets"] == [[]]
    with pytest.raises(ValueError, match="placeholders"):
        processor(text=processor.audio_token, return_tensors="pt", return_text_replacement_offsets=True)


def test_memory_is_set_aside_for_the_longest_clip(config, processor):
    ears = processor.feature_extractor
    assert (ears.chunk_length, ears.sampling_rate) == (2.0, 16000)
    longest = np.zeros(int(ears.chunk_length * ears.sampling_rate), np.float32)
    batch = processor(text=processor.audio_token, audio=[longest], return_text_replacement_offsets=True)
    assert (batch["input_ids"] == config.audio_token_id).sum() == config.max_source_positions > 1
    with pytest.raises(ValueError, match="at most 2 s"):
        processor(text=processor.audio_token, audio=[noise(2.5)])


def test_the_class_declares_what_the_backend_asks(model, config):
    assert type(model).is_backend_compatible()
    assert config.get_text_config() is not config
    assert model.language_model.config is model.config.get_text_config()
    assert model.base_model_prefix == "model"


def test_the_model_is_built_on_the_meta_device(config):
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_tensors_are_called_as_the_backend_maps_them(model, folder):
    names = load_file(folder / "model.safetensors").keys()
    assert all(name.startswith(("model.", "lm_head.")) for name in names)
    own = {f"model.{name}" for name, _ in model.named_parameters()}
    assert own <= set(names)


def test_the_language_model_is_split_by_its_own_plans(model, config):
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert model.supports_tp_plan
    planned = [name for name in linear if any(re.match(pattern, name) for pattern in model.tp_plan)]
    assert planned == [name for name in linear if name.startswith("language_model.layers.")]
    assert model.supports_pp_plan
    parts = {name: attrgetter(name)(model) for name in model._pp_plan}
    (layers,) = [part for part in parts.values() if isinstance(part, nn.ModuleList)]
    assert len(layers) == config.get_text_config().num_hidden_layers


def test_a_step_as_the_backend_makes_it_gives_the_states_of_ours(model, processor):
    seen = []

    def attention(module, query, key, value, mask, attention_instances=None, **kwargs):
        seen.append(attention_instances)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, mask, **kwargs)

    batch = processor(text=f"Hear {processor.audio_token} now", audio=[CLIPS[0]])
    expected = model(**batch).last_hidden_state
    features = model.get_audio_features(batch["input_values"], return_dict=True).pooler_output
    embeds = model.get_input_embeddings()(batch["input_ids"])
    embeds[batch["input_ids"] == processor.audio_token_id] = features
    ALL_ATTENTION_FUNCTIONS.register("of_a_server", attention)
    text, instances = model.config.get_text_config(), {0: object()}
    before, text._attn_implementation = text._attn_implementation, "of_a_server"
    try:
        positions = torch.arange(embeds.shape[1])[None]
        found = model(
            input_ids=None,
            inputs_embeds=embeds,
            use_cache=False,
            position_ids=positions,
            attention_instances=instances,
            return_dict=False,
        )
    finally:
        text._attn_implementation = before
    assert seen == [instances] * text.num_hidden_layers
    assert torch.allclose(found[0], expected, atol=1e-5)


def test_weights_and_clips_may_be_of_half_precision(folder, asked):
    model = AutoModel.from_pretrained(folder).eval().to(torch.bfloat16)
    values, mask = asked["input_values"].bfloat16(), asked["input_values_mask"]
    features = model.get_audio_features(values, return_dict=True, input_values_mask=mask).pooler_output
    assert torch.isfinite(features).all()


def spec(*overrides):
    return ["tiny", "llm.dim=16", "llm.layers=1", "llm.heads=2", *overrides]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["llm.injection=cross_attention"], "llm.injection"),
        (['projector=[{"type": "moe", "experts": 2}]'], "--task"),
    ],
)
def test_what_the_backend_cannot_run_is_not_exported_for_it(tmp_path, overrides, message):
    model = build_model(*spec(*overrides), seed=0)
    model.save_pretrained(tmp_path / "saved")
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(tmp_path / "saved")
    with pytest.raises(SpecError, match=message):
        export(tmp_path / "saved", tmp_path / "out", target="vllm")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_for_vllm(usam, saved, tmp_path):
    status, _, err = usam("export", saved, tmp_path / "out", "--for", "vllm", "--max-seconds", 3)
    assert status == 0, err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_source_positions"] > 1
    assert "there is only vllm" in usam("export", saved, tmp_path / "b", "--for", "sglang")[2]
    assert "--max-seconds does nothing" in usam("export", saved, tmp_path / "b", "--max-seconds", 3)[2]


def test_the_entry_point_names_the_class_and_imports_nothing_heavy():
    plugins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    module, _, function = plugins["usam"].partition(":")
    code = f"""
import sys, types
vllm, told = types.ModuleType("vllm"), []
vllm.ModelRegistry = types.SimpleNamespace(register_model=lambda *given: told.append(given))
sys.modules["vllm"] = vllm
from {module} import {function}
{function}()
print(told, sorted({{"torch", "transformers"}} & sys.modules.keys()))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    where = "usam.harnesses.vllm:TransformersMultiModalForCausalLM"
    assert found == f"[('UsamForConditionalGeneration', '{where}')] []\n"
