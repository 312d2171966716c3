"""A quantised language model: nothing else is touched, it trains, and its checkpoints stay small."""

import pytest
import torch
from conftest import noise, nudge
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from usam import UsamForConditionalGeneration, UsamProcessor, build_model, load_spec
from usam.model.assembly import SKIP_OPTIONS, with_skip_list
from usam.model.checkpoint import delta_names, export

load = UsamForConditionalGeneration.from_pretrained
COARSE = {"llm": {"quantization_config": {"quant_method": "coarse"}}}


@pytest.fixture(scope="module")
def model(speech):
    return build_model(speech)


@pytest.fixture(scope="module")
def processor(speech):
    return UsamProcessor.from_spec(load_spec(speech))


@pytest.fixture(scope="module")
def batch(processor):
    return processor(text=["What do you hear? <|audio|>", "<|audio|> ok"], audio=[noise(0.3), noise(1.1)])


@torch.no_grad()
def logits(model, batch):
    return model.eval()(**batch).logits


@pytest.mark.parametrize(
    "method",
    [{"load_in_4bit": True}, {"quant_method": "bitsandbytes"}, {"quant_method": "fp8"}, {"quant_method": "hqq"}],
)
def test_only_the_language_model_is_quantised(method, model):
    config = with_skip_list(method)
    option = SKIP_OPTIONS.get(config.get("quant_method", "bitsandbytes"), "modules_to_not_convert")
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    base = {name for name in linear if name.startswith("model.language_model.") and ".lora_" not in name}
    assert {name for name in linear if should_convert_module(name, config[option])} == base


def test_a_skip_list_of_ones_own_is_added_to():
    skipped = with_skip_list({"load_in_8bit": True, "llm_int8_skip_modules": ["model.language_model.layers.0"]})
    assert {"model.language_model.layers.0", "model.encoders"} < set(skipped["llm_int8_skip_modules"])


@register_quantization_config("coarse")
class Coarse(QuantizationConfigMixin):
    """A quantiser as another package might bring it: weights in steps of an eighth."""

    def __init__(self, modules_to_not_convert=None, **kwargs):
        self.quant_method = "coarse"
        self.modules_to_not_convert = modules_to_not_convert


@register_quantizer("coarse")
class CoarseQuantizer(HfQuantizer):
    is_trainable = True

    def is_serializable(self):
        return True

    def _process_model_before_weight_loading(self, model, **kwargs):
        assert not self.pre_quantized

    def _process_model_after_weight_loading(self, model, **kwargs):
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and should_convert_module(
                name, self.quantization_config.modules_to_not_convert
            ):
                module.weight.data = (module.weight.data * 8).round() / 8


def test_what_a_quantiser_adds_to_a_sourced_tensor_is_not_in_the_delta(model):
    added = "model.language_model.layers.0.mlp.up_proj.weight.absmax"
    assert delta_names(model, {**model.state_dict(), added: torch.ones(1)}) == delta_names(model, model.state_dict())


def test_a_quantised_model_is_saved_as_a_delta_and_exported_whole(speech, batch, tmp_path):
    model = nudge(build_model(speech, COARSE))
    plain = build_model(speech).state_dict()
    quantised = {name for name, tensor in model.state_dict().items() if (tensor * 8 == (tensor * 8).round()).all()}
    assert "model.language_model.layers.0.mlp.up_proj.weight" in quantised
    assert not any(name.startswith(("model.encoders", "model.projector", "lm_head")) for name in quantised)
    assert not any(".lora_" in name for name in quantised)
    model.save_pretrained(tmp_path / "model")
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == delta_names(model, model.state_dict())
    assert torch.equal(logits(load(tmp_path / "model"), batch), logits(model, batch))
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(tmp_path / "model")
    whole = export(tmp_path / "model", tmp_path / "whole").state_dict()
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole[name], plain[name])


def test_the_trainer_trains_what_is_not_quantised(speech, processor, tmp_path):
    model = build_model(speech, COARSE)
    question = {"role": "user", "content": [{"type": "audio", "audio": noise(0.4)}]}
    chat = [question, {"role": "assistant", "content": "A dog."}]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    Trainer(
        model,
        arguments,
        train_dataset=[chat],
        data_collator=lambda chats: dict(processor.apply_chat_template(chats, tokenize=True, return_labels=True)),
    ).train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert any("projector" in name for name in moved)
    assert not any(name.startswith("model.language_model") and ".lora_" not in name for name in moved)


def test_its_words_are_lent_as_they_are(speech):
    model, ids, states = build_model(speech, COARSE), torch.tensor([3, 300]), torch.randn(2, 32)
    lent = model.model.vocabulary
    assert torch.equal(lent.embed(ids), model.model.embed(ids))
    torch.testing.assert_close(lent.logits(states, ids), model.lm_head(states)[:, ids])
