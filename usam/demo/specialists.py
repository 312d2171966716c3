"""The specialists that come with this package: how they were trained; `python -m usam.demo.specialists` does it anew.

A specialist is the encoder of a model of its own, with a linear projector and a small language model, trained on its
own domain of the miniature world alone: Whisper's shape on speech, CED's on sounds, MERT's on music. The encoders
are kept, in half precision, and frozen in `mini_paper`, as the paper's are; and so is the language model of the one for
speech, with which `mini_paper` goes on, as the paper does with a pretrained one. The rest is thrown away. What is
chosen here was chosen on the development split.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import usam
from usam.data.world import write_world
from usam.demo.recipe import TRAIN, page
from usam.evaluation.ablate import ablate
from usam.evaluation.grid import read_ablation
from usam.model.checkpoint import read_usam_config
from usam.saving import whole, write_whole
from usam.spec.page import SpecError
from usam.weights import WEIGHTS, locate, read

CLIPS = 8000  # of each task, to train on
TASKS = {"whisper": ("asr", "s2tt"), "ced": ("aac",), "mert": ("mc",)}
EPOCHS = {"whisper": 4, "ced": 2, "mert": 2}
AUGMENT: dict[str, list[dict[str, Any]]] = {  # without it, voices that training does not have are heard badly
    "whisper": [
        {"type": "speed", "factors": [0.88, 0.94, 1.0, 1.06, 1.12]},
        {
            "type": "spec_augment",
            "frequency_masks": 1,
            "frequency_width": 12,
            "time_masks": 1,
            "time_width": 0.12,
            "p": 0.5,
        },
    ]
}
ASKED = {"asr": "Transcribe.", "s2tt": "Translate.", "aac": "Describe.", "mc": "Describe."}
SPECS: dict[str, dict[str, Any]] = {
    "whisper": {
        "context": "clip",
        "arch": {
            "d_model": 96,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 384,
            "num_mel_bins": 80,
            "max_source_positions": 150,
        },
    },
    "ced": {"bands": "concat", "arch": {"embed_dim": 64, "depth": 2, "num_heads": 4}},
    "mert": {
        "do_normalize": True,
        "arch": {
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "conv_dim": [16, 16, 32, 32, 32, 32, 32],
            "feat_extract_norm": "group",
            "do_stable_layer_norm": True,
            "conv_bias": False,
            "feat_proj_layer_norm": True,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "hidden_dropout": 0.0,
            "activation_dropout": 0.0,
            "attention_dropout": 0.0,
            "feat_proj_dropout": 0.0,
        },
    },
}
SPEAKS = "whisper"  # the specialist whose language model is kept
STACK = {"whisper": 4, "ced": 4, "mert": 6}  # frames that become one token of the language model


def train_specialists(
    folder: str | Path,
    output: str | Path = WEIGHTS,
    *,
    seed: int = 0,
    clips: int = CLIPS,
    epochs: Mapping[str, float] = EPOCHS,
    jobs: int | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Train every specialist, and keep the encoders in `output/mini_NAME`; stopped, the same call goes on.

    Args:
        folder: receives the world and the runs.
        output: receives the encoders.
        seed: of world and runs.
        clips: of each task.
        epochs: of each specialist.
        jobs: specialists trained at a time; by default as many as there are processors.
        say: told of progress.

    Raises:
        SpecError: a training failed, or the folder holds other runs.
        ImportError: eSpeak NG is not installed.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    world = write_world(folder / "world", train=clips, dev=100, test=0, seed=seed)
    file = folder / "specialists.yaml"
    write_whole(file, page(_grid(world, seed, epochs)))
    asked = read_ablation(file)
    failed = ablate(asked, jobs=jobs or min(len(SPECS), os.cpu_count() or 1), say=say)
    if failed:
        raise SpecError("\n".join(f"{cell.name}: {why}; see {cell.log}" for cell, why in failed.items()))
    for cell in asked.cells:
        how = {"tasks": TASKS[cell.variation.name], "clips": clips, "epochs": epochs[cell.variation.name], "seed": seed}
        keep(cell.folder, cell.variation.name, Path(output), how)


def keep(model: Path, name: str, output: Path, how: Mapping[str, Any]) -> None:
    """Write what is kept of a specialist, in half precision: its encoder, and of that for speech the language model."""
    spec, stored = read_usam_config(model).parsed.to_dict(), read(locate(str(model)))
    kept: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
        f"mini_{name}": ({"encoders": {name: spec["encoders"][name]}}, (f"model.encoders.{name}.",))
    }
    if name == SPEAKS:
        kept["mini_lm"] = ({"llm": spec["llm"]}, ("model.language_model.", "lm_head."))
    about = {"usam": usam.__version__, "torch": torch.__version__, **how}
    for folder, (part, prefixes) in kept.items():
        tensors = {key: tensor.half() for key, tensor in stored.items() if key.startswith(prefixes)}
        config = {"model_type": "usam", "spec": part, "trained": about}
        with whole(output / folder) as place:
            save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
            (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def run_of(name: str, train: Sequence[Path], epochs: float, dev: Sequence[Path] = ()) -> dict[str, Any]:
    """The run of one specialist, with its manifests."""
    model = {
        "usam": 1,
        "encoders": {name: {"freeze": "none", **SPECS[name]}},
        "fusion": {"type": "concat", "layer_norm": True},
        "projector": [{"type": "linear", "stack": STACK[name]}],
        "llm": {"type": "tiny", "dim": 96, "layers": 2, "heads": 4},
        "losses": {"cross_entropy": {}},
        "prompts": ASKED,
    }
    data: dict[str, Any] = {
        split: [str(file) for file in files] for split, files in (("train", train), ("eval", dev)) if files
    }
    data |= {"augment": AUGMENT[name]} if name in AUGMENT else {}
    more = {"warmup_steps": 200, "num_train_epochs": epochs}
    return {"model": model, "data": data, "train": {**TRAIN, **more}}


def _grid(world: Mapping[str, Mapping[str, Path]], seed: int, epochs: Mapping[str, float]) -> dict[str, Any]:
    """An ablation file whose variations are no variations, but models that are trained side by side."""
    runs = {}
    for name, tasks in TASKS.items():
        train, dev = ([world[split][task] for task in tasks] for split in ("train", "dev"))
        runs[name] = run_of(name, train, epochs[name], dev)
    base = runs["whisper"]
    for name in runs.keys() - {"whisper"}:  # what a variation does not take out of the base stays in it
        runs[name]["model"]["encoders"]["whisper"] = None
        runs[name]["data"]["augment"] = None
    return {"run": base, "grid": {"specialist": runs}, "seeds": [seed], "output": "runs"}


if __name__ == "__main__":
    train_specialists(sys.argv[1] if len(sys.argv) > 1 else "runs/specialists")
