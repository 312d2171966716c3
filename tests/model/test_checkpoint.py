"""Saving, loading and exporting: what comes back is what was saved, and what does not fit is named."""

import copy
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import toys
from conftest import noise, nudge
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from usam import (
    ComponentError,
    SpecError,
    UsamConfig,
    UsamForConditionalGeneration,
    UsamProcessor,
    build_model,
    load_spec,
)
from usam.component import is_adapter
from usam.model.checkpoint import export
from usam.processor.feature_extractor import UsamFeatureExtractor
from usam.saving import SavingError

load = UsamForConditionalGeneration.from_pretrained


TOY = {"encoders": {"toy": {}}, "projector": "linear", "llm": "tiny"}
FROZEN = {"type": "tiny", "freeze": "all"}


@pytest.fixture(scope="module")
def toy_file(tmp_path_factory):
    """A source for the toy encoder."""
    file = tmp_path_factory.mktemp("toy") / "model.safetensors"
    save_file(toys.Toy(toys.Toy.Config(type="toy")).state_dict(), file)
    return str(file)


def batch_for(model, seconds=(0.4, 1.3)):
    processor = UsamProcessor.from_spec(model.config.parsed)
    text = ["<|audio|> What do you hear?", "Transcribe <|audio|>"]
    return processor(text=text, audio=[noise(s, i, model.config.parsed.sample_rate) for i, s in enumerate(seconds)])


@torch.no_grad()
def logits(model, batch=None):
    return model.eval()(**(batch or batch_for(model))).logits


def saved_names(folder):
    names = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            names |= set(handle.keys())
    return names


# Save and load


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("llm", "target"), [("llama", "q_proj"), ("qwen3", "q_proj"), ("gpt2", "c_attn")])
def test_a_delta_gives_the_same_logits(llm, target, lora, speech, request, tmp_path):
    options = {"lora": {"target_modules": [target]}} if lora else {}
    spec = {**speech, "llm": {"type": "transformers", "path": request.getfixturevalue(llm), **options}}
    model = nudge(build_model(spec))
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.config.delta
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("tied", [True, False])
def test_a_full_checkpoint_gives_the_same_logits(tied, tmp_path):
    model = build_model({**TOY, "llm": {"type": "tiny", "tie_word_embeddings": tied}})
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert not again.config.delta
    assert torch.equal(logits(again), logits(model))
    assert (again.lm_head.weight is again.get_input_embeddings().weight) is tied


def test_what_a_component_ties_stays_tied(tmp_path):
    model = build_model({**TOY, "encoders": {"toy_tied": {}}})
    model.save_pretrained(tmp_path)
    text, expected = load(tmp_path).model.encoders.toy_tied.text, model.model.encoders.toy_tied.text
    assert text.encoder.embed_tokens.weight is text.shared.weight
    assert torch.equal(text.shared.weight, expected.shared.weight)


def test_buffers_come_back_whether_they_are_saved_or_not(tmp_path):
    model = build_model(TOY)
    model.model.encoders.toy.norm.running_mean.fill_(0.5)
    model.save_pretrained(tmp_path)
    toy = load(tmp_path).model.encoders.toy
    assert torch.equal(toy.norm.running_mean, torch.full((6,), 0.5))
    assert toy.scale == 3
    assert torch.equal(toy.window, torch.hann_window(320))


def test_a_delta_holds_the_batch_statistics_of_what_trains(toy_file, tmp_path):
    model = build_model({**TOY, "encoders": {"toy": {"path": toy_file, "freeze": "none"}}, "llm": FROZEN})
    model.model.encoders.toy.norm.running_mean.fill_(0.5)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).model.encoders.toy.norm.running_mean, torch.full((6,), 0.5))


def test_shards(speech, tmp_path):
    model = nudge(build_model(speech))
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_every_tensor_keeps_its_dtype(speech, tmp_path):
    model = build_model(speech, "llm.dtype=bfloat16")
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert dtypes["model.language_model.norm.weight"] == dtypes["lm_head.weight"] == torch.bfloat16
    assert dtypes["model.projector.stages.0.map.0.weight"] == torch.float32
    assert {dtype for name, dtype in dtypes.items() if is_adapter(name)} == {torch.float32}
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == dtypes
    assert torch.equal(logits(again), logits(model))


