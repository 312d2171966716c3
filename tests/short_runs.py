"""A run small enough to be made often, and what it logged."""

import json

SMALL = [
    "model.encoders.whisper.arch={d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 16, "
    "num_mel_bins: 80, max_source_positions: 50}",
    "model.llm.dim=16",
    "model.llm.layers=1",
    "model.llm.heads=2",
]


def logged(folder):
    """What a run logged, without its times."""
    lines = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [{k: v for k, v in line.items() if "runtime" not in k and "per_second" not in k} for line in lines]
