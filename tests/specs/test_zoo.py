"""The model zoo: its numbers are the published ones or say why not, and every ablation takes away what it names."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import noise

from usam import UsamProcessor, build_model, load_spec
from usam.cli.show import show
from usam.model.summary import difference, heading
from usam.spec.spec import SPECS, read

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import zoo  # noqa: E402

PAPER = ["paper", *zoo.ABLATIONS]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sizes():
    return {name: zoo.size(name) for name in [*zoo.MODELS, *zoo.ABLATIONS]}


# The page


def test_the_page_is_what_the_script_writes(sizes):
    assert zoo.written(zoo.PAGE.read_text(encoding="utf-8"), sizes) == zoo.PAGE.read_text(encoding="utf-8")
    recorded = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text(encoding="utf-8"))
    assert recorded["raw"] == {name: vars(size) for name, size in sizes.items()}


def test_every_published_model_is_on_the_page():
    ours = {"tiny", "mini_paper", "whisper_beats", "whisper_beats_mert", "whisper_ced_mert"}  # combinations of our own
    bundled = {file.stem for file in SPECS.glob("*.yaml")} - ours
    assert bundled == set(zoo.MODELS)
    assert {file.stem for file in (SPECS / "ablations").glob("*.yaml")} == set(zoo.ABLATIONS)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_file_begins_with_its_source_and_what_differs(name):
    said = heading(name)
    ours = ("paper_beats", "paper_sparse")
    assert zoo.MODELS[name].arxiv in said or name in ours
    assert "Differs:" in said or name in ours


def test_a_file_without_a_comment_says_nothing(tmp_path):
    (tmp_path / "own.yaml").write_text("base: tiny\n# Of the projector.\nprojector: {0: {stack: 5}}\n")
    assert heading(str(tmp_path / "own.yaml")) == ""


@pytest.mark.parametrize("name", [name for name in zoo.MODELS if load_spec(name).template != "auto"])
def test_a_template_of_a_model_places_the_audio_and_supervises_the_answer_alone(name):
    processor = UsamProcessor.from_spec(load_spec(name, {"llm": {"type": "tiny"}}))
    question = [{"type": "audio", "audio": noise(1.0)}, {"type": "text", "text": "What is said?"}]
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": "Good day."}]
    batch = processor.apply_chat_template(chat, tokenize=True, return_labels=True)
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).strip() == "Good day."
    text = processor.tokenizer.decode(batch["input_ids"][0][batch["input_ids"][0] < 256])
    assert text.startswith("USER:")
    assert "What is said?" in text


def test_the_example_on_the_page_is_a_patch(tmp_path):
    (tmp_path / "own.yaml").write_text(re.search(r"```yaml\n(.*?)```", zoo.PAGE.read_text(), re.DOTALL)[1])
    tree, _ = read(tmp_path / "own.yaml")
    assert tree["llm"]["path"] == "Qwen/Qwen3-8B"
    assert tree["llm"]["lora"] == read("salmonn")[0]["llm"]["lora"]
    assert "arch" not in tree["llm"]


# The numbers


def test_the_paper_trains_41_million_parameters(sizes):
    assert sizes["paper"].trainable == pytest.approx(41e6, rel=0.02)


def test_showing_the_paper_prints_its_total_and_says_how_41_million_is_read(sizes, capsys):
    show("paper")
    out = capsys.readouterr().out
    rows = [line.split() for line in out[out.index("\npart ") :].splitlines() if line.endswith(tuple("0123456789"))]
    shown = {row[0]: int(row[-1].replace(",", "")) for row in rows}
    assert shown["total"] == sizes["paper"].trainable
    stated = {float(n) for n in re.findall(r"\b([\d.]+)M\b", heading("paper"))}
    parts = ("projector.0", "losses.semantic_contrastive", "total")
    assert {round(shown[part] / 1e6, 2) for part in parts} <= stated
    assert "41M" in out
    assert "0.39 %" in out


def test_salmonn_trains_its_33_million_less_the_maps_that_never_learn(sizes):
    # By the paper's parts: Q-Former over 1280 + 768, LoRA of rank 8 on 40 layers, the linear map, two layer norms.
    attention, width = 4 * (768 * 768 + 768) + 1536, 1280 + 768
    cross = 2 * (768 * 768 + 768) + 2 * (width * 768 + 768) + 1536
    forward = 768 * 3072 + 3072 + 3072 * 768 + 768 + 1536
    published = 2 * (attention + cross + forward) + 1536 + 768
    published += 40 * 2 * 8 * (5120 + 5120) + (768 * 5120 + 5120) + 2 * width
    assert published == pytest.approx(33e6, rel=0.011)
    assert sizes["salmonn"].trainable == published - zoo.DEAD


def test_slam_asr_trains_its_18_9_million(sizes):
    assert sizes["slam_asr"].trainable == (5 * 1024 * 2048 + 2048) + (2048 * 4096 + 4096) == 18_880_512


def test_audio_flamingo_trains_what_the_original_does_and_the_named_difference(sizes):
    attention = 2 * 2048 + 2048 * 512 + 1024 * 1024 + 512 * 2048 + 1
    block = attention + 2 * 2048 + 2 * 2048 * 4 * 2048 + 1
    layer = 4 * 1024 * 1024 + 2048 + (2 * 1024 * 2048 + 2048 + 1024) + 2048
    original = 24 * block + 3 * layer + 2048
    assert original == pytest.approx(906e6, rel=1e-3)
    wider = 24 * (1024 * 1024 + 2 * 2048)  # keys and values of frames of 2048, and their norm
    assert sizes["audio_flamingo"].trainable - original - wider == pytest.approx(7e6, rel=0.05)


@pytest.mark.parametrize(
    ("name", "rate"), [("salmonn", 50 / 17), ("slam_asr", 10), ("qwen2_audio", 25), ("paper", 25 / 17)]
)
def test_tokens_a_second_are_the_published_ones(sizes, name, rate):
    assert sizes[name].rate == pytest.approx(rate)


# The ablations


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("no_whisper", {"encoders.whisper"}),
        ("no_ced", {"encoders.ced"}),
        ("no_mert", {"encoders.mert"}),
        ("no_moe", {"projector.1"}),
        ("no_contrastive", {"losses.semantic_contrastive"}),
        ("no_moe_no_contrastive", {"projector.1", "losses.semantic_contrastive"}),
        ("paper_beats", {"encoders.ced", "encoders.beats"}),
    ],
)
def test_an_ablation_changes_what_it_names_and_nothing_else(name, keys):
    lines = difference(load_spec("paper"), load_spec(name))
    assert {".".join(line[2:].split(".")[:2]) for line in lines} == keys
    if not name.startswith(("no_moe", "paper")):
        assert all(line.startswith("- ") for line in lines)


def test_without_the_experts_one_linear_map_has_their_widths():
    maps = [load_spec(name).projector[1].type for name in ("paper", "no_moe", "no_moe_no_contrastive")]
    assert maps == ["moe", "linear", "linear"]


TINY_ENCODERS = {
    "whisper": {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
                "max_source_positions": 50},
    "ced": {"embed_dim": 16, "depth": 1, "num_heads": 2},
    "mert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}  # fmt: skip


def shrink(name):
    """A spec of the zoo with narrow parts and without checkpoints."""
    spec = load_spec(name)
    small = {"encoders": {e: {"path": None, "arch": TINY_ENCODERS[e]} for e in spec.encoders}}
    small["projector"] = {"0": {"dim": 16, "heads": 2, "intermediate": 32}}
    if spec.projector[1].type == "moe":
        small["projector"]["1"] = {"hidden": 16, "router_hidden": 8}
    if "semantic_contrastive" in spec.losses:
        small["losses"] = {"semantic_contrastive": {"hidden": 8}}
    lora = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
    small["llm"] = {"type": "tiny", "dim": 32, "layers": 1, "heads": 2, "freeze": "all", "lora": lora}
    return load_spec(name, small)


def part_of(key):
    return re.match(r"model\.(?:encoders|projector\.stages)\.\w+|model\.\w+|losses\.\w+", key)[0]


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_and_each_ablation_learn_on_narrow_parts(name):
    torch.manual_seed(0)
    spec = shrink(name)
    model, processor = build_model(spec), UsamProcessor.from_spec(spec)
    answers = ["a dog", "two cats", "rain", "a choir"]
    chats = [
        [
            {"role": "user", "content": [{"type": "audio", "audio": noise(1.5, i)}, {"type": "text", "text": prompt}]},
            {"role": "assistant", "content": answers[i]},
        ]
        for i, prompt in enumerate(spec.prompts.values())
    ]
    batch = dict(processor.apply_chat_template(chats, tokenize=True, return_labels=True))
    trains = {key: p for key, p in model.named_parameters() if p.requires_grad}
    before = {key: p.detach().clone() for key, p in trains.items()}
    optimizer = torch.optim.Adam(trains.values(), lr=3e-3)
    start = model.eval()(**batch).loss.item()
    model.train()
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch).loss
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
    assert model.eval()(**batch).loss.item() < start
    moved = {part_of(key) for key, p in trains.items() if not p.equal(before[key])}
    assert moved == {part_of(key) for key in trains}
