"""CTranslate2's Whisper, in a file that the test writes, becomes the very model of transformers that it was."""

import json
import struct

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.modeling_outputs import BaseModelOutput
from usam_real.whisper import convert

from usam import ComponentError, build_encoder

VOCABULARY, TOKENS = 51864, 50363
OPTIONS = {
    "decoder/activation": 3,
    "decoder/alibi": 0,
    "decoder/alignment_heads": 1,
    "decoder/alignment_layer": -1,
    "decoder/num_heads": 2,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
    "encoder/num_heads": 2,
}
CONFIG = {"suppress_ids": [1, 2], "suppress_ids_begin": [220, 50256], "alignment_heads": [[0, 0]], "lang_ids": [50259]}


def text(name):
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def entry(name, tensor, kind, code):
    raw = struct.pack(f"<{code}", int(tensor)) if isinstance(tensor, int) else tensor.numpy().tobytes()
    shape = () if isinstance(tensor, int) else tensor.shape
    sizes = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return text(name) + sizes + struct.pack("<BI", kind, len(raw)) + raw


def write_model(file, tensors, *, version=6, spec="WhisperSpec", options=OPTIONS, alias="decoder/embeddings/weight"):
    """The format of CTranslate2: a head, then tensors by name in 16 bits, numbers, and second names."""
    entries = [entry(name, value, 2, "h") for name, value in options.items()]
    entries += [entry(name, t, 1 if t.dtype == torch.int8 else 4, None) for name, t in tensors.items()]
    head = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(entries))
    aliases = struct.pack("<I", 1) + text("decoder/projection/weight") + text(alias)
    file.write_bytes(head + b"".join(entries) + aliases)


