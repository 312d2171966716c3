"""An ablation small enough to be run, and one whose runs are written by hand."""

import json

from conftest import write_run

from usam.evaluation.grid import read_ablation
from usam.evaluation.identity import identity, made_of

RUN = """
model:
  base: tiny
  encoders:
    whisper: {arch: {d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 16,
              num_mel_bins: 80, max_source_positions: 50}}
  llm: {dim: 16, layers: 1, heads: 2}
  prompts: {aac: Describe this.}
data: {train: train.jsonl, eval: train.jsonl}
train: {per_device_train_batch_size: 4, learning_rate: 1e-2, use_cpu: true, save_steps: 1, disable_tqdm: true}
eval: {generate: {metrics: [cer], max_new_tokens: 4}, canary: false}
"""
VARIED = """
base: run.yaml
vary: {mlp: model.projector.0.type=mlp}
budget: {steps: 2}
metrics: [wer]
output: out
"""


def write_grid(folder, text=VARIED):
    """Eight clips, a run over them, and an ablation of it."""
    write_run(folder)
    (folder / "run.yaml").write_text(RUN)
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def pretend(cell, answers, *, loss=1.0, steps=2, runtime=3.0, begun=0, extra=None, **record):
    """What a run leaves that is done: (prediction, reference) of each held-out row, all with these columns."""
    parts = made_of(cell)
    (cell.folder / "predictions").mkdir(parents=True)
    (cell.folder / "config.json").write_text("{}")
    about = {"identity": identity(parts), "made_of": parts, "from": begun, **record}
    (cell.folder / "ablation.json").write_text(json.dumps(about))
    log = [
        {"step": steps, "train_runtime": runtime},
        {"step": steps, "eval_loss": 2 * loss, "eval_loss_cross_entropy": loss},
    ]
    (cell.folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": log}))
    lines = [
        {"id": i, "task": task[0] if task else None, "prediction": said, "references": [right], "extra": extra or {}}
        for i, (said, right, *task) in enumerate(answers)
    ]
    (cell.folder / "predictions" / f"step-{steps}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def ablation_of(folder, text=VARIED):
    return read_ablation(write_grid(folder, text))
