"""Harnesses of others, which usam's encoders and models can enter: each file imports its own when it is used."""

from __future__ import annotations

from typing import Any


def lmms_eval_models() -> Any:
    """What lmms-eval finds under the entry points `lmms_eval.models`: `--model usam`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="usam", simple_class_path="usam.harnesses.lmms_eval.Usam")


def vllm_models() -> None:
    """What vLLM finds under the entry points `vllm.general_plugins`, and calls in each of its processes.

    It says where the class is, which is imported when a model of usam is served; and `import usam` lets transformers'
    AutoConfig know its models.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model(
        "UsamForConditionalGeneration", "usam.harnesses.vllm:TransformersMultiModalForCausalLM"
    )
