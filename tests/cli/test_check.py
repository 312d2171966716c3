"""`usam check` tries what training does, in small: what it calls sound trains, and the rest is refused by its key."""

import json

import pytest
import soundfile
from conftest import make_tokenizer, noise

from usam import ComponentError, SpecError, load_spec
from usam.cli import check as command
from usam.data.manifest import ManifestError
from usam.data.trial import try_spec
from usam.spec.spec import SPECS

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
LLAMA |= {"num_attention_heads": 2, "vocab_size": 320, "max_position_embeddings": 64}


def fault(*overrides, spec="tiny"):
    with pytest.raises((SpecError, ComponentError)) as caught:
        try_spec(load_spec(spec, *overrides))
    return str(caught.value)


def check(*arguments, **options):
    command.check(*map(str, arguments), **options)


@pytest.fixture
def tokenizer(tmp_path):
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize(
    "spec",
    [
        ("tiny",),
        ("mini_paper",),
        ("tiny", "llm.injection=cross_attention"),
        ("tiny", "projector={type: pool, freeze: all}", "llm.freeze=['embed*', 'layers*', norm*]"),  # but for the head
        ("tiny", "projector=[{type: moe, hidden: 8, router_hidden: 8}]", "losses.load_balance={weight: 0.1}"),
    ],
)
def test_what_trains_is_sound(spec):
    assert try_spec(load_spec(*spec)).sound


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in SPECS.rglob("*.yaml")))
def test_no_fault_is_found_in_a_bundled_spec(name):
    try_spec(load_spec(name))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["llm.heads=3"], r"llm: 'tiny' cannot be built from llm.heads"),
        (["template=abc"], r"template 'abc': write {prompt}, {audio}, {answer} exactly once, or 'auto'"),
        (["prompts.asr=<|audio|>"], "prompts.asr: 2 placeholders for 1 clips"),
        (["losses.load_balance={}"], "load_balance needs a `moe` projector"),
        (["losses.cross_entropy.weight=0"], "losses: nothing is learned without a loss (cross_entropy has weight 0)"),
        (["losses={cross_entropy: null}"], "losses: nothing is learned without a loss (there is none)"),
        (["losses.cross_entropy.weight=1e39"], "losses: their weighted sum is inf at the start; write smaller weights"),
        (
            ["llm.freeze=all", "projector.0.freeze=all", "encoders.whisper.freeze=all"],
            "nothing would train: every part is frozen",
        ),
        (
            ["encoders.whisper={type: mert, arch: {hiden_size: 16}}"],
            "encoders.whisper.arch.hiden_size: a hubert has no such option; did you mean 'hidden_size'?",
        ),
        (
            ["encoders.whisper.arch.d_modle=64"],
            "encoders.whisper.arch.d_modle: a whisper has no such option; did you mean 'd_model'?",
        ),
        (["encoders.whisper.path=/no/such/folder"], "encoders.whisper: '/no/such/folder' is no file or folder here"),
        (
            ["llm={type: transformers, path: /no/such/folder}"],
            "llm: no config of a language model at '/no/such/folder'",
        ),
        (
            ["projector=[{type: window_qformer, window: 0.02, queries: 4096, dim: 8, heads: 2}]"],
            "projector: a second of audio becomes 204,800 tokens, and the language model has 32,768 positions",
        ),
    ],
)
def test_what_does_not_train_is_refused_by_its_key(overrides, message):
    assert message in fault(*overrides)


def test_a_language_model_without_a_tokenizer():
    assert "llm: give 'tokenizer' (hub id or folder)" in fault({"llm": {"type": "transformers", "arch": LLAMA}})


def test_a_tokenizer_with_more_words_than_the_table(tokenizer):
    spec = {
        "llm": {"type": "transformers", "arch": {**LLAMA, "vocab_size": 99}, "tokenizer": tokenizer, "freeze": "none"}
    }
    assert "the spec builds a model that cannot be trained (at the start): IndexError" in fault(spec)


def test_a_loss_that_is_not_finite_is_named():
    spec = "losses={cross_entropy: null, info_nce: {type: sigmoid_contrastive, temperature: 1.0e-300}}"
    assert "losses.info_nce: it is inf at the start" in fault(spec, "llm.freeze=all")


def test_a_model_too_large_for_the_bound_is_built_and_not_called_sound(capsys):
    check("tiny", memory=0.001)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "tiny: no fault was found; not tried here:"
    assert "  a training step, which takes some" in said[1]


def test_weights_of_the_hub_are_not_fetched():
    trial = try_spec(load_spec("tiny", "encoders.whisper.path=some-one/whisper"))
    assert trial.not_tried == ["weights that would come from the hub: some-one/whisper"]


def rows(folder, *found):
    soundfile.write(folder / "a.wav", noise(1.0), 16000)
    (folder / "d.jsonl").write_text("\n".join(json.dumps(row) for row in found))
    return folder / "d.jsonl"


def test_all_of_the_data_is_read(tmp_path, capsys):
    good = {"audio": "a.wav", "task": "asr", "answer": "seven"}
    check("tiny", rows(tmp_path, good, good, {**good, "answer": "eight"}))
    out = capsys.readouterr().out
    assert "d.jsonl: 3 rows, 3 with an answer to learn from" in out
    assert out.count("[[seven<|end|>]]") == 2


def test_every_row_that_cannot_be_used_is_told(tmp_path):
    good = {"audio": "a.wav", "task": "asr", "answer": "seven"}
    data = rows(tmp_path, good, *[{**good, "audio": f"{i}.wav"} for i in range(30)])
    with pytest.raises(ManifestError) as caught:
        check("tiny", data)
    said = str(caught.value).splitlines()
    assert said[0] == f"{data}: 30 of 31 rows cannot be used"
    assert said[1].startswith(f"{data}:2: ")
    assert said[-1] == "... and 10 more"


def test_a_row_longer_than_the_language_model(tmp_path, tokenizer):
    spec = load_spec("tiny", {"llm": {"type": "transformers", "arch": LLAMA, "tokenizer": tokenizer, "freeze": "none"}})
    (tmp_path / "spec.yaml").write_text(spec.to_yaml())
    data = rows(tmp_path, {"audio": "a.wav", "prompt": "?", "answer": "seven " * 50})
    with pytest.raises(ManifestError, match=r"d\.jsonl:1: \d+ tokens, and the language model has 64 positions"):
        check(tmp_path / "spec.yaml", data)
