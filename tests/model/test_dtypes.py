"""A part has the dtype that its options name, at any place, and takes what its neighbours give."""

import pytest
import torch
from conftest import noise

from usam import UsamProcessor, build_model

SIZES = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
SPEC = {
    "encoders": {
        "whisper": {"arch": {**SIZES, "max_source_positions": 50}, "freeze": "none"},
        "ced": {"arch": {"embed_dim": 16, "depth": 1, "num_heads": 2}},
    },
    "fusion": {"type": "sum", "layer_norm": True},
    "projector": ["linear"],
    "llm": {"type": "tiny", "dim": 16, "layers": 1, "heads": 2},
}
STAGES = {
    "conv": {},
    "linear": {"hidden": 8},
    "mlp": {"layer_norm": True},
    "moe": {"hidden": 8},
    "perceiver": {"heads": 2, "head_dim": 4, "latents": 2},
    "pool": {"layer_norm": True, "linear": True},
    "window_qformer": {"dim": 16, "heads": 2, "positions": True},
}
LOSSES = {
    "cross_entropy": {},
    "ctc": {},
    "info_nce": {"dim": 4},
    "load_balance": {},
    "router_z": {},
    "semantic_contrastive": {"hidden": 4, "queue": 2},
    "sigmoid_contrastive": {"dim": 4},
}


def step(*overrides):
    """The loss of one training step, and the model."""
    model, processor = build_model(SPEC, *overrides, weights=False, seed=0), UsamProcessor.from_spec(SPEC, *overrides)
    text = [
        processor.render(
            [
                {
                    "role": "user",
                    "content": [{"type": "audio", "audio": noise(1, i)}, {"type": "text", "text": "Say it."}],
                },
                {"role": "assistant", "content": f"{i}"},
            ]
        )
        for i in range(2)
    ]
    loss = model.train()(**processor.encode(text, labels=True)).loss
    loss.backward()
    return loss, model


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_at_any_place(stage, place):
    other = {"type": "mlp", "dim": 8}
    own = {"type": stage, **STAGES[stage], "dtype": "bfloat16"}
    loss, model = step({"projector": [own, other] if place == 0 else [other, own]})
    assert loss.isfinite()
    assert {p.dtype for p in model.model.projector.stages[place].parameters()} == {torch.bfloat16}


def test_a_mixture_without_a_router():
    assert step("projector=[{type: moe, experts: 1, dtype: bfloat16}]")[0].isfinite()
    assert step("projector=[{type: moe, experts: 2, gates: [0.2, 0.8], dtype: bfloat16}]")[0].isfinite()


@pytest.mark.parametrize(
    "fusion", [{"type": "sum"}, {"type": "sum", "layer_norm": True}, {"type": "concat", "layer_norm": True}]
)
def test_a_fusion(fusion):
    loss, model = step({"fusion": {**fusion, "dtype": "bfloat16"}})
    assert loss.isfinite()
    assert {p.dtype for p in model.model.fusion.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss(name):
    loss, _ = step({"projector": ["moe"], "losses": {name: {"type": name, **LOSSES[name], "dtype": "bfloat16"}}})
    assert loss.isfinite()


@pytest.mark.parametrize("part", ["encoders.whisper", "encoders.ced", "llm"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_encoder_or_a_language_model(part, dtype):
    assert step(f"{part}.dtype={dtype}")[0].isfinite()


def test_cross_attention():
    assert step("llm.injection={type: cross_attention, dtype: bfloat16, heads: 2, head_dim: 4}")[0].isfinite()
