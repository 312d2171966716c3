"""Harnesses of others, which usam's encoders and models can enter: each file imports its own when it is used."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """What lmms-eval finds under the entry points `lmms_eval.models`: `--model usam`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="usam", simple_class_path="usam.harnesses.lmms_eval.Usam")