def test_what_was_saved_in_half_precision_comes_back_so(speech, tmp_path):
    model = build_model(speech)
    model.model.projector.to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in load(tmp_path).model.projector.parameters()} == {torch.bfloat16}


def test_a_base_stored_in_half_precision_stays_so(speech, llama, tmp_path):
    LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "llm")
    UsamProcessor.from_spec(load_spec(speech)).tokenizer.save_pretrained(tmp_path / "llm")
    model = build_model(speech, f"llm.path={tmp_path / 'llm'}")
    assert model.lm_head.weight.dtype == model.model.language_model.norm.weight.dtype == torch.bfloat16


def test_a_dtype_given_when_loading_wins(speech, tmp_path):
    build_model(speech).save_pretrained(tmp_path)
    for model in (
        load(tmp_path, dtype="bfloat16"),
        load(tmp_path, torch_dtype=torch.bfloat16),
        build_model(speech, dtype=torch.bfloat16),
    ):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert logits(model).isfinite().all()


def test_a_dtype_that_is_none_is_refused(speech):
    with pytest.raises(ValueError, match=r"dtype is 'auto', or one of torch's .* found 'bf16'"):
        build_model(speech, dtype="bf16")


def test_what_is_frozen_is_frozen_again(speech, tmp_path):
    model = build_model(speech)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in model.named_parameters() if is_adapter(name) or "projector" in name} == trains
    model.save_pretrained(tmp_path)
    assert {name for name, parameter in load(tmp_path).named_parameters() if parameter.requires_grad} == trains


# What a delta holds


def test_a_delta_holds_what_trains(speech, tmp_path):
    model = build_model(speech)
    model.save_pretrained(tmp_path)
    assert saved_names(tmp_path) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_delta_holds_what_no_source_gives(speech, tmp_path):
    spec = {**speech, "llm": FROZEN, "losses": {"toy_match": {"freeze": "all"}}}
    model = build_model(spec)
    model.save_pretrained(tmp_path)
    assert saved_names(tmp_path) == {n for n in model.state_dict() if not n.startswith("model.encoders")}
    assert torch.equal(logits(load(tmp_path)), logits(model))


def test_what_the_first_stage_trained_stays_in_the_delta_of_the_second(speech, tmp_path):
    nudge(build_model(speech, "encoders.whisper.freeze=none")).save_pretrained(tmp_path / "1")
    second = nudge(load(tmp_path / "1", "encoders.whisper.freeze=all"))
    assert not any(p.requires_grad for p in second.model.encoders.parameters())
    second.save_pretrained(tmp_path / "2")
    assert saved_names(tmp_path / "2") == saved_names(tmp_path / "1")
    assert torch.equal(logits(load(tmp_path / "2")), logits(second))


def test_a_second_stage_brings_adapters_and_losses(speech, tmp_path):
    first = nudge(build_model(speech, "llm.lora=null", "llm.freeze=[layers.0.*]"))
    first.save_pretrained(tmp_path)
    second = load(tmp_path, "llm.lora={target_modules: [q_proj]}", "llm.freeze=all", "losses.toy_match.weight=0.1")
    assert torch.equal(logits(second), logits(first))
    trains = {name for name, p in second.named_parameters() if p.requires_grad}
    assert trains == {
        n for n, _ in second.named_parameters() if is_adapter(n) or n.startswith(("model.proj", "losses"))
    }


def test_a_delta_of_a_delta_is_the_same(speech, tmp_path):
    nudge(build_model(speech)).save_pretrained(tmp_path / "1")
    load(tmp_path / "1").save_pretrained(tmp_path / "2")
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in "12")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# Export


@pytest.fixture
def without(request, whisper, llama, tmp_path):
    """The spec over copies of its sources, which a test may change or delete."""
    for name, folder in (("whisper", whisper), ("llama", llama)):
        shutil.copytree(folder, tmp_path / name)
    return {
        "encoders": {"whisper": {"path": str(tmp_path / "whisper")}},
        "projector": {"type": "linear", "stack": 5},
        "llm": {"type": "transformers", "path": str(tmp_path / "llama")},
        "losses": {"cross_entropy": {}, "toy_match": {}},
    }


def save_both(model, folder):
    model.save_pretrained(folder)
    UsamProcessor.from_spec(model.config.parsed).save_pretrained(folder)
    return folder


def delete_sources(spec):
    shutil.rmtree(spec["encoders"]["whisper"]["path"])
    shutil.rmtree(spec["llm"]["path"])