def as_ctranslate2_has_it(model):
    """The weights of transformers' Whisper under CTranslate2's names, queries, keys and values of a layer as one."""
    own = {name.removeprefix("model."): t for name, t in model.half().state_dict().items()}
    theirs = {}

    def put(name, weight, bias):
        theirs[f"{name}/weight"], theirs[f"{name}/bias"] = weight, bias

    def pair(ours):
        return own[f"{ours}.weight"], own[f"{ours}.bias"]

    def norm(name, ours):
        theirs[f"{name}/gamma"], theirs[f"{name}/beta"] = pair(ours)

    def together(name, ours, parts):
        rows = [own[f"{ours}.{part}_proj.weight"] for part in parts]
        biases = [own.get(f"{ours}.{part}_proj.bias", torch.zeros(len(rows[0])).half()) for part in parts]
        put(name, torch.cat(rows), torch.cat(biases))

    for i in (1, 2):
        put(f"encoder/conv{i}", *pair(f"encoder.conv{i}"))
    theirs["decoder/embeddings/weight"] = own["decoder.embed_tokens.weight"]
    for side in ("encoder", "decoder"):
        theirs[f"{side}/position_encodings/encodings"] = own[f"{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        layers = model.config.encoder_layers if side == "encoder" else model.config.decoder_layers
        for i in range(layers):
            name, ours = f"{side}/layer_{i}", f"{side}.layers.{i}"
            norm(f"{name}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            together(f"{name}/self_attention/linear_0", f"{ours}.self_attn", "qkv")
            put(f"{name}/self_attention/linear_1", *pair(f"{ours}.self_attn.out_proj"))
            if side == "decoder":
                norm(f"{name}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                put(f"{name}/attention/linear_0", *pair(f"{ours}.encoder_attn.q_proj"))
                together(f"{name}/attention/linear_1", f"{ours}.encoder_attn", "kv")
                put(f"{name}/attention/linear_2", *pair(f"{ours}.encoder_attn.out_proj"))
            norm(f"{name}/ffn/layer_norm", f"{ours}.final_layer_norm")
            put(f"{name}/ffn/linear_0", *pair(f"{ours}.fc1"))
            put(f"{name}/ffn/linear_1", *pair(f"{ours}.fc2"))
    return theirs


def write_tokens(folder):
    """A table of bytes, filled up with made-up words to the size of Whisper's, and times in the list alone."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"word{i}" for i in range(50256 - len(letters))]
    special = {50256: "<|endoftext|>", 50257: "<|startoftranscript|>", 50362: "<|notimestamps|>"}
    added = [special.get(i, f"<|{i}|>") for i in range(50256, TOKENS)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    times = [f"<|{i / 50:.2f}|>" for i in range(VOCABULARY - TOKENS)]
    (folder / "vocabulary.txt").write_text("\n".join([*words, *added, *times]) + "\n")


@pytest.fixture(scope="module")
def original():
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(vocab_size=VOCABULARY, max_source_positions=100, num_mel_bins=80, **sizes, **heads)
    model = WhisperForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.encoder.embed_positions.weight)
    return model


@pytest.fixture(scope="module")
def source(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ct2")
    write_model(folder / "model.bin", as_ctranslate2_has_it(original))
    original.float()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokens(folder)
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    convert(source, folder)
    return folder


@pytest.fixture
def changed(source, tmp_path):
    """A copy of the folder, of which the test writes some file anew."""
    for file in source.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    return tmp_path


def rewrite(folder, original, change=None, **options):
    tensors = as_ctranslate2_has_it(original)
    original.float()
    tensors.update(change or {})
    (folder / "model.bin").unlink()
    write_model(folder / "model.bin", tensors, **options)


def test_every_weight_comes_back(converted, original):
    found = WhisperForConditionalGeneration.from_pretrained(converted).state_dict()
    assert found.keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@torch.no_grad()
def test_usams_encoder_transcribes_as_the_whole_model_does(converted):
    model = WhisperForConditionalGeneration.from_pretrained(converted).eval()
    model.generation_config.max_length = 12
    audio = 0.1 * torch.randn(1, 32000)
    processor = WhisperProcessor.from_pretrained(converted)
    processor.feature_extractor.n_samples, processor.feature_extractor.nb_max_frames = 32000, 200
    mel = processor.feature_extractor(audio[0].numpy(), sampling_rate=16000, return_tensors="pt", max_length=32000)
    encoder = build_encoder("whisper", path=str(converted))
    frames = encoder(audio, torch.ones_like(audio, dtype=torch.bool)).x
    torch.testing.assert_close(frames, model.model.encoder(mel.input_features).last_hidden_state, atol=1e-4, rtol=1e-4)
    whole = model.generate(mel.input_features)
    assert model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=frames)).tolist() == whole.tolist()


def test_texts_and_times_are_tokens_of_the_model(converted):
    tokenizer = WhisperProcessor.from_pretrained(converted).tokenizer
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.decode(tokenizer("hello you", add_special_tokens=False).input_ids) == "hello you"
    assert tokenizer.convert_tokens_to_ids("<|0.02|>") == TOKENS + 1


def test_a_tensor_that_is_not_known_is_named(changed, original, tmp_path):
    rewrite(changed, original, {"encoder/layer_0/adapter/weight": torch.ones(2).half()})
    with pytest.raises(ComponentError, match=r"model\.bin: unknown tensors encoder/layer_0/adapter/weight"):
        convert(changed, tmp_path)


def test_a_tensor_of_another_shape_is_named(changed, original, tmp_path):
    rewrite(changed, original, {"decoder/layer_1/ffn/linear_1/bias": torch.ones(3).half()})
    with pytest.raises(ComponentError, match=r"decoder\.layers\.1\.fc2\.bias is \[3\], expected \[8\]"):
        convert(changed, tmp_path)


def test_quantised_weights_are_refused_by_name(changed, original, tmp_path):
    rewrite(changed, original, {"encoder/conv1/bias": torch.ones(8, dtype=torch.int8)})
    with pytest.raises(ComponentError, match=r"'encoder/conv1/bias' is quantised to int8; only floats are read"):
        convert(changed, tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": 7}, "version 7 of CTranslate2's format"),
        ({"spec": "TransformerSpec"}, "a TransformerSpec of revision 3; only WhisperSpec"),
        ({"options": {**OPTIONS, "decoder/activation": 0}}, r"decoder/activation 0 \(expected 3\)"),
        ({"options": {**OPTIONS, "decoder/rotary_dim": 4}}, "unknown options decoder/rotary_dim"),
        ({"alias": "decoder/other/weight"}, "expected the aliases"),
    ],
)
def test_what_would_compute_something_else_is_refused(options, said, changed, original, tmp_path):
    rewrite(changed, original, **options)
    with pytest.raises(ComponentError, match=said):
        convert(changed, tmp_path)


def test_a_file_that_is_cut_off_says_so(changed, tmp_path):
    content = (changed / "model.bin").read_bytes()
    (changed / "model.bin").unlink()
    (changed / "model.bin").write_bytes(content[:1000])
    with pytest.raises(ComponentError, match=r"model\.bin: ends after 1000 bytes, where \d+ are needed"):
        convert(changed, tmp_path)


def test_tokens_that_do_not_agree_are_named_with_their_line(changed, tmp_path):
    words = (changed / "vocabulary.txt").read_text().split("\n")
    (changed / "vocabulary.txt").unlink()
    (changed / "vocabulary.txt").write_text("\n".join([*words[:299], "other", *words[300:]]))
    with pytest.raises(ComponentError, match=r"vocabulary\.txt, line 300: 'other', where tokenizer\.json has 'word43'"):
        convert(changed, tmp_path)


def test_an_option_of_decoding_that_is_not_known_is_named(changed, tmp_path):
    (changed / "config.json").unlink()
    (changed / "config.json").write_text(json.dumps({**CONFIG, "beam_size": 5}))
    with pytest.raises(ComponentError, match=r"config\.json: unknown 'beam_size'"):
        convert(changed, tmp_path)
