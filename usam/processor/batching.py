"""Rows of tokens as one batch: the options of it, as transformers spells them, and its padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from usam.registry import did_you_mean
from usam.types import IGNORE

KNOWN_OPTIONS: dict[str, Any] = {
    "sampling_rate": None,
    "padding": True,
    "padding_side": "left",
    "return_tensors": "pt",
    "return_mm_token_type_ids": False,
    "return_text_replacement_offsets": False,
    "truncation": False,
    "max_length": None,
    "add_special_tokens": None,
    "return_attention_mask": True,
}


def options_of(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Options as transformers spells them: flat, or grouped under `text_kwargs`, `audio_kwargs`."""
    flat: dict[str, Any] = {}
    for key, value in kwargs.items():
        flat |= value if key in ("text_kwargs", "audio_kwargs", "common_kwargs") else {key: value}
    for key in flat:
        if key not in KNOWN_OPTIONS:
            raise TypeError(f"no option '{key}'; {did_you_mean(key, KNOWN_OPTIONS)}")
    if flat.get("truncation"):
        raise ValueError("truncation would cut audio out of the prompt; shorten the text, or the clips, instead")
    options = {**KNOWN_OPTIONS, **flat}
    if options["padding"] not in (True, False, "longest", "max_length", "do_not_pad"):
        raise ValueError(f"padding is True ('longest'), False or 'max_length', found {options['padding']!r}")
    if options["padding"] == "max_length" and options["max_length"] is None:
        raise ValueError("padding='max_length' needs 'max_length'")
    return options


def padded(rows: Mapping[str, Sequence[NDArray[Any]]], options: Mapping[str, Any], pad: int) -> dict[str, Any]:
    """Rows as one array each, or as they are, in what `return_tensors` asks for; `pad` fills up tokens."""
    if options["padding"] in (False, "do_not_pad"):
        return {name: [row.tolist() for row in own] for name, own in rows.items()}
    size = max(map(len, rows["input_ids"]))
    size = max(size, options["max_length"]) if options["padding"] == "max_length" else size
    fill = {"input_ids": pad, "labels": IGNORE}
    data: dict[str, Any] = {}
    for name, own in rows.items():
        data[name] = padded = np.full((len(own), size), fill.get(name, 0), own[0].dtype)
        for i, row in enumerate(own):
            padded[i, size - len(row) if options["padding_side"] == "left" else 0 :][: len(row)] = row
    if options["return_tensors"] == "pt":  # transformers would look at each of them
        return {name: torch.from_numpy(array) for name, array in data.items()}
    return data if options["return_tensors"] else {name: array.tolist() for name, array in data.items()}
