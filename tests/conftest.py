"""Tiny checkpoints in their original formats, written once a run: nothing is fetched from a network."""

import json
import logging
import os
import re
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["USAM_CACHE"] = tempfile.mkdtemp()
# Read when Triton is first imported, which torch does by itself. On a GPU: TRITON_INTERPRET=0 make test.
os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperForConditionalGeneration,
    __version__,
)
from transformers.utils.logging import disable_progress_bar

torch.set_num_threads(1)  # on tensors this small, threads wait for each other longer than they work
disable_progress_bar()


def needs_transformers(minor, why):
    """Skips a test where transformers itself is too old for what it is about."""
    return pytest.mark.skipif(int(__version__.split(".")[1]) < minor, reason=f"transformers before 5.{minor}: {why}")


class Deprecations(logging.Handler):
    """What transformers logs of names that it will remove."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.found = []

    def emit(self, record):
        if re.search("deprecated|will be removed", message := record.getMessage()):
            self.found.append(message)


deprecations = Deprecations()
logging.getLogger("transformers").addHandler(deprecations)


@pytest.fixture(autouse=True)
def nothing_deprecated_is_used():
    """Names that transformers will remove are used by no test, and so by no code that is tested."""
    yield
    found = list(deprecations.found)
    deprecations.found.clear()
    assert not found


# A file of one's own with an encoder, whose name is still to be filled in.
EAR = '''
import torch
import usam
from usam.encoders import register

@register("{name}")
class Ear(usam.Encoder):
    """Loudness in steps of 20 ms."""
    sample_rate, frame_rate, dim = 16000, 50, 1

    def forward(self, audio, mask):
        audio = torch.nn.functional.pad(audio.masked_fill(~mask, 0), (0, -audio.shape[1] % 320))
        x = audio.unfold(1, 320, 320).square().mean(-1, keepdim=True)
        return usam.Frames(x, usam.types.prefix_mask(self.config.length(mask.sum(-1)), x.shape[1]), 50)
'''

TEXT = ["Transcribe this audio in English.", "What do you hear? A dog barks, then a door closes.", "ok\n---\n42"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def make_tokenizer(chat_template=None, bos=False):
    """A byte-level BPE as GPT-2, Llama 3 and Qwen have it, with the special tokens of the templates above."""
    special = ["<|pad|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
    special += ["<|eot_id|>", "<s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    if bos:
        start = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        bos_token="<s>" if bos else None,
        chat_template=chat_template,
    )


def randomize(model):
    """Weights of unit scale, norms and biases included: no part of the model is close to an identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(parameter + 0.2 * noise)
    return model.eval()


def nudge(model, seed=1):
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def save_llm(model, folder, tokenizer):
    randomize(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def noise(seconds, seed=0, rate=16000):
    """A clip."""
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="session")
def whisper(tmp_path_factory):
    """A Whisper whose window is one second."""
    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=16,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    folder = tmp_path_factory.mktemp("whisper")
    randomize(WhisperForConditionalGeneration(config)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """Head and table apart; the table ends with the tokenizer, so the placeholder's id lies past it."""
    config = LlamaConfig(vocab_size=308, **SIZES, max_position_embeddings=1024, eos_token_id=301, pad_token_id=300)
    return save_llm(LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"), make_tokenizer(bos=True))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory):
    """Head and table are one; the table has rows to spare, and the placeholder's id is one of them."""
    config = Qwen3Config(
        vocab_size=320, **SIZES, head_dim=8, tie_word_embeddings=True, eos_token_id=301, pad_token_id=300
    )
    return save_llm(Qwen3ForCausalLM(config), tmp_path_factory.mktemp("qwen3"), make_tokenizer(CHATML))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """Learned positions, and a table of another name."""
    config = GPT2Config(vocab_size=308, n_embd=32, n_layer=2, n_head=4, n_positions=512, eos_token_id=301)
    return save_llm(GPT2LMHeadModel(config), tmp_path_factory.mktemp("gpt2"), make_tokenizer())


@pytest.fixture(scope="session")
def speech(whisper, llama):
    """A spec: Whisper, five frames a token, Llama with LoRA."""
    return {
        "encoders": {"whisper": {"path": whisper}},
        "projector": {"type": "linear", "stack": 5},
        "llm": {"type": "transformers", "path": llama, "lora": {"target_modules": ["q_proj", "v_proj"]}},
    }


@pytest.fixture
def usam(monkeypatch, capfd):
    """Run a command; returns (exit status, standard output, standard error)."""

    from usam.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["usam", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capfd.readouterr()
        return status, out, err

    return run


def write_run(tmp_path):
    """Eight clips of noise, and a run over them."""
    rows = []
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", noise(0.5 + 0.1 * i, seed=i), 16000)
        rows.append({"audio": f"{i}.wav", "task": "asr", "answer": "ab" * (1 + i % 3)})
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "run.yaml").write_text(
        "model: tiny\ndata: {train: train.jsonl, eval: train.jsonl}\n"
        f"train:\n  output_dir: {tmp_path}/out\n  max_steps: 4\n  per_device_train_batch_size: 4\n"
        "  learning_rate: 1e-3\n  use_cpu: true\n  logging_steps: 2\n  save_steps: 2\n  disable_tqdm: true\n"
    )
    return tmp_path / "run.yaml"


@pytest.fixture
def run_file(tmp_path):
    """Eight clips of noise, and a run over them."""
    return write_run(tmp_path)
