"""A language model out of GGUF, in a file that the test writes, becomes the very model of transformers that it was."""

import struct

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from usam_real.smollm2 import convert

from usam import ComponentError
from usam.llm.transformers import Transformers

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = [*CONTROL, *LETTERS, "Ġt", "he", "Ġthe", "12"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
WIDTH, HEADS, KV_HEADS, HIDDEN, LAYERS = 64, 4, 2, 96, 2
ENTRIES = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "llama.block_count": LAYERS,
    "llama.context_length": 128,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": HIDDEN,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": len(WORDS),
    "llama.rope.dimension_count": WIDTH // HEADS,
    "tokenizer.ggml.add_space_prefix": False,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": WORDS,
    "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(WORDS) - len(CONTROL)),
    "tokenizer.ggml.merges": ["Ġ t", "h e", "Ġt he", "1 2"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}
F32, Q4_1, Q8_0 = 0, 3, 8


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(x):
    """The number of a kind, and the bytes."""
    if isinstance(x, bool):
        return 7, struct.pack("<?", x)
    if isinstance(x, int):
        return 4, struct.pack("<I", x)
    if isinstance(x, float):
        return 6, struct.pack("<f", x)
    if isinstance(x, str):
        return 8, text(x)
    kinds, items = zip(*map(value, x), strict=True)
    return 9, struct.pack("<IQ", kinds[0], len(x)) + b"".join(items)


def write_gguf(file, tensors, entries=ENTRIES, version=3):
    """GGUF: entries, where each tensor lies, and their bytes at multiples of 32; tensors are (shape, kind, bytes)."""
    heads, body = b"", b""
    for name, (shape, kind, raw) in tensors.items():
        heads += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        heads += struct.pack("<IQ", kind, len(body))
        body += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries))
    for name, x in entries.items():
        kind, raw = value(x)
        head += text(name) + struct.pack("<I", kind) + raw
    head += heads
    file.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def q4_1(shape, rng):
    """Random weights in blocks of 4 bits: their bytes, and what they stand for."""
    blocks = int(np.prod(shape)) // 32
    step, offset = (rng.normal(0, scale, (blocks, 1)).astype(np.float16) for scale in (0.02, 0.1))
    numbers = rng.integers(0, 16, (blocks, 32), dtype=np.uint8)
    packed = numbers[:, :16] | (numbers[:, 16:] << 4)
    raw = np.concatenate([step.view(np.uint8), offset.view(np.uint8), packed], axis=1).tobytes()
    meant = step.astype(np.float32) * numbers + offset.astype(np.float32)
    return (shape, Q4_1, raw), torch.from_numpy(meant.reshape(shape))


def q8_0(shape, rng):
    blocks = int(np.prod(shape)) // 32
    step = rng.normal(0, 0.01, (blocks, 1)).astype(np.float16)
    numbers = rng.integers(-127, 128, (blocks, 32), dtype=np.int8)
    raw = np.concatenate([step.view(np.uint8), numbers.view(np.uint8)], axis=1).tobytes()
    return (shape, Q8_0, raw), torch.from_numpy((step.astype(np.float32) * numbers).reshape(shape))


def f32(shape, rng):
    numbers = rng.normal(1, 0.1, shape).astype(np.float32)
    return (shape, F32, numbers.tobytes()), torch.from_numpy(numbers)


def llama(rng):
    """Tensors as llama.cpp stores them, and the same model in transformers."""
    table = {
        "token_embd": (q8_0, (len(WORDS), WIDTH), "model.embed_tokens"),
        "output_norm": (f32, (WIDTH,), "model.norm"),
    }
    for i in range(LAYERS):
        at, ours = f"blk.{i}", f"model.layers.{i}"
        kv = KV_HEADS * WIDTH // HEADS
        table |= {
            f"{at}.attn_norm": (f32, (WIDTH,), f"{ours}.input_layernorm"),
            f"{at}.attn_q": (q4_1, (WIDTH, WIDTH), f"{ours}.self_attn.q_proj"),
            f"{at}.attn_k": (q4_1, (kv, WIDTH), f"{ours}.self_attn.k_proj"),
            f"{at}.attn_v": (q4_1, (kv, WIDTH), f"{ours}.self_attn.v_proj"),
            f"{at}.attn_output": (q4_1, (WIDTH, WIDTH), f"{ours}.self_attn.o_proj"),
            f"{at}.ffn_norm": (f32, (WIDTH,), f"{ours}.post_attention_layernorm"),
            f"{at}.ffn_gate": (q4_1, (HIDDEN, WIDTH), f"{ours}.mlp.gate_proj"),
            f"{at}.ffn_up": (q4_1, (HIDDEN, WIDTH), f"{ours}.mlp.up_proj"),
            f"{at}.ffn_down": (q4_1, (WIDTH, HIDDEN), f"{ours}.mlp.down_proj"),
        }
    stored, meant = {}, {}
    for name, (make, shape, ours) in table.items():
        stored[f"{name}.weight"], meant[f"{ours}.weight"] = make(shape, rng)
    for name, tensor in meant.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            meant[name] = as_rotated_by_halves(tensor, WIDTH // HEADS)
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": len(WORDS)}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "tie_word_embeddings": True}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}, "rms_norm_eps": 1e-5}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **rope)).eval()
    model.load_state_dict({**meant, "lm_head.weight": meant["model.embed_tokens.weight"]})
    return stored, model


def as_rotated_by_halves(weight, width):
    """llama.cpp turns rows 0 and 1 of a head together, then 2 and 3; transformers the first of each half, and so on."""
    heads = weight.split(width)
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])