def test_an_export_needs_no_source_and_is_bit_equal(without, tmp_path):
    model = nudge(build_model(without))
    batch = batch_for(model)
    export(save_both(model, tmp_path / "model"), tmp_path / "whole")
    delete_sources(without)
    whole = load(tmp_path / "whole")
    assert torch.equal(logits(whole, batch), logits(model, batch))
    assert whole.config.provenance["sources"] == {}
    nodes = [whole.config.spec["llm"], whole.config.spec["encoders"]["whisper"]]
    assert not any({"path", "revision", "tokenizer"} & node.keys() for node in nodes)
    assert UsamProcessor.from_pretrained(tmp_path / "whole").audio_token_id == model.config.audio_token_id


@pytest.mark.parametrize("dora", ["false", "true"])
@pytest.mark.parametrize("part", ["llm", "encoders.whisper"])
def test_an_export_merges_lora(part, dora, without, tmp_path):
    model = nudge(build_model(without, f"{part}.lora={{target_modules: [q_proj, v_proj], use_dora: {dora}}}"))
    batch = batch_for(model)
    export(save_both(model, tmp_path / "model"), tmp_path / "whole")
    delete_sources(without)
    whole = load(tmp_path / "whole")
    assert not any(map(is_adapter, whole.state_dict()))
    torch.testing.assert_close(logits(whole, batch), logits(model, batch), rtol=0, atol=1e-5)


def test_an_export_holds_no_losses(without, tmp_path):
    export(save_both(build_model(without), tmp_path / "model"), tmp_path / "whole")
    assert not any(name.startswith("losses.") for name in saved_names(tmp_path / "whole"))


# The spec in the folder


def test_the_folder_of_a_model_is_a_spec(speech, tmp_path):
    model = build_model(speech)
    model.save_pretrained(tmp_path)
    assert load_spec(tmp_path) == model.config.parsed
    assert build_model(tmp_path).config.parsed == model.config.parsed


def test_the_folder_of_a_model_is_a_base(speech, tmp_path):
    build_model(speech).save_pretrained(tmp_path / "run")
    (tmp_path / "more.yaml").write_text("base: run\nllm: {lora: {r: 2}}\n")
    assert load_spec(tmp_path / "more.yaml").llm.lora.r == 2
    assert load_spec(tmp_path / "more.yaml").llm.lora.target_modules == ["q_proj", "v_proj"]


# Sources


@pytest.mark.parametrize("llm", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("lora", [None, {}, {"use_dora": True}], ids=["plain", "lora", "dora"])
@pytest.mark.parametrize("saved", [True, False], ids=["saved", "built"])
def test_a_new_model_is_its_language_model_bit_for_bit(llm, lora, saved, speech, request, tmp_path):
    path = request.getfixturevalue(llm)
    targets = ["c_attn" if llm == "gpt2" else "q_proj"]
    patch = {} if lora is None else {"llm": {"lora": {**lora, "target_modules": targets}}}
    model = build_model({**speech, "llm": {"type": "transformers", "path": path}}, patch)
    if saved:
        model.save_pretrained(tmp_path)
        model = load(tmp_path)
    batch = UsamProcessor.from_spec(model.config.parsed)(text=["What do you hear?", "A dog"])
    batch.pop("prompt_mask")
    own = batch["attention_mask"].bool()
    positions = (own.cumsum(-1) - 1).clamp_min(0)
    expected = logits(AutoModelForCausalLM.from_pretrained(path), {**batch, "position_ids": positions})
    assert torch.equal(logits(model, batch)[own], expected[own])


def rewrite(folder, change):
    tensors = load_file(f"{folder}/model.safetensors")
    change(tensors)
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})


def test_a_tensor_missing_from_an_encoder_is_named(without):
    rewrite(without["encoders"]["whisper"]["path"], lambda t: t.pop("model.encoder.conv2.bias"))
    with pytest.raises(ComponentError, match=r"missing model\.encoders\.whisper\.encoder\.conv2\.bias"):
        build_model(without)


def test_a_tensor_missing_from_a_language_model_is_named(without):
    rewrite(without["llm"]["path"], lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ComponentError, match=r"llama: .* missing model\.layers\.1\.mlp\.up_proj\.weight"):
        build_model(without)


