"""A fusion that reads the prompt, inside a model: it hears its own sample's, and everything around it knows."""

import pytest
import torch
import toys  # noqa: F401  registers the toy components
from conftest import noise, randomize

from usam import ComponentError, SpecError, UsamProcessor, build_fusion, build_model, fusions
from usam.model.checkpoint import export, load
from usam.model.inputs import audio_of
from usam.training.routing import Routing
from usam.types import Frames

SPEC = {
    "encoders": {"toy": {}, "other": {"type": "toy"}},
    "fusion": {"type": "pam", "rate": 25, "dim": 10, "router_hidden": 5},
    "projector": "linear",
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
    "prompts": {"asr": "Transcribe this audio.", "aac": "What do you hear?"},
}


def chat(prompt, seconds=(0.4,), answer=None):
    content = [{"type": "audio", "audio": noise(s, seed=i)} for i, s in enumerate(seconds)]
    asked = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def model():
    return randomize(build_model(SPEC))


@pytest.fixture(scope="module")
def processor(model):
    return UsamProcessor.from_spec(model.config.parsed)


def asked(processor, *chats, **options):
    return dict(processor.apply_chat_template(list(chats), tokenize=True, add_generation_prompt=True, **options))


def gates(model, batch):
    return model(**batch).aux["fusion.router_probs"]


def test_each_clip_is_fused_by_its_own_samples_prompt(model, processor):
    one, other = (asked(processor, chat(prompt)) for prompt in ("Who?", "Transcribe this audio."))
    both = asked(processor, chat("Who?", (0.4, 0.6)), chat("Transcribe this audio."))
    found = gates(model, both)
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], gates(model, one)[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], gates(model, other)[0], rtol=0, atol=1e-6)
    assert (found[0] - found[2]).abs().max() > 1e-3


def test_without_a_prompt_mask_it_says_who_needs_it(model, processor):
    batch = asked(processor, chat("Who?"))
    del batch["prompt_mask"]
    with pytest.raises(ValueError, match=r"PaM reads the prompt: pass 'prompt_mask'.*usam export --task"):
        model(**batch)
    with pytest.raises(ValueError, match="PaM reads the prompt"):
        model.get_audio_features(batch["input_values"])


def test_it_generates_alone_as_in_a_batch(model, processor):
    chats = [chat("Who?"), chat("Transcribe this audio.", (0.9,))]
    options = {"max_new_tokens": 4, "do_sample": False}
    both = model.generate(**asked(processor, *chats), **options)[:, -4:]
    alone = [model.generate(**asked(processor, each), **options)[0, -4:] for each in chats]
    assert both.tolist() == [row.tolist() for row in alone]


def test_gates_are_logged_by_task(model, processor):
    routing = Routing()
    routing.add(
        ["asr", "aac"], model(**asked(processor, chat("Transcribe this audio."), chat("What do you hear?"))).aux
    )
    logs = routing.means()
    assert set(logs) == {
        f"router/{task}/{what}" for task in ("asr", "aac") for what in ("expert0", "expert1", "entropy")
    }
    assert logs["router/asr/expert0"] + logs["router/asr/expert1"] == pytest.approx(1)


def test_a_loss_of_routers_and_a_further_mixture_are_told_apart(processor):
    spec = {**SPEC, "projector": [{"type": "moe", "hidden": 0}], "losses": {"cross_entropy": {}, "load_balance": {}}}
    model = build_model(spec)
    batch = asked(processor, chat("Who?", answer="a"), return_labels=True)
    output = model(**batch)
    assert output.losses["load_balance"] > 0
    routing = Routing()
    routing.add([None], output.aux)
    assert {name.split("/")[0] for name in routing.means()} == {"router0", "router_fusion"}


def test_frames_from_a_cache_are_fused_by_the_prompt_too(model, processor):
    batch = asked(processor, chat("Who?"))
    values, mask = batch["input_values"], batch["input_values_mask"].bool()
    audio = audio_of(values, mask, None, model.config.parsed)
    given = {}
    for name, encoder in model.model.encoders.parts():
        heard = audio.at(encoder.config.sample_rate)
        frames = encoder(heard.x, heard.mask)
        given[name] = (frames.x.detach(), frames.mask)
    torch.testing.assert_close(model(**batch, audio_frames=given).logits, model(**batch).logits)


def test_a_batch_without_audio_reaches_every_part_that_trains():
    model = build_model(SPEC).train()
    text = UsamProcessor.from_spec(model.config.parsed).apply_chat_template(
        [[{"role": "user", "content": "hm"}, {"role": "assistant", "content": "a"}]], tokenize=True, return_labels=True
    )
    model(**text).loss.backward()
    assert all(p.grad is not None for p in model.model.fusion.parameters())


def test_an_export_for_a_task_has_fixed_gates(model, processor, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "whole", task="asr")
    whole = load(tmp_path / "whole")
    batch = asked(processor, chat("Transcribe this audio."))
    expected = model(**batch).logits
    assert len(whole.config.parsed.fusion.gates) == 2
    torch.testing.assert_close(whole(**{**batch, "prompt_mask": None}).logits, expected, rtol=0, atol=1e-5)


def test_an_export_of_what_reads_no_prompt_names_the_fusion(tmp_path):
    plain = build_model(SPEC, "fusion={type: concat, rate: 25}")
    plain.save_pretrained(tmp_path / "model")
    with pytest.raises(SpecError, match=r"nor does the fusion \(concat\); export without --task"):
        export(tmp_path / "model", tmp_path / "whole", task="asr")


def test_an_export_of_a_fusion_that_cannot_be_fixed_says_so(tmp_path):
    build_model(SPEC, "fusion={type: toy_reader, rate: 25}").save_pretrained(tmp_path / "model")
    with pytest.raises(ComponentError, match="fusion 'toy_reader' reads the prompt in a way that cannot be fixed"):
        export(tmp_path / "model", tmp_path / "whole", task="asr")


def test_a_wrong_option_is_an_error_at_its_place():
    with pytest.raises(SpecError, match=r"^fusion: 3 gates for 2 encoders \(other, toy\): write one for each"):
        build_model(SPEC, "fusion.gates=[1, 1, 1]")


@fusions.register("toy_reader")
class Reader(fusions.Fusion):
    """Adds what the prompt says; its map of the prompt has a dtype of its own."""

    reads_prompt = True

    def __init__(self, config, *, dims, prompt_dim):
        super().__init__(config, dims=dims)
        self.dim = sum(dims.values())
        self.map = torch.nn.Linear(prompt_dim, self.dim)

    def forward(self, streams, audio, prompt):
        aligned, mask, rate = self.align(streams, audio)
        word = self.map((prompt.x * prompt.mask.unsqueeze(-1)).sum(1))
        return Frames(torch.cat(aligned, -1) + word.unsqueeze(1), mask, rate)


def test_a_prompt_comes_in_the_dtype_of_the_fusions_weights(processor):
    model = build_model({**SPEC, "fusion": {"type": "toy_reader", "rate": 25}})
    model.model.fusion.to(torch.bfloat16)
    assert model(**asked(processor, chat("Who?"))).logits.isfinite().all()


def test_a_fusion_outside_a_spec_takes_the_prompts_width():
    assert build_fusion("pam", dims={"a": 3, "b": 4}, prompt_dim=9).router.map[0].in_features == 9
