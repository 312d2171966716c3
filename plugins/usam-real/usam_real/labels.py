"""What the real Whisper hears in clips that nobody has transcribed, and how sure it is of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import soxr

from usam.data.world.numerals import english

RATE = 16000


class Labeller:
    """Whisper whole, its decoder too, through transformers; greedy.

    Args:
        folder: as `fetch` made it.

    Raises:
        FileNotFoundError: it is not there.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: no Whisper is there; run `python -m usam_real fetch` first")
        import torch
        from transformers import WhisperForConditionalGeneration, WhisperProcessor
        from transformers.utils import logging

        torch.set_num_threads(1)
        logging.set_verbosity_error()  # it warns of its own options
        logging.disable_progress_bar()
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.processor = WhisperProcessor.from_pretrained(folder)

    def label(self, files: Sequence[Path]) -> list[tuple[str, float]]:
        """Of each clip the words, and the mean log probability of their tokens."""
        import torch

        waves = []
        for file in files:
            wave, rate = soundfile.read(file, dtype="float32", always_2d=True)
            waves.append(soxr.resample(wave.mean(1), rate, RATE))
        mel = self.processor.feature_extractor(waves, sampling_rate=RATE, return_tensors="pt").input_features
        with torch.no_grad():
            found = self.model.generate(mel, max_new_tokens=100, return_dict_in_generate=True, output_scores=True)
        logs = self.model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
        tokens = found.sequences[:, -logs.shape[1] :]
        end = self.model.generation_config.eos_token_id
        labels = []
        for own, log in zip(tokens, logs, strict=True):
            count = int((own == end).cumsum(0).eq(0).sum()) + 1  # the first end is said, those after it fill up
            text = self.processor.tokenizer.decode(own, skip_special_tokens=True).strip()
            labels.append((text, float(log[:count].mean())))
        return labels


def is_sure(text: str, log: float, least: float) -> bool:
    """Whether a label is to be trusted: Whisper was sure, and said words, without brackets or digits."""
    return log >= least and re.search("[A-Za-z]", text) is not None and re.search(r"[\d\[\]()*♪]", text) is None


def worded(text: str) -> str:
    """Whole numbers below a hundred that stand alone, in words, as the other labels have them: "Press 1." is press one.

    Whatever else has digits is left as it is: 1-4, 3D, 2.5, 19th.
    """
    return re.sub(r"(?<![\w.,:/$-])\d{1,2}(?![\w:/%-]|[.,]\d)", lambda number: english(int(number[0])), text)
