"""One hour of audio through each encoder: time for a second of audio, and memory, as clips grow.

Real front-ends, strides and windows; small widths, so that an hour fits a benchmark. One process a
measurement. Writes a plot beside the result.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

MINUTES = (1, 5, 15, 60)
HUBERT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "conv_dim": [32] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "whisper": {
        "arch": {
            "d_model": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 128,
            "num_mel_bins": 80,
            "max_source_positions": 1500,
        }
    },
    "beats": {
        "arch": {
            "encoder_layers": 2,
            "encoder_embed_dim": 64,
            "encoder_ffn_embed_dim": 128,
            "encoder_attention_heads": 2,
            "embed_dim": 32,
            "conv_pos": 16,
            "conv_pos_groups": 4,
            "deep_norm": True,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "num_buckets": 320,
            "max_distance": 800,
        }
    },
    "ced": {"arch": {"embed_dim": 64, "depth": 2, "num_heads": 1}},
    "mert": {"arch": {**HUBERT, "feat_extract_norm": "group"}, "do_normalize": False},
    "transformers": {"arch": {**HUBERT, "model_type": "wavlm", "feat_extract_norm": "group"}},
    "timm": {"arch": {"architecture": "vit_tiny_patch16_224", "embed_dim": 64, "depth": 2, "num_heads": 2}},
}


def measure(name: str, minutes: int) -> None:
    """Print the seconds of one run and the peak memory that it added."""
    import torch

    from usam import build_encoder

    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = build_encoder(name, **ENCODERS[name])
    rate = encoder.config.sample_rate
    with torch.inference_mode():
        short = torch.randn(1, 30 * rate) * 0.1
        encoder(short, torch.ones_like(short, dtype=torch.bool))  # caches, thread pools
        audio = torch.randn(1, minutes * 60 * rate) * 0.1
        mask = torch.ones_like(audio, dtype=torch.bool)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        frames = encoder(audio, mask)
        seconds = time.process_time() - start
    assert int(frames.mask.sum()) == encoder.config.length(audio.shape[1])
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(json.dumps({"seconds": seconds, "added_gb": added, "output_gb": frames.x.numel() * 4 / 2**30}))


def main() -> None:
    """Every encoder at every length."""
    from _record import record

    raw: dict[str, dict[int, Any]] = {}
    rows = []
    for name in ENCODERS:
        raw[name] = {}
        for minutes in MINUTES:
            command = [sys.executable, __file__, name, str(minutes)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            raw[name][minutes] = json.loads(done.stdout.splitlines()[-1])
        cost = {m: run["seconds"] / (60 * m) for m, run in raw[name].items()}
        growth, added = cost[60] / cost[5], raw[name][60]["added_gb"]
        rows.append(
            {
                "what": f"`{name}`: processor time of a second of audio, in one hour against in five minutes",
                "measured": f"{growth:.2f}",
                "bound": "1.3",
                "ok": growth < 1.3,
            }
        )
        rows.append(
            {
                "what": f"`{name}`: memory that one hour adds",
                "measured": f"{added:.2f} GB",
                "bound": "4 GB",
                "ok": added < 4,
            }
        )
    plot(raw)
    record(__file__, rows, raw)


def plot(raw: dict[str, dict[int, Any]]) -> None:
    """Time a second of audio, and memory, against the clip's length."""
    import matplotlib.pyplot as plt
    from _record import RESULTS

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, runs in raw.items():
        minutes = list(runs)
        left.plot(minutes, [1000 * runs[m]["seconds"] / (60 * m) for m in minutes], "o-", label=name)
        right.plot(minutes, [runs[m]["added_gb"] for m in minutes], "o-", label=name)
    left.set(xlabel="minutes of audio", ylabel="ms for a second of audio", ylim=(0, None), xscale="log")
    right.set(xlabel="minutes of audio", ylabel="memory added, GB", ylim=(0, None), xscale="log")
    for axes in (left, right):
        axes.set_xticks(MINUTES, [str(m) for m in MINUTES])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    right.legend(loc="upper left")
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "long_audio.png", dpi=120)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