@pytest.fixture(scope="module")
def tiny():
    return llama(np.random.default_rng(0))


@pytest.fixture(scope="module")
def converted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    write_gguf(folder / "tiny.gguf", tiny[0])
    convert(folder / "tiny.gguf", folder)
    return folder


@torch.no_grad()
def test_it_is_the_model_that_was_stored(converted, tiny):
    ids = torch.tensor([[5, 9, 200, 3]])
    model = AutoModelForCausalLM.from_pretrained(converted).eval()
    torch.testing.assert_close(model(ids).logits, tiny[1](ids).logits, rtol=0, atol=0)


def test_usam_takes_the_folder_as_its_language_model(converted):
    llm = Transformers(Transformers.Config(type="transformers", path=str(converted)))
    assert llm.dim == WIDTH
    assert "backbone.layers.1.mlp.up_proj.weight" in llm.pretrained()


def test_digits_are_tokens_of_their_own_and_texts_come_back(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("at the 12") == ["a", "t", "Ġthe", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("the café 12").input_ids) == "the café 12"
    assert [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token] == [
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    ]


def test_the_chat_template_comes_along_and_its_marks_are_single_tokens(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "the"}], return_dict=False)
    assert (ids[0], ids[-2]) == (1, 2)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, "'tokenizer.ggml.pre' is 'llama-bpe', and only 'smollm' is known"),
        ({"general.architecture": "qwen2"}, "'general.architecture' is 'qwen2', and only 'llama' is known"),
        ({"llama.rope.scaling.type": "yarn"}, "unknown entry 'llama.rope.scaling.type'"),
        ({"llama.rope.dimension_count": 8}, "'llama.rope.dimension_count' is 8; only rotations of whole heads"),
        ({"tokenizer.ggml.token_type": [6] * len(WORDS)}, "token '<|endoftext|>' is of kind 6"),
        ({"tokenizer.ggml.merges": ["q z"]}, "no table of byte pairs"),
        ({"tokenizer.ggml.padding_token_id": 5000}, "'tokenizer.ggml.padding_token_id' is 5000"),
        ({"llama.attention.head_count": 5}, r"tiny\.gguf: .*5"),
        ({"general.alignment": 0}, "'general.alignment' is 0; expected a positive number"),
        ({"llama.feed_forward_length": 64}, r"mlp\.down_proj\.weight is \[64, 96\], expected \[64, 64\]"),
    ],
)
def test_an_entry_that_means_something_else_is_named(entry, said, tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny[0], {**ENTRIES, **entry})
    with pytest.raises(ComponentError, match=said):
        convert(tmp_path / "tiny.gguf", tmp_path)


def test_an_entry_that_is_missing_is_named(tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", tiny[0], {k: v for k, v in ENTRIES.items() if k != "llama.rope.freq_base"})
    with pytest.raises(ComponentError, match=r"no entry 'llama\.rope\.freq_base'"):
        convert(tmp_path / "tiny.gguf", tmp_path)


def test_a_quantisation_that_is_not_known_is_named(tiny, tmp_path):
    shape, _, raw = tiny[0]["blk.0.attn_v.weight"]
    write_gguf(tmp_path / "tiny.gguf", {**tiny[0], "blk.0.attn_v.weight": (shape, 12, raw)})
    with pytest.raises(ComponentError, match=r"'blk\.0\.attn_v\.weight' is stored as type 12; known are F32 \(0\)"):
        convert(tmp_path / "tiny.gguf", tmp_path)


def test_a_tensor_that_is_not_known_is_named(tiny, tmp_path):
    write_gguf(tmp_path / "tiny.gguf", {**tiny[0], "rope_freqs.weight": f32((8,), np.random.default_rng(0))[0]})
    with pytest.raises(ComponentError, match=r"unknown tensors rope_freqs\.weight"):
        convert(tmp_path / "tiny.gguf", tmp_path)


def test_a_file_that_is_cut_off_says_so(converted, tmp_path):
    (tmp_path / "tiny.gguf").write_bytes((converted / "tiny.gguf").read_bytes()[:-500])
    with pytest.raises(ComponentError, match=r"tiny\.gguf: ends after \d+ bytes, where \d+ are needed"):
        convert(tmp_path / "tiny.gguf", tmp_path)
