"""Memory of `usam show` for a model of ten billion parameters, whose architectures are given as dicts."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from _record import record

# Whisper-large-v2's encoder, and Llama 3.1's widths with 40 layers.
SPEC = {
    "encoders": {
        "whisper": {
            "arch": {
                "d_model": 1280,
                "encoder_layers": 32,
                "encoder_attention_heads": 20,
                "encoder_ffn_dim": 5120,
                "num_mel_bins": 80,
                "max_source_positions": 1500,
            }
        }
    },
    "projector": {"type": "linear", "stack": 5, "hidden": 2048},
    "llm": {
        "type": "transformers",
        "arch": {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
        "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    },
}


def main() -> None:
    """The peak resident memory of the one child process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "big.yaml"
        file.write_text(yaml.safe_dump(SPEC))
        command = [sys.executable, "-m", "usam.cli", "show", str(file)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    total = int(re.search(r"total +([\d,]+)", shown)[1].replace(",", ""))  # type: ignore[index]
    assert total > 9.9e9, total
    row = {
        "what": f"`usam show` of a {total / 1e9:.1f}-billion-parameter spec, peak memory",
        "measured": f"{gigabytes:.2f} GB",
        "bound": "1.5 GB",
        "ok": gigabytes < 1.5,
    }
    record(__file__, [row], {"parameters": total, "peak_gb": gigabytes})


if __name__ == "__main__":
    main()
