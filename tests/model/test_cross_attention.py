"""Cross-attention: closed gates leave the language model as it is; open ones let every word hear its clips."""

import copy
import threading

import pytest
import torch
import toys  # noqa: F401
from conftest import needs_transformers, noise, nudge
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig
from transformers.generation import CompileConfig

from usam import ComponentError, SpecError, UsamForConditionalGeneration, UsamProcessor, build_model, load_spec
from usam.model.assembly import NOT_QUANTISED, outline
from usam.model.checkpoint import export
from usam.model.cross_attention import CrossAttention, GatedBlock, decoder_layers, memory_of
from usam.model.splice import beside
from usam.model.summary import table, tokens_line
from usam.testing import llm_promises
from usam.training.groups import grouped
from usam.types import Frames, prefix_mask
from usam.versions.compat import CACHE

INJECTION = {"type": "cross_attention", "heads": 2, "head_dim": 8, "feed_forward": 2}
ARCH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
PROMISES = {
    "tiny": llm_promises("tiny", dim=32, injection="cross_attention"),
    "llama": llm_promises("transformers", arch={"model_type": "llama", **ARCH}, injection={**INJECTION, "every": 2}),
    "gpt2": llm_promises("transformers", arch={"model_type": "gpt2", **ARCH}, injection={**INJECTION, "clips": "last"}),
}
CASES = [pytest.param(promise, id=f"{name}-{promise}") for name, promises in PROMISES.items() for promise in promises]


@pytest.mark.parametrize("promise", CASES)
def test_a_language_model_with_cross_attention_keeps_its_promises(promise):
    promise()


# The option


def tiny(*overrides):
    return load_spec("tiny", "llm.dim=32", *overrides)


@pytest.mark.parametrize("written", ["cross_attention", "{type: cross_attention}", "{every: 1}"])
def test_a_bare_name_and_a_map_say_the_same(written):
    assert tiny(f"llm.injection={written}") == tiny("llm.injection={type: cross_attention, every: 1}")


@pytest.mark.parametrize("written", ["prefix", "{type: prefix}"])
def test_prefix_is_the_default_and_is_not_written_down(written):
    assert tiny(f"llm.injection={written}") == tiny()
    assert "injection" not in tiny().to_yaml()


def test_an_option_is_laid_over_a_bare_name():
    spec = tiny("llm.injection=cross_attention", "llm.injection.every=2")
    assert (spec.llm.injection.type, spec.llm.injection.every) == ("cross_attention", 2)


@pytest.mark.parametrize("written", ["prefix", "{type: prefix}"])
def test_another_way_starts_afresh(written):
    assert tiny("llm.injection={every: 2}", f"llm.injection={written}").llm.injection is None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("perceiver", r"llm\.injection: .*no such way for the audio into a language model; known: cross_attention"),
        ("cross_atention", "did you mean 'cross_attention'"),
        ("{evry: 2}", r"llm\.injection\.evry: .*did you mean 'every'"),
        ("{type: prefix, every: 2}", "'prefix' has no options"),
        ("{every: 0}", "greater than or equal to 1; found 0"),
        ("{lora: {r: 8}}", "should be None"),
    ],
)
def test_a_wrong_option_is_named(written, message):
    with pytest.raises(SpecError, match=message):
        tiny(f"llm.injection={written}")


def test_too_few_layers_are_an_error():
    with pytest.raises(ComponentError, match="'every' is 3, but the language model has 2 decoder layers"):
        build_model(tiny("llm.injection.every=3"))


def test_layers_that_cannot_be_found_are_an_error():
    class Backbone(torch.nn.Module):
        config = LlamaConfig(num_hidden_layers=2)

        def __init__(self, *sizes):
            super().__init__()
            for i, size in enumerate(sizes):
                setattr(self, f"part{i}", torch.nn.ModuleList(torch.nn.Identity() for _ in range(size)))

        def forward(self, x, past_key_values=None):
            return x

    with pytest.raises(ComponentError, match=r"2 decoder layers of Backbone.*found part0 \(3\)\. Use 'injection: pre"):
        decoder_layers(Backbone(3))
    with pytest.raises(ComponentError, match=r"found part0 \(2\), part1 \(2\)"):
        decoder_layers(Backbone(2, 2))
    assert len(decoder_layers(Backbone(2, 3))) == 2


