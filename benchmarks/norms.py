"""The norm of projected audio beside that of the language model's embeddings, and what it is worth to match them.

At the start: every bundled spec with narrow parts and random weights, on clips of sounds and music; the figure is the
mean norm of the frames that come out of the projector over the mean norm of the rows of the token table. Widths cancel,
for all layers start with the variance of their inputs in mind. Then the run of the demo, or another (`--run`), with
three seeds, as it is and with `match_embeddings`: that figure after training, and the cross entropy on development
data.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from _record import record
from _runs import Study, mean

from usam import Spec, UsamProcessor, build_model, load_spec
from usam.data.collate import Collator
from usam.data.manifest import Manifest
from usam.data.world import PROMPTS, write_world
from usam.spec.spec import SPECS

ATTENTION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONVOLUTIONS = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
ENCODERS: dict[str, dict[str, Any]] = {  # narrow, by type or by model_type
    "whisper": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
                "max_source_positions": 150},
    "ced": {"embed_dim": 32, "depth": 2, "num_heads": 4},
    "beats": {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64, "encoder_attention_heads": 4,
              "embed_dim": 16, "conv_pos": 16, "conv_pos_groups": 4},
    "mert": {**ATTENTION, **CONVOLUTIONS},
    "wavlm": {**ATTENTION, **CONVOLUTIONS},
    "hubert": {**ATTENTION, **CONVOLUTIONS},
    "audio-spectrogram-transformer": ATTENTION,
    "clap_audio_model": {"patch_embeds_hidden_size": 8, "hidden_size": 64, "depths": [1, 1, 1, 1],
                         "num_attention_heads": [1, 2, 4, 8]},
}  # fmt: skip
STAGES: dict[str, dict[str, Any]] = {
    "window_qformer": {"dim": 64, "heads": 4, "intermediate": 128},
    "moe": {"hidden": 64, "router_hidden": 16},
    "mlp": {"hidden": 64},
}
MATCH = "match_embeddings=true"


def small(name: str) -> Spec:
    """A bundled spec with narrow parts, and no weights of others."""
    spec = load_spec(name)
    encoders = {}
    for key, encoder in spec.encoders.items():
        options = encoder.to_dict()
        kind = options.get("arch", {}).get("model_type", encoder.type)
        arch = {**options["arch"], **ENCODERS[kind]} if "arch" in options else ENCODERS[kind]
        encoders[key] = {"arch": arch, **({"path": None} if "path" in options else {})}
    stages = {str(i): STAGES[stage.type] for i, stage in enumerate(spec.projector) if stage.type in STAGES}
    llm: dict[str, Any] = {"type": "tiny", "dim": 64, "layers": 2, "heads": 4}
    if getattr(spec.llm, "path", None) and spec.llm.type == "tiny":
        llm["path"] = None
    if spec.beside:
        llm["injection"] = {"type": "cross_attention", "every": 1, "heads": 4, "head_dim": 16}
    return load_spec(name, {"encoders": encoders, "llm": llm, "prompts": PROMPTS}, {"projector": stages})


class Norms:
    """The norms of the frames that a model's projector gives, beside its token table's."""

    def __init__(self, model: Any) -> None:
        self.model, self.found = model, []
        self.hook = model.model.projector.register_forward_hook(self._seen)

    def _seen(self, _: Any, __: Any, frames: Any) -> None:
        self.found.append(frames.x[frames.mask].norm(dim=-1))

    @torch.no_grad()
    def ratio(self, batches: Iterable[dict[str, Any]]) -> float:
        """Mean norm of a frame over mean norm of an embedding."""
        for batch in batches:
            self.model(**batch)
        self.hook.remove()
        table = self.model.get_input_embeddings()
        rows = torch.arange(len(table.weight), device=table.weight.device)
        return float(torch.cat(self.found).mean() / table(rows).norm(dim=-1).mean())


def at_the_start(files: list[Path]) -> dict[str, float]:
    """Of every bundled spec in small; the geometric mean over seeds."""
    found = {}
    for name in sorted(file.stem for file in SPECS.rglob("*.yaml")):
        spec = small(name)
        processor = UsamProcessor.from_spec(spec)
        batch = dict(Collator(processor)(list(Manifest(files, processor.prompts))))
        ratios = [Norms(build_model(spec, seed=seed)).ratio([batch]) for seed in range(3)]
        found[name] = statistics.geometric_mean(ratios)
        print(f"{name}: {found[name]:.1f}", flush=True)
    return found


def after_training(study: Study, name: str, *overrides: str) -> list[dict[str, Any]]:
    """The figure at the start and at the end, and losses by task, of each seed."""
    found = []
    for seed in study.seeds:
        held_out = study.held_out(study.trained(name, seed, *overrides))
        batches = [inputs for _, inputs in held_out.batches()]
        spec = held_out.model.config.parsed
        start = Norms(build_model(spec, seed=seed)).ratio(batches[:4])
        losses = held_out.losses()
        found.append({"start": start, "end": Norms(held_out.model).ratio(batches), "losses": losses})
        print(name, seed, json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    """Both parts."""
    study = Study.asked(str(__doc__))
    with tempfile.TemporaryDirectory() as folder:
        world = write_world(Path(folder) / "world", train=4, dev=0, test=0, domains=("sounds", "music"))
        start = at_the_start(list(world["train"].values()))
    match = f"{study.place('last')}.{MATCH}"
    raw: dict[str, Any] = {
        "start": start,
        "seeds": study.seeds,
        "as it is": after_training(study, "base"),
        "matched": after_training(study, "matched", match),
    }
    rows = [row(f"`{name}` in small, at the start: norm of a frame over that of an embedding", f"{ratio:.1f}")
            for name, ratio in start.items()]  # fmt: skip
    for name in ("as it is", "matched"):
        seeds = f"mean of {len(study.seeds)} seeds"
        losses = [each["losses"] for each in raw[name]]
        tasks = ", ".join(f"{task} {statistics.mean(each[task] for each in losses):.3f}" for task in losses[0])
        own = ", ".join(f"{mean(each):.3f}" for each in losses)
        for when in ("start", "end"):
            value = statistics.geometric_mean(each[when] for each in raw[name])
            rows.append(row(f"a trained run, {name}: the same at the {when}, {seeds}", f"{value:.1f}"))
        what = f"a trained run, {name}: cross entropy on development data, {seeds}"
        rows.append(row(what, f"{statistics.mean(map(mean, losses)):.3f} (seeds {own}; {tasks})"))
    record(__file__, rows, raw)


def row(what: str, measured: str) -> dict[str, Any]:
    """A figure without a bound."""
    return {"what": what, "measured": measured, "bound": "-", "ok": True}


if __name__ == "__main__":
    main()