def test_a_tensor_too_many_in_an_encoder_is_named(without):
    rewrite(without["encoders"]["whisper"]["path"], lambda t: t.update({"model.encoder.extra": torch.ones(3)}))
    with pytest.raises(ComponentError, match=r"unexpected model\.encoders\.whisper\.encoder\.extra"):
        build_model(without)


def test_a_tensor_of_another_shape_is_named_with_both(without):
    rewrite(without["encoders"]["whisper"]["path"], lambda t: t.update({"model.encoder.conv2.bias": torch.ones(3)}))
    with pytest.raises(ComponentError, match=r"conv2\.bias is \(3,\), expected \(16,\)"):
        build_model(without)


def test_a_base_that_changed_is_named_with_file_and_hashes(without, tmp_path):
    build_model(without).save_pretrained(tmp_path / "model")
    rewrite(without["llm"]["path"], lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(
        ComponentError,
        match=r"model\.language_model: the base weights of \S+llama are not those .*: "
        r"model\.safetensors has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}",
    ):
        load(tmp_path / "model")


def test_a_base_that_is_gone_is_named(without, tmp_path):
    build_model(without).save_pretrained(tmp_path / "model")
    delete_sources(without)
    with pytest.raises(ComponentError, match=r"'\S+whisper' is no file or folder here"):
        load(tmp_path / "model")


def test_a_folder_of_another_model_is_told_apart(llama):
    with pytest.raises(ComponentError, match=r"llama\S*: not a model that usam saved"):
        load(llama)


def test_a_delta_that_lost_a_tensor_names_it(speech, tmp_path):
    build_model(speech).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda t: t.pop("model.projector.stages.0.map.0.bias"))
    with pytest.raises(ComponentError, match=r"missing model\.projector\.stages\.0\.map\.0\.bias"):
        load(tmp_path)


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_a_model_whose_plugin_is_missing_says_what_to_install(tmp_path):
    build_model(TOY).save_pretrained(tmp_path)

    def rename(config):
        config["spec"]["encoders"]["toy"]["type"] = "hubert"
        config["provenance"]["components"]["usam.encoders:hubert"] = "usam-hubert 0.2"

    edit(tmp_path / "config.json", rename)
    with pytest.raises(ComponentError, match=r"no component 'hubert'.*saved with usam-hubert 0\.2: pip install usam-h"):
        load(tmp_path)


def test_a_model_of_a_newer_usam_says_upgrade(tmp_path):
    build_model(TOY).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda config: config["spec"].update(usam=2))
    with pytest.raises(SpecError, match=r"version 2.*pip install --upgrade usam"):
        load(tmp_path)


def test_building_a_saved_folder_takes_its_weights(tmp_path):
    model = nudge(build_model("tiny", "llm.dim=16", "llm.heads=2"))
    model.save_pretrained(tmp_path)
    again = build_model(tmp_path, "losses.cross_entropy.weight=0.5")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert again.losses["cross_entropy"].config.weight == 0.5
    assert not torch.equal(build_model(tmp_path, weights=False).lm_head.weight, model.lm_head.weight)


# Structures, and what a spec may be given as


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_a_structure_needs_no_tokenizer_when_the_spec_holds_the_architecture(speech, injection, tmp_path):
    spec = load_spec(speech, f"llm.injection={injection}")
    with torch.device("meta"):
        whole = build_model(spec, weights=False)
    nowhere = copy.deepcopy(UsamConfig.from_spec(spec).spec)  # with every architecture
    nowhere["llm"]["path"] = nowhere["encoders"]["whisper"]["path"] = "nobody/nothing"  # no folder; a hub is not asked
    code = f"""
import json, torch, usam
def refuse(*args, **kwargs):
    raise AssertionError("a network was asked")
import socket
socket.socket.connect = socket.getaddrinfo = refuse
with torch.device("meta"):
    model = usam.build_model(json.loads({json.dumps(nowhere)!r}), weights=False)
assert {{t.device.type for t in model.state_dict().values()}} == {{"meta"}}
print(json.dumps({{name: list(p.shape) for name, p in model.named_parameters()}}))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: list(p.shape) for name, p in whole.named_parameters()}


@pytest.mark.parametrize("name", ["paper", "salmonn", "whisper_beats_mert"])
def test_a_published_structure_is_built_offline(name):
    with torch.device("meta"):
        model = build_model(name, weights=False)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_spec_may_be_a_name_a_file_a_folder_a_dict_a_text_or_a_spec(tmp_path, monkeypatch):
    model = build_model("tiny", "llm.dim=16", "llm.heads=2")
    model.save_pretrained(tmp_path / "saved")
    tree = model.config.parsed.to_dict()
    (tmp_path / "mine.yaml").write_text(model.config.parsed.to_yaml())
    monkeypatch.chdir(tmp_path)
    for given in ["mine.yaml", Path("mine.yaml"), "saved", tree, json.dumps(tree), model.config.parsed]:
        patch = "projector.0.stack=5"
        assert load_spec(given, patch).projector[0].stack == 5
        assert build_model(given, patch, weights=False).config.parsed.projector[0].stack == 5
        assert UsamConfig.from_spec(given, patch).parsed.projector[0].stack == 5
        one_second = UsamProcessor.from_spec(given, patch).feature_extractor.placeholders(16000)
        assert one_second == load_spec(given, patch).audio_tokens(16000)
    assert UsamProcessor.from_spec("tiny").audio_token_id == UsamProcessor.from_spec(load_spec("tiny")).audio_token_id


def test_a_spec_given_as_text_names_its_fault():
    with pytest.raises(SpecError, match="the spec given as text:1: encoders"):
        load_spec("{encoders: {whisper: {pth: x}}, projector: [linear], llm: tiny}")


# What is saved is whole


def files(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@contextmanager
def room_for(size):
    """A disk on which no file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 500, 5000])