def test_a_language_model_without_a_cache_is_an_error():
    arch = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 99}
    with pytest.raises(ComponentError, match="a cache of keys and values, which MambaModel does not take"):
        build_model({**tiny().to_dict(), "llm": {"type": "transformers", "arch": arch, "injection": INJECTION}})


# One placeholder a clip


def test_a_clip_has_one_placeholder_however_long():
    spec = tiny("llm.injection=cross_attention")
    assert (spec.audio_tokens(16000), spec.placeholders(16000)) == (13, 1)
    assert spec.placeholders(torch.tensor([1, 99999])).tolist() == [1, 1]
    assert tiny().placeholders(16000) == 13


def test_the_processor_writes_it():
    spec = tiny("llm.injection=cross_attention")
    processor = UsamProcessor.from_spec(spec)
    batch = processor(text="a<|audio|>b<|audio|>", audio=[noise(3), noise(0.1)])
    assert (batch["input_ids"] == processor.audio_token_id).tolist() == [[False, True, False, True]]
    assert processor.replace_audio_token({"input_values_mask": batch["input_values_mask"]}, 0) == "<|audio|>"


def test_each_frame_stands_at_the_placeholder_of_its_clip():
    slots = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
    mask = prefix_mask(torch.tensor([1, 3, 2]), 3)
    x = torch.arange(9.0).view(3, 3, 1)
    joined, columns = beside(slots, Frames(x, mask, 1.0))
    assert joined.lengths.tolist() == [4, 0, 2]
    assert joined.x.squeeze(-1).tolist() == [[0, 3, 4, 5], [0, 0, 0, 0], [6, 7, 0, 0]]
    assert columns[joined.mask].tolist() == [1, 3, 3, 3, 2, 2]


# What a token hears


@pytest.fixture(scope="module")
def spec(whisper, llama):
    llm = {"type": "transformers", "path": llama, "injection": INJECTION}
    return {"encoders": {"whisper": {"path": whisper}}, "projector": {"type": "linear", "stack": 5}, "llm": llm}


