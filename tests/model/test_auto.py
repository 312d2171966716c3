"""A saved model is one of transformers' own: Auto classes, devices, attention, vocabulary, pipelines."""

import pytest
import torch
from conftest import needs_transformers, noise, nudge
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

from usam import UsamForConditionalGeneration, UsamModel, UsamProcessor, build_model, load_spec
from usam.processor.feature_extractor import UsamFeatureExtractor

load = UsamForConditionalGeneration.from_pretrained

CHAT = [
    {
        "role": "user",
        "content": [{"type": "audio", "audio": noise(0.4)}, {"type": "text", "text": "What do you hear?"}],
    }
]


@pytest.fixture(scope="module")
def model(speech):
    return nudge(build_model(speech))


@pytest.fixture(scope="module")
def processor(speech):
    return UsamProcessor.from_spec(load_spec(speech))


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def batch(processor):
    return processor(text=["What do you hear? <|audio|>", "<|audio|> ok"], audio=[noise(0.3), noise(1.1)])


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


@pytest.mark.parametrize("auto", [AutoModelForMultimodalLM, AutoModelForCausalLM])
def test_auto_models_give_the_model(auto, model, folder, batch):
    again = auto.from_pretrained(folder)
    assert isinstance(again, UsamForConditionalGeneration)
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_auto_model_gives_the_model_without_its_head(model, folder, batch):
    body = AutoModel.from_pretrained(folder)
    assert isinstance(body, UsamModel)
    with torch.no_grad():
        hidden = body(**batch).last_hidden_state
        assert torch.equal(model.lm_head(hidden), logits(model, batch))


def test_audio_features_are_flat_and_lie_where_the_placeholders_are(model, folder, batch):
    body = AutoModel.from_pretrained(folder)
    clips = {name: batch[name] for name in ("input_values", "input_values_mask")}
    with torch.no_grad():
        features = body.get_audio_features(**clips).pooler_output
        embeds = body(**batch).inputs_embeds
    slots = batch["input_ids"] == model.config.audio_token_id
    assert features.shape == (3 + 11, 32)  # ten tokens a second, begun ones count
    assert torch.equal(embeds[slots], features)


def test_auto_model_from_a_config_is_random(model):
    body = AutoModel.from_config(model.config)
    assert isinstance(body, UsamModel)
    assert not torch.equal(body.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_auto_processor_gives_the_processor(processor, folder, batch):
    again = AutoProcessor.from_pretrained(folder)
    assert isinstance(again, UsamProcessor)
    text = ["What do you hear? <|audio|>", "<|audio|> ok"]
    found = again(text=text, audio=[noise(0.3), noise(1.1)])
    assert found.keys() == batch.keys()
    assert all(torch.equal(found[name], batch[name]) for name in batch)


def test_auto_feature_extractor_gives_the_feature_extractor(folder):
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    assert isinstance(extractor, UsamFeatureExtractor)
    assert extractor(noise(0.5), return_tensors="pt")["input_values"].shape == (1, 8000)


def test_auto_tokenizer_knows_the_placeholder(folder, model):
    assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|audio|>") == model.config.audio_token_id


def test_a_config_is_enough_to_load_with(model, folder, batch):
    again = load(folder, config=type(model.config).from_pretrained(folder))
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}])
def test_options_of_loading(options, model, folder, batch):
    assert torch.equal(logits(load(folder, **options), batch), logits(model, batch))


def test_a_model_is_built_on_a_device(speech, batch):
    torch.manual_seed(0)
    expected = build_model(speech)
    torch.manual_seed(0)
    assert torch.equal(logits(build_model(speech, device_map="cpu"), batch), logits(expected, batch))


@pytest.mark.parametrize("how", ["loaded", "built", "spec"])
def test_eager_attention_gives_the_same_as_sdpa(how, speech, folder, batch):
    torch.manual_seed(0)
    if how == "loaded":
        eager, sdpa = load(folder, attn_implementation="eager"), load(folder)
    else:
        patch = ["llm.attn_implementation=eager"] if how == "spec" else []
        eager = build_model(speech, *patch, **({} if patch else {"attn_implementation": "eager"}))
        sdpa = build_model(speech)
        sdpa.model.projector.load_state_dict(eager.model.projector.state_dict())
    assert eager.model.language_model.config._attn_implementation == "eager"
    assert sdpa.model.language_model.config._attn_implementation == "sdpa"
    own = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(eager, batch)[own], logits(sdpa, batch)[own], rtol=0, atol=1e-4)


def test_the_structure_alone_takes_no_memory(speech):
    with torch.device("meta"):
        model = build_model(speech, weights=False)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_the_structure_alone_has_the_shapes_of_the_model(speech, model):
    alone = build_model(speech, weights=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in alone.state_dict().items()} == shapes
    assert {p.device.type for p in alone.parameters()} == {"cpu"}


def test_the_structure_alone_takes_no_option_of_loading(speech):
    with pytest.raises(TypeError, match="with weights=False only dtype can be given, not device_map"):
        build_model(speech, weights=False, device_map="cpu")


def test_layers_and_encoders_stay_on_one_device(model):
    assert model._no_split_modules >= {"LlamaDecoderLayer", "WhisperEncoderLayer", "Whisper"}


# The vocabulary


@pytest.mark.parametrize("llm", ["llama", "qwen3"])
def test_a_resized_vocabulary_is_saved(llm, speech, request, tmp_path):
    spec = {**speech, "llm": {"type": "transformers", "path": request.getfixturevalue(llm)}}
    model = build_model(spec)
    words = {"input_ids": torch.arange(300)[None]}
    before = logits(model, words)
    model.resize_token_embeddings(330, mean_resizing=False)
    assert model.config.text_config.vocab_size == model.lm_head.out_features == 330
    assert not model.lm_head.weight.requires_grad
    torch.testing.assert_close(logits(model, words)[..., :300], before[..., :300])
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.text_config.vocab_size == again.lm_head.out_features == 330
    assert torch.equal(logits(again, words), logits(model, words))
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert not any(p.requires_grad for p in (*again.lm_head.parameters(), again.get_input_embeddings().weight))


def test_a_resized_head_keeps_its_scale(speech, llama):
    model = build_model({**speech, "llm": {"type": "transformers", "path": llama}})
    model.lm_head.factor = 0.5
    before = logits(model, {"input_ids": torch.arange(9)[None]})
    model.resize_token_embeddings(330, mean_resizing=False)
    assert torch.equal(logits(model, {"input_ids": torch.arange(9)[None]})[..., :308], before)


# Pipelines


@needs_transformers(23, "its pipeline wants librosa")
@pytest.mark.parametrize("objects", [True, False])
def test_a_pipeline_answers_as_generate_does(objects, model, processor, folder):
    if objects:
        pipe = pipeline("any-to-any", model=model, processor=processor)
    else:
        pipe = pipeline("any-to-any", model=str(folder))
    batch = processor.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True)
    expected = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
    found = pipe(text=CHAT, max_new_tokens=6, do_sample=False, return_full_text=False)
    assert found[0]["generated_text"] == processor.decode(expected, skip_special_tokens=True)