def test_a_full_disk_leaves_the_model_that_was_there(size, speech, tmp_path):
    folder = save_both(build_model(speech), tmp_path / "m")
    before = files(folder)
    model = nudge(load(folder))
    with room_for(size), pytest.raises(SavingError, match=rf"{folder}: could not be saved: .*is as it was"):
        model.save_pretrained(folder)
    assert files(folder) == before
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("size", [0, 500])
def test_a_full_disk_leaves_the_processor_and_the_config_that_were_there(size, speech, tmp_path):
    folder = save_both(build_model(speech), tmp_path / "m")
    before = files(folder)
    for thing in (UsamProcessor, UsamConfig, UsamFeatureExtractor):
        loaded = thing.from_pretrained(folder)
        with room_for(size), pytest.raises(SavingError, match="could not be saved"):
            loaded.save_pretrained(folder)
    assert files(folder) == before


def test_a_full_disk_leaves_the_export_that_was_there(without, tmp_path):
    model, whole = save_both(build_model(without), tmp_path / "m"), tmp_path / "whole"
    export(model, whole)
    before = files(whole)
    with room_for(2000), pytest.raises(SavingError):
        export(model, whole)
    assert files(whole) == before


def test_a_save_keeps_what_else_is_in_the_folder(speech, tmp_path):
    folder = save_both(build_model(speech), tmp_path / "m")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    build_model(speech).save_pretrained(folder)
    assert (folder / "notes" / "a.txt").read_text() == "mine"
    assert (folder / "tokenizer.json").is_file()


def test_a_save_leaves_no_shard_of_the_save_before(speech, tmp_path):
    first, second = (nudge(build_model(speech), seed) for seed in (1, 2))
    first.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    second.save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(logits(load(tmp_path)), logits(second))


def test_a_model_is_not_exported_over_itself(speech, tmp_path):
    folder = save_both(build_model(speech), tmp_path / "m")
    before = files(folder)
    (tmp_path / "link").symlink_to(folder)
    for same in (folder, tmp_path / "link"):
        with pytest.raises(SpecError, match="is the model to export, which would be overwritten"):
            export(folder, same)
    assert files(folder) == before


def test_a_model_is_not_saved_over_its_sources(speech, llama, tmp_path):
    folder = save_both(build_model(speech), tmp_path / "m")
    with pytest.raises(SpecError, match=r"holds the weights that 'model.language_model' is built from"):
        load(folder).save_pretrained(llama)
    with pytest.raises(SpecError, match="is built from; name another folder"):
        export(folder, llama)


def test_temperatures_that_were_saved_as_scalars_load(tmp_path):
    model = build_model({**TOY, "losses": {"info_nce": {}, "sigmoid_contrastive": {"bias": -3.0}}})
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    scalars = {name: tensor[0] for name, tensor in saved.items() if name.endswith(("log_scale", "contrastive.bias"))}
    assert len(scalars) == 3
    save_file({**saved, **scalars}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path).losses["sigmoid_contrastive"].bias.tolist() == [-3.0]
