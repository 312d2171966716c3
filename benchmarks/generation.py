"""Answers to clips of mixed length: sorted by length against as they come.

Clips of 0.5 to 30 s, log-normal around 6 s, and answers of three tokens for each second of a clip, as transcripts are.
Random weights; a Whisper-shaped encoder that hears clips alone (`context: clip`), and a language model of 15M. Time is
the processor's; both in turn, medians. `--quick` takes fewer clips.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from _record import record

from usam import UsamProcessor, build_model
from usam.generate import Answerer

MEDIAN, SIGMA, BATCH, WORDS = 6.0, 0.8, 8, 3
CLIPS, ROUNDS = (16, 1) if "--quick" in sys.argv else (96, 3)
ARCH = {"d_model": 256, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 1024, "num_mel_bins": 80}
SPEC = {
    "encoders": {"whisper": {"arch": {**ARCH, "max_source_positions": 1500}, "context": "clip"}},
    "projector": {"type": "linear", "stack": 4},
    "llm": {"type": "tiny", "dim": 384, "layers": 8, "heads": 6},
    "prompts": {"asr": "Transcribe this audio."},
}
BOUND = 1.3


class Until:
    """Ends the answer of each row of a batch where its clip's transcript would: rows are told by their clips."""

    def __init__(self) -> None:
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.prompt = 0

    def before(self, _: Any, args: Any, given: dict[str, Any]) -> None:
        """Look at the clips of the prefill."""
        if given.get("input_values") is not None:
            seconds = given["input_values_mask"].sum(-1) / 16000
            self.lengths = (WORDS * seconds).long().clamp_min(3)
            self.prompt = given["input_ids"].shape[1]

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return ids.shape[1] - self.prompt >= self.lengths


def main() -> None:
    """Both orders in turn."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_model(SPEC, seed=0).eval()
    answerer = Answerer(model, UsamProcessor.from_spec(model.config.parsed))
    model.generation_config.eos_token_id = None  # random weights would end anywhere
    until = Until()
    model.model.register_forward_pre_hook(until.before, with_kwargs=True)
    draw = np.random.default_rng(0)
    seconds = draw.lognormal(np.log(MEDIAN), SIGMA, CLIPS).clip(0.5, 30)
    clips = [draw.normal(0, 0.1, round(s * 16000)).astype(np.float32) for s in seconds]
    chats = [answerer.ask(clip, task="asr") for clip in clips]
    options = {"batch_size": BATCH, "max_new_tokens": 100, "stopping_criteria": [until]}
    times: dict[str, list[float]] = {"sorted": [], "as they come": []}
    for _ in range(ROUNDS):
        for name, ahead in (("sorted", {}), ("as they come", {"ahead": 1})):
            start = time.process_time()
            given = list(answerer.answer(chats, **options, **ahead))
            times[name].append(time.process_time() - start)
            assert len(given) == CLIPS
    ratio = statistics.median(times["as they come"]) / statistics.median(times["sorted"])
    what = f"time of {CLIPS} answers to clips as they come, over sorted by length, batches of {BATCH}"
    row = {"what": what, "measured": f"{ratio:.2f}", "bound": f"at least {BOUND}", "ok": ratio >= BOUND}
    record(__file__, [row], {"seconds": seconds.tolist(), "times": times})


if __name__ == "__main__":
    main()