def opened(spec, *overrides):
    """The model with gates as open as if they had been trained."""
    torch.manual_seed(0)
    model = build_model(spec, *overrides)
    with torch.no_grad():
        for name, parameter in model.model.cross_attention.named_parameters():
            parameter.add_(1.0 if "gate" in name else torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def model(spec):
    return opened(spec)


@pytest.fixture(scope="module")
def processor(model):
    return UsamProcessor.from_spec(model.config.parsed)


QUESTIONS = {
    "one": ("<|audio|> What do you hear?", [0.7]),
    "last": ("Transcribe this: <|audio|>", [0.05]),
    "long": ("<|audio|> Transcribe this audio in English.", [3.5]),
    "several": ("First <|audio|> then <|audio|><|audio|> which is a dog?", [0.3, 1.1, 0.02]),
    "none": ("What is a dog?", []),
}


def ask(processor, *names):
    text = [QUESTIONS[name][0] for name in names]
    clips = [noise(s, 7 * i) for name in names for i, s in enumerate(QUESTIONS[name][1])]
    return processor(text=text, audio=clips or None)


@torch.no_grad()
def logits(model, batch, **options):
    return model(**batch, **options).logits


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_closed_gates_leave_the_language_model_as_it_is(spec, llama, processor):
    model = build_model(spec)
    batch = ask(processor, "several", "one", "none")
    alone = AutoModelForCausalLM.from_pretrained(llama)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    embeds, mask = model.model.embed(batch["input_ids"]), batch["attention_mask"]
    with torch.no_grad():
        expected = alone(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
    assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize("order", [["one", "several", "none", "last"], ["none", "last", "several", "long", "one"]])
def test_answers_do_not_depend_on_their_company(order, model, processor):
    together = logits(model, ask(processor, *order))[:, -1]
    close(together, torch.cat([logits(model, ask(processor, name))[:, -1] for name in order]))


def test_every_token_after_a_clip_hears_it_and_none_before(model, processor):
    batch = ask(processor, "several")
    columns = (batch["input_ids"][0] == processor.audio_token_id).nonzero().squeeze(-1)
    for clip, column in enumerate(columns):
        values = batch["input_values"].clone()
        values[clip] *= -0.5
        moved = (logits(model, {**batch, "input_values": values}) - logits(model, batch))[0].abs().amax(-1)
        assert (moved[:column] == 0).all()
        assert (moved[column:] > 1e-4).all()


def test_another_samples_audio_is_never_heard(model, processor):
    batch = ask(processor, "one", "none", "last")
    values = batch["input_values"].clone()
    values[0] *= -0.5
    found, before = logits(model, {**batch, "input_values": values}), logits(model, batch)
    assert torch.equal(found[1:], before[1:])
    assert not torch.equal(found[0], before[0])


def test_the_last_clip_alone_may_be_heard(spec, processor):
    model = opened(spec, "llm.injection.clips=last")
    blocks = model.model.cross_attention
    frames = Frames(torch.zeros(1, 4, 32), torch.ones(1, 4, dtype=torch.bool), 1.0)
    mask = blocks.listen(frames, torch.tensor([[1, 1, 3, 3]]), None, 5).mask
    rows = [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert mask.int().tolist() == [[rows]]
    batch = ask(processor, "several", "none")
    close(logits(model, batch)[0, -1], logits(model, ask(processor, "several"))[0, -1])


def test_padding_is_not_heard():
    torch.manual_seed(0)
    config = CrossAttention.Config(heads=2, head_dim=4)
    blocks = CrossAttention(config, dim=8, audio_dim=6, layers=[torch.nn.Identity()]).double()
    torch.nn.init.ones_(blocks.blocks[0].attention_gate)
    torch.nn.init.ones_(blocks.blocks[0].feed_forward_gate)
    x, audio = torch.randn(1, 3, 8).double(), torch.randn(1, 4, 6).double()
    alone = blocks.listen(Frames(audio, prefix_mask(torch.tensor([4]), 4), 1.0), torch.ones(1, 4).long(), None, 3)
    longer = torch.cat([audio, 1e3 * torch.randn(1, 3, 6).double()], 1)
    padded = blocks.listen(Frames(longer, prefix_mask(torch.tensor([4]), 7), 1.0), torch.ones(1, 7).long(), None, 3)
    found, expected = blocks.hear(0, x, padded), blocks.hear(0, x, alone)
    close(found, expected, 1e-12)
    assert torch.equal(found[:, 0], x[:, 0])
    assert not torch.equal(found[:, 1], x[:, 1])


def test_nothing_of_one_forward_is_heard_in_the_next(model, processor, llama):
    text = ask(processor, "none")
    alone = logits(AutoModelForCausalLM.from_pretrained(llama), {k: text[k] for k in ("input_ids", "attention_mask")})
    logits(model, ask(processor, "one"))
    assert torch.equal(logits(model, text), alone)
    with pytest.raises(RuntimeError):
        model(**ask(processor, "one"), position_ids=torch.zeros(3, 5, 7))
    assert torch.equal(logits(model, text), alone)


def test_what_is_heard_in_one_thread_is_not_heard_in_another(model, processor):
    batch, text = ask(processor, "one"), ask(processor, "none")
    alone, found = logits(model, text), []
    other = threading.Thread(target=lambda: found.append(logits(model, text)))

    def meanwhile(*_):
        handle.remove()
        other.start()
        other.join()

    handle = model.model.language_model.layers[0].register_forward_hook(meanwhile)
    logits(model, batch)
    assert torch.equal(found[0], alone)


def test_the_losses_get_the_projected_frames(model, processor):
    batch = ask(processor, "several", "none", "one")
    with torch.no_grad():
        heard = model.model(**batch).audio
        clips = model.get_audio_features(batch["input_values"], batch["input_values_mask"]).pooler_output
    assert heard.lengths.tolist() == [3 + 11 + 1, 0, 7]
    torch.testing.assert_close(heard.x[heard.mask], clips)


def test_a_projector_hears_the_prompt_of_its_sample(spec):
    gated = build_model({**spec, "projector": "toy_gate"})
    batch = ask(UsamProcessor.from_spec(gated.config.parsed), "several", "none", "one")
    aux = gated(**batch).aux["0.gate"]
    for i, row in enumerate([0, 0, 0, 2]):
        words = gated.get_input_embeddings()(batch["input_ids"][row][batch["prompt_mask"][row]])
        torch.testing.assert_close(aux[i], gated.model.projector.stages[0].gate(words.mean(0)))


def test_a_clip_without_a_placeholder_is_an_error(model, processor):
    batch = ask(processor, "one", "none")
    with pytest.raises(ValueError, match=r"1 audio placeholders for 2 audio clips: .* the 2 rows \[1, 0\]"):
        model(**{**batch, "input_values": batch["input_values"].repeat(2, 1), "input_values_mask": None})


def test_embeddings_do_not_say_where_the_clips_stand(model, processor):
    batch = ask(processor, "one")
    embeds = model.model.embed(batch.pop("input_ids"))
    with pytest.raises(ValueError, match="do not say where the clips stand: give input_ids"):
        model(**batch, inputs_embeds=embeds)


# The cache remembers


def cut(batch, start, stop, *, clips=slice(0), **more):
    """Some columns of a batch, and some of its clips."""
    ids, mask = batch["input_ids"][:, start:stop], batch["attention_mask"][:, :stop]
    audio = {name: batch[name][clips] for name in ("input_values", "input_values_mask")}
    return {"input_ids": ids, "attention_mask": mask, **(audio if len(audio["input_values"]) else {}), **more}


@pytest.fixture
def whole(model, processor):
    """Two samples of two clips each, of different lengths; their columns of the second clip are the same."""
    text = ["One <|audio|> and this<|audio|> too", "Two<|audio|> and that<|audio|> too"]
    return processor(text=text, audio=[noise(s, i) for i, s in enumerate([0.3, 1.1, 0.8, 0.2])])


@torch.no_grad()
def test_the_cache_is_handed_back_token_by_token(model, whole):
    expected, cache, found = logits(model, whole), None, []
    first = int((whole["input_ids"] == model.config.audio_token_id).nonzero()[-1, 1]) + 1
    out = model(**cut(whole, 0, first, clips=slice(None)), use_cache=True)
    found, cache = [out.logits], out.get(CACHE)
    for i in range(first, whole["input_ids"].shape[1]):
        out = model(**cut(whole, i, i + 1, cache=cache))
        found.append(out.logits)
    close(torch.cat(found, 1)[:, -4:], expected[:, -4:])


@torch.no_grad()
def test_a_later_turn_brings_its_own_clips(model, whole):
    expected = logits(model, whole)
    second = int((whole["input_ids"] == model.config.audio_token_id).nonzero()[-1, 1])
    cache = DynamicCache()  # which makes its layers when they first run
    model(**cut(whole, 0, second, clips=[0, 2], cache=cache))
    found = model(**cut(whole, second, None, clips=[1, 3], cache=cache)).logits
    close(found, expected[:, second:])


@torch.no_grad()
def test_a_clip_that_was_cropped_away_is_not_heard(model, whole):
    second = int((whole["input_ids"] == model.config.audio_token_id).nonzero()[-1, 1])
    cache = model(**cut(whole, 0, second, clips=[0, 2]), use_cache=True).get(CACHE)
    model(**cut(whole, second, None, clips=[1, 3], cache=cache))
    cache.crop(second - whole["input_ids"].shape[1])
    words = torch.full((2, 3), 7)
    found = model(input_ids=words, cache=cache).logits
    without = {**whole, "input_ids": torch.cat([whole["input_ids"][:, :second], words], 1)}
    without["attention_mask"] = torch.ones_like(without["input_ids"])
    close(found, logits(model, cut(without, 0, None, clips=[0, 2]))[:, second:])


@torch.no_grad()
def test_samples_of_a_cache_are_chosen_and_copied(model, whole):
    end = whole["input_ids"].shape[1]
    cache = model(**cut(whole, 0, end - 1, clips=slice(None)), use_cache=True).get(CACHE)
    expected = logits(model, whole)[:, -1]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    cache = copy.deepcopy(cache)
    cache.reorder_cache(torch.tensor([1, 0, 1]))
    batch = {name: x[[0, 1, 0]] for name, x in whole.items() if name in ("input_ids", "attention_mask")}
    found = model(input_ids=batch["input_ids"][:, -1:], attention_mask=batch["attention_mask"], cache=cache)
    close(found.logits[:, -1], expected[[0, 1, 0]])
    cache.reset()
    assert memory_of(cache).places is None


def test_a_static_cache_decodes_in_one_graph(model, processor):
    batch = ask(processor, "one", "several", "none")
    options = {"max_new_tokens": 5, "do_sample": False}
    expected = model.generate(**batch, **options)
    compiled = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    found = model.generate(**batch, **options, cache_implementation="static", compile_config=compiled)
    assert torch.equal(found, expected)


# Training


def learn(processor, *names):
    batch = ask(processor, *names)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["input_ids"] == processor.audio_token_id, -100)}


def gradients(model, *batches):
    model.zero_grad(set_to_none=True)
    torch.autograd.backward(sum(model(**batch).loss for batch in batches))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@needs_transformers(23, "it recomputes a layer's hooks, and the model says so")
@pytest.mark.parametrize("frozen", ["none", "all"], ids=["projector trains", "projector frozen"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, frozen, spec, processor):
    model = opened(spec, f"projector.0.freeze={frozen}", "llm.lora={target_modules: [q_proj]}").train()
    batch = learn(processor, "one", "several", "none")
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    same(gradients(model, batch), expected)
    assert len(expected) == sum(p.requires_grad for p in model.parameters())


def test_gradient_checkpointing_holds_fewer_tensors(spec, processor):
    model, batch = opened(spec).train(), learn(processor, "long")
    kept = []
    for _ in range(2):
        count = [0]

        def note(x, count=count):
            count[0] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            model(**batch)
        kept.append(count[0])
        model.gradient_checkpointing_enable()
    assert kept[1] < 0.7 * kept[0]


def test_two_forwards_before_a_backward(spec, processor):
    model = opened(spec).train()
    first, second = learn(processor, "one"), learn(processor, "several", "last")
    parts = [gradients(model, first), gradients(model, second)]
    same(gradients(model, first, second), {name: parts[0][name] + parts[1][name] for name in parts[0]})


class Recomputed(torch.nn.Module):
    """A layer with its hooks inside what the backward pass computes again."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, **kwargs):
        return checkpoint(lambda x: self.layer(x, **kwargs), x, use_reentrant=True)


def test_a_layer_recomputed_with_its_hooks_is_an_error(spec, processor):
    model = opened(spec).train()
    layers = model.model.language_model.layers
    layers[1] = Recomputed(layers[1])
    with pytest.raises(RuntimeError, match="recomputed in the backward pass, where its audio is gone"):
        gradients(model, learn(processor, "one"))


def test_text_alone_touches_every_part_that_trains_and_moves_none(spec, processor):
    model = opened(spec).train()
    found = gradients(model, learn(processor, "none"))
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())


def test_training_opens_the_gates_beside_a_frozen_language_model(spec, processor):
    model = build_model(spec).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**learn(processor, "one", "several")).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert losses[-1] < losses[0]
    assert {f"model.cross_attention.blocks.{i}.attention_gate" for i in (0, 1)} <= moved
    assert any(name.startswith("model.projector.") for name in moved)
    assert all(name.startswith(("model.projector.", "model.cross_attention.")) for name in moved)


def test_lora_inside_the_language_model_trains_too(spec, processor):
    found = gradients(opened(spec, "llm.lora={target_modules: [v_proj]}").train(), learn(processor, "one"))
    assert any("lora_A" in name for name in found)
    assert any("cross_attention" in name for name in found)


@pytest.mark.parametrize("names", [["one", "several", "none"], ["none"]])
def test_forward_compiles_without_a_break(names, model, processor):
    batch = ask(processor, *names)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True, backend="eager")(**batch).logits
    close(found, logits(model, batch))


@pytest.mark.parametrize("names", [["one", "several"], ["none"]])
def test_training_compiles_without_a_break(names, spec, processor):
    model = opened(spec).train()
    batch = learn(processor, *names)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        found = torch.compile(model, fullgraph=True, backend="eager")(**batch).loss
    torch.testing.assert_close(found, model(**batch).loss)


# A part of the model


def test_blocks_stand_in_float32_beside_a_language_model_in_bfloat16(spec, processor):
    model = opened(spec, "llm.dtype=bfloat16")
    dtypes = {name: p.dtype for name, p in model.model.named_parameters()}
    assert {d for n, d in dtypes.items() if n.startswith("language_model.")} == {torch.bfloat16}
    assert {d for n, d in dtypes.items() if n.startswith("cross_attention.")} == {torch.float32}
    assert logits(model, ask(processor, "one", "none")).isfinite().all()
    assert build_model(spec, "llm.injection.dtype=bfloat16").model.cross_attention.blocks[0].query.weight.dtype == (
        torch.bfloat16
    )


def test_a_delta_holds_the_blocks_and_gives_them_back(spec, processor, tmp_path):
    model = nudge(build_model(spec))
    model.save_pretrained(tmp_path / "delta")
    again = UsamForConditionalGeneration.from_pretrained(tmp_path / "delta")
    batch = ask(processor, "several", "none")
    assert model.config.delta
    assert torch.equal(logits(again, batch), logits(model, batch))
    processor.save_pretrained(tmp_path / "delta")
    merged = export(tmp_path / "delta", tmp_path / "whole")
    assert not merged.config.delta
    close(logits(UsamForConditionalGeneration.from_pretrained(tmp_path / "whole"), batch), logits(model, batch))
    frozen = UsamForConditionalGeneration.from_pretrained(tmp_path / "delta", "llm.injection.freeze=all")
    assert not any(p.requires_grad for p in frozen.model.cross_attention.parameters())
    assert torch.equal(logits(frozen, batch), logits(model, batch))


def test_a_next_stage_may_bring_cross_attention(spec, tmp_path):
    nudge(build_model(spec, "llm.injection=prefix")).save_pretrained(tmp_path)
    model = UsamForConditionalGeneration.from_pretrained(tmp_path, {"llm": {"injection": INJECTION}})
    assert not any(block.attention_gate.any() for block in model.model.cross_attention.blocks)
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_copy_of_a_model_has_blocks_of_its_own(model, processor):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for block in twin.model.cross_attention.blocks:
            block.reset_parameters()
    batch = ask(processor, "one")
    found = logits(twin, batch)
    assert not torch.equal(found, logits(model, batch))
    twin.model.cross_attention.blocks[0].attention_gate.data.fill_(0.5)
    assert not torch.equal(logits(twin, batch), found)


def test_blocks_have_a_learning_rate_of_their_own(spec):
    model = build_model(spec, "llm.injection.lr_scale=0.1")
    scales = {parameter: group.lr_scale for parameter, group in grouped(model, {}).items()}
    assert {scales[id(p)] for p in model.model.cross_attention.parameters()} == {0.1}
    assert not any(id(p) in scales for p in model.model.projector.parameters())


def test_blocks_are_neither_quantised_nor_split(spec):
    assert "model.cross_attention" in NOT_QUANTISED
    assert GatedBlock.__name__ in build_model(spec, weights=False)._no_split_modules


def test_every_so_many_layers(spec):
    spec = load_spec(spec, "llm.injection.every=2")
    blocks = outline(build_model(spec).config).model.cross_attention
    assert (blocks.before, len(blocks.blocks)) == ([1], 1)


def test_show_has_a_row_for_the_blocks():
    spec = tiny("llm.injection=cross_attention")
    row = next(row for row in table(spec) if row.part == "llm.injection")
    # a block: query and output 32 x 512, keys and values 32 x 1024, feed-forward 2 x 32 x 128, three norms, two gates
    assert row.parameters == row.trainable == 2 * (2 * 32 * 512 + 32 * 1024 + 2 * 32 * 128 + 3 * 64 + 2)
    assert (row.type, row.width) == ("cross_attention (2)", "32 -> 32")
    assert tokens_line(spec).endswith("beside the text, where a clip is one token")
